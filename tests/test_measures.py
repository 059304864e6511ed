"""The counters of workers, and the series that are made of samples."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbchannels import measures
from dbchannels.measures import (
    BOUNDS,
    DEAD,
    DONE,
    FAILED,
    MOST,
    OTHERS,
    RUNS,
    SIZE,
    TAKEN,
    WAITS,
    quantile,
    read_sample,
    summarize,
)
from dbchannels.worker.batch import Measures


def measured(*messages):
    """Return the counters after messages (channel, waited, outcome, ran)."""
    found = Measures()
    for channel, waited, outcome, ran in messages:
        found.started(channel, waited)
        found.ended(channel, outcome, ran)
    return found.copy()


def worker(moment, counts, seconds=10.0, source="w1"):
    return read_sample(source, measures.sample(moment, counts, seconds))


def site(moment, channels, **numbers):
    return read_sample("", measures.site_sample(moment, 0.001, {"channels": channels, **numbers}))


def test_there_are_few_buckets_and_their_bounds_grow():
    assert len(BOUNDS) < 16
    assert list(BOUNDS) == sorted(set(BOUNDS))
    assert (BOUNDS[0], BOUNDS[-1]) == (0.001, 600)


def test_each_message_is_counted_once_in_each_histogram():
    (numbers,) = measured(("own", 0.0, DONE, 0.001), ("own", 601, FAILED, 3), ("own", 0.3, DEAD, 7)).values()
    assert numbers[TAKEN] == 3
    assert [numbers[one] for one in (DONE, FAILED, DEAD)] == [1, 1, 1]
    assert sum(numbers[WAITS]) == sum(numbers[RUNS]) == 3
    assert numbers[WAITS][0] == numbers[WAITS][-1] == 1
    assert numbers[RUNS][0] == 1  # a bound belongs to its bucket


def test_what_two_workers_measure_adds_up():
    messages = [("own", 0.02, DONE, 0.1), ("own", 2, FAILED, 0.2), ("other", 5, DEAD, 9)]
    total = {}
    for one in messages:
        measures.add(total, measured(one))
    assert total == {
        name: [pytest.approx(one) for one in numbers] for name, numbers in measured(*messages).items()
    }


def test_the_difference_leaves_out_channels_on_which_nothing_happened():
    counters = Measures()
    counters.started("own", 0.0)
    before = counters.copy()
    counters.started("other", 0.0)
    assert list(measures.since(counters.copy(), before)) == ["other"]
    assert before["own"] == counters.copy()["own"]


def test_the_number_of_channels_is_bounded():
    counters = Measures()
    for number in range(MOST + 50):
        counters.started(f"user.{number}", 0.0)
        counters.ended(f"user.{number}", DONE, 0.0)
    counts = counters.copy()
    assert len(counts) == MOST + 1
    assert counts[OTHERS][TAKEN] == counts[OTHERS][DONE] == 50
    total = {}
    measures.add(total, counts)
    measures.add(total, {"another": [1] * SIZE})
    assert len(total) == MOST + 1
    assert total[OTHERS][TAKEN] == 51


@given(
    st.dictionaries(st.text(), st.lists(st.integers(0, 1 << 40), min_size=SIZE, max_size=SIZE), max_size=3),
    st.integers(0, 1 << 40),
)
def test_counters_survive_json(counts, moment):
    read = worker(moment, counts)
    assert (read["t"], read["counts"]) == (moment, counts)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "{}",
        "[]",
        "nonsense",
        '{"t": 1}',
        '{"t": "x", "counts": {}}',
        '{"t": 1, "counts": {"own": ["a"]}}',
        f'{{"t": 1, "counts": {{"own": {[0] * (SIZE + 1)}}}}}',
    ],
)
def test_samples_that_cannot_be_read_are_left_out(data):
    assert read_sample("w1", data) is None


def test_percentiles_are_at_most_a_bucket_away():
    drawn = random.Random(1)
    values = sorted(drawn.expovariate(5) for _ in range(2_000))
    (numbers,) = measured(*(("own", value, DONE, value) for value in values)).values()
    for q in (0.5, 0.95, 0.99):
        true = values[int(q * len(values))]
        bounds = (0.0, *BOUNDS)
        low = max(bound for bound in bounds if bound < true)
        assert low <= quantile(numbers[WAITS], q) <= bounds[bounds.index(low) + 1]


def test_percentiles_at_the_ends():
    assert quantile([0] * 16, 0.5) is None
    assert quantile([0] * 15 + [3], 0.5) == 600
    assert quantile([4] + [0] * 15, 0.5) == pytest.approx(0.0005)


def test_a_summary_has_rates_and_percentiles_of_each_channel_and_of_the_site():
    found = summarize(
        [
            site(100, {"own": [5, 1, 0, 2.5, 0]}, sockets=7, servers=1, workers=2),
            worker(110, measured(*[("own", 0.02, DONE, 0.2)] * 30)),
            worker(110, measured(*[("own", 0.02, FAILED, 0.2)] * 10), source="w2"),
            worker(110, measured(("http.request", 0.0, FAILED, 0.2)), source="w2"),
            site(110, {"own": [25, 1, 0, 9, 3], "http.request": [1, 0, 0, 0.1, 0]}, sockets=8),
        ]
    )
    json.dumps(found)
    assert found["moments"] == [100, 110]
    own = found["channels"]["own"]
    assert own["ready"] == [5, 25]
    assert own["dead"] == [0, 3]
    assert own["oldest"] == [2.5, 9]
    assert own["out"] == [0, pytest.approx(4)]
    assert own["failures"] == [0, pytest.approx(1)]
    assert own["in"] == [None, pytest.approx(3 + 2)]  # those that failed wait again
    assert own["wait_p50"][0] is None and 0.01 < own["wait_p50"][1] <= 0.025
    assert 0.1 < own["run_p95"][1] <= 0.25
    assert found["channels"]["http.request"]["in"] == [None, pytest.approx(0.2)]
    assert found["site"]["ready"] == [5, 26]
    assert found["site"]["oldest"] == [2.5, 9]
    assert found["site"]["in"] == [None, pytest.approx(5.2)]
    assert (found["site"]["sockets"], found["site"]["workers"]) == ([7, 8], [2, None])


def test_what_was_not_counted_is_not_known():
    found = summarize(
        [
            site(100, {"own": [5, 0, 0, 0, 0]}),
            worker(110, measured(("own", 0, DONE, 0))),
            site(120, {"own": [25, 0, 0, 0, 0]}),
            read_sample("", '{"t": 130, "took": 2.0}'),
        ]
    )
    own = found["channels"]["own"]
    assert own["ready"] == [5, None, 25, None]
    assert own["in"] == [None, None, pytest.approx(1), None]


def test_the_rate_in_is_never_negative():
    found = summarize([site(100, {"own": [50, 0, 0, 0, 0]}), site(110, {})])
    assert found["channels"]["own"]["in"] == [None, 0]


def test_a_sample_written_after_an_outage_is_spread_over_it():
    found = summarize([worker(700, measured(*[("own", 0, DONE, 0)] * 600), seconds=600)])
    assert found["channels"]["own"]["out"] == [pytest.approx(1)]


def test_no_samples_are_an_empty_summary():
    found = summarize([])
    assert (found["moments"], found["channels"]) == ([], {})
    assert found["site"]["ready"] == []


@pytest.mark.parametrize(
    ("source", "data"),
    [
        ("", '{"t": 100, "took": "long"}'),
        ("", '{"t": 100, "channels": {"own": ["3", 0, 0, 0, 0]}}'),
        ("", '{"t": 100, "channels": {"own": [NaN, 0, 0, 0, 0]}}'),
        ("", '{"t": 100, "channels": {"own": [1, 0, 0, 0, 0, 9]}}'),
        ("", '{"t": 100, "sockets": []}'),
        ("w", '{"t": 100, "counts": {}}'),
        ("w", '{"t": 100, "seconds": 10, "counts": {"own": [1e999]}}'),
        pytest.param("w", "[" * 100_000, id="w-deep"),
    ],
)
def test_one_sample_that_makes_no_sense_does_not_hide_the_others(source, data):
    assert read_sample(source, data) is None


def test_a_sample_may_know_less_than_today():
    short = read_sample("", '{"t": 100, "took": 0, "channels": {"own": [3]}}')
    assert summarize([short])["channels"]["own"]["dead"] == [0]
