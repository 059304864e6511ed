"""Results that wait for somebody's transaction, while those of other messages are written.

A consumer's add, discard, clear or identify, and what is kept with a connection, waits while an open transaction of the
site holds the same membership or connection. A worker writes the results of a whole batch at once, so all of them, and
all that come after, would wait for that one. Instead nobody waits for longer than a moment: what is blocked is set
apart, a message's operations with its acknowledgement, and tried again from time to time. What the next messages of the
same connection did stays behind it, in order. Until it is written the message counts as in flight: when
its worker dies, its client is told, or the message is claimed again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from dbchannels.layers.operations import (
    BatchResult,
    Delivery,
    GroupAdd,
    GroupClear,
    GroupDiscard,
    Identify,
    Keep,
    Operation,
    Send,
    in_flight_lines,
    merged,
    parts,
)
from dbchannels.layers.postgresql import sql, sql_processes
from dbchannels.layers.postgresql.session import Locked, Statement
from dbchannels.models import InFlight

LOCK_TIMEOUT_MS = 50  # milliseconds that a batch waits for a lock, which others of ours have for a few
SINGLY = 5  # ... and each message's result, when the batch has waited in vain
AGAIN = 1  # ... and when it is tried again
EVERY = 0.5  # seconds between two rounds of trying again; one ends ...
MOST_FAILED = 5  # ... after so many that are still blocked,
ROUND = 0.1  # ... or so many seconds

#: What waits for a row that an open transaction holds.
_WAIT = (GroupAdd, GroupDiscard, GroupClear, Identify, Keep)

Write = Callable[[str, BatchResult, Sequence[Statement]], list[Send]]


def may_wait(operations: Sequence[Operation]) -> bool:
    """Whether one of the operations may have to wait for somebody's transaction."""
    return any(type(one) in _WAIT for one in operations)


class LockWaits:
    """Of one link. ``write`` takes a worker's name, what came of messages, and statements that go before."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._lock = threading.RLock()  # a worker's watch writes too
        self._worker = ""
        self._waiting: list[BatchResult] = []  # what came of one message each
        self._under_way: BatchResult | None = (
            None  # a batch that is written in parts: an outage may come between two
        )
        self._left: deque[BatchResult] = deque()  # those of its parts that are not written
        self._dropped: list[Send] = []  # what found no room, since the last report
        self._again_at = 0.0  # time.monotonic() of the next round

    def __bool__(self) -> bool:
        return bool(self._waiting or self._dropped) or self._under_way is not None

    def finish(self, worker: str, done: BatchResult) -> list[Send]:
        """Write what can be; return the sends that found a channel full, those of what was blocked before too."""
        with self._lock:
            self._worker = worker
            if self._waiting or self._under_way is not None:
                if self._under_way is not done:
                    self._begin(done)
                    self._write_together(done.in_flight)
                self._write_singly(done.in_flight)
            elif not self._is_written(done, LOCK_TIMEOUT_MS, self._set_in_flight(done.in_flight)):
                self._begin(done)
                self._write_singly(done.in_flight)
            dropped, self._dropped = self._dropped, []
            return dropped

    def _begin(self, done: BatchResult) -> None:
        self._under_way, self._left = done, deque()
        self._again_at = self._again_at if self._waiting else time.monotonic() + EVERY
        for part in parts(done):
            (self._waiting if _meets(part, self._waiting) else self._left).append(part)

    def _write_together(self, in_flight: Sequence[Delivery]) -> None:
        if len(self._left) > 1 and self._is_written(
            merged(self._left), SINGLY, self._set_in_flight(self._all(in_flight))
        ):
            self._left.clear()

    def _write_singly(self, in_flight: Sequence[Delivery]) -> None:
        """What is blocked is on record as such in the same moment as the rest of the batch is no longer in flight."""
        while self._left:
            part = self._left[0]
            if _meets(part, self._waiting) or not self._is_written(
                part, SINGLY, self._set_in_flight(self._all(in_flight))
            ):
                self._waiting.append(part)
            self._left.popleft()
        self._write(
            self._worker, BatchResult(), [self._set_in_flight(in_flight), self._set_blocked(self._waiting)]
        )
        self._under_way = None

    def try_again(self, now: bool = False) -> None:
        """Write what is not blocked any more; at most so often, but ``now`` if it is the last time."""
        if not self._waiting or (time.monotonic() < self._again_at and not now):
            return
        with self._lock:
            ends_at, failed = time.monotonic() + ROUND, list[BatchResult]()
            untried = deque(self._waiting)
            try:
                while untried and len(failed) < MOST_FAILED and time.monotonic() < ends_at:
                    part = untried[0]
                    others = self._set_blocked([one for one in self._waiting if one is not part])
                    if not _meets(part, failed) and self._is_written(part, AGAIN, others):
                        self._waiting = [one for one in self._waiting if one is not part]
                    else:
                        failed.append(part)
                    untried.popleft()
            finally:
                self._turn(failed)

    def _turn(self, failed: Sequence[BatchResult]) -> None:
        """Put those first that were not tried; of one connection the order stays."""
        stuck, rest = list(failed), list[BatchResult]()
        for part in self._waiting:
            if all(part is not one for one in failed):
                (stuck if _meets(part, stuck) else rest).append(part)
        self._waiting = rest + stuck
        self._again_at = time.monotonic() + (EVERY if failed else 0.0)

    def _is_written(self, part: BatchResult, milliseconds: int, in_flight: Statement) -> bool:
        try:
            self._dropped += self._write(self._worker, part, [_timeout(milliseconds), in_flight])
        except Locked:
            return False
        return True

    def seconds_left(self) -> float | None:
        """Return in how many seconds the next round is due; None when nothing is blocked."""
        return self._again_at - time.monotonic() if self._waiting else None

    def forget(self) -> None:
        """Let go of everything: the worker has gone, or was declared dead, and was cleaned up after."""
        with self._lock:
            self._waiting, self._under_way = [], None
            self._left.clear()

    # What is on record.

    def _all(self, in_flight: Sequence[Delivery]) -> list[Delivery]:
        """Return what the worker holds while a batch is written in parts."""
        return [*in_flight, *_deliveries(self._left), *_deliveries(self._waiting)]

    def _set_in_flight(self, in_flight: Sequence[Delivery]) -> Statement:
        return sql.SET_IN_FLIGHT, {"worker": self._worker, "messages": in_flight_lines(in_flight)}

    def _set_blocked(self, blocked: Iterable[BatchResult]) -> Statement:
        name, messages = self._worker + InFlight.BLOCKED, in_flight_lines(_deliveries(blocked))
        if not messages:
            return sql_processes.TAKE_IN_FLIGHT, {"name": name}
        return sql.SET_BLOCKED, {"worker": name, "messages": messages}


def _timeout(milliseconds: int) -> Statement:
    return sql.LOCK_TIMEOUT, {"milliseconds": milliseconds}


def _deliveries(dones: Iterable[BatchResult]) -> list[Delivery]:
    return [delivery for one in dones for delivery, _ in one.boundaries]


def _meets(part: BatchResult, others: Iterable[BatchResult]) -> bool:
    """Whether it must stay behind one of these: of one connection what came first is written first."""
    channels = _connections(part)
    return any(not channels.isdisjoint(_connections(one)) for one in others)


def _connections(part: BatchResult) -> set[str]:
    """Return the channels of connections that a message came from, or that its consumer had to do with."""
    found = {delivery.reply_channel for delivery, _ in part.boundaries}
    for one in part.operations:
        if isinstance(one, (Identify, Keep)):
            found.add(one.reply_channel)
        elif isinstance(one, (GroupAdd, GroupDiscard, Send)) and "!" in one.channel:
            found.add(one.channel)
    return found - {""}
