"""Fault 46: clocks are changed, and lines of the timetable are taken out and put back: nothing twice, nothing stale."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

from dbchannels.layers.database.link import _stored
from dbchannels.models import Schedule
from dbchannels.routing.interval import Entry, parse_interval
from dbchannels.testing.contract.case import drain
from dbchannels.worker import schedule
from dbchannels.worker.schedule import Timetable
from tests import kinds
from tests.soak.schedules import CHANGES, MINUTE, differences, histories, runs

NOON = datetime(2026, 3, 28, 12, 0, tzinfo=timezone.utc)
LINE = "0 7 * * *"


class Site:
    """Workers with a timetable each, on one layer and one clock that the test moves on."""

    def __init__(self, monkeypatch, layer, new_link):
        self.now, self.layer, self._new_link = NOON, layer, new_link
        monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: self.now.timestamp()))

    def worker(self, *every):
        link = self._new_link(self.layer)
        next_time, keep_times, move_time = link.next_time, link.keep_times, link.move_time
        link.next_time = lambda *entry: (next_time(*entry)[0], self.now)
        link.keep_times = lambda entries: keep_times(entries) and self._noted(entries)
        link.move_time = lambda *given: move_time(*given) and self._noted([given[:2]])
        return Timetable([Entry("own", parse_interval(one, "own")) for one in every], link)

    def _noted(self, entries):
        """Let the rows say that they were seen by our clock, and not by the database's."""
        for channel, every in entries:
            rows = Schedule.objects.using(self.layer.database).filter(channel=channel, every=every)
            rows.update(seen_at=_stored(self.now))
        return self.now

    def pass_by(self, *workers, step=timedelta(minutes=1), **length):
        """Let time pass in steps, in each of which these workers do their part; return how many runs were sent."""
        sent = 0
        for _ in range(int(timedelta(**length) / step)):
            self.now += step
            for one in workers:
                one.keep(drop=True)
                one.send_due()
                sent += len(drain(self.layer, "own"))
        return sent

    def on_record(self):
        rows = Schedule.objects.using(self.layer.database)
        return set(rows.values_list("every", flat=True))


@pytest.fixture
def site(monkeypatch, layer, new_link):
    return Site(monkeypatch, layer, new_link)


def test_the_next_run_after_every_minute_around_a_change_of_clocks_is_crons():
    found = list(differences(hours=2))
    assert len(found) == 14_400
    assert [one for one in found if one][:3] == []


def test_a_line_that_is_taken_out_and_put_back_is_neither_lost_nor_stale():
    assert histories(20) == (0, 0)


@kinds.only("sqlite", "memory")
@pytest.mark.parametrize("use_tz", [True, False])
@pytest.mark.parametrize("line", ["50 2 * * *", "*/20 * * * *"])
def test_a_worker_sends_what_cron_runs_in_the_hour_that_comes_twice(site, settings, line, use_tz):
    settings.USE_TZ, settings.TIME_ZONE = use_tz, "Europe/Berlin"
    start = CHANGES["Europe/Berlin"][1] - timedelta(hours=2)
    site.now = start
    worker = site.worker(line)
    worker.send_due()
    sent = [site.now for _ in range(240) if site.pass_by(worker, minutes=1)]
    assert sent == runs(line, "Europe/Berlin", start + MINUTE, start + 241 * MINUTE)


@kinds.on_databases
def test_a_line_that_was_out_for_weeks_begins_anew(site):
    site.pass_by(site.worker(LINE), minutes=1)
    without = site.worker()
    site.pass_by(without, minutes=9)
    assert site.on_record() == {LINE}  # it may only be a deploy
    site.pass_by(without, minutes=2)
    assert site.on_record() == set()
    site.now += timedelta(days=20)
    back = site.worker(LINE)
    assert site.pass_by(back, minutes=1) == 0
    assert site.pass_by(back, days=1, step=timedelta(minutes=10)) == 1


@kinds.only("sqlite")
def test_what_was_missed_in_a_downtime_is_made_up_once(site):
    site.pass_by(site.worker(LINE), minutes=1)
    site.now += timedelta(days=20)
    other, restarted = site.worker(), site.worker(LINE)
    site.pass_by(other, minutes=8)  # of those that come back, the one that has it is the last
    assert site.pass_by(other, restarted, minutes=20) == 1
    assert site.on_record() == {LINE}


@kinds.only("sqlite")
def test_a_rolling_deploy_and_a_pause_of_all_workers_lose_no_line(site):
    old, new = site.worker(LINE), site.worker(LINE, "0 8 * * *")
    site.pass_by(old, new, minutes=30)
    site.now += timedelta(hours=5)  # everything stood still
    site.pass_by(old, minutes=9)
    assert site.on_record() == {LINE, "0 8 * * *"}
    site.pass_by(old, new, minutes=30)
    assert site.on_record() == {LINE, "0 8 * * *"}
    site.pass_by(old, minutes=12)  # the deploy was taken back
    assert site.on_record() == {LINE}
