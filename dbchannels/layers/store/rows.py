"""What ``StoreLayer`` keeps of a message: plain values alone, so that a store may write them in any form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any, NamedTuple

from dbchannels import names
from dbchannels.layers.operations import Delivery, Send


class Row(NamedTuple):
    """A message that waits or is claimed; moments are seconds by the layer's clock."""

    id: int
    channel: str  # the full name, local part included
    payload: bytes
    reply_channel: str
    sent: float
    due: float  # it is not received before this
    end: float  # nor after this
    priority: int = 0
    unique: str = ""
    attempt: int = 0
    alone: bool = False  # left by a dead worker: it is claimed by itself

    @property
    def queue(self) -> str:
        """What its reader reads."""
        return names.split(self.channel)[0]

    def delivery(self) -> Delivery:
        """Return what its reader gets."""
        queue, local = names.split(self.channel)
        number = None if names.is_protocol(queue) else self.id
        return Delivery(
            queue, self.payload, (local,) if local else (), self.reply_channel, number, self.attempt
        )


class Letter(NamedTuple):
    """A durable message that failed for good."""

    id: int
    channel: str
    payload: bytes
    attempts: int
    sent: float
    error: str  # the end of the traceback


def sent_row(send: Send, number: int, now: float) -> Row:
    """Return the row of a message that is sent now."""
    end = now + send.expiry if names.is_protocol(send.channel) else inf
    due = now + send.due_in()
    return Row(
        number, send.channel, send.payload, send.reply_channel, now, due, end, send.priority, send.unique
    )


def rows(table: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the rows of a table, in its order; a store may have made lists of them."""
    return (one if type(one) is Row else Row._make(one) for one in table.values())
