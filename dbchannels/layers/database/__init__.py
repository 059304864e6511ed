"""The layer on any database that Django supports, by the ORM. It is tested on SQLite, MariaDB and PostgreSQL.

Readers of a SQLite file are woken by datagrams, see ``wakeups``; those of other databases poll every 50 ms.

On SQLite set ``"transaction_mode": "IMMEDIATE"`` in the database's OPTIONS: a transaction that reads first and
writes later fails at once when another has written in between (https://www.sqlite.org/rescode.html#busy_snapshot).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

from django.db import OperationalError, connections, transaction
from django.db.models import Count, Exists, F, Min, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce, Concat
from django.utils import timezone

from dbchannels import names
from dbchannels.conf import LayerSettings
from dbchannels.exceptions import ChannelFull, LayerUnavailable
from dbchannels.layers import operations as ops
from dbchannels.layers.database.history import Histories
from dbchannels.layers.database.link import DatabaseLink, unavailable
from dbchannels.layers.database.mysql import is_deadlock, packet_problem
from dbchannels.layers.database.wakeups import WakeupFolder, wake_on_commit, wakeup_folder
from dbchannels.layers.database.writer import Writer
from dbchannels.layers.orm import DjangoLayer
from dbchannels.layers.tasks import error_after, status_after
from dbchannels.models import (
    ChannelState,
    Connection,
    DeadLetter,
    DurableMessage,
    History,
    InFlight,
    Membership,
    Process,
    ProtocolMessage,
    Schedule,
    TaskResult,
    Trimmed,
)
from dbchannels.protocol import DURABLE, SUCCESSFUL

__all__ = ["DatabaseLayer"]

T = TypeVar("T")
DEADLOCKS = 5  # of a transaction of ours, after which the last one is raised
MOST_ALONG = 500  # messages with one unique key that are deleted at once; no rule allows more than a few


class DatabaseLayer(DjangoLayer):
    """See BaseLayer for what the methods take and give."""

    def __init__(self, settings: LayerSettings) -> None:
        super().__init__(settings)
        self.histories = Histories(self)

    @property
    def wakeup_folder(self) -> WakeupFolder | None:
        """Where readers wait to be woken; None on other databases than a SQLite file, or without "wakeups"."""
        return wakeup_folder(self.database) if self.options["wakeups"] else None

    @property
    def wakeups(self) -> bool:  # type: ignore[override]
        """Whether readers are woken; found out by trying when first asked."""
        folder = self.wakeup_folder
        return folder is not None and not folder.problem

    def wake(self, kinds: set[str]) -> None:
        if kinds and (folder := self.wakeup_folder) is not None:
            wake_on_commit(folder, self.database, kinds)

    def link(self, name: str = "", listen: bool = True) -> DatabaseLink:
        return DatabaseLink(self, listen)

    def atomic(self) -> AbstractContextManager[None]:
        """Return a transaction on the layer's database."""
        return transaction.atomic(using=self.database)

    @property
    def skips_locked(self) -> bool:
        """Whether rows that are locked by open transactions can be skipped; SQLite has one lock for everything."""
        return bool(connections[self.database].features.has_select_for_update_skip_locked)

    def delete_unlocked(self, rows: Any) -> list[Any]:
        """Delete and return rows, but for those that the site's transactions have locked; see ``ClosedConnections``."""
        if not self.skips_locked:
            free = list(rows)
            rows.delete()
            return free
        free = list(rows.select_for_update(skip_locked=True))
        for start in range(0, len(free), 10_000):  # a statement takes a limited number of values
            part = [row.pk for row in free[start : start + 10_000]]
            self.rows(rows.model).filter(pk__in=part).delete()
        return free

    # Sending.

    def write(self, operations: Sequence[ops.Operation], drop: bool = False) -> list[ops.Send]:
        return self.despite_deadlocks(lambda: self._write(operations, drop))

    def despite_deadlocks(self, transact: Callable[[], T]) -> T:
        """Call a function that is one transaction, again if the server has rolled it back to end a deadlock."""
        for _ in range(0 if self.in_transaction() else DEADLOCKS):
            try:
                return transact()
            except OperationalError as error:
                if not is_deadlock(error):
                    raise
        return transact()

    def _write(self, operations: Sequence[ops.Operation], drop: bool) -> list[ops.Send]:
        with self.atomic():
            writer = Writer(self)
            for operation in operations:
                writer.write(operation)
            if writer.refused and not drop:
                raise ChannelFull(names.split(writer.refused[0].channel)[0])
        self.wake(writer.kinds)
        return writer.refused

    # Groups.

    def members(self, group: str) -> Any:
        """Return a query set of a group's current memberships."""
        current = Q(expires_at__isnull=True) | Q(expires_at__gt=timezone.now())
        return self.rows(Membership).filter(current, group=names.check_group_name(group)).order_by("id")

    def group_channels(self, group: str) -> list[str]:
        return [
            queue + recipient for queue, recipient in self.members(group).values_list("channel", "recipient")
        ]

    def group_count(self, group: str) -> int:
        return int(self.members(group).count())

    def group_users(self, group: str) -> list[str]:
        connection = self.rows(Connection).filter(
            reply_channel=Concat(OuterRef("channel"), OuterRef("recipient"))
        )
        members = self.members(group).order_by().annotate(user=Subquery(connection.values("user_id")))
        return sorted(members.filter(user__gt="").values_list("user", flat=True).distinct())

    # Receiving.

    def pop(self, queues: Sequence[str], limit: int) -> list[ops.Delivery]:
        now = timezone.now()
        protocol = [queue for queue in queues if names.is_protocol(queue)]
        waiting = self.rows(ProtocolMessage).filter(channel__in=protocol, expires_at__gt=now)
        rows = self._locked(waiting, limit) if protocol else []
        self.rows(ProtocolMessage).filter(id__in=[row.id for row in rows]).delete()
        found = [
            ops.Delivery(
                row.channel,
                bytes(row.payload),
                tuple(row.recipients.split()),
                row.reply_channel,
                waited=(now - row.sent_at).total_seconds(),
            )
            for row in rows
        ]
        durable = [queue for queue in queues if not names.is_protocol(queue)]
        if durable and len(found) < limit:
            rows = self._first(self._locked(self._ready(durable), limit - len(found)))
            self.rows(DurableMessage).filter(id__in=[row.id for row in rows]).delete()
            found += [ops.Delivery(row.channel, bytes(row.payload)) for row in rows]
        return found

    def anything(self, queues: Sequence[str]) -> bool:
        """Whether a pop or a claim would find something."""
        waiting = self.rows(ProtocolMessage).filter(channel__in=queues, expires_at__gt=timezone.now())
        return bool(waiting.exists() or self.due(queues).exists())

    def claim(
        self, channels: Sequence[str], limit: int, worker: str, at_most: Mapping[str, int] | None = None
    ) -> list[ops.Delivery]:
        limits, rows = at_most or {}, list[Any]()
        due = self._due_channels(channels)
        for channel in [channel for channel in channels if channel in due]:
            if len(rows) < limit:
                most = limits.get(channel)
                # Locked first and counted then: other workers wait for the lock, on SQLite for the whole database's.
                found = self._locked(self._ready([channel]), limit - len(rows), skip=most is None)
                claimed = self.rows(DurableMessage).filter(channel=channel, claimed_by__isnull=False)
                others = claimed.exclude(claimed_by=worker).values("claimed_by").distinct()
                if most is None or others.count() < most:
                    rows += found
        # A message that a dead worker had in its hands runs by itself, so that it alone is blamed.
        rows = self._first([row for row in rows if row.alone][:1] or rows)
        now = timezone.now()
        # In this order: MySQL computes a field from those that it has set before.
        self.rows(DurableMessage).filter(id__in=[row.id for row in rows]).update(
            attempts=F("attempts") + 1,
            claimed_by=worker,
            claimed_at=now,
            ready_at=Coalesce("due_at", "ready_at"),
            due_at=None,
        )
        return [
            ops.Delivery(
                row.channel,
                bytes(row.payload),
                id=row.id,
                attempt=row.attempts + 1,
                waited=(now - (row.due_at or row.ready_at or row.sent_at)).total_seconds(),
                cancelled_by=row.cancelled_by,
                is_task=row.task is not None,
            )
            for row in rows
        ]

    def _due_channels(self, channels: Sequence[str]) -> set[str]:
        """Return the channels that have due messages, by a statement for each: DISTINCT would read all that waits."""
        found, rest = set[str](), list(channels)
        while rest and (first := list(self.due(rest).order_by().values_list("channel", flat=True)[:1])):
            found.update(first)
            rest.remove(first[0])
        return found

    def claimed(self, worker: str, delivery: ops.Delivery) -> Any:
        """Return a query set of the message, empty if the worker has lost it."""
        rows = self.rows(DurableMessage)
        return rows.filter(id=delivery.id, attempts=delivery.attempt, claimed_by=worker)

    def acknowledge(self, worker: str, delivery: ops.Delivery) -> bool:
        claimed = self.claimed(worker, delivery)
        if delivery.is_task:
            return_value = delivery.return_value
            self.keep_results(list(claimed), SUCCESSFUL, worker=worker, return_value=return_value)
        return bool(claimed.delete()[0])

    def fail(self, worker: str, failure: ops.Failure) -> None:
        claimed, now = self.claimed(worker, failure.delivery), timezone.now()
        if failure.delivery.is_task:
            self.keep_results(
                list(claimed),
                status_after(failure),
                worker=worker if failure.ran else "",
                error=error_after(failure),
                seconds=failure.retry_in or 0.0,
            )
        if failure.retry_in is not None:
            due = now + timedelta(seconds=failure.retry_in)
            claimed.update(claimed_by=None, attempts=failure.attempts, due_at=due)
            return
        for row in claimed:
            self.rows(DeadLetter).create(
                channel=row.channel,
                payload=row.payload,
                attempts=failure.attempts,
                sent_at=row.sent_at,
                failed_at=now,
                error=failure.stored_error(),
                task=row.task,
            )
            row.delete()

    def release(self, worker: str, delivery: ops.Delivery) -> None:
        self.claimed(worker, delivery).update(claimed_by=None, attempts=F("attempts") - 1)
        self.wake({DURABLE})

    def due(self, channels: Iterable[str]) -> Any:
        """Return a query set of the durable messages that wait, are due and are not paused, by priority."""
        now = timezone.now()
        due = Q(due_at__isnull=True) | Q(due_at__lte=now)
        waiting = self.rows(DurableMessage).filter(due, channel__in=channels, claimed_by=None)
        return waiting.exclude(channel__in=self.rows(ChannelState)).order_by("-priority")

    def _ready(self, channels: Iterable[str]) -> Any:
        """Return a query set of the due messages, with only the first of each unique key."""
        key = {"channel": OuterRef("channel"), "unique_key": OuterRef("unique_key")}
        earlier = self.due(channels).order_by().filter(id__lt=OuterRef("id"), **key)
        return self.due(channels).filter(Q(unique_key="") | ~Exists(earlier))

    def _first(self, rows: list[Any]) -> list[Any]:
        """Return the rows, and delete what waits with their unique keys: it was sent before they run."""
        for row in rows:
            if row.unique_key:
                same = self.rows(DurableMessage).filter(channel=row.channel, unique_key=row.unique_key)
                others = self._locked(same.filter(claimed_by=None).exclude(id=row.id), MOST_ALONG)
                self.rows(DurableMessage).filter(id__in=[other.id for other in others]).delete()
        return rows

    def _locked(self, waiting: Any, limit: int, skip: bool = True) -> list[Any]:
        features = connections[self.database].features
        if features.has_select_for_update:
            waiting = waiting.select_for_update(skip_locked=skip and self.skips_locked)
        return list(waiting.order_by(*waiting.query.order_by, "id")[:limit])

    # The rest.

    def flush(self) -> None:
        with self.atomic():
            for model in (
                ProtocolMessage,
                DurableMessage,
                DeadLetter,
                TaskResult,
                InFlight,
                Membership,
                Schedule,
                ChannelState,
                History,
                Trimmed,
            ):
                self.rows(model).all().delete()
        self._received.clear()

    def dead_letter_ids(self, channels: Sequence[str] = ()) -> list[int]:
        only = {"channel__in": channels} if channels else {}
        return list(self.rows(DeadLetter).filter(**only).order_by("id").values_list("id", flat=True))

    def replay(self, ids: Iterable[int], to: str = "") -> int:
        rest, moved, writer = iter(ids), 0, Writer(self)
        with self.atomic():
            while part := list(islice(rest, 500)):  # a statement takes a limited number of values
                letters = self._locked(self.rows(DeadLetter).filter(id__in=part), len(part))
                self.rows(DeadLetter).filter(id__in=[letter.id for letter in letters]).delete()
                for letter in letters:
                    channel = to or letter.channel
                    task = str(letter.task or "")
                    writer.insert(channel, "", ops.Send(channel, letter.payload, "", 0, task=task))
                moved += len(letters)
        self.wake(writer.kinds)
        return moved

    def statistics(self, channel: str | None) -> dict[str, float]:
        now, only = timezone.now(), {"channel": channel} if channel else {}
        protocol = self.rows(ProtocolMessage).filter(expires_at__gt=now, **only)
        durable = self.rows(DurableMessage).filter(claimed_by=None, **only)
        due = durable.filter(Q(due_at__isnull=True) | Q(due_at__lte=now))
        counted = protocol.aggregate(number=Count("id"), oldest=Min("sent_at"))
        moments = [one for one in (counted["oldest"], due.aggregate(oldest=Min("sent_at"))["oldest"]) if one]
        in_flight = [channel for row in self.rows(InFlight) for channel, _ in row.lines()]
        claimed = self.rows(DurableMessage).filter(claimed_by__isnull=False, **only).count()
        return {
            "messages_pending": counted["number"] + durable.count(),
            "messages_in_flight": claimed + sum(only.get("channel", one) == one for one in in_flight),
            "messages_max_age": max(0.0, (now - min(moments, default=now)).total_seconds()),
        }

    def check(self) -> None:
        connection = connections[self.database]
        if not connection.in_atomic_block:
            connection.close()  # the server may have ended the session, which is no outage
        with unavailable():
            tables = connection.introspection.table_names()
        if Process._meta.db_table not in tables:
            raise LayerUnavailable(
                f"The database {self.database!r} has no tables for the channels yet: run 'manage.py migrate'."
            )
        if connection.vendor == "mysql":
            with unavailable():
                wrong = packet_problem(connection, self.options["max_message_size"])
            if wrong:
                raise LayerUnavailable(
                    f"The database {self.database!r} cannot carry the site's messages. {wrong}"
                )

    def describe(self) -> str:
        connection = connections[self.database]
        name = connection.settings_dict["NAME"]
        if self.wakeups:
            return f"{connection.display_name}, database {name}; wakeups by datagrams"
        problem = self.wakeup_folder.problem if self.wakeup_folder else ""
        reason = f", as they cannot be woken ({problem})" if problem else ""
        return f"{connection.display_name}, database {name}; readers poll every {self.poll_interval():g} s{reason}"
