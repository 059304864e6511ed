"""Fault 46: clocks are changed, and lines of the timetable are taken out and put back: nothing twice, nothing stale."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import NamedTuple
from unittest import mock
from zoneinfo import ZoneInfo

from dbchannels.layers.link import Link
from dbchannels.layers.operations import Send
from dbchannels.routing import interval
from dbchannels.routing.interval import Entry, parse_interval
from dbchannels.worker import schedule
from dbchannels.worker.schedule import Timetable
from tests.soak.row import Row, Seen
from tests.soak.sites import scaled

UTC = timezone.utc
MINUTE = timedelta(minutes=1)
AHEAD = timedelta(hours=30)  # every line runs once in that time
#: When clocks are set forward and back; on Lord Howe by half an hour, from two o'clock to half past one.
CHANGES = {
    "Europe/Berlin": (datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)),
    "America/New_York": (datetime(2026, 3, 8, 7, tzinfo=UTC), datetime(2026, 11, 1, 6, tzinfo=UTC)),
    "Australia/Lord_Howe": (
        datetime(2026, 10, 3, 15, 30, tzinfo=UTC),
        datetime(2026, 4, 4, 15, tzinfo=UTC),
    ),
}
LINES = (
    "0 2 * * *",
    "50 2 * * *",
    "15,45 1-3 * * *",
    "45 1,2 * * *",
    "0 7 * * *",
    "*/5 * * * *",
    "* 2 * * *",
    "30 * * * *",
    "0 */2 * * *",
    "* 5 * * *",
)


def runs(line: str, zone: str, start: datetime, end: datetime) -> list[datetime]:
    """Return when Debian's cron(8) runs a line: once a minute it looks at its clock, and at what it has seen of it."""
    found = []
    follows_the_clock = any(field.startswith("*") for field in line.split()[:2])
    seen_until = _clock(start - MINUTE, zone)
    for number in range(int((end - start) / MINUTE)):
        moment = start + number * MINUTE
        clock = _clock(moment, zone)
        new = [clock]
        if not follows_the_clock:  # what was skipped is new too, and what comes again is not
            new = [seen_until + (one + 1) * MINUTE for one in range(int((clock - seen_until) / MINUTE))]
        seen_until = max(seen_until, clock)
        if any(_matches(line, one) for one in new):
            found.append(moment)
    return found


def _clock(moment: datetime, zone: str) -> datetime:
    return moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)


def _matches(line: str, clock: datetime) -> bool:
    minute, hour, *rest = line.split()
    assert rest == ["*"] * 3
    return _is_in(clock.minute, minute) and _is_in(clock.hour, hour)


def _is_in(value: int, field: str) -> bool:
    if field.startswith("*"):
        return value % int(field[2:] or 1) == 0
    for part in field.split(","):
        first, _, last = part.partition("-")
        if int(first) <= value <= int(last or first):
            return True
    return False


class Wrong(NamedTuple):
    """A moment after which the next run of a line is another than cron's."""

    line: str
    zone: str
    after: datetime
    found: datetime
    wanted: datetime


def differences(hours: int, step: timedelta = MINUTE) -> Iterator[Wrong | None]:
    """Yield for each step of so many hours around each change, and each line, what is wrong with the next run."""
    for zone, changes in CHANGES.items():
        with mock.patch.object(interval.timezone, "get_default_timezone", lambda zone=zone: ZoneInfo(zone)):
            for change in changes:
                for line in LINES:
                    yield from _around(change, line, zone, timedelta(hours=hours), step)


def _around(
    change: datetime, line: str, zone: str, around: timedelta, step: timedelta
) -> Iterator[Wrong | None]:
    period = parse_interval(line, "own")
    wanted = runs(line, zone, change - around, change + around + AHEAD)
    for number in range(int(2 * around / step)):
        now = change - around + number * step
        while wanted[0] <= now:
            del wanted[0]
        found = period.following(now, now)
        yield None if found == wanted[0] else Wrong(line, zone, now, found, wanted[0])


# Lines that are taken out and put back.


class Times(Link):
    """The periodic messages of a layer with a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, tzinfo=UTC)
        self.rows: dict[tuple[str, str], tuple[datetime, datetime]] = {}  # when due, when seen
        self.sent = 0

    def next_time(self, channel: str, every: str) -> tuple[datetime | None, datetime]:
        due, _ = self.rows.get((channel, every), (None, None))
        return due, self.now

    def move_time(
        self, channel: str, every: str, due: datetime | None, following: datetime, sends: Sequence[Send]
    ) -> bool:
        seen = self.rows[channel, every][1] if due else self.now
        self.rows[channel, every] = (following, seen)
        self.sent += len(sends)
        return True

    def keep_times(self, entries: Sequence[tuple[str, str]]) -> datetime:
        self.rows.update({one: (self.rows[one][0], self.now) for one in entries if one in self.rows})
        return self.now

    def drop_times(self, before: datetime) -> None:
        self.rows = {one: row for one, row in self.rows.items() if row[1] >= before}


class History:
    """Minutes of deploys, downtimes and pauses: what became of one line, and what should have."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._times = Times()
        self._workers: list[tuple[Timetable, bool]] = []  # and whether it has the line
        self._absent = 0  # minutes in which workers ran, none of them with the line
        self._alone = (
            0  # minutes in which one and the same worker has run without a break, the line being absent
        )
        self.lost = self.stale = 0

    def _start(self, has_line: bool) -> None:
        entries = [Entry("own", parse_interval("0 * * * *", "own"))] if has_line else []
        self._workers.append((Timetable(entries, self._times), has_line))

    def run(self, minutes: int) -> None:
        """Let so many minutes pass, with an event every quarter of an hour or so."""
        with mock.patch.object(schedule, "time", mock.Mock(monotonic=lambda: self._times.now.timestamp())):
            for _ in range(minutes):
                if self._random.random() < 1 / 15:
                    self._happen()
                self._times.now += MINUTE
                self._step()

    def _happen(self) -> None:
        what = self._random.choice(["deploy", "deploy", "start", "stop", "down", "pause"])
        if what == "start":
            self._start(self._random.random() < 0.5)
        elif what == "stop" and self._workers:
            self._workers.pop(self._random.randrange(len(self._workers)))
        elif what == "deploy":
            self._workers.clear()
            self._start(self._random.random() < 0.5)
        elif what == "down":
            self._workers.clear()
            self._times.now += timedelta(hours=self._random.choice([1, 50]))
        elif what == "pause":
            self._times.now += timedelta(hours=self._random.choice([1, 50]))
        self._alone = 0

    def _step(self) -> None:
        there = bool(self._times.rows)
        comes_back = any(has_line for _, has_line in self._workers) and self._absent
        forgotten = self._alone > 12  # ten, and a minute for each of two looks
        before = self._times.sent
        for timetable, _ in self._workers:
            timetable.keep(drop=True)
            timetable.send_due()
        if any(has_line for _, has_line in self._workers):
            self.stale += bool(comes_back and forgotten and self._times.sent > before)
            self._absent = self._alone = 0
        elif self._workers:
            self._absent += 1
            self._alone += 1
            self.lost += there and not self._times.rows and self._absent < 10
            self.stale += self._alone > 12 and bool(self._times.rows)


def histories(number: int) -> tuple[int, int]:
    """Return how many lines were lost though they were hardly absent, and how many stayed, or ran, when forgotten."""
    lost = stale = 0
    for seed in range(number):
        history = History(seed)
        with mock.patch.object(interval.timezone, "get_default_timezone", return_value=UTC):
            history.run(600)
        lost, stale = lost + history.lost, stale + history.stale
    return lost, stale


def _measure(scale: float) -> Seen:
    step = MINUTE / 4 if scale >= 1 else MINUTE
    seen = list(differences(hours=12, step=step))
    wrong = [one for one in seen if one]
    text = f"{len(wrong)} of {len(seen):,} next runs are not cron's"
    return Seen(f"{text}: {wrong[0]}" if wrong else text, not wrong)


def _measure_histories(scale: float) -> Seen:
    number = scaled(1000, scale)
    lost, stale = histories(number)
    return Seen(f"{lost} lost, {stale} stale, in {number:,} histories of ten hours", not (lost or stale))


ROWS = [
    Row(
        46,
        "clocks change, both ways: the next run after every minute around it, in three zones",
        "0 are not those of Debian's cron",
        _measure,
    ),
    Row(
        46,
        "a line is taken out and put back, in deploys, downtimes and pauses of all workers",
        "0 lost, 0 stale",
        _measure_histories,
    ),
]
