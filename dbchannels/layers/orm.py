"""What the layers on a database of the site share.

These are the records of open WebSockets, the texts that the database can store, and what an operator does in the admin
or by a command. Nothing there is in a hurry, so it is written once, by the ORM.
"""

from __future__ import annotations

import json
import threading
import time
from abc import abstractmethod
from asyncio import CancelledError
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from datetime import timezone as datetime_timezone
from functools import partial
from typing import Any

from django.conf import settings
from django.db import connections, transaction
from django.db.models import DateTimeField, Func, Q, TextField, Value
from django.db.models.functions import Left, Now, Substr
from django.utils import timezone

from dbchannels import names
from dbchannels.conf import LayerSettings
from dbchannels.exceptions import InvalidMessage, InvalidName
from dbchannels.layers import operations as ops
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.tasks import MOST_ERRORS, TaskRecord, error_line, read_errors, task_failed
from dbchannels.models import MAX_USER, ChannelState, Connection, DurableMessage, Sample, TaskResult
from dbchannels.protocol import DURABLE, FAILED, READY, RUNNING, SUCCESSFUL
from dbchannels.samples import LINE, line_start, read_sample

#: Python's encodings by PostgreSQL's names; all others, and SQL_ASCII, take what UTF-8 does.
PYTHON_ENCODINGS = {
    **{
        f"LATIN{number}": f"iso8859-{part}"
        for number, part in enumerate((1, 2, 3, 4, 9, 10, 13, 14, 15, 16), 1)
    },
    **{f"WIN{number}": f"cp{number}" for number in (866, 874, *range(1250, 1259))},
    **{f"ISO_8859_{part}": f"iso8859-{part}" for part in range(5, 9)},
    "KOI8R": "koi8-r",
    "KOI8U": "koi8-u",
    "EUC_JP": "euc_jp",
    "EUC_KR": "euc_kr",
    "EUC_CN": "gb2312",
}


#: The states of a durable message.
STATES = {
    "ready": Q(claimed_by=None, due_at=None),
    "delayed": Q(claimed_by=None, due_at__isnull=False),
    "running": Q(claimed_by__isnull=False),
}


class ClosedConnections:
    """Connections that may have left rows behind; shared by the link that writes their end and the one that cleans up.

    A transaction of the site may have locked a connection's record (``identify``) or a membership (``group_add``,
    ``group_discard``). Closing the connection does not wait for it: locked rows are skipped, and each clean-up looks
    for them.
    """

    #: Reply channels. Rows of further ones go when a message comes for them, or with their server.
    MOST = 100_000

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reply_channels: set[str] = set()

    def add(self, reply_channels: Iterable[str]) -> None:
        """Add connections."""
        with self._lock:
            if len(self._reply_channels) < self.MOST:
                self._reply_channels.update(reply_channels)

    def take(self) -> set[str]:
        """Remove and return all of them."""
        with self._lock:
            taken, self._reply_channels = self._reply_channels, set()
            return taken


class DjangoLayer(BaseLayer):
    """A layer on a database of the site."""

    def __init__(self, settings: LayerSettings) -> None:
        super().__init__(settings)
        self.closed_connections = ClosedConnections()

    def connections(
        self, after: str = "", limit: int = 500, *, watched: bool = False, **fields: Sequence[str]
    ) -> list[ops.Record]:
        rows = Connection.objects.using(self.database).filter(
            reply_channel__gt=after, **{f"{name}__in": list(values) for name, values in fields.items()}
        )
        rows = rows.exclude(login=ops.NOBODY) if watched else rows
        return [record_of(row) for row in rows.order_by("reply_channel")[:limit]]

    def rows(self, model: Any) -> Any:
        """Return a query set of one of our models on the layer's database."""
        return model.objects.using(self.database)

    @abstractmethod
    def wake(self, kinds: set[str]) -> None:
        """Wake the readers of these kinds of messages when the caller's transaction commits; see ``Link.wait``."""

    # Tasks.

    def task_record(self, task: str) -> TaskRecord | None:
        # In this order: the result is written as the message goes.
        message = self.rows(DurableMessage).filter(task=task).first()
        kept = self.rows(TaskResult).filter(pk=task).first()
        if message and kept and message.claimed_at and message.claimed_at == kept.last_attempted_at:
            message = None  # the attempt has ended, if only between the two
        found = message or kept
        if found is None:
            return None
        status = kept.status if kept else READY
        started_at, attempted_at, worker_ids = None, None, list[str]()
        if kept:
            started_at, attempted_at = kept.started_at, kept.last_attempted_at
            worker_ids = kept.worker_ids.split()
        if message:
            status = READY
            if message.claimed_by is not None:
                status, attempted_at = RUNNING, message.claimed_at
                started_at = started_at or attempted_at
                worker_ids.append(message.claimed_by)
        return TaskRecord(
            bytes(found.payload),
            found.priority,
            status,
            started_at,
            attempted_at,
            None if message or not kept else kept.finished_at,
            worker_ids,
            read_errors(kept.errors) if kept else [],
            json.loads(kept.return_value) if status == SUCCESSFUL and kept else None,
        )

    def keep_results(
        self,
        messages: Sequence[DurableMessage],
        status: str,
        *,
        worker: str = "",
        error: str = "",
        seconds: float = 0.0,
        return_value: str = "",
    ) -> None:
        """Keep what has come of tasks, in the caller's transaction; ``seconds`` until they run again.

        ``worker`` is empty if they did not run.
        """
        before, now = self.rows(TaskResult).in_bulk([one.task for one in messages]), self.now()
        results = []
        for one in messages:
            result = before.get(one.task) or TaskResult(
                id=one.task, channel=one.channel, payload=one.payload, enqueued_at=one.sent_at
            )
            result.priority, result.status, result.return_value = one.priority, status, return_value
            if worker:
                result.last_attempted_at = one.claimed_at
                result.started_at = result.started_at or one.claimed_at
                result.worker_ids += f"{worker} "
            result.errors = result.errors[-MOST_ERRORS:] + error
            result.finished_at = None if status == READY else now
            result.expires_at = now + timedelta(seconds=seconds + self.options["result_ttl"])
            results.append(result)
        changed = [field.name for field in TaskResult._meta.fields if not field.primary_key]
        targeted = connections[self.database].features.supports_update_conflicts_with_target
        self.rows(TaskResult).bulk_create(
            results,
            update_conflicts=True,
            update_fields=changed,
            unique_fields=["id"] if targeted else None,
        )

    # What an operator does. Each takes one statement for a number of messages: give ids in parts of a few thousand.

    def pause(self, channel: str, by: str = "") -> bool:
        """Let the messages of a durable channel wait until ``resume``; return False if it was paused already.

        No worker takes another message from then on; those that run go on. Raises InvalidName for a channel on which a
        client waits.
        """
        if names.is_protocol(names.check_channel_name(channel)):
            raise InvalidName(
                f"{channel} cannot be paused, because clients wait for its messages: pause one of the site's own "
                "channels."
            )
        fields = {"paused_at": self.now(), "paused_by": by[:MAX_USER]}
        return bool(self.rows(ChannelState).get_or_create(channel=channel, defaults=fields)[1])

    def resume(self, channel: str) -> bool:
        """End a pause; return False if the channel was not paused."""
        resumed = bool(self.rows(ChannelState).filter(channel=channel).delete()[0])
        if resumed:
            self.wake({DURABLE})
        return resumed

    def paused(self) -> dict[str, ChannelState]:
        """Return the paused channels, by name."""
        return {row.channel: row for row in self.rows(ChannelState).order_by("channel")}

    def cancel(self, ids: Sequence[int], by: str) -> tuple[int, int]:
        """Delete durable messages that wait, and cancel those that a worker has; return the number of both.

        A consumer that runs is ended within about a second, and its message becomes a dead letter that says who
        cancelled it. Messages that somebody has cancelled before are not counted again.
        """
        by = by[:MAX_USER] or "somebody"
        messages = self.rows(DurableMessage).filter(id__in=ids)
        waiting = messages.filter(claimed_by=None)
        with transaction.atomic(using=self.database):
            tasks = waiting.filter(task__isnull=False)
            if connections[self.database].features.has_select_for_update:
                tasks = tasks.select_for_update()
            if found := list(tasks):
                error = error_line(CancelledError, f"{by} cancelled this task before it ran.")
                self.keep_results(found, FAILED, error=error)
                for one in found:
                    say = partial(task_failed.send_robust, None, payload=one.payload, failure=None)
                    transaction.on_commit(say, using=self.database)
            deleted = messages.filter(id__in=[one.id for one in found]).delete()[0]
            deleted += waiting.filter(task=None).delete()[0]
        return deleted, messages.filter(cancelled_by="").update(cancelled_by=by)

    def reschedule(
        self, ids: Sequence[int], *, delay: float | None = None, priority: int | None = None
    ) -> int:
        """Change in how many seconds durable messages are due, or their priority; return how many were changed.

        Messages that a worker has are left alone, and with ``delay=0`` those that are due: they have waited since then.
        Raises InvalidMessage as a send does.
        """
        changes: dict[str, Any] = {}
        messages = self.rows(DurableMessage).filter(id__in=ids, claimed_by=None)
        if delay == 0:
            messages = messages.filter(due_at__isnull=False)
        if delay is not None:
            ops.delivery_options("own", delay=delay)
            due = self.now() + timedelta(seconds=delay) if delay else None
            changes = {"due_at": due, **({} if delay else {"ready_at": self.now()})}
        if priority is not None:
            changes |= {"priority": ops.delivery_options("own", priority=priority)["priority"]}
        changed = messages.update(**changes)
        if changed and delay == 0:
            self.wake({DURABLE})
        return int(changed)

    def samples(self, since: float = 0.0, channels: Collection[str] = ()) -> list[dict[str, Any]]:
        """Return what was measured after ``since`` (seconds since 1970), within the last hour, for ``summarize``.

        That is the whole site's, and that of ``channels``. To follow it, give ``since = moments[-1] - 10``: what came
        is worked out from two moments.
        """
        on_postgresql = connections[self.database].vendor == "postgresql"
        now = Now() if on_postgresql else self.moment(time.time())
        rows = self.rows(Sample).filter(at__gt=self.moment(since), at__lte=now).order_by("at", "id")
        whole = len(channels) > on_postgresql  # PostgreSQL can cut out one line
        texts = rows.values_list("source", "data") if whole else _first_lines(rows, *channels)
        found = (read_sample(source, text, channels) for source, text in texts)
        return [one for one in found if one is not None]

    def moment(self, seconds: float) -> Any:
        """Return a time, in seconds since 1970, as samples have it.

        Without time zones that is UTC, or local time would repeat an hour when clocks are set back. PostgreSQL keeps
        the moment itself, whatever USE_TZ says.
        """
        if connections[self.database].vendor == "postgresql":
            return Func(Value(float(seconds)), function="to_timestamp", output_field=DateTimeField())
        moment = datetime.fromtimestamp(seconds, datetime_timezone.utc)
        return moment if settings.USE_TZ else moment.replace(tzinfo=None)

    def now(self) -> Any:
        """Return the clock that the layer's rows are written by: the database's on PostgreSQL, else this host's."""
        return Now() if connections[self.database].vendor == "postgresql" else timezone.now()

    def check_text(self, what: str, text: str) -> None:
        if text.isascii() or connections[self.database].vendor != "postgresql":
            return
        encoding = encoding_of(self.database)
        try:
            text.encode(PYTHON_ENCODINGS.get(encoding, "utf-8"))
        except UnicodeEncodeError as error:
            raise InvalidMessage(
                f"The database {self.database!r} is in {encoding} and cannot keep {text[error.start]!r} in a {what}: "
                "write it in other characters, such as its quoted form, or move to a database in UTF8."
            ) from error


def _first_lines(samples: Any, channel: str = "") -> Iterator[tuple[str, str]]:
    """Yield the source and the first line of each sample; on PostgreSQL with the line of a channel, if it has one."""
    start = line_start(channel)
    rest: Any = Value("")
    if channel:  # strpos, which counts characters, takes five times as long
        rest = Func("data", Value(f"\n{start}"), Value(2), function="split_part", output_field=TextField())
    for source, head, line in samples.values_list("source", Substr("data", 1, LINE), Left(rest, LINE)):
        lines = [head.partition("\n")[0], *([start + line.partition("\n")[0]] if line else [])]
        yield source, "\n".join(lines)


def encoding_of(database: str) -> str:
    """Return PostgreSQL's name of a database's encoding."""
    connection = connections[database]
    connection.ensure_connection()
    return str(connection.connection.info.parameter_status("server_encoding"))


def record_of(row: Connection) -> ops.Record:
    """Return what a layer gives for a row."""
    return ops.Record(row.reply_channel, row.session_key, row.login, bytes(row.session or b""))
