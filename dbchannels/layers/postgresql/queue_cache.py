"""What a layer and its readers remember of queues from one statement to the next.

Nothing here decides anything: without it each statement would find out again, at a cost that each class states.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dbchannels import names
from dbchannels.protocol import DURABLE

if TYPE_CHECKING:
    from dbchannels.layers.base import BaseLayer

MOST = 4096  # channels, or queues, that are remembered


class Route(NamedTuple):
    """Where a channel's messages go."""

    queue: str
    recipient: str  # of a process-specific channel: the part after the '!'
    protocol: bool  # else durable
    limited: bool  # by a capacity
    wake: str  # the payload that wakes its readers


class RouteCache(dict[str, Route]):
    """Routes by channel, each worked out once, which takes 5 us of a send's 70. Shared by all threads."""

    def __init__(self, layer: BaseLayer) -> None:
        super().__init__()
        self._layer = layer

    def __missing__(self, channel: str) -> Route:
        if len(self) >= MOST:
            self.clear()
        queue, recipient = names.split(channel)
        protocol = names.is_protocol(queue)
        limited = self._layer.capacity(queue) is not None
        route = self[channel] = Route(
            queue, recipient, protocol, limited, wake(queue) if protocol else DURABLE
        )
        return route


def wake(queue: str) -> str:
    """Return the payload that wakes a protocol queue's readers: ``h`` for ``http.*``, ``w`` for ``websocket.*``.

    For any other queue it is the queue itself.
    """
    return queue if queue[-1:] == "!" or "?" in queue else queue[:1]


class CapacityCache:
    """How many messages may be sent to a queue before its messages are counted again. Shared by all threads.

    To count a queue costs as much as a send, and more the longer it is. So a sender counts, and may then send an
    eighth of what was free, or for a second, without counting. One sender never exceeds a capacity; each of several
    may exceed it by that eighth. A capacity below eight is counted each time.
    """

    SHARE = 8  # one part in so many of what is free may be sent without a count
    VALID = 1.0  # seconds

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: dict[str, tuple[int, float]] = {}  # by queue: messages, until when by time.monotonic()

    def reserve(self, counts: Mapping[str, int]) -> bool:
        """Take so many messages off what the queues have left; False, and nothing is taken, if one has too few."""
        now = time.monotonic()
        with self._lock:
            left = {queue: self._left.get(queue, (0, 0.0)) for queue in counts}
            if any(number < counts[queue] or end < now for queue, (number, end) in left.items()):
                return False
            for queue, (number, end) in left.items():
                self._left[queue] = (number - counts[queue], end)
            return True

    def learn(self, queue: str, capacity: int, waiting: int) -> None:
        """Note how many messages wait, those just sent among them."""
        with self._lock:
            if len(self._left) >= MOST:
                self._left.clear()
            self._left[queue] = (max(0, capacity - waiting) // self.SHARE, time.monotonic() + self.VALID)

    def clear(self) -> None:
        """Count anew: others have emptied or filled the queues."""
        with self._lock:
            self._left.clear()


class ScanHints:
    """The id in each queue above which a reader begins to look. One reader's.

    Rows that were taken leave their index entries behind until a vacuum removes them, and while any transaction is
    open none can be removed: each pop would read all of them before the oldest message that waits. With 100,000 of
    them, as after ten minutes of a dump at 170 messages a second, a pop takes 17 ms, and 0.5 with a hint.

    Once a look at the whole queue takes long, a reader begins above what it took a second or two ago. That is a hint,
    not a cursor: ids are given at INSERT and seen at COMMIT, so a sender with a longer transaction has a lower id.
    Every second or so the reader looks at the whole queue again, and drops the hint if it finds a lower id.

    A claim has no hint: it goes by priority first, and messages that were retried or delayed have old ids.
    """

    COSTLY = 0.002  # seconds: while a look at the whole takes less, there are no hints
    LAG = 1.0  # seconds that a sender's transaction may last for its message to be found at once
    WHOLE_EVERY = 1.0  # seconds, at least, between two looks at the whole ...
    SHARE = 20  # ... which take one part in so many of the time, however many dead entries there are

    def __init__(self) -> None:
        #: Whether the last look at the whole was costly.
        self.active = False
        self._floors: dict[str, int] = {}
        #: By queue the highest id that was taken, since the last turn and between the last two; a turn takes LAG.
        self._taken: dict[str, int] = {}
        self._before: dict[str, int] = {}
        self._turned_at = self._whole_at = 0.0  # time.monotonic(); of the next look at the whole
        self._whole = True  # the current look is one
        self._generation = 0

    def floors(self, queues: Sequence[str], generation: int) -> list[int]:
        """Return each queue's floor for a look that begins now; 0 for all of it.

        Another ``generation`` of the session starts anew: after a crash of the database ids start at 1 again.
        """
        now = time.monotonic()
        if generation != self._generation:
            self._generation, self._whole_at = generation, 0.0
            self._forget([*self._floors, *self._before, *self._taken])
        if now - self._turned_at >= self.LAG:
            self._floors.update(self._before)
            self._before, self._taken, self._turned_at = self._taken, {}, now
        self._whole = now >= self._whole_at
        return [0 if self._whole else self._floors.get(queue, 0) for queue in queues]

    def learn(self, found: Iterable[tuple[str, int]], took: float) -> None:
        """Note what a look has taken, as (queue, id) in the order of the ids, and how many seconds it took."""
        if self._whole:
            self.active = took >= self.COSTLY
            self._whole_at = time.monotonic() + max(self.WHOLE_EVERY, took * self.SHARE)
            if not self.active:
                self._forget([*self._floors, *self._before, *self._taken])
                return
        for queue, number in found:
            if number <= self._floors.get(
                queue, 0
            ):  # it was committed late, and others may have been with it
                self._forget([queue])
            self._taken[queue] = number

    def _forget(self, queues: Sequence[str]) -> None:
        for queue in queues:
            for ids in (self._floors, self._before, self._taken):
                ids.pop(queue, None)
