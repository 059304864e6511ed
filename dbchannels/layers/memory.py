"""The layer in the memory of one process: for tests, and the shortest layer there is."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import count

from django.utils import timezone

from dbchannels import names
from dbchannels.conf import LayerSettings
from dbchannels.exceptions import ChannelFull
from dbchannels.layers import operations as ops
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.link import Link

__all__ = ["MemoryLayer"]


class _Waiting:
    """A message, from when it is due and until when it may be received (both by time.monotonic, in seconds)."""

    def __init__(
        self, delivery: ops.Delivery, due: float, end: float, priority: int = 0, unique: str = ""
    ) -> None:
        self.delivery, self.due, self.end, self.sent = delivery, due, end, time.monotonic()
        self.priority, self.unique = priority, unique


class MemoryLayer(BaseLayer):
    """See BaseLayer for what the methods take and give. Nothing outlives the process, and nothing leaves it."""

    shared = False
    transactional = False
    wakeups = True

    def __init__(self, settings: LayerSettings) -> None:
        super().__init__(settings)
        self._changed = threading.Condition(threading.RLock())
        self._queues: dict[str, deque[_Waiting]] = {}
        self._groups: dict[str, dict[str, float]] = {}
        self._ids = count(1)
        self._claims: dict[int, tuple[str, ops.Delivery]] = {}
        self._held: dict[str, Sequence[ops.Delivery]] = {}
        self._users: dict[str, str] = {}  # by the reply channel of each connection, "" for nobody known
        self._writes = 0
        self._schedule: dict[tuple[str, str], datetime] = {}
        self.dead_letters: list[ops.Failure] = []

    def link(self, name: str = "", listen: bool = True) -> MemoryLink:
        return MemoryLink(self)

    def write(self, operations: Sequence[ops.Operation], drop: bool = False) -> list[ops.Send]:
        with self._changed:
            refused = [one for one in operations if isinstance(one, ops.Send) and self._is_full(one)]
            if refused and not drop:
                raise ChannelFull(names.split(refused[0].channel)[0])
            for operation in operations:
                if operation not in refused:
                    self._write_one(operation)
            self._writes += 1
            self._changed.notify_all()
            return refused

    def _is_full(self, send: ops.Send) -> bool:
        queue = names.split(send.channel)[0]
        capacity = self.capacity(queue)
        return capacity is not None and len(self._current(queue)) >= capacity

    def _write_one(self, operation: ops.Operation) -> None:
        if isinstance(operation, ops.Send):
            self._put(operation)
        elif isinstance(operation, ops.SendGroup):
            for channel in self.group_channels(operation.group):
                send = ops.Send(channel, operation.payload, "", self.options["expiry"])
                if not self._is_full(send):
                    self._put(send)
        elif isinstance(operation, ops.GroupAdd):
            end = time.monotonic() + self.group_expiry
            self._groups.setdefault(operation.group, {})[operation.channel] = end
        elif isinstance(operation, ops.GroupDiscard):
            self._groups.get(operation.group, {}).pop(operation.channel, None)
        elif isinstance(operation, ops.GroupClear):
            self._groups.pop(operation.group, None)
        elif isinstance(operation, ops.Connect):
            self._users.setdefault(operation.reply_channel, "")
        elif isinstance(operation, ops.Identify):
            if operation.reply_channel in self._users:
                self._users[operation.reply_channel] = operation.user_id
        elif isinstance(operation, ops.Disconnect):
            self._users.pop(operation.reply_channel, None)
            for members in self._groups.values():
                members.pop(operation.reply_channel, None)

    def _put(self, send: ops.Send) -> None:
        queue, local = names.split(send.channel)
        durable = not names.is_protocol(queue)
        delivery = ops.Delivery(
            queue,
            send.payload,
            (local,) if local else (),
            send.reply_channel,
            next(self._ids) if durable else None,
        )
        now = time.monotonic()
        delay = (send.due_at - timezone.now()).total_seconds() if send.due_at else send.delay
        end = float("inf") if durable else now + send.expiry
        waiting = self._queues.setdefault(queue, deque())
        if not send.unique or all(one.unique != send.unique for one in waiting):
            waiting.append(_Waiting(delivery, now + delay, end, send.priority, send.unique))

    def _due(self, queue: str, limit: int) -> list[_Waiting]:
        """Take up to ``limit`` messages off a queue, the highest priority first."""
        waiting = self._current(queue)
        due = [one for one in waiting if one.due <= time.monotonic()]
        due = sorted(due, key=lambda one: -one.priority)[:limit]
        for one in due:
            waiting.remove(one)
        return due

    def _current(self, queue: str) -> deque[_Waiting]:
        """Drop what has expired; a process-specific channel that did not read is taken out of its groups."""
        waiting = self._queues.get(queue, deque())
        now = time.monotonic()
        while waiting and waiting[0].end <= now:
            for local in waiting.popleft().delivery.locals:
                for members in self._groups.values():
                    members.pop(queue + local, None)
        return waiting

    def group_channels(self, group: str) -> list[str]:
        with self._changed:
            for queue in list(self._queues):
                self._current(queue)
            now = time.monotonic()
            return [channel for channel, end in self._groups.get(group, {}).items() if end > now]

    def group_users(self, group: str) -> list[str]:
        with self._changed:
            users = {self._users.get(channel, "") for channel in self.group_channels(group)}
            return sorted(users - {""})

    def pop(self, queues: Sequence[str], limit: int) -> list[ops.Delivery]:
        with self._changed:
            found: list[ops.Delivery] = []
            for queue in queues:
                due = self._due(queue, limit - len(found))
                found += [one.delivery._replace(id=None) for one in due]
            return found

    def claim(
        self, channels: Sequence[str], limit: int, worker: str, at_most: Mapping[str, int] | None = None
    ) -> list[ops.Delivery]:
        with self._changed:
            claimed: list[ops.Delivery] = []
            for channel in channels:
                room = limit - len(claimed)
                if at_most and channel in at_most:
                    held = sum(one.channel == channel for _, one in self._claims.values())
                    room = min(room, 1, at_most[channel] - held)
                due = self._due(channel, max(0, room))
                claimed += [one.delivery._replace(attempt=one.delivery.attempt + 1) for one in due]
            self._claims.update({one.id: (worker, one) for one in claimed if one.id is not None})
            return claimed

    def acknowledge(self, worker: str, delivery: ops.Delivery) -> bool:
        return self.unclaim(worker, delivery)

    def unclaim(self, worker: str, delivery: ops.Delivery) -> bool:
        """End a claim; False when it was lost before."""
        mine = self._claims.get(delivery.id or 0) == (worker, delivery)
        return mine and self._claims.pop(delivery.id or 0) is not None

    def next_time(self, channel: str, every: str) -> datetime | None:
        """Return when a periodic message is due."""
        return self._schedule.get((channel, every))

    def move_time(
        self, channel: str, every: str, due: datetime | None, following: datetime, sends: Sequence[ops.Send]
    ) -> bool:
        """Move that on, and send."""
        with self._changed:
            still = self._schedule.get((channel, every)) == due
            if still:
                self._schedule[channel, every] = following
                self.write(sends, drop=True)
            return still

    def hold(self, worker: str, held: Sequence[ops.Delivery]) -> None:
        """Note what a worker has popped and not finished."""
        with self._changed:
            self._held[worker] = held

    def requeue(self, delivery: ops.Delivery, delay: float, first: bool) -> None:
        """Put a durable message back, in front or behind."""
        waiting = self._queues.setdefault(delivery.channel, deque())
        one = _Waiting(delivery, time.monotonic() + delay, float("inf"))
        (waiting.appendleft if first else waiting.append)(one)

    def wait(self, timeout: float, seen: int) -> int:
        """Return the number of writes as soon as it is not ``seen``, at the latest after ``timeout`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._writes != seen, timeout)
            return self._writes

    def dead_letter_ids(self, channels: Sequence[str] = ()) -> list[int]:
        letters = [one.delivery for one in self.dead_letters]
        return [one.id for one in letters if one.id and (not channels or one.channel in channels)]

    def replay(self, ids: Iterable[int]) -> int:
        wanted = set(ids)
        with self._changed:
            again = [one for one in self.dead_letters if one.delivery.id in wanted]
            for failure in again:
                self.dead_letters.remove(failure)
                self.requeue(failure.delivery._replace(attempt=0), 0, first=False)
            self._writes += 1
            self._changed.notify_all()
            return len(again)

    def flush(self) -> None:
        with self._changed:
            for store in (self._queues, self._groups, self._claims, self._held, self._spread, self._schedule):
                store.clear()
            self.dead_letters.clear()

    def global_statistics(self) -> dict[str, float]:
        return self._statistics(None)

    def channel_statistics(self, channel: str) -> dict[str, float]:
        return self._statistics(channel)

    def _statistics(self, channel: str | None) -> dict[str, float]:
        with self._changed:
            queues = list(self._queues) if channel is None else [channel]
            waiting = [one for queue in queues for one in self._current(queue)]
            taken = [one for held in self._held.values() for one in held if not one.durable]
            taken += [one for _, one in self._claims.values()]
        now = time.monotonic()
        return {
            "messages_count": len(waiting),
            "messages_pending": sum(channel in (None, one.channel) for one in taken),
            "messages_max_age": now - min((one.sent for one in waiting if one.due <= now), default=now),
        }


class MemoryLink(Link):
    """The reader's side: the layer itself, under its lock."""

    layer: MemoryLayer
    _seen = 0  # of the layer's writes, when the last wait ended

    def receive_many(self, queues: Sequence[str], limit: int, holder: str = "") -> list[ops.Delivery]:
        found = super().receive_many(queues, limit)
        if holder and found:
            self.layer.hold(holder, found)
        return found

    def finish(self, worker: str, done: ops.Done) -> None:
        layer = self.layer
        layer.hold(worker, done.held)
        for delivery in done.acknowledged:
            layer.unclaim(worker, delivery)
        for failure in done.failures:
            if layer.unclaim(worker, failure.delivery):
                if failure.retry_in is None:
                    layer.dead_letters.append(failure)
                else:
                    layer.requeue(failure.delivery, failure.retry_in, first=False)
        for delivery in reversed(done.returned):
            if delivery.durable and layer.unclaim(worker, delivery):
                layer.requeue(delivery._replace(attempt=delivery.attempt - 1), 0, first=True)
        popped = [delivery for delivery in done.returned if not delivery.durable]
        self.apply([*done.operations, *ops.resends(popped, layer.options["expiry"])])

    def next_time(self, channel: str, every: str) -> tuple[datetime | None, datetime]:
        return self.layer.next_time(channel, every), timezone.now()

    def move_time(
        self, channel: str, every: str, due: datetime | None, following: datetime, sends: Sequence[ops.Send]
    ) -> bool:
        return self.layer.move_time(channel, every, due, following, sends)

    def wait(self, timeout: float, *others: int) -> set[str]:
        self._seen = self.layer.wait(timeout, self._seen)
        return set()
