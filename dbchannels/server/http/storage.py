"""What the bodies of all requests together may take, in memory and on the disk, and those of all responses.

Without it as many bodies as there may be connections could each be as large as one may be.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

from dbchannels.protocol import BROKEN_OFF
from dbchannels.server.http.messages import Refused

log = logging.getLogger("dbchannels.server")

RESERVED = (
    4  # a body begins a file only while a fourth of the disk's share is free: the rest is for those that grow
)
SHARE = (
    3  # times the memory that is left: alone an address has three fourths, and two of them leave a sixteenth
)
TOLD_EVERY = 10.0  # seconds between two lines in the log

MEMORY, DISK = "memory", "disk"
REFUSED = "refused"


class Storage:
    """Counts bytes; called in the hub. What finds no room raises Refused with a 503, and must be given back.

    One address may have half of the disk, and of the memory SHARE times what is left, so that some is always left for
    others; "" stands for one without a share of its own, such as this machine's.
    """

    def __init__(self, memory: int, disk: int) -> None:
        self.memory, self.disk = memory, disk  # free
        self._memory, self._disk = memory, disk  # in all
        self._by_address: Counter[str] = Counter()  # of the disk
        self._kept: Counter[str] = Counter()  # of the memory, by address
        self._refused: Counter[str] = Counter()
        self._told_at = -TOLD_EVERY

    @property
    def is_tight(self) -> bool:
        """Whether less than half of the memory is free: what can go to the disk goes there at once."""
        return 2 * self.memory < self._memory

    def room(self, address: str) -> int:
        """Return how much of the disk is left for an address."""
        return min(self.disk, self._disk // 2 - self._by_address[address]) if address else self.disk

    def admit(self, size: int, address: str = "") -> None:
        """Let a body begin its file, of which so many bytes are known to come."""
        if size > self.room(address) or RESERVED * self.disk < self._disk:
            raise self._full(DISK)

    def keep(self, size: int, address: str = "") -> None:
        """Take so much memory."""
        if size > self.memory or (address and self._kept[address] + size > SHARE * self.memory):
            raise self._full(MEMORY)
        self.take(address, size)

    def store(self, size: int, address: str = "") -> None:
        """Take so much of the disk."""
        if size > self.room(address):
            raise self._full(DISK)
        self.take(address, disk=size)

    def take(self, address: str, memory: int = 0, disk: int = 0) -> None:
        """Count bytes that are taken, however few are left; numbers below 0 give them back."""
        self.memory -= memory
        self.disk -= disk
        for counter, size in ((self._by_address, disk), (self._kept, memory)):
            counter[address] += size
            if not counter[address]:
                del counter[address]

    def _full(self, what: str) -> Refused:
        """One line in the log for many of them: a stranger decides how many there are."""
        self._count(
            what,
            f"Refused %d bodies beyond --max-body-memory ({self._memory}) and %d beyond --max-spool ({self._disk}), "
            "or beyond an address's half of it.",
            (MEMORY, DISK),
        )
        return Refused(503, "There is no room for the body of this request now: try again soon.")

    def _count(self, what: str, line: str, kinds: tuple[str, ...]) -> None:
        """Count one of the kinds that a line tells the numbers of, and log the line every now and then."""
        self._refused[what] += 1
        if time.monotonic() - self._told_at > TOLD_EVERY:
            self._told_at = time.monotonic()
            log.warning("%s", line % tuple(self._refused[kind] for kind in kinds))
            self._refused.clear()


class ResponseBudget(Storage):
    """The same for responses, of which one may have a fourth of the disk's share.

    Memory may be overdrawn by what is on its way here: a window of bytes for each worker.

    ``may_wait`` returns how many responses may keep the worker, or the thread, that makes them waiting for their
    clients, while there is no room for them.
    """

    def __init__(self, memory: int, disk: int, may_wait: Callable[[], int]) -> None:
        super().__init__(memory, disk)
        self.may_wait = may_wait
        self.sent_files = 0  # that workers have sent, being read
        self.share = disk // 4  # of the disk, for one response
        self._waiting = 0

    def begin_to_wait(self) -> bool:
        """Let a worker wait for a client; False when as many do as may."""
        if self._waiting >= self.may_wait():
            return False
        self._waiting += 1
        return True

    def end_to_wait(self) -> None:
        """Count one waiting worker less."""
        self._waiting -= 1

    def refuse(self, what: str) -> None:
        """Count a response that was refused, or broken off."""
        self._count(
            what,
            f"Answered %d large responses 503 and broke %d off: clients take less than is made for them, and "
            f"--max-response-spool ({self._disk}), or an address's half of it, is full.",
            (REFUSED, BROKEN_OFF),
        )
