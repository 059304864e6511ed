"""How often a periodic message is sent: at a fixed interval, or by a crontab line."""

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
    """How often a message is sent; the database stores its ``str``."""

    def following(self, due: datetime, now: datetime) -> datetime:
        """Return the first moment after ``now``, in step with ``due``."""


class Period:
    """A fixed interval."""

    def __init__(self, length: timedelta) -> None:
        self._length = length

    def __str__(self) -> str:
        return f"{self._length.total_seconds():g} s"

    def following(self, due: datetime, now: datetime) -> datetime:
        return due + self._length * max(1, (now - due) // self._length + 1)


class CronLine:
    """Five fields as in crontab(5), in the site's TIME_ZONE; clock changes are handled as by Debian's cron(8).

    A line whose minute or hour begins with ``*`` follows the clock: it runs in both of two repeated hours, and not at a
    skipped time. Any other line has fixed times: a repeated time runs once, the first time, and a skipped time runs
    right after the gap.
    """

    def __init__(self, text: str, parse: Any) -> None:
        self._text, self._parse = text, parse
        self._has_fixed_times = not any(field.startswith("*") for field in text.split()[:2])

    def __str__(self) -> str:
        return self._text

    def following(self, due: datetime, now: datetime) -> datetime:
        zone = timezone.get_default_timezone()
        clock = now.astimezone(zone).replace(tzinfo=None)
        # If the clock is about to be set back, the times that it repeats come after now too.
        start = min(clock, (now + LONGEST_CHANGE).astimezone(zone).replace(tzinfo=None) - LONGEST_CHANGE)
        found: list[datetime] = []
        # The parser gets naive times: with a time zone, it is wrong about changes by less than an hour.
        for showing in self._parse(self._text, start):
            found += [moment for moment in self._moments(showing, zone) if moment > now]
            if found and showing > clock:
                break
        return min(found)

    def _moments(self, clock: datetime, zone: tzinfo) -> list[datetime]:
        """Return the moments of a time on the clock at which the line runs: none, one or two."""
        first, second = _first_and_second(clock, zone)
        if first < second:  # the clock shows it twice
            return [first] if self._has_fixed_times else [first, second]
        if first > second and not self._has_fixed_times:  # the clock never shows it
            return []
        while first > second:
            clock += timedelta(minutes=1)
            first, second = _first_and_second(clock, zone)
        return [first]


def _first_and_second(clock: datetime, zone: tzinfo) -> tuple[datetime, datetime]:
    """Return both moments at which the clock shows a time, in reverse order if it never does."""
    first, second = (clock.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return first, second


def parse_interval(every: object, channel: str) -> Interval:
    """Return a timedelta of a second or more, or a crontab line, as an Interval; raises InvalidConfiguration."""
    if isinstance(every, str):
        return _parse_line(every, channel)
    if not isinstance(every, timedelta):
        raise InvalidConfiguration(
            f"The every of a route on {channel} must be a timedelta, or five fields as in crontab, not "
            f"{safe_repr(every)}: write every=timedelta(minutes=5), or every='0 7 * * *'."
        )
    if not SHORTEST <= every <= LONGEST:
        raise InvalidConfiguration(
            f"The every of a route on {channel} must be from a second to ten years, not {every!s:.60}: write a "
            "timedelta of that length."
        )
    return Period(every)


def _parse_line(text: str, channel: str) -> CronLine:
    try:
        from cronsim import CronSim, CronSimError
    except ImportError:
        raise InvalidConfiguration(
            f"The every of a route on {channel} is a crontab line, which needs the package cronsim: "
            "pip install 'dbchannels[cron]', or write a timedelta."
        ) from None
    line = " ".join(text.split())
    if len(line) > LONGEST_LINE:
        raise InvalidConfiguration(
            f"The every of a route on {channel} may have at most {LONGEST_LINE} characters, and this one has "
            f"{len(line)}: write ranges and steps, such as '*/5', instead of lists."
        )
    found = CronLine(line, CronSim)
    now = datetime.now(UTC)
    try:
        found.following(now, now)
    except (CronSimError, ValueError):
        raise InvalidConfiguration(
            f"The every of a route on {channel} is not a crontab line that ever runs: {safe_repr(text)}; write five "
            "fields, minute, hour, day, month and weekday, such as '0 7 * * *'."
        ) from None
    return found


class Entry(NamedTuple):
    """A periodic message: its channel, and how often it is sent."""

    channel: str
    interval: Interval
