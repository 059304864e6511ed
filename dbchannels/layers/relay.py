"""Between a process and the layer: what it sends goes out in batches, and a thread reads what comes for it.

The *publisher* writes what was put into the outbox: all that has piled up during the last statement, as one statement.
The *reader* takes the messages; it alone LISTENs. The interface server's relay and the one of Channels' layer, in
``channels``, say what is read, and who gets it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing

from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.health import LayerHealth
from dbchannels.layers.link import Link
from dbchannels.layers.operations import (
    Connect,
    Disconnect,
    GroupAdd,
    GroupDiscard,
    Operation,
    Send,
    SendGroup,
    Withdraw,
)
from dbchannels.wakeup import Backoff, WakeupPipe

OUTBOX = 20_000  # operations that may wait for the database
BATCH = 500  # rows in one statement
BATCH_BYTES = 1_048_576  # of payloads, after which a batch takes no more: a statement needs more memory
REACHABLE = 1.0  # seconds that an answer of the layer may take before it counts as gone
STOP_TRIES = 5  # of a write, once the process stops

# In a batch, for one connection: first its record, then its groups and its messages. Its record is deleted only after
# its last message was consumed, and what is withdrawn was in an earlier batch, or was left out.
_RANKS = {
    Connect: 0,
    GroupAdd: 1,
    GroupDiscard: 1,
    Disconnect: 1,
    Withdraw: 2,
    SendGroup: 3,
    Send: 4,
}

Outbox = queue.SimpleQueue[Sequence[Operation] | None]


class OutboxFull(Exception):
    """The outbox takes no more: the sender has to refuse what it was to send."""


class BaseRelay:
    """Runs the publisher and the reader; each is a thread, and has a session of its own."""

    def __init__(self, layer: BaseLayer, log: logging.Logger, process: str) -> None:
        self.layer, self._log = layer, log
        self.health = LayerHealth(log, process)
        #: What is to be sent, in order; each item is written in one batch or not at all. None ends the publisher.
        self._outbox: Outbox = queue.SimpleQueue()
        self.stopping = threading.Event()
        self._wake = WakeupPipe.new()  # ends the reader's wait
        #: Who writes messages for this reader in this process tree wakes it with this pipe, without a NOTIFY.
        self.reply_wakeup = WakeupPipe.new()
        self._read_at = 0.0  # when the layer last answered the reader

    def is_reachable(self) -> bool:
        """Whether the layer has answered the reader in time."""
        return time.monotonic() - self._read_at < 2 * self.layer.poll_interval() + REACHABLE

    def _put(self, operations: Sequence[Operation]) -> None:
        """Hand operations to the publisher, in order. Raises OutboxFull."""
        if self._outbox.qsize() > OUTBOX:
            raise OutboxFull
        self._outbox.put(operations)

    # The publisher.

    def _publish(self) -> None:
        with closing(self.layer.link("publisher", listen=False)) as link:
            ended = False
            while not ended:
                operations, ended = next_batch(self._outbox)
                if not operations:  # nothing says that the layer can be used
                    continue
                try:
                    self._write(link, operations)
                except Exception:
                    self._write_singly(link, operations)

    def _write(self, link: Link, operations: Sequence[Operation]) -> None:
        """Write a batch. Raises whatever the layer raises for operations that it cannot take."""
        full = self.health.retry(lambda: self._apply(link, operations), self.stopping, STOP_TRIES)
        self._written(operations, full or [])

    def _write_singly(self, link: Link, operations: Sequence[Operation]) -> None:
        """Write a batch that cannot be written, without the operations that are to blame."""
        left_out = 0
        for operation in operations:
            try:
                self._write(link, [operation])
            except Exception as error:
                if not left_out:
                    self._log.exception(
                        "The layer cannot take this (%s); it was left out.", type(operation).__name__
                    )
                left_out += 1
                self._left_out(operation, error)
        if left_out > 1:
            self._log.error("%d operations of a batch of %d were left out.", left_out, len(operations))

    # The reader.

    def _read(self) -> None:
        link = self.layer.link("receiver")
        delays, failing, deaf = Backoff(from_start=True), False, False
        while not self.stopping.is_set():
            try:
                while self._take(link):
                    pass
                self._read_at = time.monotonic()
                if delays.tries:  # if only the wait fails, the session was ended, and not the database
                    self.health.worked()
                    delays.reset()
                if deaf:
                    self._missed_wakeups()
                    deaf = False
                deadline, woken = time.monotonic() + self.layer.poll_interval(), False
                while not woken and not self.stopping.is_set() and (left := deadline - time.monotonic()) > 0:
                    kinds = link.wait(left, self._wake.reader, self.reply_wakeup.reader)
                    self._woken(kinds)
                    woken = self.reply_wakeup.drain() or self._is_for_reader(kinds)
                failing = False
            except Exception as error:
                deaf = True
                self.health.failed(error)
                if not isinstance(error, LayerUnavailable) and not failing:
                    self._log.exception("The messages could not be read; trying again.")
                    failing = True
                self.stopping.wait(delays.delay())
        link.close()

    # For relays to implement.

    def _apply(self, link: Link, operations: Sequence[Operation]) -> list[Send]:
        """Write operations; return the sends that found no room."""
        return link.apply(operations)

    def _written(self, operations: Sequence[Operation], full: Sequence[Send]) -> None:
        """Note that operations were written, without the sends that found no room."""

    def _left_out(self, operation: Operation, error: Exception) -> None:
        """Note that the layer cannot take an operation."""

    def _take(self, link: Link) -> bool:
        """Receive messages, and deliver them; return whether there may be more."""
        raise NotImplementedError

    def _is_for_reader(self, kinds: AbstractSet[str]) -> bool:
        """Whether the reader has to look for messages, by what ``Link.wait`` returned."""
        raise NotImplementedError

    def _woken(self, kinds: AbstractSet[str]) -> None:
        """Note what ``Link.wait`` returned."""

    def _missed_wakeups(self) -> None:
        """Note that nobody has heard the wakeups for a while."""


def next_batch(outbox: Outbox) -> tuple[list[Operation], bool]:
    """Wait for operations; return all that are there, up to a batch, and whether they are the last.

    Operations of one kind stand together, so that each kind is one statement, and sends stand last.
    """
    batch, size, ended = list[Operation](), 0, False
    while not batch or (len(batch) < BATCH and size < BATCH_BYTES and not outbox.empty()):
        operations = outbox.get()
        if operations is None:
            ended = True
            break
        batch += operations
        size += sum(len(one.payload) for one in operations if isinstance(one, (Send, SendGroup)))
    return sorted(batch, key=lambda operation: _RANKS[type(operation)]), ended
