"""Messages that are sent every so often, once however many workers there are.

A row says when the next one is due. Whoever moves it on sends the message, in the same transaction; all others find
it moved. What was missed while no worker ran is sent once, not as often as it was missed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from datetime import timezone as datetime_timezone

from dbchannels import codec
from dbchannels.layers.link import Link
from dbchannels.layers.operations import Send
from dbchannels.routing.interval import Entry

UTC = datetime_timezone.utc
ABSENT_FOR = timedelta(minutes=10)  # a line that is taken out and put back in a deploy is still the same
LOOK_EVERY = 60.0  # seconds: a clock may be set, and another worker may have moved the row on


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
