"""What ``StoreLayer`` keeps of tasks: the table "results"."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from dbchannels.layers.store.rows import Row, rows
from dbchannels.layers.tasks import MOST_ERRORS, TaskRecord, read_errors
from dbchannels.protocol import READY, RUNNING

if TYPE_CHECKING:
    from dbchannels.layers.store import StoreLayer


class ResultRow(NamedTuple):
    """What has come of a task, as the model ``TaskResult`` has it; moments are seconds by the layer's clock."""

    payload: bytes
    priority: int
    status: str = READY
    started: float | None = None
    attempted: float | None = None
    finished: float | None = None
    expires: float = inf
    worker_ids: str = ""
    errors: str = ""
    return_value: str = ""

    def begun(self, worker: str, claimed: float) -> ResultRow:
        """Return the row with one more attempt."""
        started = claimed if self.started is None else self.started
        return self._replace(started=started, attempted=claimed, worker_ids=f"{self.worker_ids}{worker} ")

    def ended(
        self, message: Row, status: str, worker: str, now: float, error: str = "", return_value: str = ""
    ) -> ResultRow:
        """Return the row after an attempt, or without a ``worker`` after the end of a message that did not run."""
        return (self.begun(worker, message.claimed) if worker else self)._replace(
            priority=message.priority,
            status=status,
            finished=None if status == READY else now,
            errors=self.errors[-MOST_ERRORS:] + error,
            return_value=return_value,
        )

    def as_of(self, message: Row, worker: str) -> ResultRow:
        """Return the row as its message makes it look, which waits, or runs if a ``worker`` has claimed it."""
        waits = self._replace(status=READY, finished=None, return_value="")
        return waits.begun(worker, message.claimed)._replace(status=RUNNING) if worker else waits

    def record(self, since: datetime) -> TaskRecord:
        """Return what a layer gives for it; ``since`` is when the layer's clock was 0."""

        def moment(seconds: float | None) -> datetime | None:
            return None if seconds is None else since + timedelta(seconds=seconds)

        return TaskRecord(
            payload=self.payload,
            priority=self.priority,
            status=self.status,
            started_at=moment(self.started),
            last_attempted_at=moment(self.attempted),
            finished_at=moment(self.finished),
            worker_ids=self.worker_ids.split(),
            errors=read_errors(self.errors),
            return_value=json.loads(self.return_value or "null"),
        )


def keep(layer: StoreLayer, message: Row, status: str, worker: str = "", **ended: Any) -> None:
    """Keep what has come of a task, inside ``locked()``; see ``ResultRow.ended``. ``seconds`` until it runs again."""
    results, now = layer.table("results"), layer.clock()
    before = ResultRow._make(results.get(message.task, ResultRow(message.payload, message.priority)))
    expires = now + ended.pop("seconds", 0.0) + layer.options["result_ttl"]
    results[message.task] = before.ended(message, status, worker, now, **ended)._replace(expires=expires)


def record(layer: StoreLayer, task: str) -> TaskRecord | None:
    """Return what is known of a task."""
    with layer.locked():
        held = [(name, layer.table("claims", name)) for name in layer.table_names("claims")]
        held += [("", layer.table("waiting", queue)) for queue in layer.table_names("waiting")]
        found = ((name, row) for name, table in held for row in rows(table) if row.task == task)
        worker, message = next(found, ("", None))
        kept = layer.table("results").get(task)
        since = datetime.now(timezone.utc) - timedelta(seconds=layer.clock())
    if message is not None:
        result = ResultRow._make(kept or ResultRow(message.payload, message.priority))
        return result.as_of(message, worker).record(since)
    return None if kept is None else ResultRow._make(kept).record(since)


def expire(layer: StoreLayer) -> None:
    """Delete the results whose time is over, inside ``locked()``."""
    results = layer.table("results")
    for task in [one for one in results if ResultRow._make(results[one]).expires <= layer.clock()]:
        del results[task]
