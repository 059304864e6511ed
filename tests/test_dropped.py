"""Messages that were dropped: one line at once, and then one a minute, with their number."""

from __future__ import annotations

import pytest

from dbchannels.layers.operations import Send
from dbchannels.worker import dropped
from dbchannels.worker.dropped import Dropped


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(dropped.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def told(caplog):
    """How many were told of in each line, and for which queue."""
    return lambda: [record.args for record in caplog.records]


def sends(*channels):
    return [Send(channel, b"", "", 60) for channel in channels]


def test_the_first_is_told_of_at_once_and_later_ones_together_a_minute_later(clock, told):
    one = Dropped()
    one.note(sends("reply.a!b"))
    assert told() == [(1, "reply.a!")]
    for _ in range(50):
        clock.now += 1
        one.note(sends("http.x", "reply.c!d"))
    assert told() == [(1, "reply.a!")]
    clock.now += 10
    one.note([])
    assert told() == [(1, "reply.a!"), (100, "http.x")]
    clock.now += 100
    one.note([])
    assert len(told()) == 2


def test_after_a_quiet_time_the_next_is_told_of_at_once(clock, told):
    one = Dropped()
    one.note(sends("reply.a!b"))
    clock.now += 3600
    one.note(sends("reply.c!d"))
    assert told() == [(1, "reply.a!"), (1, "reply.c!")]


def test_what_was_not_told_of_is_told_in_the_end(clock, told):
    one = Dropped()
    one.note(sends("reply.a!b"))
    one.note(sends("reply.a!b"))
    one.tell()
    one.tell()
    assert told() == [(1, "reply.a!"), (1, "reply.a!")]


def test_nothing_dropped_is_nothing_told(clock, told):
    one = Dropped()
    one.note([])
    one.tell()
    assert told() == []
