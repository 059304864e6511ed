"""Periodic messages, each sent once however many workers there are.

A row says when the next message is due. The worker that moves the row on sends the message in the same transaction; the
others find the row moved. After a time without workers one message is sent, not one for each that was missed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from datetime import timezone as datetime_timezone

from dbchannels.layers.link import Link
from dbchannels.layers.operations import periodic
from dbchannels.routing.interval import LONGEST_CHANGE, Entry

UTC = datetime_timezone.utc
ABSENT_FOR = timedelta(minutes=10)  # a line that is taken out and put back in a deploy is still the same
LOOK_EVERY = 60.0  # seconds: a clock may be set, and another worker may have moved the row on


class Timetable:
    """The periodic messages of one worker's channels."""

    def __init__(self, entries: Sequence[Entry], link: Link) -> None:
        self._entries = entries
        self._link = link
        #: By time.monotonic(): when ``send_due`` and ``keep`` are to be called next.
        self.send_at, self.keep_at = 0.0 if entries else math.inf, 0.0
        #: By the layer's clock: the last time that ``keep`` kept, and since when it has done so without a break.
        self._kept_at: datetime | None = None
        self._kept_since = datetime.min.replace(tzinfo=UTC)

    def send_due(self) -> None:
        """Send what is due, unless another worker does. Raises LayerUnavailable; then call it again."""
        sleep = LOOK_EVERY
        for channel, interval in self._entries:
            due, now = self._link.next_time(channel, str(interval))
            following = due or now
            if due is None or due <= now:
                following, sends = interval.following(following, now), []
                if due is not None:  # else it is new on the timetable, and due for the first time later
                    sends = [periodic(channel, str(interval), due)]
                self._link.move_time(channel, str(interval), due, following, sends)
            elif due - now > LONGEST_CHANGE and due - LONGEST_CHANGE > interval.following(now, now):
                # It was worked out by a clock that has been corrected since.
                following = interval.following(now, now)
                self._link.move_time(channel, str(interval), due, following, [])
            sleep = min(sleep, (following - now).total_seconds())
        self.send_at = time.monotonic() + sleep

    def keep(self, drop: bool) -> None:
        """Note once a minute that a live worker has these entries; may be called while a consumer runs.

        With ``drop``, entries that no live worker has had for ABSENT_FOR are deleted. A worker counts that time only
        while it runs itself: after a downtime, an outage or a pause the others have as long to come back.
        """
        now = self._link.keep_times([(entry.channel, str(entry.interval)) for entry in self._entries])
        self.keep_at = time.monotonic() + LOOK_EVERY
        if self._kept_at is None or now - self._kept_at > timedelta(seconds=2 * LOOK_EVERY):
            self._kept_since = now
        self._kept_at = now
        if drop and now - self._kept_since >= ABSENT_FOR:
            self._link.drop_times(now - ABSENT_FOR)
