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


def keep(
    layer: StoreLayer, message: Row, status: str, worker: str = "", error: str = "", **ended: Any
) -> None:
    """Keep what has come of a task, inside ``locked()``: its ``error`` or ``return_value``, or ``seconds`` to wait.

    ``worker`` is empty if the message did not run.
    """
    results, now = layer.table("results"), layer.clock()
    row = ResultRow._make(results.get(message.task, ResultRow(message.payload, message.priority)))
    results[message.task] = (row.begun(worker, message.claimed) if worker else row)._replace(
        priority=message.priority,
        status=status,
        finished=None if status == READY else now,
        expires=now + ended.get("seconds", 0.0) + layer.options["result_ttl"],
        errors=row.errors[-MOST_ERRORS:] + error,
        return_value=ended.get("return_value", ""),
    )


def record(layer: StoreLayer, task: str) -> TaskRecord | None:
    """Return what is known of a task."""
    with layer.locked():
        held = [(name, layer.table("claims", name)) for name in layer.table_names("claims")]
        held += [("", layer.table("waiting", queue)) for queue in layer.table_names("waiting")]
        found = ((name, row) for name, table in held for row in rows(table) if row.task == task)
        worker, message = next(found, ("", None))
        kept = layer.table("results").get(task)
        since = datetime.now(timezone.utc) - timedelta(seconds=layer.clock())
    if message is None:
        return None if kept is None else ResultRow._make(kept).record(since)
    row = ResultRow._make(kept or ResultRow(message.payload, message.priority))
    row = row._replace(status=READY, finished=None, return_value="")
    return (row.begun(worker, message.claimed)._replace(status=RUNNING) if worker else row).record(since)


def expire(layer: StoreLayer) -> None:
    """Delete the results whose time is over, inside ``locked()``."""
    results = layer.table("results")
    for task in [one for one in results if ResultRow._make(results[one]).expires <= layer.clock()]:
        del results[task]
