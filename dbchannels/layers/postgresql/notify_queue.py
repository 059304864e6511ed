"""Whether a NOTIFY may be sent without a look at the queue of all notifications.

A NOTIFY fails its transaction when that queue is full, which one idle listener inside a transaction can bring about.
So none is sent past a half. To ask in each one-row send costs 15 to 25 us of 130; so a sender asks once a
second, and goes by the answer meanwhile: the queue has 8 GB, and nobody fills the other half in a second.
See https://www.postgresql.org/docs/current/sql-notify.html.
"""

from __future__ import annotations

import time

VALID = 1.0  # seconds


class NotifyQueue:
    """What one process knows of the queue; shared by all threads, which only ever put a number in place of another."""

    def __init__(self) -> None:
        self._until = 0.0  # time.monotonic() until which it is known to have room

    def has_room(self) -> bool:
        """Whether it was less than half full within the last second."""
        return time.monotonic() < self._until

    def learn(self, has_room: bool) -> None:
        """Note what a statement saw."""
        self._until = time.monotonic() + VALID if has_room else 0.0
