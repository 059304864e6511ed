"""Where a reader begins to look: never above what may still come, except for a second or so."""

from __future__ import annotations

import sys

import pytest

from dbchannels.layers.postgresql.statements import ScanHints

LAG, SHARE, WHOLE_EVERY = ScanHints.LAG, ScanHints.SHARE, ScanHints.WHOLE_EVERY


class Clock:
    """Stands still until it is moved."""

    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(sys.modules[ScanHints.__module__], "time", clock := Clock())
    monkeypatch.setattr(ScanHints, "COSTLY", 0.0)
    return clock


@pytest.fixture
def known(clock):
    """Hints that have seen id 7 of the queue ``a`` taken, and have just looked at the whole."""
    known = ScanHints()
    assert known.scan_from(["a", "b"], 1) == [0, 0]
    known.learn([("a", 5), ("b", 6), ("a", 7)], 0.0)
    for _ in range(2):
        clock.now += LAG
        assert known.scan_from(["a", "b"], 1) == [0, 0]
        known.learn([], 0.0)
    return known


def test_what_was_taken_is_not_looked_at_again_after_the_lag(known, clock):
    assert known.scan_from(["a", "b", "c"], 1) == [7, 6, 0]
    assert known.scan_from(["b"], 1) == [6]


def test_when_a_look_at_the_whole_costs_little_there_are_no_hints(known, clock, monkeypatch):
    monkeypatch.setattr(ScanHints, "COSTLY", 0.002)
    assert known.active
    clock.now += WHOLE_EVERY
    assert known.scan_from(["a"], 1) == [0]
    known.learn([], 0.001)
    assert not known.active
    known.learn([("a", 9)], 0.003)
    assert known.active
    assert known.scan_from(["a"], 1) == [0]


def test_what_was_taken_within_the_lag_is(known, clock):
    known.scan_from(["a"], 1)
    known.learn([("a", 9)], 0.0)
    clock.now += LAG * 0.9
    assert known.scan_from(["a"], 1) == [7]
    known.learn([], 0.0)
    clock.now += LAG * 0.1
    assert known.scan_from(["a"], 1) == [0]  # it is time for the whole
    known.learn([], 0.0)
    assert known.scan_from(["a"], 1) == [7]
    clock.now += LAG
    assert known.scan_from(["a"], 1) == [0]
    known.learn([], 0.0)
    assert known.scan_from(["a"], 1) == [9]


def test_the_whole_is_looked_at_every_second(known, clock):
    known.scan_from(["a"], 1)
    known.learn([], 0.0)
    clock.now += WHOLE_EVERY * 0.9
    assert known.scan_from(["a"], 1) == [7]
    known.learn([], 0.0)
    clock.now += WHOLE_EVERY * 0.1
    assert known.scan_from(["a"], 1) == [0]


def test_the_whole_takes_a_small_part_of_the_time_however_long_it_takes(known, clock):
    clock.now += WHOLE_EVERY
    assert known.scan_from(["a"], 1) == [0]
    clock.now += 0.5
    known.learn([], 0.5)
    clock.now += 0.5 * SHARE - 0.1
    assert known.scan_from(["a"], 1) == [7]
    known.learn([], 0.0)
    clock.now += 0.1
    assert known.scan_from(["a"], 1) == [0]


def test_what_was_committed_late_may_not_have_come_alone(known, clock):
    clock.now += WHOLE_EVERY
    known.scan_from(["a", "b"], 1)
    known.learn([("a", 3)], 0.0)
    assert known.scan_from(["a", "b"], 1) == [0, 6]
    for _ in range(2):
        clock.now += LAG
        known.scan_from(["a"], 1)
        known.learn([], 0.0)
    assert known.scan_from(["a"], 1) == [3]


def test_nothing_is_known_of_another_session(known):
    """After a crash of the database its ids start at 1 again."""
    assert known.scan_from(["a", "b"], 2) == [0, 0]
    known.learn([], 0.0)
    assert known.scan_from(["a", "b"], 2) == [0, 0]
