"""Fault 46: clocks are changed, and lines of the timetable are taken out and put back: nothing twice, nothing stale."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import NamedTuple
from unittest import mock
from zoneinfo import ZoneInfo

from dbchannels import periodic
from tests.soak.row import Row, Seen

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
        with mock.patch.object(periodic.timezone, "get_default_timezone", lambda zone=zone: ZoneInfo(zone)):
            for change in changes:
                for line in LINES:
                    yield from _around(change, line, zone, timedelta(hours=hours), step)


def _around(
    change: datetime, line: str, zone: str, around: timedelta, step: timedelta
) -> Iterator[Wrong | None]:
    interval = periodic.parse_interval(line, "own")
    wanted = runs(line, zone, change - around, change + around + AHEAD)
    for number in range(int(2 * around / step)):
        now = change - around + number * step
        while wanted[0] <= now:
            del wanted[0]
        found = interval.following(now, now)
        yield None if found == wanted[0] else Wrong(line, zone, now, found, wanted[0])


def _measure(scale: float) -> Seen:
    step = MINUTE / 4 if scale >= 1 else MINUTE
    seen = list(differences(hours=12, step=step))
    wrong = [one for one in seen if one]
    text = f"{len(wrong)} of {len(seen):,} next runs are not cron's"
    return Seen(f"{text}: {wrong[0]}" if wrong else text, not wrong)


ROWS = [
    Row(
        46,
        "clocks change, both ways: the next run after every minute around it, in three zones",
        "0 are not those of Debian's cron",
        _measure,
    )
]
