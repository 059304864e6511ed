"""Messages that are sent every so often, once however many workers there are.

A row says when the next one is due. Whoever moves it on sends the message, in the same transaction; all others find
it moved. What was missed while no worker ran is sent once, not as often as it was missed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta, tzinfo
from datetime import timezone as datetime_timezone
from typing import Any, NamedTuple, Protocol

from django.utils import timezone

from dbchannels import codec
from dbchannels.exceptions import InvalidConfiguration, shown
from dbchannels.layers.link import Link
from dbchannels.layers.operations import Send

UTC = datetime_timezone.utc
SHORTEST, LONGEST = timedelta(seconds=1), timedelta(days=3650)
LONGEST_LINE = 255  # characters, in the database
ABSENT_FOR = timedelta(minutes=10)  # a line that is taken out and put back in a deploy is still the same
LONGEST_CHANGE = timedelta(hours=3)  # of a clock, for summer time and the like
LOOK_EVERY = 60.0  # seconds: a clock may be set, and another worker may have moved the row on


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
            f"The every of a route on {channel} is a timedelta, or five fields as in crontab, not {shown(every)}: "
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
            f"The every of a route on {channel} is not a crontab line that ever comes: {shown(text)}; give five "
            "fields, minute, hour, day, month and weekday, such as '0 7 * * *'."
        ) from None
    return found


class Entry(NamedTuple):
    """One thing that is sent every so often."""

    channel: str
    interval: Interval


class Timetable:
    """The periodic messages of one worker's channels."""

    def __init__(self, entries: Sequence[Entry], link: Link) -> None:
        self._entries = entries
        self._link = link
        self._look_at = self._keep_at = 0.0  # time.monotonic()
        #: By the layer's clock: the last time that ``keep`` kept, and since when it has done so without a break.
        self._kept_at: datetime | None = None
        self._kept_since = datetime.min.replace(tzinfo=UTC)

    def seconds_left(self) -> float:
        """Return for how long a worker may sleep."""
        return max(0.0, self._look_at - time.monotonic()) if self._entries else LOOK_EVERY

    def send_due(self) -> None:
        """Send what is due, unless another worker does. Raises LayerUnavailable; then call it again."""
        if not self._entries or time.monotonic() < self._look_at:
            return
        left = [self._send_if_due(entry) for entry in self._entries]
        self._look_at = time.monotonic() + min(LOOK_EVERY, *left)

    def keep(self, drop: bool) -> None:
        """Note once a minute that a live worker has these; may be called while a consumer runs.

        With ``drop`` those go that no live worker has had for ABSENT_FOR. A worker counts that time only while it runs
        itself: after a downtime, an outage or a pause the others are given as long to come back.
        """
        if time.monotonic() < self._keep_at:
            return
        now = self._link.keep_times([(entry.channel, str(entry.interval)) for entry in self._entries])
        self._keep_at = time.monotonic() + LOOK_EVERY
        if self._kept_at is None or now - self._kept_at > timedelta(seconds=2 * LOOK_EVERY):
            self._kept_since = now
        self._kept_at = now
        if drop and now - self._kept_since >= ABSENT_FOR:
            self._link.drop_times(now - ABSENT_FOR)

    def _send_if_due(self, entry: Entry) -> float:
        """Return in how many seconds to look again."""
        due, now = self._link.next_time(entry.channel, str(entry.interval))
        if due is not None and due > now:
            return (due - now).total_seconds()
        following = entry.interval.following(due or now, now)
        self._link.move_time(entry.channel, str(entry.interval), due, following, _message(entry, due))
        return (following - now).total_seconds()


def _message(entry: Entry, due: datetime | None) -> list[Send]:
    """Return what is sent: not queued while the one before still waits, or a slow consumer would never catch up."""
    if due is None:  # it is put on the timetable now, and due for the first time later
        return []
    payload = codec.encode_trusted({"scheduled_at": due.isoformat()})
    return [Send(entry.channel, payload, "", 0.0, unique=f"every {entry.interval}"[:100])]
