"""A layer in anything that keeps tables: the rules of the contract, on a lock and mappings.

``StoreLayer`` has capacity, expiry, priority, unique keys, claims, dead letters, groups, presence and statistics, and
``StoreLink`` has liveness. A subclass brings the tables, by the methods under "For layers to implement"; ``memory`` is
one. Each look at a queue goes through all its messages, so a store that can find the next message itself overrides
``pop`` and ``claim``.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from math import inf
from typing import Any

from dbchannels import names
from dbchannels.exceptions import ChannelFull, DeclaredDead
from dbchannels.layers import operations as ops
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.link import Link
from dbchannels.layers.store import history, tasks
from dbchannels.layers.store.rows import ConnectionRow, Letter, Member, Row, connection_rows, rows, sent_row
from dbchannels.layers.tasks import TaskRecord, error_after, status_after
from dbchannels.protocol import EXPIRED, READY, SUCCESSFUL, WORKER_DIED

__all__ = ["StoreLayer", "StoreLink"]

#: The kinds of tables that ``flush`` empties. Messages by id: "waiting", one table for each queue, and "claims", one
#: for each worker; "in_flight": by worker, (channel, reply channel) of what it has popped and not finished; "members",
#: one for each group: a Member by channel; "letters": by id; "results": by the id of the task; "schedule": by
#: "CHANNEL EVERY", when a periodic message is due, and when a live worker last had it; "history": by position;
#: "trimmed": by group, up to which position its history was deleted, see the model ``Trimmed``.
#: The others are "connections": by reply channel; "processes": by name, (kind, queue, end of the lease); and "numbers".
FLUSHED = (
    *("waiting", "claims", "in_flight", "members", "letters", "results", "schedule"),
    *("history", "trimmed"),
)

LEAVES = "websocket.disconnect"
SERVER, WORKER = "server", "worker"  # the kinds of processes, as the model Process has them


class StoreLayer(BaseLayer):
    """The rules of a layer on plain tables. A subclass brings the tables; the methods are those of BaseLayer."""

    transactional = False

    # For layers to implement.

    @abstractmethod
    def locked(self) -> AbstractContextManager[Any]:
        """Return a context manager that locks the tables against all other readers and writers.

        The calling thread may enter it again inside the block. At the end of the block everything that it wrote is
        kept; if the process dies before, nothing is. The rules raise no exception once they have begun to write.
        """

    @abstractmethod
    def table(self, kind: str, name: str = "") -> MutableMapping[str, Any]:
        """Return a table, inside ``locked()``. It is empty until something is put there.

        It must yield its keys in the order in which they were put. Values are what ``codec`` encodes: bytes, str, int,
        float (infinity too), bool, and tuples of these, which may come back as lists. A value is replaced, never
        changed in place.
        """

    @abstractmethod
    def table_names(self, kind: str) -> list[str]:
        """Return the names of the non-empty tables of a kind, inside ``locked()``."""

    def changed(self) -> None:
        """Wake waiting readers, inside ``locked()``. It may do nothing if ``wakeups`` is False: then readers poll."""

    def clock(self) -> float:
        """Return the time in seconds. It must not start anew for as long as the tables are kept."""
        return time.time()

    def link(self, name: str = "", listen: bool = True) -> StoreLink:
        return StoreLink(self)

    # Sending.

    def write(self, operations: Sequence[ops.Operation], drop: bool = False) -> list[ops.Send]:
        with self.locked():
            sends = [one for one in operations if isinstance(one, ops.Send)]
            refused = [send for send in sends if not (send.certain or self._has_room(send.channel))]
            if refused and not drop:
                raise ChannelFull(names.split(refused[0].channel)[0])
            for operation in operations:
                if operation not in refused:
                    self._write_one(operation)
            self.changed()
            return refused

    def _write_one(self, operation: ops.Operation) -> None:
        match operation:
            case ops.Send():
                self._put(operation)
            case ops.SendGroup(group, payload):
                members = self.group_channels(group)
                if operation.lasts:
                    history.keep(self, operation)
                    # Live servers deliver what they read in the history.
                    servers = [one[1] for one in self.table("processes").values() if one[0] == SERVER]
                    members = [one for one in members if names.split(one)[0] not in servers]
                for channel in filter(self._has_room, members):
                    self._put(ops.Send(channel, payload, "", self.options["expiry"]))
            case ops.GroupAdd(group, channel):
                queue, local = names.split(channel)
                alive = local and any(process[1] == queue for process in self.table("processes").values())
                end = inf if alive else self.clock() + self.group_expiry
                now = history.last_position(self) if operation.is_later else 0
                table = self.table("members", group)
                table[channel] = Member(end, table[channel][1] if channel in table else now)
            case ops.GroupDiscard(group, channel):
                self.table("members", group).pop(channel, None)
            case ops.GroupClear(group):
                self.table("members", group).clear()
            case ops.Connect(channel):
                self.table("connections").setdefault(channel, ConnectionRow(channel, **operation.fields()))
            case ops.Identify(channel) | ops.Keep(channel):
                if connection := self.table("connections").get(channel):
                    updated = ConnectionRow._make(connection).updated(operation)
                    self.table("connections")[channel] = updated
            case ops.Disconnect(channel):
                self.table("connections").pop(channel, None)
                self._leave_groups(channel)
            case ops.Withdraw(channel, reply_channel):
                waiting = self.table("waiting", channel)
                for row in [one for one in rows(waiting) if one.reply_channel == reply_channel]:
                    del waiting[str(row.id)]

    def _has_room(self, channel: str) -> bool:
        queue = names.split(channel)[0]
        capacity = self.capacity(queue)
        return capacity is None or len(self._unexpired(queue)) < capacity

    def _put(self, send: ops.Send) -> None:
        waiting, now = self.table("waiting", names.split(send.channel)[0]), self.clock()
        if not send.unique or all(row.unique != send.unique for row in rows(waiting)):
            numbers = self.table("numbers")
            numbers["last"] = number = numbers.get("last", 0) + 1
            waiting[str(number)] = sent_row(send, number, now)

    def _unexpired(self, queue: str) -> MutableMapping[str, Any]:
        """Return what waits on a queue, after deleting and reporting what has expired.

        A process-specific channel that did not read is removed from its groups.
        """
        waiting, now = self.table("waiting", queue), self.clock()
        while (row := next(rows(waiting), None)) and row.end <= now:
            del waiting[str(row.id)]
            if row.channel != queue:
                self._leave_groups(row.channel, forever=False)
            self.report_lost([(queue, row.reply_channel)], EXPIRED)
        return waiting

    def report_lost(self, messages: Iterable[tuple[str, str]], why: str) -> None:
        """Send the replies to messages that nobody will answer, (channel, reply channel)."""
        for reply in self.lost_messages(messages, why):
            self._put(reply)
        self.changed()

    # Groups and connections.

    def _leave_groups(self, channel: str, forever: bool = True) -> None:
        """Remove a channel from all groups; without ``forever`` only from those in which its membership has an end."""
        for group in self.table_names("members"):
            members = self.table("members", group)
            if forever or members.get(channel, (inf,))[0] < inf:
                members.pop(channel, None)

    def group_channels(self, group: str) -> list[str]:
        names.check_group_name(group)
        with self.locked():
            for queue in self.table_names("waiting"):
                self._unexpired(queue)
            now = self.clock()
            return [channel for channel, (end, _) in self.table("members", group).items() if end > now]

    def group_users(self, group: str) -> list[str]:
        with self.locked():
            members, found = set(self.group_channels(group)), connection_rows(self.table("connections"))
            return sorted({row.user_id for row in found if row.reply_channel in members} - {""})

    def connections(
        self, after: str = "", limit: int = 500, *, watched: bool = False, **fields: Sequence[str]
    ) -> list[ops.Record]:
        with self.locked():
            found = [
                row.record()
                for row in connection_rows(self.table("connections"))
                if row.reply_channel > after
                and not (watched and row.login == ops.NOBODY)
                and all(getattr(row, name) in values for name, values in fields.items())
            ]
        return sorted(found)[:limit]

    # Receiving.

    def _due(self, queue: str, limit: int) -> list[Row]:
        """Return the next messages of a queue: the highest priority, then the oldest; the first of each unique key."""
        if limit <= 0 or not (waiting := self._unexpired(queue)):
            return []
        now = self.clock()
        first: dict[str | int, Row] = {}
        for row in sorted(rows(waiting), key=lambda row: row.id):
            if row.due <= now:
                first.setdefault(row.unique or row.id, row)
        return sorted(first.values(), key=lambda row: -row.priority)[:limit]

    def _take(self, row: Row) -> None:
        """Remove a message from its queue, and what waits with its unique key: that was sent before it runs."""
        waiting = self.table("waiting", row.queue)
        same = [one for one in rows(waiting) if one.unique == row.unique] if row.unique else [row]
        for one in same:
            del waiting[str(one.id)]

    def pop(self, queues: Sequence[str], limit: int) -> list[ops.Delivery]:
        with self.locked():
            found: list[Row] = []
            for queue in queues:
                found += self._due(queue, limit - len(found))
            for row in found:
                self._take(row)
            return [row.delivery()._replace(id=None) for row in found]

    def claim(
        self, channels: Sequence[str], limit: int, worker: str, at_most: Mapping[str, int] | None = None
    ) -> list[ops.Delivery]:
        limits = at_most or {}
        with self.locked():
            found: list[Row] = []
            others = [rows(self.table("claims", one)) for one in self.table_names("claims") if one != worker]
            held = [{row.channel for row in claims} for claims in others]  # by each other worker
            for channel in channels:
                if channel not in limits or sum(channel in one for one in held) < limits[channel]:
                    found += self._due(channel, limit - len(found))
            # A message that a dead worker had in its hands runs by itself, so that it alone is blamed.
            found = [row for row in found if row.alone][:1] or found
            claims, deliveries = self.table("claims", worker), []
            for row in found:
                self._take(row)
                claimed = row._replace(attempt=row.attempt + 1, claimed=self.clock())
                claims[str(row.id)] = claimed
                deliveries.append(claimed.delivery())
            return deliveries

    def acknowledge(self, worker: str, delivery: ops.Delivery) -> bool:
        with self.locked():
            row = self._unclaim(worker, delivery)
            if row and row.task:
                tasks.keep(self, row, SUCCESSFUL, worker, return_value=delivery.return_value)
            return row is not None

    def fail(self, worker: str, failure: ops.Failure) -> None:
        with self.locked():
            if not (row := self._unclaim(worker, failure.delivery)):
                return
            if row.task:
                ran_by, seconds = worker if failure.ran else "", failure.retry_in or 0.0
                tasks.keep(
                    self, row, status_after(failure), ran_by, error=error_after(failure), seconds=seconds
                )
            if failure.retry_in is not None:
                due = self.clock() + failure.retry_in
                self.put_back(row._replace(attempt=failure.attempts, due=due))
                return
            error = failure.stored_error()
            letter = Letter(row.id, row.channel, row.payload, failure.attempts, row.sent, error, row.task)
            self.table("letters")[str(row.id)] = letter

    def release(self, worker: str, delivery: ops.Delivery) -> None:
        with self.locked():
            if row := self._unclaim(worker, delivery):
                self.put_back(row._replace(attempt=row.attempt - 1))

    def _unclaim(self, worker: str, delivery: ops.Delivery) -> Row | None:
        """End a claim and return its message; None when the claim was lost."""
        claims = self.table("claims", worker)
        for row in rows(claims):
            if (row.id, row.attempt) == (delivery.id, delivery.attempt):
                del claims[str(row.id)]
                return row
        return None

    def put_back(self, row: Row) -> None:
        """Put a claimed message back on its queue."""
        self.table("waiting", row.channel)[str(row.id)] = row

    def task_record(self, task: str) -> TaskRecord | None:
        return tasks.record(self, task)

    # The rest.

    def dead_letter_ids(self, channels: Sequence[str] = ()) -> list[int]:
        with self.locked():
            letters = [Letter._make(one) for one in self.table("letters").values()]
            return sorted(one.id for one in letters if not channels or one.channel in channels)

    def replay(self, ids: Iterable[int], to: str = "") -> int:
        with self.locked():
            letters = self.table("letters")
            again = [Letter._make(letters.pop(str(one))) for one in sorted(set(ids)) if str(one) in letters]
            for one in again:
                self._put(ops.Send(to or one.channel, one.payload, "", 0, task=one.task))
            self.changed()
            return len(again)

    def flush(self) -> None:
        with self.locked():
            for kind in FLUSHED:
                for name in self.table_names(kind):
                    self.table(kind, name).clear()
            self._received.clear()

    def expire(self) -> None:
        """Delete what has expired, on every queue and in every group."""
        with self.locked():
            for queue in self.table_names("waiting"):
                self._unexpired(queue)
            for members in [self.table("members", group) for group in self.table_names("members")]:
                for channel in [one for one, (end, _) in members.items() if end <= self.clock()]:
                    del members[channel]
            history.trim(self)
            tasks.expire(self)

    def statistics(self, channel: str | None) -> dict[str, float]:
        with self.locked():
            queues = self.table_names("waiting") if channel is None else [channel]
            waiting = [row for queue in queues for row in rows(self._unexpired(queue))]
            claims = [row for one in self.table_names("claims") for row in rows(self.table("claims", one))]
            held = [row.channel for row in claims]
            held += [one[0] for messages in self.table("in_flight").values() for one in messages]
            now = self.clock()
        return {
            "messages_pending": len(waiting),
            "messages_in_flight": sum(channel in (None, one) for one in held),
            "messages_max_age": now - min((row.sent for row in waiting if row.due <= now), default=now),
        }


class StoreLink(Link):
    """The link of a StoreLayer. Each call holds the lock once. A process is alive as long as it renews its lease."""

    layer: StoreLayer

    def receive_many(self, queues: Sequence[str], limit: int, worker: str = "") -> list[ops.Delivery]:
        with self.layer.locked():
            found = super().receive_many(queues, limit)
            if worker and found:
                self._set_in_flight(worker, found)
            return found

    def apply_as(self, name: str, operations: Sequence[ops.Operation]) -> list[ops.Send]:
        with self.layer.locked():
            if name not in self.layer.table("processes"):
                raise DeclaredDead(name)
            return self.apply(operations)

    def finish(self, worker: str, done: ops.BatchResult) -> list[ops.Send]:
        with self.layer.locked():
            if worker in self.layer.table("in_flight"):  # not after a flush
                self._set_in_flight(worker, done.in_flight)
            return super().finish(worker, done)

    def _set_in_flight(self, worker: str, in_flight: Sequence[ops.Delivery]) -> None:
        messages = tuple((one.channel, one.reply_channel) for one in in_flight if not one.durable)
        if messages:
            self.layer.table("in_flight")[worker] = messages
        else:
            self.layer.table("in_flight").pop(worker, None)

    # The histories of groups.

    def history_position(self) -> int:
        return history.last_position(self.layer)

    def read_history(self, queue: str, after: int, limit: int) -> list[ops.Kept]:
        return history.read(self.layer, queue, after, limit)

    def missed(self, queue: str, after: Mapping[str, int], limit: int, size: int) -> dict[str, ops.Missed]:
        with self.layer.locked():
            return {one: history.missed(self.layer, queue + one, after[one], limit, size) for one in after}

    # Periodic messages.

    def next_time(self, channel: str, every: str) -> tuple[datetime | None, datetime]:
        with self.layer.locked():
            moment, _ = self.layer.table("schedule").get(f"{channel} {every}", ("", ""))
        return datetime.fromisoformat(moment) if moment else None, datetime.now(timezone.utc)

    def move_time(
        self, channel: str, every: str, due: datetime | None, following: datetime, sends: Sequence[ops.Send]
    ) -> bool:
        with self.layer.locked():
            schedule, key = self.layer.table("schedule"), f"{channel} {every}"
            if schedule.get(key, ("",))[0] != (due.isoformat() if due else ""):
                return False
            schedule[key] = (following.isoformat(), datetime.now(timezone.utc).isoformat())
            self.layer.write(sends, drop=True)
            return True

    def keep_times(self, entries: Sequence[tuple[str, str]]) -> datetime:
        with self.layer.locked():
            now, schedule = datetime.now(timezone.utc), self.layer.table("schedule")
            for key in (f"{channel} {every}" for channel, every in entries):
                if key in schedule:
                    schedule[key] = (schedule[key][0], now.isoformat())
            return now

    def drop_times(self, before: datetime) -> None:
        with self.layer.locked():
            schedule = self.layer.table("schedule")
            for key in [key for key, (_, seen) in schedule.items() if datetime.fromisoformat(seen) < before]:
                del schedule[key]

    # Liveness. Without session locks the lease alone decides, so it is three times as long.

    def _lease_end(self) -> float:
        return self.layer.clock() + 3 * float(self.layer.options["lease"])

    def register(self, name: str, kind: str, queue: str = "") -> None:
        with self.layer.locked():
            self.layer.table("processes")[name] = (kind, queue, self._lease_end())

    def renew(self, name: str) -> bool:
        with self.layer.locked():
            process = self.layer.table("processes").get(name)
            if process:
                self.layer.table("processes")[name] = (*process[:2], self._lease_end())
            return bool(process)

    def workers(self) -> dict[str, dict[str, Any]]:
        with self.layer.locked():
            processes = self.layer.table("processes").items()
            return {name: ops.read_work("") for name, process in processes if process[0] == WORKER}

    def count_live(self, queue: str) -> tuple[int, int]:
        with self.layer.locked():
            now, processes = self.layer.clock(), self.layer.table("processes").values()
            live = [(kind, reads) for kind, reads, end in processes if end >= now]
            return live.count((WORKER, queue)), sum(kind == SERVER for kind, _ in live)

    def clean_up_after(self, name: str) -> None:
        layer = self.layer
        with layer.locked():
            process = layer.table("processes").pop(name, None)
            if process is None:  # whoever takes it off the record cleans up after it
                return
            layer.report_lost(layer.table("in_flight").pop(name, ()), WORKER_DIED)
            claims = list(rows(layer.table("claims", name)))
            layer.table("claims", name).clear()
            # Claimed singly from now on: any message of the batch may have killed the worker.
            for row in claims:
                if row.task and (row.alone or len(claims) == 1):
                    tasks.keep(layer, row, READY, name)
                counted = row.attempt if row.alone or len(claims) == 1 else row.attempt - 1
                layer.put_back(row._replace(attempt=counted, alone=True))
            kind, queue, _ = process
            if kind == SERVER:  # a worker's queue is what it reads
                name = name.removesuffix(ops.UNFINISHED)
                for group in layer.table_names("members"):
                    members = layer.table("members", group)
                    for channel in [one for one in members if names.split(one)[0] == queue]:
                        del members[channel]
                layer.table("waiting", queue).clear()
                requests = layer.table("waiting", "http.request")
                for row in [one for one in rows(requests) if names.split(one.reply_channel)[0] == queue]:
                    del requests[str(row.id)]  # its client went with the server
                # Connections whose disconnect consumer runs by a message of the server's own are left.
                leaving = {row.reply_channel for row in rows(layer.table("waiting", LEAVES))}
                for messages in layer.table("in_flight").values():
                    leaving.update(reply_channel for channel, reply_channel in messages if channel == LEAVES)
                connections = layer.table("connections")
                left = [row for row in connection_rows(connections) if row.server == name]
                lost = [row for row in left if row.reply_channel not in leaving]
                for lost_row in lost:
                    del connections[lost_row.reply_channel]
                if len(lost) < len(left):
                    layer.table("processes")[name + ops.UNFINISHED] = (SERVER, queue, layer.clock())
                layer.write([layer.disconnect_send(row.record(), row.path) for row in lost], drop=True)
            layer.changed()

    def clean_up(self) -> None:
        with self.layer.locked():
            self.layer.expire()
            now, processes = self.layer.clock(), self.layer.table("processes")
            for name in [name for name, (_, _, end) in processes.items() if end < now]:
                self.clean_up_after(name)
