"""How much may be sent to a queue before its messages are counted again.

To count a queue at each send would cost as much as the send, and with its length more. So a sender counts, and may
then send an eighth of what was free, or for a second, without looking. One sender never exceeds a capacity; of many,
each may by that eighth. A capacity below eight is counted each time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

SHARE = 8  # of what is free, one part may be sent unseen
VALID = 1.0  # seconds
MOST = 4096  # queues that are remembered


class Room:
    """Shared by all threads that send."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: dict[str, tuple[int, float]] = {}  # by queue: messages, until when by time.monotonic()

    def take(self, counts: Mapping[str, int]) -> bool:
        """Whether so many messages for these queues may go without a count; if so, they are taken off."""
        now = time.monotonic()
        with self._lock:
            left = {queue: self._left.get(queue, (0, 0.0)) for queue in counts}
            if any(number < counts[queue] or end < now for queue, (number, end) in left.items()):
                return False
            for queue, (number, end) in left.items():
                self._left[queue] = (number - counts[queue], end)
            return True

    def take_one(self, queue: str) -> bool:
        """Do the same for one message, as most are: 0.6 us where ``take`` takes 1.7."""
        with self._lock:
            number, end = self._left.get(queue, (0, 0.0))
            if number < 1 or end < time.monotonic():
                return False
            self._left[queue] = (number - 1, end)
            return True

    def learn(self, queue: str, capacity: int, waiting: int) -> None:
        """Note how many waited, those just sent among them."""
        with self._lock:
            if len(self._left) >= MOST:
                self._left.clear()
            self._left[queue] = (max(0, capacity - waiting) // SHARE, time.monotonic() + VALID)

    def forget(self) -> None:
        """Count anew: the queues were emptied, or filled, by others."""
        with self._lock:
            self._left.clear()
