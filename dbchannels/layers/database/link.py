"""The link of the layer on any database: the ORM, on the calling thread's Django connection."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from datetime import timezone as datetime_timezone
from inspect import isfunction
from typing import TYPE_CHECKING, Any, TypeVar

from django.conf import settings
from django.db import Error, connections
from django.db.models import Case, Count, DateTimeField, F, Min, Value, When
from django.db.models.functions import Coalesce
from django.utils import timezone

from dbchannels import codec, names
from dbchannels.exceptions import DeclaredDead, LayerUnavailable
from dbchannels.layers.database.history import BATCH
from dbchannels.layers.database.wakeups import WakeupSocket
from dbchannels.layers.health import is_unavailable, may_pass
from dbchannels.layers.link import Link
from dbchannels.layers.operations import (
    UNFINISHED,
    BatchResult,
    Delivery,
    Disconnect,
    Kept,
    Missed,
    Operation,
    Send,
    gauges,
    in_flight_lines,
    read_work,
)
from dbchannels.layers.orm import record_of
from dbchannels.measures import MOST, OTHERS
from dbchannels.models import (
    Connection,
    DeadLetter,
    DurableMessage,
    InFlight,
    Membership,
    Process,
    ProtocolMessage,
    Sample,
    Schedule,
    TaskResult,
)
from dbchannels.protocol import DURABLE, EXPIRED, HISTORY, KINDS, READY, WORKER_DIED
from dbchannels.samples import KEPT

if TYPE_CHECKING:
    from dbchannels.layers.database import DatabaseLayer

LEAVES = "websocket.disconnect"
utc = datetime_timezone.utc


@contextmanager
def unavailable() -> Iterator[None]:
    """Turn an outage into LayerUnavailable, and close a broken connection; other errors of the database are raised."""
    try:
        yield
    except Error as error:
        if not is_unavailable(error):
            raise
        for connection in connections.all(initialized_only=True):
            connection.close_if_unusable_or_obsolete()
        sentence = (str(error).strip() or type(error).__name__).splitlines()[0]
        unreachable = LayerUnavailable(f"The layer's database cannot be used now ({sentence}).")
        unreachable.may_pass = may_pass(error)
        raise unreachable from error


C = TypeVar("C", bound=type)


def reporting_outages(of: C) -> C:
    """Let each public method of a class turn an outage into LayerUnavailable, see ``unavailable``."""
    for name, method in list(vars(of).items()):
        if isfunction(method) and not name.startswith("_"):
            setattr(of, name, unavailable()(method))
    return of


@reporting_outages
class DatabaseLink(Link):
    """See Link for what the methods take and give."""

    layer: DatabaseLayer
    apart = False

    def __init__(self, layer: DatabaseLayer, listen: bool = True) -> None:
        super().__init__(layer)
        self._listen = listen
        self._socket: WakeupSocket | None = None  # from the first wait on
        self._read: set[str] = set()  # queues
        self._claimed_at = timezone.now()

    # Taking.

    def receive_many(self, queues: Sequence[str], limit: int, worker: str = "") -> list[Delivery]:
        self._read = set(queues)
        # Looking costs SQLite no lock; taking costs its only write lock, so the link looks first.
        if not self.layer.anything(queues):
            return []
        with self.layer.atomic():
            found = self.layer.pop(queues, limit)
            if worker and found:
                fields = {"messages": in_flight_lines(found), "since": timezone.now()}
                self.layer.rows(InFlight).update_or_create(worker=worker, defaults=fields)
            return found

    def claim(
        self, channels: Sequence[str], limit: int, worker: str, at_most: Mapping[str, int] | None = None
    ) -> list[Delivery]:
        self._claimed_at = timezone.now()
        if not self.layer.anything(channels):
            return []
        with self.layer.atomic():
            return self.layer.claim(channels, limit, worker, at_most)

    def cancelled_by(self, worker: str, delivery: Delivery) -> str:
        claimed = self.layer.claimed(worker, delivery)
        return claimed.values_list("cancelled_by", flat=True).first() or ""

    def next_due(self) -> float | None:
        if not self.layer.wakeups:
            return None  # it polls every 50 ms
        # What was due before the last claim is for others, or waits for something else than its time.
        waiting = self.layer.rows(DurableMessage).filter(claimed_by=None, due_at__gt=self._claimed_at)
        due = waiting.aggregate(due=Min("due_at"))["due"]
        return None if due is None else max(0.0, (due - timezone.now()).total_seconds())

    def wait(self, timeout: float, *others: int) -> set[str]:
        folder = self.layer.wakeup_folder
        if not self._listen or folder is None or folder.problem:
            return super().wait(timeout, *others)
        kinds: set[str] | None = None
        if self._socket is None:
            try:
                # Earlier messages sent no wakeup, so the caller looks for all kinds.
                self._socket = folder.listen()
            except OSError as error:
                folder.problem = error.strerror or str(error)  # from now on the link polls every 50 ms
        else:
            kinds = self._socket.wait(min(timeout, self.layer.poll_interval()), *others)
            if not self._socket.exists():
                self._stop_listening()
        return {*KINDS, HISTORY, *self._read} if kinds is None else kinds

    def _stop_listening(self) -> None:
        wakeup_socket, self._socket = self._socket, None
        if wakeup_socket is not None:
            wakeup_socket.close()

    # Giving.

    def apply(self, operations: Sequence[Operation]) -> list[Send]:
        if not operations:
            return []
        refused = self.layer.write(operations, drop=True)
        if self.layer.skips_locked:
            closed = [one.reply_channel for one in operations if isinstance(one, Disconnect)]
            self.layer.closed_connections.add(closed)
        return refused

    def apply_as(self, name: str, operations: Sequence[Operation]) -> list[Send]:
        with self.layer.atomic():
            process = self.layer.rows(Process).filter(name=name)
            if connections[self.layer.database].features.has_select_for_update:
                process = process.select_for_update()
            if not list(process):
                raise DeclaredDead(name)
            return self.apply(operations)

    def finish(self, worker: str, done: BatchResult) -> list[Send]:
        with self.layer.atomic():
            in_flight = self.layer.rows(InFlight).filter(worker=worker)  # none after a flush
            in_flight.update(messages=in_flight_lines(done.in_flight), since=timezone.now())
            return super().finish(worker, done)

    # The histories of groups.

    def history_position(self) -> int:
        self.layer.despite_deadlocks(self.layer.histories.number)
        return self.layer.histories.position()

    def read_history(self, queue: str, after: int, limit: int) -> list[Kept]:
        self.layer.despite_deadlocks(self.layer.histories.number)
        return self.layer.histories.read(queue, after, limit)

    def missed(self, queue: str, after: Mapping[str, int], limit: int, size: int) -> dict[str, Missed]:
        return self.layer.histories.missed(queue, after, limit, size)

    # Periodic messages.

    def next_time(self, channel: str, every: str) -> tuple[datetime | None, datetime]:
        entry = self.layer.rows(Schedule).filter(channel=channel, every=every).first()
        return entry and _loaded(entry.next_at), datetime.now(utc)

    def move_time(
        self, channel: str, every: str, due: datetime | None, following: datetime, sends: Sequence[Send]
    ) -> bool:
        with self.layer.atomic():
            rows = self.layer.rows(Schedule)
            if due is None:
                first = {"next_at": _stored(following), "seen_at": _stored(datetime.now(utc))}
                return bool(rows.get_or_create(first, channel=channel, every=every)[1])
            row = rows.filter(channel=channel, every=every, next_at=_stored(due))
            moved = row.update(next_at=_stored(following), sent_at=_stored(datetime.now(utc)))
            if moved:
                self.layer.write(sends, drop=True)
            return bool(moved)

    def keep_times(self, entries: Sequence[tuple[str, str]]) -> datetime:
        now = datetime.now(utc)
        for channel, every in entries:
            self.layer.rows(Schedule).filter(channel=channel, every=every).update(seen_at=_stored(now))
        return now

    def drop_times(self, before: datetime) -> None:
        # Compared here: of two local times a database cannot say which was first.
        for row in self.layer.rows(Schedule):
            if _loaded(row.seen_at) < before:
                self.layer.rows(Schedule).filter(id=row.id, seen_at=row.seen_at).delete()

    # Liveness. Without session locks the lease alone decides, so it is three times as long.

    def _lease_end(self) -> datetime:
        return _stored(datetime.now(utc) + timedelta(seconds=3 * self.layer.options["lease"]))

    def register(self, name: str, kind: str, queue: str = "") -> None:
        fields = {"kind": kind, "queue": queue, "host": socket.gethostname(), "pid": os.getpid()}
        fields |= {"started_at": timezone.now(), "lease_until": self._lease_end(), "reads": codec.FORMAT}
        # Of a process that is back under its name: what it has now is not what it left.
        self.layer.rows(Process).filter(name=name + UNFINISHED).delete()
        self.layer.rows(Process).update_or_create(name=name, defaults=fields)

    def renew(self, name: str) -> bool:
        return bool(self.layer.rows(Process).filter(name=name).update(lease_until=self._lease_end()))

    def record_work(self, name: str, work: str) -> None:
        self.layer.rows(Process).filter(name=name).update(work=work)

    def workers(self) -> dict[str, dict[str, Any]]:
        rows = self.layer.rows(Process).filter(kind=Process.WORKER).values_list("name", "work")
        return {name: read_work(work) for name, work in rows}

    def heads(self, channels: Sequence[str]) -> dict[str, tuple[int, int]]:
        found = {}
        for channel in channels:
            if names.is_protocol(channel):
                rows = self.layer.rows(ProtocolMessage)
                waiting = rows.filter(channel=channel, expires_at__gt=timezone.now()).order_by("id")
            else:
                rows = self.layer.rows(DurableMessage)
                waiting = self.layer.due([channel]).order_by("-priority", "id")
            if head := waiting.first():
                found[channel] = (head.pk, rows.latest("id").pk)
        return found

    def count_live(self, queue: str) -> tuple[int, int]:
        rows = self.layer.rows(Process).values_list("kind", "queue", "lease_until")
        live = [(kind, reads) for kind, reads, end in rows if _is_to_come(end)]
        return live.count((Process.WORKER, queue)), sum(kind == Process.SERVER for kind, _ in live)

    def clean_up_after(self, name: str) -> None:
        with self.layer.atomic():
            process = self.layer.rows(Process).filter(name=name).first()
            # Whoever deletes the process's row cleans up after it.
            if process is None or not self.layer.rows(Process).filter(id=process.id).delete()[0]:
                return
            for row in self.layer.rows(InFlight).filter(worker=name):
                self._report_lost(row.lines(), WORKER_DIED)
                row.delete()
            claims = self.layer.rows(DurableMessage).filter(claimed_by=name)
            single = claims.count() == 1
            counted = claims.filter(task__isnull=False, **({} if single else {"alone": True}))
            self.layer.keep_results(list(counted), READY, worker=name)
            uncounted = F("attempts") - (0 if single else 1)
            attempts = Case(When(alone=True, then=F("attempts")), default=uncounted)
            if claims.update(attempts=attempts, claimed_by=None, alone=True):
                self.layer.wake({DURABLE})
            if process.kind == Process.WORKER:
                return
            name, queue = process.name.removesuffix(UNFINISHED), process.queue
            messages = self.layer.rows(ProtocolMessage)
            members = self.layer.rows(Membership).filter(channel=queue)
            records = self.layer.rows(Connection).filter(server=name)
            messages.filter(channel=queue).delete()
            # Requests that no worker has taken: their clients went with the server.
            untaken = messages.filter(channel="http.request", reply_channel__startswith=queue)
            self.layer.delete_unlocked(untaken)
            self.layer.delete_unlocked(members)
            # Connections whose disconnect consumer runs by a message of the server's own are left.
            in_flight = [line for row in self.layer.rows(InFlight) for line in row.lines()]
            leaving = {reply_channel for channel, reply_channel in in_flight if channel == LEAVES}
            leaving.update(messages.filter(channel=LEAVES).values_list("reply_channel", flat=True))
            lost = self.layer.delete_unlocked(records.exclude(reply_channel__in=leaving))
            if records.exists() or members.exists():  # the next clean-up comes back for the rest
                self.register(name + UNFINISHED, Process.SERVER, queue)
                over = _stored(datetime.now(utc))
                self.layer.rows(Process).filter(name=name + UNFINISHED).update(lease_until=over)
            sends = [self.layer.disconnect_send(record_of(one), one.path) for one in lost]
            self.layer.write(sends, drop=True)

    def _report_lost(self, messages: Sequence[tuple[str, str]], why: str) -> None:
        self.layer.write(self.layer.lost_messages(messages, why), drop=True)

    def _expire_messages(self, now: datetime) -> None:
        """Delete some of the messages that have expired, and tell those who wait for an answer."""
        with self.layer.atomic():
            expired = list(self.layer.rows(ProtocolMessage).filter(expires_at__lt=now)[:BATCH])
            self.layer.rows(ProtocolMessage).filter(id__in=[row.id for row in expired]).delete()
            self._report_lost([(row.channel, row.reply_channel) for row in expired], EXPIRED)
            for row in expired:
                if row.channel.endswith("!"):
                    members = self.layer.rows(Membership).filter(channel=row.channel)
                    silent = members.filter(recipient__in=row.recipients.split())
                    silent.filter(expires_at__isnull=False).delete()

    def clean_up(self) -> None:
        now = timezone.now()
        # A look costs SQLite no lock.
        while self.layer.rows(ProtocolMessage).filter(expires_at__lt=now).exists():
            self._expire_messages(now)
        if self.layer.rows(Membership).filter(expires_at__lt=now).exists():
            self.layer.rows(Membership).filter(expires_at__lt=now).delete()
        self.layer.histories.trim()
        results = self.layer.rows(TaskResult).filter(expires_at__lt=now).order_by("expires_at")
        while expired := list(results.values_list("pk", flat=True)[:BATCH]):
            self.layer.rows(TaskResult).filter(pk__in=expired).delete()
        if closed := self.layer.closed_connections.take():
            # Delete rows that were locked when these connections were closed, unless they are still locked.
            try:
                parts = [names.split(one) for one in closed]
                queues, recipients = {queue for queue, _ in parts}, {recipient for _, recipient in parts}
                members = self.layer.rows(Membership).filter(channel__in=queues, recipient__in=recipients)
                left = {queue + recipient for queue, recipient in members.values_list("channel", "recipient")}
                left.update(self.layer.rows(Connection).filter(pk__in=closed).values_list("pk", flat=True))
                closed = closed & left
                self.layer.write([Disconnect(one) for one in sorted(closed)])
            finally:
                self.layer.closed_connections.add(closed)
        leases = self.layer.rows(Process).values_list("name", "lease_until")
        dead = [name for name, end in leases if not _is_to_come(end)]
        for name in dead:
            self.clean_up_after(name)

    # Measuring.

    def write_sample(self, moment: int, source: str, data: str) -> bool:
        fields = {"at": self.layer.moment(moment), "source": source}
        if self.layer.rows(Sample).filter(**fields).exists():  # a look costs SQLite no lock
            return False
        return bool(self.layer.rows(Sample).get_or_create({"data": data}, **fields)[1])

    def gauges(self) -> dict[str, Any]:
        durable, now = self.layer.rows(DurableMessage), timezone.now()
        protocol = self.layer.rows(ProtocolMessage).filter(expires_at__gt=now).exclude(channel__endswith="!")
        kinds = (
            (0, durable.filter(claimed_by=None, due_at=None), Min(Coalesce("ready_at", "sent_at"))),
            (0, protocol, Min("sent_at")),
            (1, durable.filter(due_at__isnull=False), None),
            (2, durable.filter(claimed_by__isnull=False), None),
            (4, self.layer.rows(DeadLetter), None),
        )
        rows: list[tuple[int, str, int, float]] = []
        for position, waiting, since in kinds:
            first = Value(None, output_field=DateTimeField()) if since is None else since
            counted = waiting.values("channel").annotate(number=Count("id"), since=first).order_by("-number")
            for at, row in enumerate(counted.values_list("channel", "number", "since")):
                age = max(0.0, (now - row[2]).total_seconds()) if row[2] else 0.0
                rows.append((position, row[0] if at < MOST else OTHERS, row[1], age))
        leases = self.layer.rows(Process).values_list("kind", "lease_until")
        alive = Counter(kind for kind, end in leases if _is_to_come(end))
        rows += [(-1, kind, number, 0.0) for kind, number in alive.items()]
        rows.append((-1, "socket", self.layer.rows(Connection).count(), 0.0))
        return gauges(rows)

    def complete_sample(self, moment: int, data: str) -> None:
        self.layer.rows(Sample).filter(at=self.layer.moment(moment), source="").update(data=data)
        self.layer.rows(Sample).filter(at__lt=self.layer.moment(moment - KEPT)).delete()

    def newest_sample(self) -> str:
        complete = self.layer.rows(Sample).filter(source="", at__lte=self.layer.moment(time.time()))
        return complete.exclude(data="").order_by("-at").values_list("data", flat=True).first() or ""

    def close(self) -> None:
        self._stop_listening()
        connections[self.layer.database].close()


def _stored(moment: datetime) -> datetime:
    """Return a moment as a row keeps it.

    With USE_TZ = False that is local time, which is the same for two moments when clocks are set back: the microsecond
    tells which of them it is.
    """
    if settings.USE_TZ:
        return moment
    local = timezone.make_naive(moment, timezone.get_default_timezone())
    return local.replace(microsecond=local.fold)


def _loaded(stored: datetime) -> datetime:
    """Return the moment that a row keeps."""
    if settings.USE_TZ:
        return stored
    local = stored.replace(microsecond=0, fold=stored.microsecond)
    return timezone.make_aware(local, timezone.get_default_timezone())


def _is_to_come(stored: datetime) -> bool:
    """Whether a row's moment is to come. A database could not say: local times jump when clocks are changed."""
    return _loaded(stored) >= datetime.now(utc)
