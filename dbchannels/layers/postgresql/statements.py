"""Operations turned into statements, in order; neighbours of one kind become one statement.

Here is also what a layer and its readers remember of queues from one statement to the next. That decides nothing:
without it each statement would find out again, at a cost that each class states.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from dbchannels import names
from dbchannels.layers.operations import (
    Connect,
    Delivery,
    Disconnect,
    Failure,
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
from dbchannels.layers.postgresql import sql, sql_durable, sql_groups
from dbchannels.layers.tasks import error_after, status_after
from dbchannels.protocol import DURABLE

if TYPE_CHECKING:
    from dbchannels.layers.base import BaseLayer
    from dbchannels.layers.postgresql import PostgreSQLLayer

MOST = 4096  # channels, or queues, that are remembered

Values = dict[str, Any]
#: By name, or by position.
Parameters = Values | tuple[Any, ...]
#: A statement, its values, and the sends that it counts room for, if any.
Planned = tuple[str, Parameters, list[Send]]

# How one message is written, a protocol one, a durable one and a task: without a NOTIFY, with one that asks whether the
# queue of notifications has room, and with one that does not ask.
_SILENT = sql.SEND_ONE, sql_durable.SEND_DURABLE_ONE, sql_durable.SEND_TASK_ONE
_ASKING = [text + sql.WAKE_ONE for text in _SILENT]
_UNASKED = [text + sql.WAKE_ONE_UNASKED for text in _SILENT]

#: Operations of which each is one statement, whose values are its fields.
_EACH = {
    GroupAdd: sql_groups.GROUP_ADD,
    GroupDiscard: sql_groups.GROUP_DISCARD,
    GroupClear: sql_groups.GROUP_CLEAR,
    Identify: sql.IDENTIFY,
    Keep: sql.KEEP,
}


class Route(NamedTuple):
    """Where a channel's messages go."""

    queue: str
    recipient: str  # of a process-specific channel: the part after the '!'
    protocol: bool  # else durable
    limited: bool  # by a capacity
    wake: str  # the payload that wakes its readers


class RouteCache(dict[str, Route]):
    """Routes by channel, each worked out once, which takes 5 us of a send's 70. Shared by all threads."""

    def __init__(self, layer: BaseLayer) -> None:
        super().__init__()
        self._layer = layer

    def __missing__(self, channel: str) -> Route:
        if len(self) >= MOST:
            self.clear()
        queue, recipient = names.split(channel)
        protocol = names.is_protocol(queue)
        limited = self._layer.capacity(queue) is not None
        route = self[channel] = Route(
            queue, recipient, protocol, limited, wake(queue) if protocol else DURABLE
        )
        return route


def wake(queue: str) -> str:
    """Return the payload that wakes a protocol queue's readers: ``h`` for ``http.*``, ``w`` for ``websocket.*``.

    For any other queue it is the queue itself.
    """
    return queue if queue[-1:] == "!" or "?" in queue else queue[:1]


class CapacityCache:
    """How many messages may be sent to a queue before its messages are counted again. Shared by all threads.

    To count a queue costs as much as a send, and more the longer it is. So a sender counts, and may then send an
    eighth of what was free, or for a second, without counting. One sender never exceeds a capacity; each of several
    may exceed it by that eighth. A capacity below eight is counted each time.
    """

    SHARE = 8  # one part in so many of what is free may be sent without a count
    VALID = 1.0  # seconds

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: dict[str, tuple[int, float]] = {}  # by queue: messages, until when by time.monotonic()

    def reserve(self, counts: Mapping[str, int]) -> bool:
        """Reserve room for messages in the queues; return False, and reserve none, if one queue has too little."""
        now = time.monotonic()
        with self._lock:
            left = {queue: self._left.get(queue, (0, 0.0)) for queue in counts}
            if any(number < counts[queue] or end < now for queue, (number, end) in left.items()):
                return False
            for queue, (number, end) in left.items():
                self._left[queue] = (number - counts[queue], end)
            return True

    def learn(self, queue: str, capacity: int, waiting: int) -> None:
        """Note how many messages wait, those just sent among them."""
        with self._lock:
            if len(self._left) >= MOST:
                self._left.clear()
            self._left[queue] = (max(0, capacity - waiting) // self.SHARE, time.monotonic() + self.VALID)

    def clear(self) -> None:
        """Count anew: others have emptied or filled the queues."""
        with self._lock:
            self._left.clear()


class ScanHints:
    """The id in each queue above which a reader begins to look. One reader's.

    Rows that were taken leave their index entries behind until a vacuum removes them, and while any transaction is
    open none can be removed: each pop would read all of them before the oldest message that waits. With 100,000 of
    them, as after ten minutes of a dump at 170 messages a second, a pop takes 17 ms, and 0.5 with a hint.

    Once a look at the whole queue takes long, a reader begins above what it took a second or two ago. That is a hint,
    not a cursor: ids are given at INSERT and seen at COMMIT, so a sender with a longer transaction has a lower id.
    Every second or so the reader looks at the whole queue again, and drops the hint if it finds a lower id.

    A claim has no hint: it goes by priority first, and messages that were retried or delayed have old ids.
    """

    COSTLY = 0.002  # seconds: while a look at the whole takes less, there are no hints
    LAG = 1.0  # seconds that a sender's transaction may last for its message to be found at once
    WHOLE_EVERY = 1.0  # seconds, at least, between two looks at the whole ...
    SHARE = 20  # ... which take one part in so many of the time, however many dead entries there are

    def __init__(self) -> None:
        #: Whether the last look at the whole was costly.
        self.active = False
        self._scan_from: dict[str, int] = {}
        #: By queue the highest id that was taken, since the last turn and between the last two; a turn takes LAG.
        self._taken: dict[str, int] = {}
        self._before: dict[str, int] = {}
        self._turned_at = self._whole_at = 0.0  # time.monotonic(); of the next look at the whole
        self._whole = True  # the current look is one
        self._generation = 0

    def scan_from(self, queues: Sequence[str], generation: int) -> list[int]:
        """Return the id after which a look that begins now searches each queue; 0 for all of it.

        Another ``generation`` of the session starts anew: after a crash of the database ids start at 1 again.
        """
        now = time.monotonic()
        if generation != self._generation:
            self._generation, self._whole_at = generation, 0.0
            self._forget([*self._scan_from, *self._before, *self._taken])
        if now - self._turned_at >= self.LAG:
            self._scan_from.update(self._before)
            self._before, self._taken, self._turned_at = self._taken, {}, now
        self._whole = now >= self._whole_at
        return [0 if self._whole else self._scan_from.get(queue, 0) for queue in queues]

    def learn(self, found: Iterable[tuple[str, int]], took: float) -> None:
        """Note what a look has taken, as (queue, id) in the order of the ids, and how many seconds it took."""
        if self._whole:
            self.active = took >= self.COSTLY
            self._whole_at = time.monotonic() + max(self.WHOLE_EVERY, took * self.SHARE)
            if not self.active:
                self._forget([*self._scan_from, *self._before, *self._taken])
                return
        for queue, number in found:
            # It was committed late, and others may have been with it.
            if number <= self._scan_from.get(queue, 0):
                self._forget([queue])
            self._taken[queue] = number

    def _forget(self, queues: Sequence[str]) -> None:
        for queue in queues:
            for ids in (self._scan_from, self._before, self._taken):
                ids.pop(queue, None)


def statements(
    layer: PostgreSQLLayer, operations: Sequence[Operation], local_wakeups: Collection[str] = ()
) -> Iterator[Planned]:
    """Yield the statements that write the operations, in order; 100 sends in a row are one INSERT.

    ``local_wakeups`` has the wakeups that the caller gives itself after the commit; all others are by NOTIFY.
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
            yield _sends(layer, several, local_wakeups)
        elif kind is SendGroup:
            yield from ((*broadcast(layer, send, local_wakeups), []) for send in several)
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
    layer: PostgreSQLLayer, send: Send, local_wakeups: Collection[str] = (), asks: bool = True
) -> tuple[str, tuple[Any, ...]] | None:
    """Return the short statement for one usual message, with its values; None when it cannot be had.

    With ``asks`` the statement asks the queue of notifications whether it has room, and gives NULL if it has none.
    """
    if send.unique or send.delay or send.priority or send.due_at:
        return None
    queue, recipient, protocol, limited, wake = layer.routes[send.channel]
    if limited and not send.certain and not layer.capacities.reserve({queue: 1}):
        return None
    notifies = layer.wakeups and wake not in local_wakeups
    texts = _SILENT if not notifies else _ASKING if asks else _UNASKED
    payloads = (wake,) if notifies else ()
    if send.task:
        return texts[2], (queue, send.payload, send.task, *payloads)
    if not protocol:
        return texts[1], (queue, send.payload, *payloads)
    return texts[0], (queue, recipient, send.reply_channel, send.payload, f"{send.expiry} s", *payloads)


def _sends(layer: PostgreSQLLayer, sends: list[Send], local_wakeups: Collection[str]) -> Planned:
    """Return the statement for several messages; the one that counts first where a queue may be full."""
    if len(sends) == 1 and (statement := single(layer, sends[0], local_wakeups)):
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
    if wakes := {route.wake for route in routes}.difference(local_wakeups) if layer.wakeups else ():
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
        "tasks": [send.task for send in sends],
    }
    if sends[0].unique:
        return sql_durable.SEND_UNIQUE if has_room else sql_durable.SEND_UNIQUE_IF_ROOM
    if not has_room:
        return sql_durable.SEND_DURABLE_IF_ROOM
    if any(send.delay or send.due_at or send.priority or send.task for send in sends):
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
    layer: PostgreSQLLayer, send: SendGroup, local_wakeups: Collection[str] = ()
) -> tuple[str, tuple[Any, ...]]:
    """Return the statement that sends to a group, with its values."""
    patterns, capacities = layer.sql_capacities
    expiry, wakes = layer.options["expiry"], layer.wakeups
    values = (send.group, send.payload, expiry, patterns, capacities, wakes, list(local_wakeups))
    return (
        (sql_groups.KEEP_GROUP, (*values, send.keep, send.lasts))
        if send.lasts
        else (sql_groups.SEND_GROUP, values)
    )


def sql_capacities(options: dict[str, Any]) -> tuple[list[str], list[int | None]]:
    """Return what ``layer.capacity`` goes by: PostgreSQL's regular expressions, of which the last fits all."""
    own = {sql_pattern(key): capacity for key, capacity in options["channel_capacity"].items()}
    both = own | {r"[!?]|^http\.|^websocket\.": options["capacity"], "": None}
    return list(both), list(both.values())


def sql_pattern(pattern: str) -> str:
    """Turn a pattern as fnmatch reads it into a regular expression of PostgreSQL's; Python's own has more syntax."""
    translated = ""
    for part in re.findall(r"\[!?\]?[^]]*\]|.", pattern, re.DOTALL):
        inside = part[1:-1].replace("\\", r"\\")
        if not inside:
            translated += {"*": ".*", "?": "."}.get(part) or re.escape(part)
        elif inside[0] == "!":
            translated += f"[^{inside[1:]}]"
        else:
            translated += "[" + inside.replace("^", r"\^") + "]"
    return f"^{translated}$"


def of_connections(reply_channels: Sequence[str]) -> Values:
    """Return the values of a statement about connections: their reply channels, whole and in parts."""
    parts = [names.split(reply_channel) for reply_channel in reply_channels]
    return {
        "reply_channels": list(reply_channels),
        "channels": [queue for queue, _ in parts],
        "recipients": [recipient for _, recipient in parts],
    }


def acknowledged_tasks(worker: str, deliveries: Sequence[Delivery], result_ttl: float) -> Values:
    """Return the values of ACKNOWLEDGE_TASKS."""
    return_values = [one.return_value for one in deliveries]
    return {"worker": worker, "result_ttl": result_ttl, "return_values": return_values, **tokens(deliveries)}


def failed_tasks(worker: str, failures: Sequence[Failure], result_ttl: float) -> Values:
    """Return the values of FAIL_TASKS."""
    return {
        "worker": worker,
        "result_ttl": result_ttl,
        "statuses": [status_after(failure) for failure in failures],
        "seconds": [failure.retry_in or 0.0 for failure in failures],
        "worker_ids": [f"{worker} " if failure.ran else "" for failure in failures],
        "errors": [error_after(failure) for failure in failures],
        **tokens([failure.delivery for failure in failures]),
    }


def tokens(deliveries: Sequence[Delivery]) -> Values:
    """Return the tokens of claims, but for the worker's name."""
    return {"ids": [one.id for one in deliveries], "attempts": [one.attempt for one in deliveries]}
