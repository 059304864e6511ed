"""The link of a layer in tables: each call holds the lock once. Leases alone tell which processes are alive."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from dbchannels import names
from dbchannels.exceptions import DeclaredDead
from dbchannels.layers.cleanup import UNFINISHED, disconnect_send
from dbchannels.layers.link import Link
from dbchannels.layers.operations import BatchResult, Delivery, Operation, Send
from dbchannels.layers.store.rows import connection_rows, rows
from dbchannels.protocol import WORKER_DIED

if TYPE_CHECKING:
    from dbchannels.layers.store.layer import StoreLayer


LEAVES = "websocket.disconnect"
SERVER, WORKER = "server", "worker"  # the kinds of processes, as the model Process has them


class StoreLink(Link):
    """See Link for what the methods take and give."""

    layer: StoreLayer

    def receive_many(self, queues: Sequence[str], limit: int, worker: str = "") -> list[Delivery]:
        with self.layer.locked():
            found = super().receive_many(queues, limit)
            if worker and found:
                self._set_in_flight(worker, found)
            return found

    def apply_as(self, name: str, operations: Sequence[Operation]) -> list[Send]:
        with self.layer.locked():
            if name not in self.layer.table("processes"):
                raise DeclaredDead(name)
            return self.apply(operations)

    def finish(self, worker: str, done: BatchResult) -> list[Send]:
        with self.layer.locked():
            if worker in self.layer.table("in_flight"):  # not after a flush
                self._set_in_flight(worker, done.in_flight)
            return super().finish(worker, done)

    def _set_in_flight(self, worker: str, in_flight: Sequence[Delivery]) -> None:
        messages = tuple((one.channel, one.reply_channel) for one in in_flight if not one.durable)
        if messages:
            self.layer.table("in_flight")[worker] = messages
        else:
            self.layer.table("in_flight").pop(worker, None)

    # Periodic messages.

    def next_time(self, channel: str, every: str) -> tuple[datetime | None, datetime]:
        with self.layer.locked():
            moment, _ = self.layer.table("schedule").get(f"{channel} {every}", ("", ""))
        return datetime.fromisoformat(moment) if moment else None, datetime.now(timezone.utc)

    def move_time(
        self, channel: str, every: str, due: datetime | None, following: datetime, sends: Sequence[Send]
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

    def workers(self) -> dict[str, str]:
        with self.layer.locked():
            processes = self.layer.table("processes").items()
            return {name: "" for name, process in processes if process[0] == WORKER}

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
                counted = row.attempt if row.alone or len(claims) == 1 else row.attempt - 1
                layer.put_back(row._replace(attempt=counted, alone=True))
            kind, queue, _ = process
            if kind == SERVER:  # a worker's queue is what it reads
                self._clean_up_after_server(name.removesuffix(UNFINISHED), queue)
            layer.changed()

    def _clean_up_after_server(self, name: str, queue: str) -> None:
        layer = self.layer
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
            layer.table("processes")[name + UNFINISHED] = (SERVER, queue, layer.clock())
        expiry = layer.options["expiry"]
        layer.write([disconnect_send(row.record(), row.path, expiry) for row in lost], drop=True)

    def clean_up(self) -> None:
        with self.layer.locked():
            self.layer.expire()
            now, processes = self.layer.clock(), self.layer.table("processes")
            for name in [name for name, (_, _, end) in processes.items() if end < now]:
                self.clean_up_after(name)
