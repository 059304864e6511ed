"""Writes what the hub has sent: all that has piled up while the last statement was under way, as one statement."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Sequence
from typing import Any

from dbchannels import protocol
from dbchannels.layers.operations import Connect, Disconnect, Operation, Send, Withdraw

log = logging.getLogger("dbchannels.server")

BATCH = 500  # rows in one statement
BATCH_BYTES = (
    1_048_576  # of their payloads, after which no more are added: a statement takes several times that
)

#: What the hub puts in, in order, and which operations are written together or not at all; None is the last of all.
Outbox = queue.SimpleQueue[Sequence[Operation] | None]


class Publisher:
    """Runs in a thread of its own, until the outbox says that nothing more comes.

    ``apply`` writes operations and returns the sends that found a channel full; ``retry`` calls until the layer can be
    used; ``lost`` is told the reply channel and the notice of each send that nobody will answer.
    """

    def __init__(
        self,
        outbox: Outbox,
        apply: Callable[[Sequence[Operation]], list[Send]],
        *,
        retry: Callable[[Callable[[], Any]], Any],
        lost: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._outbox = outbox
        self._apply = apply
        self._retry = retry
        self._lost = lost

    def run(self) -> None:
        """Write until the end."""
        ended = False
        while not ended:
            batch, size = list[Operation](), 0
            while not batch or (len(batch) < BATCH and size < BATCH_BYTES and not self._outbox.empty()):
                together = self._outbox.get()
                if together is None:
                    ended = True
                    break
                batch += together
                size += sum(map(_size, together))
            operations = _ordered(batch)
            try:
                self._write(operations)
            except Exception:
                self._write_singly(operations)

    def _write(self, operations: Sequence[Operation]) -> None:
        for send in self._retry(lambda: self._apply(operations)) or []:
            self._lost(send.reply_channel, protocol.lost(protocol.FULL, send.channel))

    def _write_singly(self, operations: Sequence[Operation]) -> None:
        """Write what can be written of a batch that cannot: of 500 clients only the culprit is lost."""
        lost = 0
        for operation in operations:
            try:
                self._write([operation])
            except Exception:
                if not lost:
                    log.exception(
                        "The layer cannot take this (%s); it was left out.", type(operation).__name__
                    )
                lost += 1
                if isinstance(operation, Send):
                    self._lost(
                        operation.reply_channel, protocol.lost(protocol.WORKER_DIED, operation.channel)
                    )
        if lost > 1:
            log.error("%d operations of a batch of %d were left out.", lost, len(operations))


def _size(operation: Operation) -> int:
    return len(operation.payload) if isinstance(operation, Send) else 0


def _ordered(operations: list[Operation]) -> list[Operation]:
    """Put neighbours of one kind together, so that each kind is one statement, the sends last.

    For one connection this is the order anyway: its record, then its messages; and its record is dropped only
    after its last message has been consumed. What is withdrawn was in an earlier batch, or was left out.
    """
    rank = {Connect: 0, Disconnect: 1, Withdraw: 2, Send: 3}
    return sorted(operations, key=lambda operation: rank[type(operation)])
