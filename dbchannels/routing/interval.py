"""How often a periodic message is sent: every so many seconds, or as a crontab line says."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo
from datetime import timezone as datetime_timezone
from typing import Any, NamedTuple, Protocol

from django.utils import timezone

from dbchannels.exceptions import InvalidConfiguration, safe_repr

UTC = datetime_timezone.utc
SHORTEST, LONGEST = timedelta(seconds=1), timedelta(days=3650)
LONGEST_LINE = 255  # characters, in the database
LONGEST_CHANGE = timedelta(hours=3)  # of a clock, for summer time and the like


class Interval(Protocol):
    """How often; ``str`` of it is the name that it has in the database."""

    def following(self, due: datetime, now: datetime) -> datetime:
        """Return the first moment after ``now``, in step with the one that was due."""


class Period:
    """Every so many seconds."""

    def __init__(self, length: timedelta) -> None:
        self._length = length

    def __str__(self) -> str:
        return f"{self._length.total_seconds():g} s"

    def following(self, due: datetime, now: datetime) -> datetime:
        return due + self._length * max(1, (now - due) // self._length + 1)


class CronLine:
    """Five fields as in crontab(5), in the site's TIME_ZONE; clock changes are treated as by Debian's cron(8).

    A line whose minute or hour begins with ``*`` follows the clock: it runs in both of the hours that come twice, and
    not at a time that is skipped. Any other line has fixed times: one that comes twice runs at the first, and one that
    is skipped runs right after the gap.
    """

    def __init__(self, text: str, parse: Any) -> None:
        self._text, self._parse = text, parse
        self._has_fixed_times = not any(field.startswith("*") for field in text.split()[:2])

    def __str__(self) -> str:
        return self._text

    def following(self, due: datetime, now: datetime) -> datetime:
        zone = timezone.get_default_timezone()
        clock = now.astimezone(zone).replace(tzinfo=None)
        # What the clock will show again, if it is about to be set back, comes after now as well.
        start = min(clock, (now + LONGEST_CHANGE).astimezone(zone).replace(tzinfo=None) - LONGEST_CHANGE)
        found: list[datetime] = []
        # The parser counts on a clock without a time zone: in one it goes wrong where changes are not of whole hours.
        for showing in self._parse(self._text, start):
            found += [moment for moment in self._moments(showing, zone) if moment > now]
            if found and showing > clock:
                break
        return min(found)

    def _moments(self, clock: datetime, zone: tzinfo) -> list[datetime]:
        """Return when the line runs for a time that the clock shows: once, twice, or not at all."""
        first, second = _first_and_second(clock, zone)
        if first < second:  # it comes twice
            return [first] if self._has_fixed_times else [first, second]
        if first > second and not self._has_fixed_times:  # it is skipped
            return []
        while first > second:
            clock += timedelta(minutes=1)
            first, second = _first_and_second(clock, zone)
        return [first]


def _first_and_second(clock: datetime, zone: tzinfo) -> tuple[datetime, datetime]:
    """Return both moments at which the clock shows a time; they are in the wrong order where it never does."""
    first, second = (clock.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return first, second


def parse_interval(every: object, channel: str) -> Interval:
    """Return a timedelta of a second or more, or a crontab line, as an Interval; raises InvalidConfiguration."""
    if isinstance(every, str):
        return _parse_line(every, channel)
    if not isinstance(every, timedelta):
        raise InvalidConfiguration(
            f"The every of a route on {channel} is a timedelta, or five fields as in crontab, not {safe_repr(every)}: "
            "write every=timedelta(minutes=5), or every='0 7 * * *'."
        )
    if not SHORTEST <= every <= LONGEST:
        raise InvalidConfiguration(
            f"The every of a route on {channel} is from a second to ten years, not {every!s:.60}: take a timedelta of "
            "that length."
        )
    return Period(every)


def _parse_line(text: str, channel: str) -> CronLine:
    try:
        from cronsim import CronSim, CronSimError
    except ImportError:
        raise InvalidConfiguration(
            f"The every of a route on {channel} is a crontab line, which the package cronsim reads: "
            "pip install 'dbchannels[cron]', or give a timedelta."
        ) from None
    line = " ".join(text.split())
    if len(line) > LONGEST_LINE:
        raise InvalidConfiguration(
            f"The every of a route on {channel} is a line of at most {LONGEST_LINE} characters, and this one has "
            f"{len(line)}: write ranges and steps, such as '*/5', instead of lists."
        )
    found = CronLine(line, CronSim)
    now = datetime.now(UTC)
    try:
        found.following(now, now)
    except (CronSimError, ValueError):
        raise InvalidConfiguration(
            f"The every of a route on {channel} is not a crontab line that ever comes: {safe_repr(text)}; give five "
            "fields, minute, hour, day, month and weekday, such as '0 7 * * *'."
        ) from None
    return found


class Entry(NamedTuple):
    """One thing that is sent every so often."""

    channel: str
    interval: Interval
