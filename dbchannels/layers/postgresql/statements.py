"""Operations turned into statements, in order; neighbours of one kind become one statement."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
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
)
from dbchannels.layers.postgresql import sql, sql_durable
from dbchannels.layers.postgresql.queue_cache import Route

if TYPE_CHECKING:
    from dbchannels.layers.postgresql import PostgreSQLLayer

Values = dict[str, Any]
#: By name, or by position.
Parameters = Values | tuple[Any, ...]
#: A statement, its values, and the sends that it counts room for, if any.
Planned = tuple[str, Parameters, list[Send]]

# How one message is written, a protocol one and a durable one: without a NOTIFY, with one that asks whether the queue
# of notifications has room, and with one that does not ask.
_SILENT = sql.SEND_ONE, sql_durable.SEND_DURABLE_ONE
_ASKING = sql.SEND_ONE + sql.WAKE_ONE, sql_durable.SEND_DURABLE_ONE + sql.WAKE_ONE
_UNASKED = sql.SEND_ONE + sql.WAKE_ONE_UNASKED, sql_durable.SEND_DURABLE_ONE + sql.WAKE_ONE_UNASKED

#: Operations of which each is one statement, whose values are its fields.
_EACH = {
    GroupAdd: sql.GROUP_ADD,
    GroupDiscard: sql.GROUP_DISCARD,
    GroupClear: sql.GROUP_CLEAR,
    Identify: sql.IDENTIFY,
    Keep: sql.KEEP,
}


def statements(
    layer: PostgreSQLLayer, operations: Sequence[Operation], near: Collection[str] = ()
) -> Iterator[Planned]:
    """Yield the statements that write the operations, in order; 100 sends in a row are one INSERT.

    ``near`` has the wakeups that the caller gives itself after the commit; all others are by NOTIFY.
    """

    def kind_of(operation: Operation) -> tuple[type, Any]:
        """Return what neighbours in one statement have in common; a send with a unique key has its own statement."""
        if not isinstance(operation, Send):
            return type(operation), None
        protocol = layer.routes[operation.channel].protocol
        return Send, (operation.expiry if protocol else None, operation.unique and id(operation))

    for (kind, _), group in groupby(operations, key=kind_of):
        several: Any = list(group)
        if kind is Send:
            yield _sends(layer, several, near)
        elif kind is SendGroup:
            yield from ((*broadcast(layer, send, near), []) for send in several)
        elif kind is Connect:
            records = [{"reply_channel": one.reply_channel, **one.fields()} for one in several]
            yield sql.CONNECT, {f"{name}s": [one[name] for one in records] for name in records[0]}, []
        elif kind is Disconnect:
            yield sql.DISCONNECT, of_connections([one.reply_channel for one in several]), []
        elif kind is Withdraw:
            for channel, withdraws in groupby(several, key=lambda one: one.channel):
                reply_channels = [one.reply_channel for one in withdraws]
                yield sql.WITHDRAW, {"channel": channel, "reply_channels": reply_channels}, []
        else:
            for operation in several:
                values = operation._asdict()
                if kind in (GroupAdd, GroupDiscard):
                    values["channel"], values["recipient"] = names.split(operation.channel)
                    values["expiry"] = layer.group_expiry
                yield _EACH[kind], values, []


def single(
    layer: PostgreSQLLayer, send: Send, near: Collection[str] = (), asks: bool = True
) -> tuple[str, tuple[Any, ...]] | None:
    """Return the short statement for one usual message, with its values; None when it cannot be had.

    With ``asks`` the statement asks the queue of notifications whether it has room, and gives NULL if it has none.
    """
    if send.unique or send.delay or send.priority or send.due_at:
        return None
    queue, recipient, protocol, limited, wake = layer.routes[send.channel]
    if limited and not send.certain and not layer.capacities.reserve({queue: 1}):
        return None
    notifies = layer.wakeups and wake not in near
    texts = _SILENT if not notifies else _ASKING if asks else _UNASKED
    payloads = (wake,) if notifies else ()
    if not protocol:
        return texts[1], (queue, send.payload, *payloads)
    return texts[0], (queue, recipient, send.reply_channel, send.payload, f"{send.expiry} s", *payloads)


def _sends(layer: PostgreSQLLayer, sends: list[Send], near: Collection[str]) -> Planned:
    """Return the statement for several messages; the one that counts first where a queue may be full."""
    if len(sends) == 1 and (statement := single(layer, sends[0], near)):
        return (*statement, [])
    routes = [layer.routes[send.channel] for send in sends]
    limited = Counter(route.queue for route in routes if route.limited)
    has_room = not limited or layer.capacities.reserve(limited)
    values: Values = {"payloads": [send.payload for send in sends]}
    protocol = routes[0].protocol
    text = _protocol(sends, routes, values, has_room) if protocol else _durable(sends, values, has_room)
    if not has_room:
        values["queues"] = list({route.queue for route in routes})
        values["capacities"] = [layer.capacity(queue) for queue in values["queues"]]
    if wakes := {route.wake for route in routes}.difference(near) if layer.wakeups else ():
        # In front, in the same string: what the last statement gives is what is looked at.
        text, values["wake"] = f"{sql.WAKE};{text}", sorted(wakes)
    return text, values, [] if has_room else sends


def _durable(sends: list[Send], values: Values, has_room: bool) -> str:
    values |= {
        "channels": [send.channel for send in sends],
        "priorities": [send.priority for send in sends],
        "unique_keys": [send.unique for send in sends],
        "delays": [send.delay for send in sends],
        "due_ats": [send.due_at for send in sends],
    }
    if sends[0].unique:
        return sql_durable.SEND_UNIQUE if has_room else sql_durable.SEND_UNIQUE_IF_ROOM
    if not has_room:
        return sql_durable.SEND_DURABLE_IF_ROOM
    if any(send.delay or send.due_at or send.priority for send in sends):
        return sql_durable.SEND_DURABLE
    return sql_durable.SEND_DURABLE_NOW


def _protocol(sends: list[Send], routes: Sequence[Route], values: Values, has_room: bool) -> str:
    values["expiry"] = sends[0].expiry
    channel, _, reply_channel, *_ = sends[0]
    if has_room and all(one.channel == channel and one.reply_channel == reply_channel for one in sends):
        values |= {
            "channel": routes[0].queue,
            "recipient": routes[0].recipient,
            "reply_channel": reply_channel,
        }
        return sql.SEND_ALIKE
    values |= {
        "channels": [route.queue for route in routes],
        "recipients": [route.recipient for route in routes],
        "reply_channels": [send.reply_channel for send in sends],
        "certain": [send.certain for send in sends],
    }
    return sql.SEND if has_room else sql.SEND_IF_ROOM


def without_room(
    layer: PostgreSQLLayer, sends: Sequence[Send], rows: Sequence[tuple[Any, ...]]
) -> list[Send]:
    """Return the sends whose queue was full, and note how much room the others have left.

    ``rows`` are those of their statement: (queue, messages that waited before, whether the sends went in).
    """
    full = set()
    for queue, waited, taken in rows:
        if not taken:
            full.add(queue)
        if waited is not None:
            sent = sum(layer.routes[send.channel].queue == queue for send in sends) if taken else 0
            layer.capacities.learn(queue, layer.capacity(queue) or 0, waited + sent)
    return [send for send in sends if layer.routes[send.channel].queue in full and not send.certain]


def broadcast(
    layer: PostgreSQLLayer, send: SendGroup, near: Collection[str] = ()
) -> tuple[str, tuple[Any, ...]]:
    """Return the statement that sends to a group, with its values."""
    patterns, capacities = layer.sql_capacities
    expiry, wakes = layer.options["expiry"], layer.wakeups
    return sql.SEND_GROUP, (send.group, send.payload, expiry, patterns, capacities, wakes, list(near))


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


def of_connections(reply_channels: Sequence[str]) -> Values:
    """Return the values of a statement about connections: their reply channels, whole and in parts."""
    parts = [names.split(reply_channel) for reply_channel in reply_channels]
    return {
        "reply_channels": list(reply_channels),
        "channels": [queue for queue, _ in parts],
        "recipients": [recipient for _, recipient in parts],
    }
