"""A reader's way into the layer of a test: the workers', and the interface server's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from dbchannels.layers import operations as ops
from dbchannels.layers.link import Link

if TYPE_CHECKING:
    from dbchannels.testing.layer import RecordingLayer


class RecordingLink(Link):
    """What it writes is in no transaction of the caller's."""

    layer: RecordingLayer

    def next_due(self) -> float | None:
        return self.layer.next_due()

    def register(self, name: str, kind: str, queue: str = "") -> None:
        self.layer.register(name)

    def receive_many(self, queues: Sequence[str], limit: int, worker: str = "") -> list[ops.Delivery]:
        found = super().receive_many(queues, limit)
        if worker and found:
            self.layer.in_flight[worker] = found
        return found

    def finish(self, worker: str, done: ops.Done) -> list[ops.Send]:
        self.layer.in_flight[worker] = done.in_flight
        return super().finish(worker, done)

    def next_time(self, channel: str, every: str) -> tuple[datetime | None, datetime]:
        return self.layer.schedule.get((channel, every)), datetime.now(timezone.utc)

    def move_time(
        self, channel: str, every: str, due: datetime | None, following: datetime, sends: Sequence[ops.Send]
    ) -> bool:
        with self.layer.lock:
            still = self.layer.schedule.get((channel, every)) == due
            if still:
                self.layer.schedule[channel, every] = following
                self.layer.seen[channel, every] = datetime.now(timezone.utc)
                self.layer.write_apart(sends)
            return still

    def keep_times(self, entries: Sequence[tuple[str, str]]) -> datetime:
        now = datetime.now(timezone.utc)
        with self.layer.lock:
            self.layer.seen.update(dict.fromkeys(entries, now))
        return now

    def drop_times(self, before: datetime) -> None:
        with self.layer.lock:
            for entry in [one for one in self.layer.schedule if self.layer.seen[one] < before]:
                del self.layer.schedule[entry]

    def apply(self, operations: Sequence[ops.Operation]) -> list[ops.Send]:
        return self.layer.write_apart(operations)
