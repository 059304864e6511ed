"""The counters of workers."""

from __future__ import annotations

import random

import pytest

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
    STARTED,
    WAITS,
    quantile,
)
from dbchannels.worker.batch import Measures


def measured(*messages):
    """Return the counters after messages (channel, waited, outcome, ran)."""
    found = Measures()
    for channel, waited, outcome, ran in messages:
        found.started(channel, waited)
        found.ended(channel, outcome, ran)
    return found.copy()


def test_there_are_few_buckets_and_their_bounds_grow():
    assert len(BOUNDS) < 16
    assert list(BOUNDS) == sorted(set(BOUNDS))
    assert (BOUNDS[0], BOUNDS[-1]) == (0.001, 600)


def test_each_message_is_counted_once_in_each_histogram():
    (numbers,) = measured(("own", 0.0, DONE, 0.001), ("own", 601, FAILED, 3), ("own", 0.3, DEAD, 7)).values()
    assert numbers[STARTED] == 3
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
    assert counts[OTHERS][STARTED] == counts[OTHERS][DONE] == 50
    total = {}
    measures.add(total, counts)
    measures.add(total, {"another": [1] * SIZE})
    assert len(total) == MOST + 1
    assert total[OTHERS][STARTED] == 51


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
