"""Periodic messages: when they come, that they come once, and what is said of an interval that cannot be."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone

import pytest

from dbchannels import exceptions, route
from dbchannels.routing.interval import Entry, parse_interval
from dbchannels.routing.table import Routing
from dbchannels.testing.contract.case import drain
from dbchannels.worker import schedule
from dbchannels.worker.schedule import Timetable
from tests import kinds
from tests.clocks import patch_time

UTC = timezone.utc
NOON = datetime(2026, 3, 28, 12, 0, tzinfo=UTC)


def quiet(message):
    """A consumer that does nothing."""


def following(every, now, due=None):
    """Return when it comes after now."""
    return parse_interval(every, "own").following(due or now, now)


class Clock:
    """Stands for the layer's time, and the process's own."""

    def __init__(self, monkeypatch, link):
        self.now = NOON
        patch_time(monkeypatch, schedule, monotonic=lambda: (self.now - NOON).total_seconds() + 1000)
        original = link.next_time
        monkeypatch.setattr(link, "next_time", lambda *entry: (original(*entry)[0], self.now))

    def pass_by(self, **length):
        self.now += timedelta(**length)


@pytest.fixture
def link(layer, new_link):
    return new_link(layer)


@pytest.fixture
def clock(monkeypatch, link):
    return Clock(monkeypatch, link)


def timetable(link, *every):
    """Return the timetable of the channel ``own``."""
    return Timetable([Entry("own", parse_interval(one, "own")) for one in every], link)


def seconds_left(table):
    """Return for how long a worker may sleep."""
    return max(0.0, table.send_at - schedule.time.monotonic())


# When.


@pytest.mark.parametrize(
    ("every", "then"),
    [
        (timedelta(minutes=5), NOON + timedelta(minutes=5)),
        ("*/15 * * * *", NOON + timedelta(minutes=15)),
        ("0  7 * * *", datetime(2026, 3, 29, 7, 0, tzinfo=UTC)),
    ],
)
def test_the_next_one_comes_after_now(every, then, settings):
    settings.TIME_ZONE = "UTC"
    assert following(every, NOON) == then


def test_a_period_keeps_in_step_and_leaves_out_what_was_missed():
    due = NOON - timedelta(minutes=61)
    assert following(timedelta(minutes=10), NOON, due) == NOON + timedelta(minutes=9)


def test_a_crontab_line_is_in_the_sites_time_zone(settings):
    settings.TIME_ZONE = "Europe/Berlin"  # where the night after NOON lacks the hour from two to three
    assert following("0 7 * * *", NOON) == datetime(2026, 3, 29, 5, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    "every",
    [timedelta(0), timedelta(seconds=-5), 60, True, "", "hourly", "0 7 * *", "61 * * * *", "0 0 30 2 *"],
)
def test_what_is_no_interval_is_refused(every):
    with pytest.raises(exceptions.InvalidConfiguration, match=r"every of a route on own .*\.$"):
        route("own", quiet, every=every)


def test_a_protocol_message_cannot_be_periodic():
    with pytest.raises(
        exceptions.InvalidConfiguration, match="remove retries, backoff, concurrency and every"
    ):
        route("http.request", quiet, every=timedelta(hours=1))


def test_without_its_reader_a_crontab_line_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cronsim", None)
    with pytest.raises(exceptions.InvalidConfiguration, match=r"pip install 'dbchannels\[cron\]'"):
        route("own", quiet, every="0 7 * * *")
    assert route("own", quiet, every=timedelta(hours=1)).options.interval()


# Once.


@kinds.on_databases
def test_it_is_sent_when_it_is_due_and_not_when_it_is_put_on_record(layer, link, clock):
    hourly = timetable(link, timedelta(hours=1))
    hourly.send_due()
    assert drain(layer, "own") == []
    clock.pass_by(minutes=59)
    hourly.send_due()
    assert drain(layer, "own") == []
    clock.pass_by(minutes=2)
    hourly.send_due()
    hourly.send_due()
    assert drain(layer, "own") == [{"scheduled_at": (NOON + timedelta(hours=1)).isoformat()}]


@kinds.on_databases
def test_of_many_workers_one_sends(layer, link, clock):
    tables = [timetable(link, timedelta(hours=1)) for _ in range(5)]
    sent = []
    for _ in range(3):
        for table in tables:
            table.send_due()
        sent.append(len(drain(layer, "own")))
        clock.pass_by(hours=1)
    assert sent == [0, 1, 1]


@kinds.on_databases
def test_what_was_missed_is_sent_once(layer, link, clock):
    hourly = timetable(link, timedelta(hours=1))
    hourly.send_due()
    clock.pass_by(hours=10, minutes=30)
    hourly.send_due()
    assert len(drain(layer, "own")) == 1
    assert seconds_left(hourly) <= 60
    clock.pass_by(minutes=31)
    hourly.send_due()
    assert drain(layer, "own") == [{"scheduled_at": (NOON + timedelta(hours=11)).isoformat()}]


@kinds.on_databases
@pytest.mark.parametrize("every", [timedelta(hours=1), "0 * * * *"])
def test_a_clock_that_is_set_back_by_days_delays_no_run_for_days(layer, link, clock, every):
    hourly = timetable(link, every)
    hourly.send_due()
    clock.pass_by(days=-30)
    hourly.send_due()
    assert drain(layer, "own") == []
    clock.pass_by(hours=1)
    hourly.send_due()
    assert drain(layer, "own") == [{"scheduled_at": clock.now.isoformat()}]


@kinds.on_databases
def test_it_is_not_queued_while_the_one_before_waits(layer, link, clock):
    tables = timetable(link, timedelta(hours=1), timedelta(hours=2))
    for _ in range(5):
        tables.send_due()
        clock.pass_by(hours=1)
    assert len(drain(layer, "own")) == 2  # one of each interval


@kinds.on_databases
def test_a_worker_wakes_for_the_next_one(link, clock):
    assert seconds_left(timetable(link)) >= schedule.LOOK_EVERY
    soon = timetable(link, timedelta(seconds=10))
    assert seconds_left(soon) == 0
    soon.send_due()
    assert seconds_left(soon) == 10


def test_the_same_interval_of_two_routes_is_one_entry():
    routing = Routing(
        [
            route("own", quiet, every="0 7 * * *", kind="a"),
            route("own", quiet, every="0  7 * * * ", kind="b"),
            route("own", quiet, every=timedelta(hours=1)),
            route("other", quiet),
        ]
    )
    assert [(entry.channel, str(entry.interval)) for entry in routing.timetable()] == [
        ("own", "0 7 * * *"),
        ("own", "3600 s"),
    ]
