"""The layer of a test: in memory, part of Django's transactions, with a clock of its own and a record of all sends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from dbchannels import names
from dbchannels.conf import LayerSettings
from dbchannels.exceptions import ChannelFull
from dbchannels.layers import operations as ops
from dbchannels.layers.base import BaseLayer
from dbchannels.testing import transactions
from dbchannels.testing.link import RecordingLink
from dbchannels.testing.members import Members
from dbchannels.testing.rows import Row, Rows
from dbchannels.testing.sent import Record, SentMessage
from dbchannels.testing.transactions import Mark, State


class RecordingLayer(BaseLayer):
    """See BaseLayer for what the methods take and give. Its clock, in seconds, stands still until ``advance``."""

    shared = False
    wakeups = True

    def __init__(self, settings: LayerSettings, records: list[Record]) -> None:
        super().__init__(settings)
        self.records = records
        self.clock = 0.0
        self.dead_letters: list[ops.Failure] = []
        self.in_flight: dict[
            str, Sequence[ops.Delivery]
        ] = {}  # by worker: what it has popped and not finished
        self.schedule: dict[tuple[str, str], datetime] = {}  # when periodic messages are due
        self.seen: dict[tuple[str, str], datetime] = {}  # when a live worker last had them
        self.lock = threading.RLock()
        self._rows = Rows()
        self._members = Members()
        self._claims: dict[int | None, tuple[str, Row]] = {}  # by id: its worker, and the message
        self._ended: list[tuple[Mark, str, Row]] = []  # claims that open transactions have ended

    def link(self, name: str = "", listen: bool = True) -> RecordingLink:
        return RecordingLink(self)

    # Time.

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        with self.lock:
            self.clock += seconds

    def next_due(self) -> float | None:
        """Return in how many seconds the next message that waits for its time is due."""
        with self.lock:
            self._settle()
            return min(
                (row.due - self.clock for row in self._rows.visible() if row.due > self.clock), default=None
            )

    # Sending.

    def in_transaction(self) -> bool:
        return transactions.in_transaction()

    def rollback_probe(self) -> Callable[[], bool]:
        mark = Mark.of_caller()
        return lambda: mark is not None and mark.state is State.UNDONE

    def _submit(self, operations: Sequence[ops.Operation], immediately: bool = False) -> None:
        """As the base's; but any database's transaction holds back what is sent in it, and the test's own does not."""
        self._write_or_buffer(operations, immediately)

    def write(self, operations: Sequence[ops.Operation], drop: bool = False) -> list[ops.Send]:
        mark = Mark.of_caller()
        with self.lock:
            refused = self._write(operations, mark, drop)
            self._record(operations, mark)
            return refused

    def write_apart(self, operations: Sequence[ops.Operation], record: bool = True) -> list[ops.Send]:
        """Write outside the caller's transactions; return the sends that found a channel full."""
        with self.lock:
            refused = self._write(operations, None, drop=True)
            if record:
                self._record(operations, None)
            return refused

    def _record(self, operations: Sequence[ops.Operation], mark: Mark | None) -> None:
        for operation in operations:
            if isinstance(operation, (ops.Send, ops.SendGroup)):
                message = SentMessage.of(operation, self.alias)
                if message is not None:
                    self.records.append(Record(message, mark))

    def _write(self, operations: Sequence[ops.Operation], mark: Mark | None, drop: bool) -> list[ops.Send]:
        self._settle()
        sends = [one for one in operations if isinstance(one, ops.Send)]
        refused = [send for send in sends if not (send.certain or self._has_room(send.channel))]
        if refused and not drop:
            raise ChannelFull(names.split(refused[0].channel)[0])
        for operation in operations:
            if operation not in refused:
                self._write_one(operation, mark)
        return refused

    def _write_one(self, operation: ops.Operation, mark: Mark | None) -> None:
        match operation:
            case ops.Send():
                self._rows.put(operation, self.clock, mark)
            case ops.SendGroup(group, payload):
                for channel in filter(self._has_room, self.group_channels(group)):
                    send = ops.Send(channel, payload, "", self.options["expiry"])
                    self._rows.put(send, self.clock, mark)
            case ops.GroupAdd(group, channel):
                self._members.add(group, channel, self.clock + self.group_expiry, mark)
            case ops.GroupDiscard(group, channel):
                self._members.discard(group, channel, mark)
            case ops.GroupClear(group):
                self._members.empty(group, mark)
            case ops.Connect():
                self._members.connect(operation)
            case ops.Identify() | ops.Keep():
                self._members.change(operation, mark)
            case ops.Disconnect(channel):
                self._members.disconnect(channel)
            case ops.Withdraw():
                self._rows.withdraw(*operation)

    def _has_room(self, channel: str) -> bool:
        queue = names.split(channel)[0]
        capacity = self.capacity(queue)
        return capacity is None or self._rows.count(queue) < capacity

    def _settle(self) -> None:
        """Drop what was rolled back or has expired, and take claims up again whose end was rolled back."""
        for channel in self._rows.settle(self.clock):
            self._members.leave_all(channel)
        for mark, worker, row in self._ended:
            if mark.state is State.UNDONE:
                self._claims[row.delivery.id] = worker, row
        self._ended = [one for one in self._ended if one[0].state is State.OPEN]

    # Reading.

    def group_channels(self, group: str) -> list[str]:
        with self.lock:
            self._settle()
            return self._members.channels(names.check_group_name(group), self.clock)

    def group_users(self, group: str) -> list[str]:
        with self.lock:
            self._settle()
            return self._members.users(names.check_group_name(group), self.clock)

    def connections(
        self, after: str = "", limit: int = 500, *, watched: bool = False, **fields: Sequence[str]
    ) -> list[ops.Record]:
        with self.lock:
            self._settle()
            return self._members.records(after, watched, fields)[:limit]

    def waiting(self, delayed: bool = False) -> list[str]:
        """Return the channels whose messages are due, or wait for their time: that with the oldest first."""
        with self.lock:
            self._settle()
            rows = sorted(self._rows.visible(), key=lambda row: row.number)
            found = [row.delivery.channel for row in rows if delayed or row.due <= self.clock]
            return list(dict.fromkeys(found))

    def held_back(self) -> int:
        """Return how many messages are in transactions that are still open."""
        with self.lock:
            self._settle()
            return self._rows.held_back()

    def pop(self, queues: Sequence[str], limit: int) -> list[ops.Delivery]:
        with self.lock:
            self._settle()
            found: list[ops.Delivery] = []
            for queue in queues:
                taken = self._rows.take(queue, limit - len(found), self.clock)
                found += [row.delivery._replace(id=None) for row in taken]
            return found

    def claim(
        self, channels: Sequence[str], limit: int, worker: str, at_most: Mapping[str, int] | None = None
    ) -> list[ops.Delivery]:
        with self.lock:
            self._settle()
            claimed: list[ops.Delivery] = []
            for channel in channels:
                room = limit - len(claimed)
                if at_most and channel in at_most:
                    holders = {one for one, row in self._claims.values() if row.send.channel == channel}
                    room = room if len(holders - {worker}) < at_most[channel] else 0
                for row in self._rows.take(channel, room, self.clock):
                    row.delivery = row.delivery._replace(attempt=row.delivery.attempt + 1)
                    self._claims[row.delivery.id] = worker, row
                    claimed.append(row.delivery)
            return claimed

    # The end of a claim.

    def acknowledge(self, worker: str, delivery: ops.Delivery) -> bool:
        mark = Mark.of_caller()
        with self.lock:
            row = self._unclaim(worker, delivery)
            if row is not None and mark is not None:
                self._ended.append((mark, worker, row))
            return row is not None

    def fail(self, worker: str, failure: ops.Failure) -> None:
        with self.lock:
            self._settle()
            row = self._unclaim(worker, failure.delivery)
            if row and failure.retry_in is None:
                self.dead_letters.append(failure)
            elif row:
                self._rows.put_back(row, self.clock + (failure.retry_in or 0))

    def release(self, worker: str, delivery: ops.Delivery) -> None:
        with self.lock:
            if row := self._unclaim(worker, delivery):
                row.delivery = delivery._replace(attempt=delivery.attempt - 1)
                self._rows.put_back(row, self.clock)

    def _unclaim(self, worker: str, delivery: ops.Delivery) -> Row | None:
        holder, row = self._claims.get(delivery.id, ("", None))
        if row is None or (holder, row.delivery) != (worker, delivery):
            return None
        return self._claims.pop(delivery.id)[1]

    # Operating.

    def register(self, server: str) -> None:
        """Note that a server is alive."""
        self._members.register(server)

    def flush(self) -> None:
        with self.lock:
            self.dead_letters.clear()
            for store in (
                self._rows,
                self._claims,
                self._ended,
                self._members,
                self.in_flight,
                self.schedule,
            ):
                store.clear()

    def dead_letter_ids(self, channels: Sequence[str] = ()) -> list[int]:
        letters = [one.delivery for one in self.dead_letters]
        return [one.id for one in letters if one.id and (not channels or one.channel in channels)]

    def replay(self, ids: Iterable[int]) -> int:
        wanted, mark = set(ids), Mark.of_caller()
        with self.lock:
            again = [one for one in self.dead_letters if one.delivery.id in wanted]
            for failure in again:
                self.dead_letters.remove(failure)
                self._rows.put(
                    ops.Send(failure.delivery.channel, failure.delivery.payload, "", 0), self.clock, mark
                )
            return len(again)

    def global_statistics(self) -> dict[str, float]:
        return self._statistics("")

    def channel_statistics(self, channel: str) -> dict[str, float]:
        return self._statistics(names.check_channel_name(channel))

    def _statistics(self, channel: str) -> dict[str, float]:
        with self.lock:
            self._settle()
            now, waiting = self.clock, self._rows.visible(channel)
            in_flight = [row.delivery for _, row in self._claims.values()]
            in_flight += [one for popped in self.in_flight.values() for one in popped if not one.durable]
        return {
            "messages_pending": len(waiting),
            "messages_held": sum(channel in ("", one.channel) for one in in_flight),
            "messages_max_age": now - min((row.sent for row in waiting if row.due <= now), default=now),
        }

    def describe(self) -> str:
        return "the layer of a test, in memory"
