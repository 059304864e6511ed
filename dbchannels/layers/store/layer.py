"""A layer in anything that keeps tables: the rules of the contract, told with a lock and mappings.

Capacity, expiry, priority, unique keys, claims, dead letters, groups, presence and statistics are here, and liveness
in ``link``; the layer that subclasses this brings what it keeps them in, by the methods under "For layers to
implement". ``memory`` is one. A look at a queue goes through all that waits there: a store that finds the next message
by itself overrides ``pop`` and ``claim``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from math import inf
from typing import Any

from dbchannels import names
from dbchannels.exceptions import ChannelFull
from dbchannels.layers import operations as ops
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.cleanup import lost_messages
from dbchannels.layers.store.link import StoreLink
from dbchannels.layers.store.rows import Letter, Row, StoreRecords, rows, sent_row
from dbchannels.protocol import EXPIRED

__all__ = ["StoreLayer"]

#: Kinds of tables that ``flush`` empties. Messages by id: "waiting", one for each queue, and "claims", for each worker;
#: "in_flight", by worker: (channel, reply channel) of what it has popped and not finished; "members", one for each
#: group: when each channel leaves it; "letters" by id; "schedule", by "CHANNEL EVERY": when a periodic message is due,
#: and when a live worker last had it.
#: Others are "connections", see StoreRecords; "processes", by name: (kind, queue, the lease's end); and "numbers".
FLUSHED = ("waiting", "claims", "in_flight", "members", "letters", "schedule")


class StoreLayer(BaseLayer):
    """See BaseLayer for what the methods take and give."""

    transactional = False

    # For layers to implement.

    def locked(self) -> AbstractContextManager[Any]:
        """Return a context in which nobody else reads or writes the tables; it is entered within itself, too.

        What the block wrote is kept when it ends: all of it or, where the process dies before, nothing. The rules raise
        nothing once they have begun to write.
        """
        raise NotImplementedError

    def table(self, kind: str, name: str = "") -> MutableMapping[str, Any]:
        """Return a table, inside ``locked()``; it is empty until something is put there.

        It gives its keys in the order in which they were put. Values are what ``codec`` encodes: bytes, str, int, float
        with infinity, bool, and tuples of these, which may come back as lists. They are replaced, never changed.
        """
        raise NotImplementedError

    def table_names(self, kind: str) -> list[str]:
        """Return the names of the tables of a kind that are not empty, inside ``locked()``."""
        raise NotImplementedError

    def changed(self) -> None:
        """Wake those who wait, inside ``locked()``; with ``wakeups`` False they look from time to time."""

    def clock(self) -> float:
        """Return the time in seconds, from a point that stays the same for as long as what is kept."""
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
                for channel in filter(self._has_room, self.group_channels(group)):
                    self._put(ops.Send(channel, payload, "", self.options["expiry"]))
            case ops.GroupAdd(group, channel):
                self.table("members", group)[channel] = self._membership_end(channel)
            case ops.GroupDiscard(group, channel):
                self.table("members", group).pop(channel, None)
            case ops.GroupClear(group):
                self.table("members", group).clear()
            case ops.Connect() | ops.Identify() | ops.Keep():
                StoreRecords(self.table("connections")).write(operation)
            case ops.Disconnect(channel):
                self.table("connections").pop(channel, None)
                self.leave_groups(channel)
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
        """Return what waits on a queue, without what has expired: who waits for an answer to that is told.

        A process-specific channel that did not read is taken out of its groups.
        """
        waiting, now = self.table("waiting", queue), self.clock()
        while (row := next(rows(waiting), None)) and row.end <= now:
            del waiting[str(row.id)]
            if row.channel != queue:
                self.leave_groups(row.channel, forever=False)
            self.tell([(queue, row.reply_channel)], EXPIRED)
        return waiting

    def tell(self, lost: Iterable[tuple[str, str]], why: str) -> None:
        """Tell those who wait for an answer to these, (channel, reply channel), that none comes."""
        for notice in lost_messages(lost, why, self.options["expiry"]):
            self._put(notice)
        self.changed()

    # Groups.

    def _membership_end(self, channel: str) -> float:
        """Return when a membership that is made now ends; never, while a live server holds the channel."""
        queue, local = names.split(channel)
        alive = local and any(process[1] == queue for process in self.table("processes").values())
        return inf if alive else self.clock() + self.group_expiry

    def leave_groups(self, channel: str, forever: bool = True) -> None:
        """Take a channel out of all groups; without ``forever`` of those alone in which its membership has an end."""
        for group in self.table_names("members"):
            members = self.table("members", group)
            if forever or members.get(channel, inf) < inf:
                members.pop(channel, None)

    def group_channels(self, group: str) -> list[str]:
        names.check_group_name(group)
        with self.locked():
            for queue in self.table_names("waiting"):
                self._unexpired(queue)
            now = self.clock()
            return [channel for channel, end in self.table("members", group).items() if end > now]

    def group_users(self, group: str) -> list[str]:
        with self.locked():
            records = StoreRecords(self.table("connections"))
            return sorted({records.user_id(channel) for channel in self.group_channels(group)} - {""})

    def connections(
        self, after: str = "", limit: int = 500, *, watched: bool = False, **fields: Sequence[str]
    ) -> list[ops.Record]:
        with self.locked():
            return StoreRecords(self.table("connections")).find(after, limit, watched, fields)

    # Receiving.

    def _due(self, queue: str, limit: int) -> list[Row]:
        """Return the next messages of a queue: the highest priority, then the oldest; of a unique key the first."""
        if limit <= 0 or not (waiting := self._unexpired(queue)):
            return []
        now = self.clock()
        first: dict[str | int, Row] = {}
        for row in sorted(rows(waiting), key=lambda row: row.id):
            if row.due <= now:
                first.setdefault(row.unique or row.id, row)
        return sorted(first.values(), key=lambda row: -row.priority)[:limit]

    def _take(self, row: Row) -> None:
        """Take a message off its queue, and with it what waits with its unique key: that was sent before it runs."""
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
        with self.locked():
            found: list[Row] = []
            for channel in channels:
                room = limit - len(found)
                if (
                    at_most
                    and channel in at_most
                    and len(self._holders(channel) - {worker}) >= at_most[channel]
                ):
                    room = 0
                found += self._due(channel, room)
            # One that was in the hands of a worker that died runs by itself, so that it alone is blamed.
            found = [row for row in found if row.alone][:1] or found
            return [self._claim_one(row, worker) for row in found]

    def _claim_one(self, row: Row, worker: str) -> ops.Delivery:
        self._take(row)
        claimed = row._replace(attempt=row.attempt + 1)
        self.table("claims", worker)[str(row.id)] = claimed
        return claimed.delivery()

    def _holders(self, channel: str) -> set[str]:
        holders = self.table_names("claims")
        return {
            one for one in holders if any(row.channel == channel for row in rows(self.table("claims", one)))
        }

    def _claimed(self, channel: str | None) -> list[Row]:
        claims = [row for worker in self.table_names("claims") for row in rows(self.table("claims", worker))]
        return [row for row in claims if channel in (None, row.channel)]

    def acknowledge(self, worker: str, delivery: ops.Delivery) -> bool:
        with self.locked():
            return self._unclaim(worker, delivery) is not None

    def fail(self, worker: str, failure: ops.Failure) -> None:
        with self.locked():
            if not (row := self._unclaim(worker, failure.delivery)):
                return
            if failure.retry_in is not None:
                self.put_back(row._replace(due=self.clock() + failure.retry_in))
                return
            error = failure.stored_error()
            letter = Letter(row.id, row.channel, row.payload, failure.attempts, row.sent, error)
            self.table("letters")[str(row.id)] = letter

    def release(self, worker: str, delivery: ops.Delivery) -> None:
        with self.locked():
            if row := self._unclaim(worker, delivery):
                self.put_back(row._replace(attempt=row.attempt - 1))

    def _unclaim(self, worker: str, delivery: ops.Delivery) -> Row | None:
        """End a claim and return its message; None when the claim was lost before."""
        claims = self.table("claims", worker)
        for row in rows(claims):
            if (row.id, row.attempt) == (delivery.id, delivery.attempt):
                del claims[str(row.id)]
                return row
        return None

    def put_back(self, row: Row) -> None:
        """Let a message that was claimed wait again."""
        self.table("waiting", row.channel)[str(row.id)] = row

    # The rest.

    def dead_letter_ids(self, channels: Sequence[str] = ()) -> list[int]:
        with self.locked():
            letters = [Letter._make(one) for one in self.table("letters").values()]
            return sorted(one.id for one in letters if not channels or one.channel in channels)

    def replay(self, ids: Iterable[int]) -> int:
        with self.locked():
            letters = self.table("letters")
            again = [Letter._make(letters.pop(str(one))) for one in sorted(set(ids)) if str(one) in letters]
            for one in again:
                self._put(ops.Send(one.channel, one.payload, "", 0))
            self.changed()
            return len(again)

    def flush(self) -> None:
        with self.locked():
            for kind in FLUSHED:
                for name in self.table_names(kind):
                    self.table(kind, name).clear()
            self._received.clear()

    def expire(self) -> None:
        """Drop what has expired, on every queue and in every group."""
        with self.locked():
            for queue in self.table_names("waiting"):
                self._unexpired(queue)
            for members in [self.table("members", group) for group in self.table_names("members")]:
                for channel in [one for one, end in members.items() if end <= self.clock()]:
                    del members[channel]

    def global_statistics(self) -> dict[str, float]:
        return self._statistics(None)

    def channel_statistics(self, channel: str) -> dict[str, float]:
        return self._statistics(names.check_channel_name(channel))

    def _statistics(self, channel: str | None) -> dict[str, float]:
        with self.locked():
            queues = self.table_names("waiting") if channel is None else [channel]
            waiting = [row for queue in queues for row in rows(self._unexpired(queue))]
            in_flight = [one[0] for messages in self.table("in_flight").values() for one in messages]
            claimed, now = self._claimed(channel), self.clock()
        return {
            "messages_pending": len(waiting),
            "messages_held": len(claimed) + sum(channel in (None, one) for one in in_flight),
            "messages_max_age": now - min((row.sent for row in waiting if row.due <= now), default=now),
        }
