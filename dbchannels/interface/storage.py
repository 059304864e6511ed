"""What the bodies of all requests together may take, in memory and on the disk.

Without it as many bodies as there may be connections could each be as large as one may be.
"""

from __future__ import annotations

import logging
import time
from collections import Counter

from dbchannels.interface.handshake import Refused

log = logging.getLogger("dbchannels.server")

RESERVED = (
    4  # a body begins a file only while a fourth of the disk's share is free: the rest is for those that grow
)
TOLD_EVERY = 10.0  # seconds between two lines in the log

MEMORY, DISK = "memory", "disk"


class Storage:
    """Counts bytes; called in the hub. What finds no room raises Refused with a 503, and must be given back."""

    def __init__(self, memory: int, disk: int) -> None:
        self.memory, self.disk = memory, disk  # free
        self._memory, self._disk = memory, disk  # in all
        self._refused: Counter[str] = Counter()
        self._told_at = -TOLD_EVERY

    @property
    def is_tight(self) -> bool:
        """Whether less than half of the memory is free: what can go to the disk goes there at once."""
        return 2 * self.memory < self._memory

    def admit(self, size: int) -> None:
        """Let a body begin its file, of which so many bytes are known to come."""
        if size > self.disk or RESERVED * self.disk < self._disk:
            raise self._full(DISK)

    def keep(self, size: int) -> None:
        """Take so much memory."""
        if size > self.memory:
            raise self._full(MEMORY)
        self.memory -= size

    def store(self, size: int) -> None:
        """Take so much of the disk."""
        if size > self.disk:
            raise self._full(DISK)
        self.disk -= size

    def give_back(self, memory: int = 0, disk: int = 0) -> None:
        """Say that so much is free again."""
        self.memory += memory
        self.disk += disk

    def _full(self, what: str) -> Refused:
        """One line in the log for many of them: a stranger decides how many there are."""
        self._refused[what] += 1
        if time.monotonic() - self._told_at > TOLD_EVERY:
            self._told_at = time.monotonic()
            log.warning(
                "Refused %d bodies beyond --max-body-memory (%d) and %d beyond --max-spool (%d).",
                self._refused[MEMORY],
                self._memory,
                self._refused[DISK],
                self._disk,
            )
            self._refused.clear()
        return Refused(503, "There is no room for the body of this request now: try again soon.")
