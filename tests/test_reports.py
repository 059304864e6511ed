"""What a worker leaves for its parent: the counters, in a file without a name."""

from __future__ import annotations

import os
import time

import pytest

from dbchannels import measures
from dbchannels.measures import DONE, new_report, parse_report, read_report, total, write_report
from dbchannels.worker.batch import Measures
from dbchannels.worker.sampler import Report


@pytest.fixture
def descriptor():
    made = new_report()
    yield made
    os.close(made)


def some(number):
    found = Measures()
    for _ in range(number):
        found.started("own", 0.1)
        found.ended("own", DONE, 0.1)
    found.count("renewals")
    return found


def test_the_counters_of_all_threads_are_added_up(descriptor):
    report = Report(descriptor)
    report.add(some(2))
    report.add(some(3))
    report.write()
    counts, events = parse_report(read_report(descriptor))
    assert counts["own"][DONE] == 5
    assert events == {"renewals": 2}


def test_it_is_due_again_after_a_second(descriptor):
    report, counters = Report(descriptor), some(1)
    report.EVERY = 3600
    report.add(counters)
    assert report.due_at < time.monotonic()
    report.write()
    assert report.due_at > time.monotonic() + 600
    counters.started("own", 0.1)
    report.write()
    assert parse_report(read_report(descriptor))[0]["own"][measures.STARTED] == 2


def test_a_shorter_text_replaces_a_longer_one(descriptor):
    report, long = Report(descriptor), some(1)
    report.add(long)
    report.write()
    long.counts.clear()
    report.write()
    assert parse_report(read_report(descriptor)) == ({}, {"renewals": 1})


@pytest.mark.parametrize("damage", [b"", b"\0" * 8, b"\xff" * 8, b"\x04\0\0\0\0\0\0\0null"])
def test_what_is_not_a_report_is_not_read(descriptor, damage):
    os.pwrite(descriptor, damage, 0)
    assert read_report(descriptor) == b""
    assert parse_report(b"") == ({}, {})


def test_a_report_that_is_being_written_is_not_read(descriptor):
    report = Report(descriptor)
    report.add(some(1))
    report.write()
    os.pwrite(descriptor, b"x", 20)
    assert read_report(descriptor) == b""


@pytest.mark.parametrize(
    "data",
    [
        b"null",
        b"[]",
        b'{"a": "x"}',
        b'{}\n{"own": "x"}',
        b"{}\n[1]",
        b"{}\n",
        b"{}\n" + b"[" * 60_000,
        b"\xff",
    ],
)
def test_text_of_the_right_sum_that_is_no_report(descriptor, data):
    write_report(descriptor, data)
    assert read_report(descriptor) == data
    assert parse_report(data) == ({}, {})


def test_totals_never_go_down_when_a_worker_ends():
    first, second = (some(2).copy(), {"renewals": 1}), (some(3).copy(), {"outages": 1})
    counts, events = total([first, second])
    assert counts["own"][DONE] == 5
    assert events == {"renewals": 1, "outages": 1}
    assert first[0]["own"][DONE] == 2
