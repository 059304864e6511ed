"""What ``StoreLayer`` keeps of messages and open WebSockets: plain values, which a store may write in any form."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
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

    def delivery(self) -> ops.Delivery:
        """Return what its reader gets."""
        queue, local = names.split(self.channel)
        number = None if names.is_protocol(queue) else self.id
        return ops.Delivery(
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


def sent_row(send: ops.Send, number: int, now: float) -> Row:
    """Return the row of a message that is sent now."""
    end = now + send.expiry if names.is_protocol(send.channel) else inf
    due = now + send.due_in()
    return Row(
        number, send.channel, send.payload, send.reply_channel, now, due, end, send.priority, send.unique
    )


def rows(table: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the rows of a table, in its order; a store may have made lists of them."""
    return (one if type(one) is Row else Row._make(one) for one in table.values())


#: The fields of a value, by the names of the model ``Connection``; the key is the reply channel.
FIELDS = ("server", "path", "user_id", "session_key", "session_digest", "login", "session")


class StoreRecords:
    """Used while the store is locked."""

    def __init__(self, table: MutableMapping[str, Any]) -> None:
        self._table = table

    def write(self, operation: ops.Connect | ops.Identify | ops.Keep) -> None:
        """Write one operation; what concerns a connection that is not there changes nothing."""
        channel = operation.reply_channel
        if isinstance(operation, ops.Connect):
            if channel not in self._table:
                self._put(channel, {**operation.fields(), "user_id": "", "session": b""})
        elif channel in self._table:
            row = self._row(channel)
            given = {name: value for name, value in operation._asdict().items() if value is not None}
            if given.get("login") == ops.NOBODY and row["login"] != ops.UNKNOWN:
                del given["login"]
            self._put(channel, row | given)

    def user_id(self, channel: str) -> str:
        """Return whose it is; "" for nobody known."""
        return str(self._row(channel)["user_id"]) if channel in self._table else ""

    def find(
        self, after: str, limit: int, watched: bool, fields: Mapping[str, Sequence[str]]
    ) -> list[ops.Record]:
        """See ``BaseLayer.connections``."""

        def is_wanted(row: dict[str, Any]) -> bool:
            in_turn = row["reply_channel"] > after and not (watched and row["login"] == ops.NOBODY)
            return in_turn and all(row[name] in values for name, values in fields.items())

        found = filter(is_wanted, map(self._row, sorted(self._table)))
        return [_record(row) for row, _ in zip(found, range(limit), strict=False)]

    def any_of(self, server: str) -> bool:
        """Whether a connection of the server's is on record."""
        return any(self._row(channel)["server"] == server for channel in self._table)

    def pop_of(self, server: str, leaving: Collection[str]) -> list[tuple[ops.Record, str]]:
        """Take a server's connections off the record, but for those in ``leaving``; return each with its path."""
        rows = [self._row(channel) for channel in self._table if channel not in leaving]
        lost = [row for row in rows if row["server"] == server]
        for row in lost:
            del self._table[row["reply_channel"]]
        return [(_record(row), row["path"]) for row in lost]

    def _row(self, channel: str) -> dict[str, Any]:
        return {"reply_channel": channel, **dict(zip(FIELDS, self._table[channel], strict=True))}

    def _put(self, channel: str, row: dict[str, Any]) -> None:
        self._table[channel] = tuple(row[name] for name in FIELDS)


def _record(row: dict[str, Any]) -> ops.Record:
    return ops.Record(row["reply_channel"], row["session_key"], row["login"], row["session"])
