"""Samples as text, and the series that are made of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbchannels import samples
from dbchannels.measures import DONE, FAILED, SIZE
from dbchannels.samples import LINE, average, read_sample, summarize
from tests.test_measures import measured


def worker(moment, counts, seconds=10.0, source="w1"):
    return read_sample(source, samples.sample(moment, counts, seconds))


def site(moment, channels, **numbers):
    return read_sample("", samples.site_sample(moment, 0.001, {"channels": channels, **numbers}))


@given(
    st.dictionaries(st.text(), st.lists(st.integers(0, 1 << 40), min_size=SIZE, max_size=SIZE), max_size=3),
    st.integers(0, 1 << 40),
)
def test_counters_survive_as_text(counts, moment):
    read = worker(moment, counts)
    assert (read["t"], read["channels"]) == (moment, counts)
    assert read["all"] == [sum(column) for column in zip([0] * SIZE, *counts.values(), strict=True)]


def test_no_line_is_longer_than_a_reader_expects():
    most = [1e14 + 0.123456] * SIZE  # more than any worker counts
    lines = samples.sample(1 << 40, {"c" * 100: most}, 1e9).split("\n")
    assert len(lines) == 2 and all(len(line) <= LINE for line in lines)
    site_lines = samples.site_sample(1 << 40, 1e9, {"channels": {"c" * 100: most[:5]}, "sockets": 1 << 40})
    assert all(len(line) <= LINE for line in site_lines.split("\n"))


def test_a_reader_gets_the_channels_that_it_names_alone():
    text = samples.sample(
        100, measured(("own", 0, DONE, 0), ("owner", 0, DONE, 0), ("other", 0, DONE, 0)), 10
    )
    assert set(read_sample("w1", text, ["own", "absent"])["channels"]) == {"own"}
    few = read_sample("w1", text.partition("\n")[0], ["own"])
    assert (few["channels"], few["all"][DONE]) == ({}, 3)


WORKER = '{"t": 100, "seconds": 10, "left": 0, "all": []}'


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("w", ""),
        ("w", "{}"),
        ("w", "[]"),
        ("w", "nonsense"),
        ("w", '{"t": 100, "seconds": 10, "left": 0}'),
        ("w", '{"t": 100, "seconds": 10, "all": []}'),
        ("w", WORKER.replace("100", '"x"')),
        ("w", WORKER.replace('"left": 0', '"left": [1]')),
        ("w", f'{WORKER}\n"own":["a"]'),
        ("w", f'{WORKER}\n"own":[1'),
        ("w", f'{WORKER}\n"own":[1e999]'),
        ("w", f'{WORKER}\n"own":{[0] * (SIZE + 1)}'),
        pytest.param("w", "[" * 100_000, id="w-deep"),
        ("", '{"t": 100, "took": "long"}'),
        ("", '{"t": 100, "all": []}\n"own":["3", 0, 0, 0, 0]'),
        ("", '{"t": 100, "all": []}\n"own":[NaN, 0, 0, 0, 0]'),
        ("", '{"t": 100, "all": [1, 0, 0, 0, 0, 9]}'),
        ("", '{"t": 100, "sockets": []}'),
    ],
)
def test_a_sample_that_makes_no_sense_does_not_hide_the_others(source, text):
    assert read_sample(source, text) is None


HOUR = [
    site(100, {"own": [5, 1, 0, 2.5, 0]}, sockets=7, servers=1, workers=2),
    worker(110, measured(*[("own", 0.02, DONE, 0.2)] * 30)),
    worker(110, measured(*[("own", 0.02, FAILED, 0.2)] * 10), source="w2"),
    worker(110, measured(("http.request", 0.0, FAILED, 0.2)), source="w3"),
    site(110, {"own": [25, 1, 0, 9, 3], "http.request": [1, 0, 0, 0.1, 0]}, sockets=8),
]


def test_a_summary_has_rates_and_percentiles_of_a_channel():
    found = summarize(HOUR, "own")
    json.dumps(found)
    own = found["values"]
    assert found["moments"] == [100, 110]
    assert own["ready"] == [5, 25]
    assert own["dead"] == [0, 3]
    assert own["oldest"] == [2.5, 9]
    assert own["out"] == [0, pytest.approx(4)]
    assert own["failures"] == [0, pytest.approx(1)]
    assert own["in"] == [None, pytest.approx(3 + 2)]  # those that failed wait again
    assert own["wait_p50"][0] is None and 0.01 < own["wait_p50"][1] <= 0.025
    assert 0.1 < own["run_p95"][1] <= 0.25
    assert "sockets" not in own
    assert summarize(HOUR, "http.request")["values"]["in"] == [None, pytest.approx(0.2)]


def test_a_summary_of_the_site_adds_up_all_channels():
    found = summarize(HOUR)["values"]
    assert found["ready"] == [5, 26]
    assert found["oldest"] == [2.5, 9]
    assert found["in"] == [None, pytest.approx(5.2)]
    assert found["out"] == [0, pytest.approx(4.1)]
    assert (found["sockets"], found["workers"]) == ([7, 8], [2, None])


def test_an_average_tells_of_the_whole_time():
    own = average(HOUR, "own")
    assert own["in"] == pytest.approx(5)
    assert own["out"] == pytest.approx(2)  # of twenty seconds
    assert 0.1 < own["run_p95"] <= 0.25
    assert average(HOUR, "none") == {**dict.fromkeys(own), "in": 0, "out": 0}
    assert average([], "own") == dict.fromkeys(own)


def test_what_was_not_counted_is_not_known():
    own = summarize(
        [
            site(100, {"own": [5, 0, 0, 0, 0]}),
            worker(110, measured(("own", 0, DONE, 0))),
            site(120, {"own": [25, 0, 0, 0, 0]}),
            read_sample("", samples.site_sample(130, 2.0, None)),
        ],
        "own",
    )["values"]
    assert own["ready"] == [5, None, 25, None]
    assert own["in"] == [None, None, pytest.approx(1), None]


def test_the_rate_in_is_never_negative():
    fallen = [site(100, {"own": [50, 0, 0, 0, 0]}), site(110, {})]
    assert summarize(fallen, "own")["values"]["in"] == [None, 0]
    assert average(fallen, "own")["in"] == 0


def test_a_sample_written_after_an_outage_is_spread_over_it():
    late = [worker(700, measured(*[("own", 0, DONE, 0)] * 600), seconds=600)]
    assert summarize(late, "own")["values"]["out"] == [pytest.approx(1)]


def test_no_samples_are_an_empty_summary():
    found = summarize([])
    assert (found["moments"], found["values"]["ready"]) == ([], [])


def test_a_sample_may_know_less_than_today():
    short = read_sample("", '{"t": 100, "took": 0, "all": [3]}\n"own":[3]')
    assert summarize([short], "own")["values"]["dead"] == [0]
