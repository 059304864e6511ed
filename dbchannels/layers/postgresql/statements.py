"""Operations turned into statements: neighbours of one kind become one statement, and the order stays."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from dbchannels import names
from dbchannels.layers.operations import (
    Connect,
    Disconnect,
    GroupAdd,
    GroupClear,
    GroupDiscard,
    Identify,
    Keep,
    Operation,
    Send,
    SendGroup,
    Withdraw,
    storable,
)
from dbchannels.layers.postgresql import sql, sql_durable
from dbchannels.layers.postgresql.destinations import woken
from dbchannels.layers.postgresql.notify import Wakes
from dbchannels.protocol import DURABLE

if TYPE_CHECKING:
    from dbchannels.layers.postgresql import PostgreSQLLayer

Values = dict[str, Any]
#: By name, or by position.
Parameters = Values | tuple[Any, ...]
#: A statement, its values, and the sends that it writes, if any.
Planned = tuple[str, Parameters, list[Send]]


def statements(
    layer: PostgreSQLLayer, operations: Sequence[Operation], wakes: Wakes | None = None
) -> Iterator[Planned]:
    """Yield what writes the operations, in order; 100 sends in a row are one INSERT."""
    wakes = wakes or Wakes(layer)
    for (kind, _), group in groupby(operations, key=_kind):
        yield from _PLANS[kind](layer, list(group), wakes)


def without_room(
    layer: PostgreSQLLayer, sends: Sequence[Send], rows: Sequence[tuple[Any, ...]]
) -> list[Send]:
    """Return the sends whose queue was full, and note how much room the others have left.

    ``rows`` is what their statement gave: (queue, messages that waited before, whether the sends went in).
    """
    full = set()
    for queue, waited, taken in rows:
        if not taken:
            full.add(queue)
        if waited is not None:
            sent = sum(names.split(send.channel)[0] == queue for send in sends) if taken else 0
            layer.room.learn(queue, layer.capacity(queue) or 0, waited + sent)
    return [send for send in sends if names.split(send.channel)[0] in full and not send.certain]


def _kind(operation: Operation) -> tuple[type, Any]:
    """Neighbours of one kind go into one statement; a send with a unique key has its own."""
    if not isinstance(operation, Send):
        return type(operation), None
    protocol = names.is_protocol(operation.channel)
    return Send, (operation.expiry if protocol else None, operation.unique and id(operation))


def _sends(layer: PostgreSQLLayer, sends: list[Send], wakes: Wakes) -> Iterator[Planned]:
    if len(sends) == 1 and (statement := single(layer, sends[0], wakes)):
        yield (*statement, [])
        return
    if not names.is_protocol(sends[0].channel):
        yield from _durable_sends(layer, sends, wakes)
        return
    if alike := _alike(layer, sends, wakes):
        yield alike
        return
    parts = [names.split(send.channel) for send in sends]
    queues = Counter(queue for queue, _ in parts)
    values = {
        "channels": [queue for queue, _ in parts],
        "recipients": [recipient for _, recipient in parts],
        "reply_channels": [send.reply_channel for send in sends],
        "payloads": [send.payload for send in sends],
        "certain": [send.certain for send in sends],
        "expiry": sends[0].expiry,
    }
    yield _waking(
        wakes, set(map(woken, queues)), _into(layer, queues, values, sends, sql.SEND, sql.SEND_IF_ROOM)
    )


def _alike(layer: PostgreSQLLayer, sends: list[Send], wakes: Wakes) -> Planned | None:
    """Return the short statement for messages of which only the payloads differ; None when it cannot be had."""
    channel, _, reply_channel, expiry, *_ = sends[0]
    if any(send.channel != channel or send.reply_channel != reply_channel for send in sends):
        return None
    queue, recipient = names.split(channel)
    if layer.capacity(queue) is not None and not layer.room.take({queue: len(sends)}):
        return None
    payloads = [send.payload for send in sends]
    values = {"channel": queue, "recipient": recipient, "reply_channel": reply_channel, "payloads": payloads}
    return _waking(wakes, {woken(queue)}, (sql.SEND_ALIKE, {**values, "expiry": expiry}, []))


def single(
    layer: PostgreSQLLayer, send: Send, wakes: Wakes, asks: bool = True
) -> tuple[str, tuple[Any, ...]] | None:
    """Return the short statement for one usual message, with its values; None when it cannot be had.

    With ``asks`` it asks the queue of notifications whether there is room, and gives NULL where there was none.
    """
    if send.unique or send.delay or send.priority or send.due_at:
        return None
    queue, recipient, protocol, limited, wake = layer.destinations.of(send.channel)
    if limited and not send.certain and not layer.room.take_one(queue):
        return None
    suffix = (_ASKED if asks else _UNASKED) if wakes.notified({wake}) else _UNTOLD
    told = (wake,) if suffix is not _UNTOLD else ()
    if not protocol:
        return suffix[1], (queue, send.payload, *told)
    return suffix[0], (queue, recipient, send.reply_channel, send.payload, f"{send.expiry} s", *told)


# How a message is written, a protocol's and a durable one, by how its readers are told.
_UNTOLD = sql.SEND_ONE, sql_durable.SEND_DURABLE_ONE
_ASKED = sql.SEND_ONE + sql.WAKE_ONE, sql_durable.SEND_DURABLE_ONE + sql.WAKE_ONE
_UNASKED = sql.SEND_ONE + sql.WAKE_ONE_UNASKED, sql_durable.SEND_DURABLE_ONE + sql.WAKE_ONE_UNASKED


def _durable_sends(layer: PostgreSQLLayer, sends: list[Send], wakes: Wakes) -> Iterator[Planned]:
    values = {
        "channels": [send.channel for send in sends],
        "payloads": [send.payload for send in sends],
        "priorities": [send.priority for send in sends],
        "unique_keys": [send.unique for send in sends],
        "delays": [send.delay for send in sends],
        "due_ats": [send.due_at for send in sends],
    }
    plain, careful = sql_durable.SEND_DURABLE, sql_durable.SEND_DURABLE_IF_ROOM
    if sends[0].unique:
        plain, careful = sql_durable.SEND_UNIQUE, sql_durable.SEND_UNIQUE_IF_ROOM
    elif not any(send.delay or send.due_at or send.priority for send in sends):
        plain = sql_durable.SEND_DURABLE_NOW
    queues = Counter(send.channel for send in sends)
    yield _waking(wakes, {DURABLE}, _into(layer, queues, values, sends, plain, careful))


def _into(
    layer: PostgreSQLLayer,
    queues: Mapping[str, int],
    values: Values,
    sends: list[Send],
    plain: str,
    careful: str,
) -> tuple[str, Values, list[Send]]:
    """Return the statement that sends; the one that counts first where the queues may be full."""
    capacities = {queue: layer.capacity(queue) for queue in queues}
    limited = {queue: number for queue, number in queues.items() if capacities[queue] is not None}
    if layer.room.take(limited):
        return plain, values, []
    return careful, values | {"queues": list(capacities), "capacities": list(capacities.values())}, sends


def _waking(wakes: Wakes, kinds: set[str], planned: tuple[str, Values, list[Send]]) -> Planned:
    """Put the wakeup in front, in the same string: what the last statement gives is what is looked at."""
    text, values, sent = planned
    notified = wakes.notified(kinds)
    return (f"{sql.WAKE};{text}", {**values, "wake": sorted(notified)}, sent) if notified else planned


def _group_sends(layer: PostgreSQLLayer, sends: list[SendGroup], wakes: Wakes) -> Iterator[Planned]:
    for send in sends:
        yield (*broadcast(layer, send, wakes), [])


def broadcast(layer: PostgreSQLLayer, send: SendGroup, wakes: Wakes) -> tuple[str, tuple[Any, ...]]:
    """Return the statement that sends to a group, with its values."""
    patterns, capacities = layer.sql_capacities
    told, near = wakes.broadcast(), list(wakes.near)
    return sql.SEND_GROUP, (
        send.group,
        send.payload,
        layer.options["expiry"],
        patterns,
        capacities,
        told,
        near,
    )


def sql_capacities(options: dict[str, Any]) -> tuple[list[str], list[int | None]]:
    """Return what ``layer.capacity`` goes by: PostgreSQL's regular expressions, of which the last fits all."""
    own = {sql_pattern(key): capacity for key, capacity in options["channel_capacity"].items()}
    both = own | {r"[!?]|^http\.|^websocket\.": options["capacity"], "": None}
    return list(both), list(both.values())


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


def _group_adds(layer: PostgreSQLLayer, adds: list[GroupAdd], wakes: Wakes) -> Iterator[Planned]:
    for add in adds:
        queue, recipient = names.split(add.channel)
        values = {"group": add.group, "channel": queue, "recipient": recipient, "expiry": layer.group_expiry}
        yield sql.GROUP_ADD, values, []


def _group_discards(layer: PostgreSQLLayer, discards: list[GroupDiscard], wakes: Wakes) -> Iterator[Planned]:
    for discard in discards:
        queue, recipient = names.split(discard.channel)
        yield sql.GROUP_DISCARD, {"group": discard.group, "channel": queue, "recipient": recipient}, []


def _group_clears(layer: PostgreSQLLayer, clears: list[GroupClear], wakes: Wakes) -> Iterator[Planned]:
    for clear in clears:
        yield sql.GROUP_CLEAR, {"group": clear.group}, []


def _connects(layer: PostgreSQLLayer, connects: list[Connect], wakes: Wakes) -> Iterator[Planned]:
    values = {
        "reply_channels": [connect.reply_channel for connect in connects],
        "servers": [connect.server for connect in connects],
        "paths": [storable(connect.path) for connect in connects],
        "session_keys": [connect.session_key for connect in connects],
        "session_digests": [connect.session_digest() for connect in connects],
        "logins": [connect.login() for connect in connects],
    }
    yield sql.CONNECT, values, []


def _disconnects(layer: PostgreSQLLayer, disconnects: list[Disconnect], wakes: Wakes) -> Iterator[Planned]:
    yield sql.DISCONNECT, of_connections([disconnect.reply_channel for disconnect in disconnects]), []


def _withdraws(layer: PostgreSQLLayer, withdraws: list[Withdraw], wakes: Wakes) -> Iterator[Planned]:
    for channel, group in groupby(withdraws, key=lambda one: one.channel):
        reply_channels = [withdraw.reply_channel for withdraw in group]
        yield sql.WITHDRAW, {"channel": channel, "reply_channels": reply_channels}, []


def of_connections(reply_channels: Sequence[str]) -> Values:
    """Return the values of a statement about connections: their reply channels, whole and in parts."""
    parts = [names.split(reply_channel) for reply_channel in reply_channels]
    return {
        "reply_channels": list(reply_channels),
        "channels": [queue for queue, _ in parts],
        "recipients": [recipient for _, recipient in parts],
    }


def _identifies(layer: PostgreSQLLayer, identifies: list[Identify], wakes: Wakes) -> Iterator[Planned]:
    for identify in identifies:
        yield sql.IDENTIFY, identify._asdict(), []


def _keeps(layer: PostgreSQLLayer, keeps: list[Keep], wakes: Wakes) -> Iterator[Planned]:
    for keep in keeps:
        yield sql.KEEP, keep._asdict(), []


_PLANS: dict[type, Any] = {
    Send: _sends,
    SendGroup: _group_sends,
    GroupAdd: _group_adds,
    GroupDiscard: _group_discards,
    GroupClear: _group_clears,
    Connect: _connects,
    Disconnect: _disconnects,
    Withdraw: _withdraws,
    Identify: _identifies,
    Keep: _keeps,
}
