"""What ``StoreLayer`` keeps: plain values alone, so that a store may write them in any form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from math import inf
from typing import Any, NamedTuple

from dbchannels import names
from dbchannels.layers import operations as ops


class Row(NamedTuple):
    """A message that waits or is claimed; moments are seconds by the layer's clock."""

    id: int
    channel: str  # the full name, local part included
    payload: bytes
    reply_channel: str
    sent: float
    due: float  # the message is not received before
    end: float  # nor after
    priority: int = 0
    unique: str = ""
    attempt: int = 0
    alone: bool = False  # left by a dead worker: it is claimed by itself
    task: str = ""  # the id of the task that it runs
    claimed: float = 0.0  # when it was claimed last

    @property
    def queue(self) -> str:
        """What its reader reads."""
        return names.split(self.channel)[0]

    def delivery(self) -> ops.Delivery:
        """Return what its reader gets."""
        queue, recipient = names.split(self.channel)
        recipients = (recipient,) if recipient else ()
        number = None if names.is_protocol(queue) else self.id
        return ops.Delivery(
            *(queue, self.payload, recipients, self.reply_channel, number, self.attempt),
            is_task=bool(self.task),
        )


class Letter(NamedTuple):
    """A durable message that failed for good."""

    id: int
    channel: str
    payload: bytes
    attempts: int
    sent: float
    error: str  # the end of the traceback
    task: str = ""  # the id of the task that it ran


class Member(NamedTuple):
    """A channel's place in a group."""

    end: float
    since: int  # the position after which messages count that it missed, see the model ``Membership``


class HistoryRow(NamedTuple):
    """A message of a group's history."""

    position: int
    group: str
    payload: bytes
    sent: float
    keep: int | None  # messages of the group
    end: float


class ConnectionRow(NamedTuple):
    """An open WebSocket, with the fields of the model ``Connection``."""

    reply_channel: str
    server: str
    path: str
    session_key: str
    session_digest: str
    login: str
    user_id: str = ""
    session: bytes = b""

    def updated(self, operation: ops.Identify | ops.Keep) -> ConnectionRow:
        """Return the row with what an operation sets."""
        given = {name: value for name, value in operation._asdict().items() if value is not None}
        if given.get("login") == ops.NOBODY and self.login != ops.UNKNOWN:
            del given["login"]
        return self._replace(**given)

    def record(self) -> ops.Record:
        """Return what a layer gives for it."""
        return ops.Record(self.reply_channel, self.session_key, self.login, self.session)


def sent_row(send: ops.Send, number: int, now: float) -> Row:
    """Return the row of a message that is sent now."""
    end = now + send.expiry if names.is_protocol(send.channel) else inf
    delay = (send.due_at - datetime.now(timezone.utc)).total_seconds() if send.due_at else send.delay
    due = now + delay
    fields = number, send.channel, send.payload, send.reply_channel, now, due, end, send.priority, send.unique
    return Row(*fields, task=send.task)


def rows(table: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the messages of a table, in its order; a store may have made lists of them."""
    return (one if type(one) is Row else Row._make(one) for one in table.values())


def history_rows(table: Mapping[str, Any]) -> Iterator[HistoryRow]:
    """Yield the messages of all histories, in order."""
    return map(HistoryRow._make, table.values())


def connection_rows(table: Mapping[str, Any]) -> Iterator[ConnectionRow]:
    """Yield the connections of a table."""
    return map(ConnectionRow._make, table.values())
