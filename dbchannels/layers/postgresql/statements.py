"""Operations turned into statements: neighbours of one kind become one statement, and the order stays."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from dbchannels import names
from dbchannels.layers.operations import (
    Connect,
    Disconnect,
    GroupAdd,
    GroupDiscard,
    Operation,
    Send,
    SendGroup,
    storable,
)
from dbchannels.layers.postgresql import sql

if TYPE_CHECKING:
    from dbchannels.layers.base import BaseLayer

Values = dict[str, Any]
#: A statement, its values, and the sends that it writes, if any.
Planned = tuple[str, Values, list[Send]]


def statements(layer: BaseLayer, operations: Sequence[Operation]) -> Iterator[Planned]:
    """Yield what writes the operations, in order; 100 sends in a row are one INSERT."""
    for (kind, _), group in groupby(operations, key=_kind):
        yield from _PLANS[kind](layer, list(group))


def without_room(sends: Sequence[Send], rows: Sequence[tuple[Any, ...]]) -> list[Send]:
    """Return the sends whose queue was full; ``rows`` is what their INSERT gave, (queue, rows written)."""
    taken = {row[0] for row in rows}
    return [send for send in sends if names.split(send.channel)[0] not in taken]


def _kind(operation: Operation) -> tuple[type, bool]:
    return type(operation), isinstance(operation, Send) and names.is_protocol(operation.channel)


def _sends(layer: BaseLayer, sends: list[Send]) -> Iterator[Planned]:
    if not names.is_protocol(sends[0].channel):
        yield from _durable_sends(layer, sends)
        return
    parts = [names.split(send.channel) for send in sends]
    queues = dict.fromkeys(queue for queue, _ in parts)
    values = {
        "channels": [queue for queue, _ in parts],
        "locals": [local for _, local in parts],
        "reply_channels": [send.reply_channel for send in sends],
        "payloads": [send.payload for send in sends],
        "expiries": [send.expiry for send in sends],
    }
    yield sql.SEND, values | _room(layer, queues), sends


def _durable_sends(layer: BaseLayer, sends: list[Send]) -> Iterator[Planned]:
    queues = dict.fromkeys(send.channel for send in sends)
    values = {
        "channels": [send.channel for send in sends],
        "payloads": [send.payload for send in sends],
        "delays": [send.delay for send in sends],
    }
    yield sql.SEND_DURABLE, values | _room(layer, queues), sends


def _room(layer: BaseLayer, queues: dict[str, None]) -> Values:
    return {
        "queues": list(queues),
        "capacities": [layer.capacity(queue) for queue in queues],
        "wake": layer.wakeups,
    }


def _group_sends(layer: BaseLayer, sends: list[SendGroup]) -> Iterator[Planned]:
    capacities = _capacities(layer)
    for send in sends:
        values = {
            "group": send.group,
            "payload": send.payload,
            "expiry": layer.options["expiry"],
            "patterns": list(capacities),
            "capacities": list(capacities.values()),
            "wake": layer.wakeups,
        }
        yield sql.SEND_GROUP, values, []


def _capacities(layer: BaseLayer) -> dict[str, int | None]:
    """Return what ``layer.capacity`` goes by as regular expressions of PostgreSQL's; one fits every channel."""
    own = {sql_pattern(key): capacity for key, capacity in layer.options["channel_capacity"].items()}
    return own | {r"[!?]|^http\.|^websocket\.": layer.options["capacity"], "": None}


def sql_pattern(pattern: str) -> str:
    """Turn a pattern as fnmatch reads it into a regular expression of PostgreSQL's; Python's own has more syntax."""
    parts = re.findall(r"\[!?\]?[^]]*\]|.", pattern, re.DOTALL)
    return "^" + "".join(_sql_part(part) for part in parts) + "$"


def _sql_part(part: str) -> str:
    if part in "*?":
        return ".*" if part == "*" else "."
    if len(part) == 1:
        return re.escape(part)
    inside = part[1:-1].replace("\\", r"\\")
    return "[^" + inside[1:] + "]" if inside[0] == "!" else "[" + inside.replace("^", r"\^") + "]"


def _group_adds(layer: BaseLayer, adds: list[GroupAdd]) -> Iterator[Planned]:
    for add in adds:
        queue, local = names.split(add.channel)
        values = {"group": add.group, "channel": queue, "local": local, "expiry": layer.group_expiry}
        yield sql.GROUP_ADD, values, []


def _group_discards(layer: BaseLayer, discards: list[GroupDiscard]) -> Iterator[Planned]:
    for discard in discards:
        queue, local = names.split(discard.channel)
        yield sql.GROUP_DISCARD, {"group": discard.group, "channel": queue, "local": local}, []


def _connects(layer: BaseLayer, connects: list[Connect]) -> Iterator[Planned]:
    values = {
        "reply_channels": [connect.reply_channel for connect in connects],
        "servers": [connect.server for connect in connects],
        "paths": [storable(connect.path) for connect in connects],
    }
    yield sql.CONNECT, values, []


def _disconnects(layer: BaseLayer, disconnects: list[Disconnect]) -> Iterator[Planned]:
    parts = [names.split(disconnect.reply_channel) for disconnect in disconnects]
    values = {
        "reply_channels": [disconnect.reply_channel for disconnect in disconnects],
        "channels": [queue for queue, _ in parts],
        "locals": [local for _, local in parts],
    }
    yield sql.DISCONNECT, values, []


_PLANS: dict[type, Any] = {
    Send: _sends,
    SendGroup: _group_sends,
    GroupAdd: _group_adds,
    GroupDiscard: _group_discards,
    Connect: _connects,
    Disconnect: _disconnects,
}
