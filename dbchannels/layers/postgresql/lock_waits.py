"""Results that wait for a transaction of the site, while those of other messages are written.

What a consumer writes to a membership or a connection waits while an open transaction of the site has locked that row.
A worker writes the results of a whole batch at once, so one locked row would hold up all of them, and all that come
after. Therefore no write waits longer than a few milliseconds. What is blocked, a message's operations with its
acknowledgement, is set apart and retried from time to time; what later messages of the same connection did stays behind
it, in order. Until its result is written, a message counts as in flight: when its worker dies, its client gets an
error, or the message is claimed again.
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
    Send,
    in_flight_lines,
    merged,
    parts,
)
from dbchannels.layers.postgresql import sql
from dbchannels.layers.postgresql.session import Locked, Statement
from dbchannels.models import InFlight

LOCK_TIMEOUT_MS = 50  # milliseconds that a batch waits for a lock; dbchannels itself holds one for a few
SINGLE_TIMEOUT_MS = 5  # ... and the result of each message, once the batch has waited in vain
RETRY_TIMEOUT_MS = 1  # ... and a result that is retried
RETRY_EVERY = 0.5  # seconds between two rounds of retries; a round ends ...
MOST_FAILED = 5  # ... after so many results that are still blocked,
ROUND = 0.1  # ... or so many seconds

#: Operations that may wait for a row that an open transaction has locked.
MAY_WAIT = (GroupAdd, GroupDiscard, GroupClear, Identify, Keep)

Write = Callable[[str, BatchResult, Sequence[Statement]], list[Send]]


class LockWaits:
    """The blocked results of one link. ``write`` takes a worker's name, a result, and statements to run before it."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._lock = threading.RLock()  # a worker's watchdog writes too
        self._worker = ""
        #: The results that are blocked, each of one message.
        self.blocked: list[BatchResult] = []
        #: Whether something is blocked, interrupted or unreported, so that the next batch has to go through ``finish``.
        self.busy = False
        self._batch: BatchResult | None = None  # one that is written in parts; an outage may interrupt it
        self._left: deque[BatchResult] = deque()  # its parts that are not written yet
        self._dropped: list[Send] = []  # sends that found no room, since the last report
        self._retry_at = 0.0  # time.monotonic() of the next round

    def finish(self, worker: str, batch: BatchResult) -> list[Send]:
        """Write what can be written; return the sends that found a channel full, with those of retried results."""
        with self._lock:
            self._worker, self.busy = worker, True
            first = not self.blocked and self._batch is None
            if not first or not self._is_written(
                batch, LOCK_TIMEOUT_MS, self._set_in_flight(batch.in_flight)
            ):
                if self._batch is not batch:
                    self._batch, self._left = batch, deque()
                    self._retry_at = self._retry_at if self.blocked else time.monotonic() + RETRY_EVERY
                    for part in parts(batch):
                        (self.blocked if _meets(part, self.blocked) else self._left).append(part)
                    together = not first and len(self._left) > 1
                    in_flight = self._set_in_flight(self._all(batch.in_flight))
                    if together and self._is_written(merged(self._left), SINGLE_TIMEOUT_MS, in_flight):
                        self._left.clear()
                while self._left:
                    part, record = self._left[0], self._set_in_flight(self._all(batch.in_flight))
                    if _meets(part, self.blocked) or not self._is_written(part, SINGLE_TIMEOUT_MS, record):
                        self.blocked.append(part)
                    self._left.popleft()
                # Blocked parts are recorded as such in the statement that takes the batch off the record.
                records = [self._set_in_flight(batch.in_flight), self._set_blocked(self.blocked)]
                self._write(self._worker, BatchResult(), records)
                self._batch = None
            dropped, self._dropped, self.busy = self._dropped, [], bool(self.blocked)
            return dropped

    def retry(self, now: bool = False) -> None:
        """Write results that are no longer blocked, once in ``RETRY_EVERY``; with ``now`` in any case."""
        if not self.blocked or (time.monotonic() < self._retry_at and not now):
            return
        with self._lock:
            ends_at, failed = time.monotonic() + ROUND, list[BatchResult]()
            untried = deque(self.blocked)
            try:
                while untried and len(failed) < MOST_FAILED and time.monotonic() < ends_at:
                    part = untried[0]
                    others = [one for one in self.blocked if one is not part]
                    if not _meets(part, failed) and self._is_written(
                        part, RETRY_TIMEOUT_MS, self._set_blocked(others)
                    ):
                        self.blocked = others
                    else:
                        failed.append(part)
                    untried.popleft()
            finally:
                # Those that were not tried come first in the next round; the order within a connection stays.
                stuck, rest = list(failed), list[BatchResult]()
                for part in self.blocked:
                    if all(part is not one for one in failed):
                        (stuck if _meets(part, stuck) else rest).append(part)
                self.blocked = rest + stuck
                self._retry_at = time.monotonic() + (RETRY_EVERY if failed else 0.0)
                self.busy = bool(self.blocked or self._dropped) or self._batch is not None

    def _is_written(self, part: BatchResult, milliseconds: int, in_flight: Statement) -> bool:
        timeout = sql.LOCK_TIMEOUT, {"milliseconds": milliseconds}
        try:
            self._dropped += self._write(self._worker, part, [timeout, in_flight])
        except Locked:
            return False
        return True

    def seconds_left(self) -> float:
        """Return in how many seconds the next round is due."""
        return self._retry_at - time.monotonic()

    def clear(self) -> None:
        """Forget everything: the worker ends, or was declared dead and cleaned up after."""
        with self._lock:
            self.blocked, self._batch, self.busy = [], None, bool(self._dropped)
            self._left.clear()

    # The record of what is in flight.

    def _all(self, in_flight: Sequence[Delivery]) -> list[Delivery]:
        """Return what is in flight while a batch is written in parts."""
        return [*in_flight, *_deliveries(self._left), *_deliveries(self.blocked)]

    def _set_in_flight(self, in_flight: Sequence[Delivery]) -> Statement:
        return sql.SET_IN_FLIGHT, {"worker": self._worker, "messages": in_flight_lines(in_flight)}

    def _set_blocked(self, blocked: Iterable[BatchResult]) -> Statement:
        name, messages = self._worker + InFlight.BLOCKED, in_flight_lines(_deliveries(blocked))
        if not messages:
            return sql.TAKE_IN_FLIGHT, {"name": name}
        return sql.SET_BLOCKED, {"worker": name, "messages": messages}


def _deliveries(results: Iterable[BatchResult]) -> list[Delivery]:
    return [delivery for one in results for delivery, _ in one.boundaries]


def _meets(part: BatchResult, others: Iterable[BatchResult]) -> bool:
    """Whether a result must stay behind one of the others: they have a connection in common."""
    channels = _connections(part)
    return any(not channels.isdisjoint(_connections(one)) for one in others)


def _connections(part: BatchResult) -> set[str]:
    """Return the channels of the connections that a message came from, or that its consumer wrote to."""
    found = {delivery.reply_channel for delivery, _ in part.boundaries}
    for one in part.operations:
        if isinstance(one, (Identify, Keep)):
            found.add(one.reply_channel)
        elif isinstance(one, (GroupAdd, GroupDiscard, Send)) and "!" in one.channel:
            found.add(one.channel)
    return found - {""}
