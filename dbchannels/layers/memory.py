"""The layer in the memory of one process: for tests, and the shortest layer there is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(eq=False)
class _Row:
    """A message that waits or is claimed; times are seconds by time.monotonic."""

    send: ops.Send
    delivery: ops.Delivery
    due: float  # it is not received before this
    end: float  # nor after this
    sent: float = field(default_factory=time.monotonic)


class MemoryLayer(BaseLayer):
    """See BaseLayer for what the methods take and give. Nothing outlives the process, and nothing leaves it."""

    shared = False
    transactional = False
    wakeups = True

    def __init__(self, settings: LayerSettings) -> None:
        super().__init__(settings)
        self._changed = threading.Condition(threading.RLock())
        self._writes = 0
        self._ids = count(1)
        self._queues: dict[str, list[_Row]] = {}
        self._claims: dict[int | None, tuple[str, _Row]] = {}  # by id: its worker, and the message
        self._held: dict[str, Sequence[ops.Delivery]] = {}  # by worker: what it has popped and not finished
        self._groups: dict[str, dict[str, float]] = {}  # by name: each member, and when it leaves
        self._users: dict[str, str] = {}  # by the reply channel of each connection, "" for nobody known
        self._schedule: dict[tuple[str, str], datetime] = {}
        self.dead_letters: list[ops.Failure] = []

    def link(self, name: str = "", listen: bool = True) -> MemoryLink:
        return MemoryLink(self)

    def write(self, operations: Sequence[ops.Operation], drop: bool = False) -> list[ops.Send]:
        with self._changed:
            sends = [one for one in operations if isinstance(one, ops.Send)]
            refused = [send for send in sends if not (send.certain or self._has_room(send.channel))]
            if refused and not drop:
                raise ChannelFull(names.split(refused[0].channel)[0])
            for operation in operations:
                if operation not in refused:
                    self._write_one(operation)
            self._writes += 1
            self._changed.notify_all()
            return refused

    def _write_one(self, operation: ops.Operation) -> None:
        match operation:
            case ops.Send():
                self._put(operation)
            case ops.SendGroup(group, payload):
                for channel in filter(self._has_room, self.group_channels(group)):
                    self._put(ops.Send(channel, payload, "", self.options["expiry"]))
            case ops.GroupAdd(group, channel):
                end = time.monotonic() + self.group_expiry
                self._groups.setdefault(group, {})[channel] = end
            case ops.GroupDiscard(group, channel):
                self._groups.get(group, {}).pop(channel, None)
            case ops.GroupClear(group):
                self._groups.pop(group, None)
            case ops.Connect(channel):
                self._users.setdefault(channel, "")
            case ops.Identify(channel, user_id):
                if channel in self._users:
                    self._users[channel] = user_id
            case ops.Disconnect(channel):
                self._users.pop(channel, None)
                self._leave_groups(channel)

    def _has_room(self, channel: str) -> bool:
        queue = names.split(channel)[0]
        capacity = self.capacity(queue)
        return capacity is None or len(self._waiting(queue)) < capacity

    def _put(self, send: ops.Send) -> None:
        delivery, now = send.delivery(next(self._ids)), time.monotonic()
        waiting = self._queues.setdefault(delivery.channel, [])
        if not send.unique or all(row.send.unique != send.unique for row in waiting):
            end = float("inf") if delivery.durable else now + send.expiry
            waiting.append(_Row(send, delivery, now + send.due_in(), end))

    def _waiting(self, queue: str) -> list[_Row]:
        """Drop what has expired; a process-specific channel that did not read is taken out of its groups."""
        waiting = self._queues.get(queue, [])
        while waiting and waiting[0].end <= time.monotonic():
            self._leave_groups(waiting.pop(0).send.channel)
        return waiting

    def group_users(self, group: str) -> list[str]:
        with self._changed:
            return sorted({self._users.get(channel, "") for channel in self.group_channels(group)} - {""})

    def _leave_groups(self, channel: str) -> None:
        for members in self._groups.values() if "!" in channel else ():
            members.pop(channel, None)

    def group_channels(self, group: str) -> list[str]:
        with self._changed:
            for queue in self._queues:
                self._waiting(queue)
            members = self._groups.get(group, {})
            return [channel for channel, end in members.items() if end > time.monotonic()]

    def _due(self, queue: str, limit: int) -> list[_Row]:
        """Take up to ``limit`` messages off a queue: the highest priority first, then the oldest.

        Of several with one unique key the oldest goes, and takes the others along.
        """
        waiting = self._waiting(queue)
        due = [row for row in waiting if row.due <= time.monotonic()]
        first: dict[object, _Row] = {}
        for row in sorted(due, key=lambda row: row.delivery.id or 0):
            first.setdefault(row.send.unique or row, row)
        taken = sorted(first.values(), key=lambda row: -row.send.priority)[:limit]
        gone = {*taken, *(row.send.unique for row in taken if row.send.unique)}
        waiting[:] = [row for row in waiting if row not in gone and row.send.unique not in gone]
        return taken

    def pop(self, queues: Sequence[str], limit: int) -> list[ops.Delivery]:
        with self._changed:
            found: list[ops.Delivery] = []
            for queue in queues:
                due = self._due(queue, limit - len(found))
                found += [row.delivery._replace(id=None) for row in due]
            return found

    def claim(
        self, channels: Sequence[str], limit: int, worker: str, at_most: Mapping[str, int] | None = None
    ) -> list[ops.Delivery]:
        with self._changed:
            claimed: list[ops.Delivery] = []
            for channel in channels:
                room = limit - len(claimed)
                if at_most and channel in at_most:
                    held = sum(row.send.channel == channel for _, row in self._claims.values())
                    room = max(0, min(room, 1, at_most[channel] - held))
                for row in self._due(channel, room):
                    row.delivery = row.delivery._replace(attempt=row.delivery.attempt + 1)
                    self._claims[row.delivery.id] = worker, row
                    claimed.append(row.delivery)
            return claimed

    def acknowledge(self, worker: str, delivery: ops.Delivery) -> bool:
        return self._unclaim(worker, delivery) is not None

    def fail(self, worker: str, failure: ops.Failure) -> None:
        with self._changed:
            row = self._unclaim(worker, failure.delivery)
            if row and failure.retry_in is None:
                self.dead_letters.append(failure)
            elif row:
                row.due = time.monotonic() + (failure.retry_in or 0)
                self._queues[row.send.channel].append(row)

    def release(self, worker: str, delivery: ops.Delivery) -> None:
        with self._changed:
            if row := self._unclaim(worker, delivery):
                row.delivery = delivery._replace(attempt=delivery.attempt - 1)
                self._queues[row.send.channel].append(row)

    def _unclaim(self, worker: str, delivery: ops.Delivery) -> _Row | None:
        """End a claim and return its message; None when the claim was lost before."""
        with self._changed:
            holder, row = self._claims.get(delivery.id, ("", None))
            if row is None or (holder, row.delivery) != (worker, delivery):
                return None
            return self._claims.pop(delivery.id)[1]

    def hold(self, worker: str, held: Sequence[ops.Delivery]) -> None:
        """Note what a worker has popped and not finished."""
        with self._changed:
            self._held[worker] = held

    def dead_letter_ids(self, channels: Sequence[str] = ()) -> list[int]:
        letters = [one.delivery for one in self.dead_letters]
        return [one.id for one in letters if one.id and (not channels or one.channel in channels)]

    def replay(self, ids: Iterable[int]) -> int:
        wanted = set(ids)
        with self._changed:
            again = [one for one in self.dead_letters if one.delivery.id in wanted]
            for failure in again:
                self.dead_letters.remove(failure)
                self._put(ops.Send(failure.delivery.channel, failure.delivery.payload, "", 0))
            self.write([])  # which wakes the readers
            return len(again)

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

    def wait(self, timeout: float, seen: int) -> int:
        """Return the number of writes as soon as it is not ``seen``, at the latest after ``timeout`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._writes != seen, timeout)
            return self._writes

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
            waiting = [row for queue in queues for row in self._waiting(queue)]
            taken = [one for held in self._held.values() for one in held if not one.durable]
            taken += [row.delivery for _, row in self._claims.values()]
        now = time.monotonic()
        return {
            "messages_pending": len(waiting),
            "messages_held": sum(channel in (None, one.channel) for one in taken),
            "messages_max_age": now - min((row.sent for row in waiting if row.due <= now), default=now),
        }


class MemoryLink(Link):
    """The reader's side: as any link, but woken by each write."""

    layer: MemoryLayer
    _seen = 0  # of the layer's writes, when the last wait ended
    _read: frozenset[str] = frozenset()  # the queues that are read

    def receive_many(self, queues: Sequence[str], limit: int, holder: str = "") -> list[ops.Delivery]:
        self._read = frozenset(queues)
        found = super().receive_many(queues, limit)
        if holder and found:
            self.layer.hold(holder, found)
        return found

    def finish(self, worker: str, done: ops.Done) -> list[ops.Send]:
        self.layer.hold(worker, done.held)
        return super().finish(worker, done)

    def next_time(self, channel: str, every: str) -> tuple[datetime | None, datetime]:
        return self.layer.next_time(channel, every), timezone.now()

    def move_time(
        self, channel: str, every: str, due: datetime | None, following: datetime, sends: Sequence[ops.Send]
    ) -> bool:
        return self.layer.move_time(channel, every, due, following, sends)

    def wait(self, timeout: float, *others: int) -> set[str]:
        before, self._seen = self._seen, self.layer.wait(timeout, self._seen)
        return set() if self._seen == before else {"p", "d", *self._read}
