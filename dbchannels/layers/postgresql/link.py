"""The reader's side of the PostgreSQL layer, on a session of its own."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg2.errors

from dbchannels import codec, measures, samples
from dbchannels.exceptions import DeclaredDead
from dbchannels.layers.operations import (
    UNFINISHED,
    BatchResult,
    Delivery,
    Disconnect,
    Operation,
    Send,
    SendGroup,
    gauges,
    in_flight_lines,
    read_work,
)
from dbchannels.layers.postgresql import sql, sql_durable, sql_samples
from dbchannels.layers.postgresql.cleanup import LONGEST, Cleaner
from dbchannels.layers.postgresql.history import HistoryLink
from dbchannels.layers.postgresql.lock_waits import MAY_WAIT, LockWaits
from dbchannels.layers.postgresql.session import Cancelled, Session, Statement
from dbchannels.layers.postgresql.statements import (
    ScanHints,
    acknowledged_tasks,
    failed_tasks,
    statements,
    tokens,
    without_room,
)
from dbchannels.layers.postgresql.wakeup_check import PROBE

log = logging.getLogger("dbchannels")

COUNT_WITHIN_MS = 2_000  # for the count of all tables

POP, CLAIM = "pop", "claim"  # what a statement takes, see Session.execute

if TYPE_CHECKING:
    from dbchannels.layers.postgresql import PostgreSQLLayer


class PostgreSQLLink(HistoryLink):
    """See Link for what the methods take and give. One thread waits; others may use it between its waits."""

    layer: PostgreSQLLayer

    def __init__(self, layer: PostgreSQLLayer, session: Session) -> None:
        super().__init__(layer, session)
        self._cleaner = Cleaner(layer, session)
        self._lock_waits = LockWaits(self._finish)
        self._hints = ScanHints()
        self._poll_interval = layer.poll_interval()
        self._waiter = 0  # the thread that waits
        #: The registered name, and the session's generation of its lock.
        self._locked: tuple[str, int] = ("", 0)
        self._marked: tuple[str, int] = ("", 0)  # the same, of the row that `emptied` looks for

    # Taking.

    def receive_many(self, queues: Sequence[str], limit: int, worker: str = "") -> list[Delivery]:
        if self._lock_waits.blocked:
            self._lock_waits.retry()
        if worker and time.monotonic() < self.session.in_doubt_until[POP]:
            with self.session.transaction():
                self._cleaner.report_lost(worker)  # the worker has finished everything that it knows of
        found: list[Delivery] = []
        if protocol := [queue for queue in queues if self.layer.routes[queue].protocol]:
            found = self._pop([], protocol, limit, worker)
        durable = [queue for queue in queues if not self.layer.routes[queue].protocol]
        if durable and len(found) < limit:
            values = {"queues": durable, "limit": limit - len(found)}
            rows = self.session.execute([(sql_durable.PROMOTE, {}), (sql_durable.RECEIVE_DURABLE, values)])
            found += [Delivery(row[0], bytes(row[1])) for row in rows]
        return found

    def _pop(
        self, before: Sequence[Statement], queues: Sequence[str], limit: int, worker: str = ""
    ) -> list[Delivery]:
        """Run statements, and take protocol messages, in one round trip."""
        hints, started = self._hints, time.monotonic()
        scan_from = hints.scan_from(queues, self.session.generation) if hints.active else [0] * len(queues)
        values = {"queues": queues, "limit": limit, "worker": worker, "scan_from": scan_from}
        statement = sql.RECEIVE_IN_FLIGHT if worker else sql.RECEIVE
        rows = self.session.execute([*before, (statement, values)], takes=POP)
        took = time.monotonic() - started
        if not before and (hints.active or took >= hints.COSTLY):
            hints.learn(((row[0], row[4]) for row in rows), took)
        found = []
        for channel, payload, recipients, reply_channel, _, waited in rows:
            if recipients is None:
                log.warning("A broadcast was left out: its audience has been deleted.")
            else:
                readers = tuple(recipients.split())
                found.append(Delivery(channel, bytes(payload), readers, reply_channel, waited=waited))
        return found

    def claim(
        self, channels: Sequence[str], limit: int, worker: str, at_most: Mapping[str, int] | None = None
    ) -> list[Delivery]:
        if self._lock_waits.blocked:
            self._lock_waits.retry()
        if time.monotonic() < self.session.in_doubt_until[CLAIM]:
            self.session.execute([(sql_durable.RELEASE_ALL, {"worker": worker})])
        limits = at_most or {}
        values = {"queues": list(channels), "limit": limit, "worker": worker}
        claims = [(sql_durable.CLAIM, values)]
        if not limits.keys().isdisjoint(channels):
            values["at_most"] = [limits.get(channel) for channel in channels]
            claims = [(sql_durable.LOCK_LIMITED, values), (sql_durable.CLAIM_LIMITED, values)]
        rows = self.session.execute([(sql_durable.PROMOTE, {}), *claims], takes=CLAIM)
        claimed, alone = [], []
        for number, channel, payload, attempt, is_alone, waited, cancelled_by, is_task in rows:
            delivery = Delivery(
                channel,
                bytes(payload),
                id=number,
                attempt=attempt,
                waited=waited,
                cancelled_by=cancelled_by,
                is_task=is_task,
            )
            claimed.append(delivery)
            if is_alone:
                alone.append(delivery)
        if not alone or len(claimed) == 1:
            return claimed
        # A worker died with one of these: it runs alone, so that no other message is blamed if it happens again.
        others = [delivery for delivery in claimed if delivery is not alone[0]]
        self.session.execute([(sql_durable.RELEASE, {"worker": worker, **tokens(others)})])
        return alone[:1]

    def cancelled_by(self, worker: str, delivery: Delivery) -> str:
        values = {"worker": worker, "id": delivery.id, "attempt": delivery.attempt}
        rows = self.session.execute([(sql_durable.CANCELLED_BY, values)])
        return rows[0][0] if rows else ""

    def awaits_claims(self, channels: Sequence[str]) -> bool:
        return bool(self.session.execute([(sql_durable.OVERDUE_CLAIM, {"queues": list(channels)})]))

    def next_due(self) -> float | None:
        ((seconds,),) = self.session.execute([(sql_durable.NEXT_DUE, {})])
        moments = [] if seconds is None else [seconds]
        if self._lock_waits.blocked:
            moments.append(self._lock_waits.seconds_left())
        return max(0.0, min(moments)) if moments else None

    def wait(self, timeout: float, *others: int) -> set[str]:
        timeout = min(timeout, self._poll_interval)
        if not self.session.listens:
            return self.session.wait(timeout, *others)
        self._waiter = threading.get_ident()
        check = self.layer.wakeup_check
        check.waiting_since = began = time.monotonic()
        try:
            payloads = self.session.wait(timeout, *others)
        finally:
            check.waiting_since = None
        check.listener = self.session.generation
        if probes := {payload for payload in payloads if payload.startswith(PROBE)}:
            check.heard(probes)
        check.waited_from = began  # only now: a probe that was heard is not overdue
        return payloads - probes

    # Giving.

    def apply(self, operations: Sequence[Operation]) -> list[Send]:
        return self._apply(operations, [])

    def exchange(
        self, operations: Sequence[Operation], queues: Sequence[str], limit: int
    ) -> tuple[list[Send], list[Delivery]]:
        plan = list(statements(self.layer, operations, self.local_wakeups))
        if any(one[2] for one in plan) or any(isinstance(one, Disconnect) for one in operations):
            return super().exchange(operations, queues, limit)  # the last rows are those of another statement
        return [], self._pop([(text, values) for text, values, _ in plan], queues, limit)

    def apply_as(self, name: str, operations: Sequence[Operation]) -> list[Send]:
        try:
            return self._apply(operations, [(sql.ON_RECORD, {"name": name})])
        except psycopg2.errors.DivisionByZero:
            raise DeclaredDead(name) from None

    def _apply(self, operations: Sequence[Operation], before: Sequence[Statement]) -> list[Send]:
        if not operations:
            return []
        refused = self._write(before, operations)
        if closed := [one.reply_channel for one in operations if isinstance(one, Disconnect)]:
            self.layer.closed_connections.add(closed)
        return refused

    def finish(self, worker: str, done: BatchResult) -> list[Send]:
        if self._lock_waits.busy or any(type(one) in MAY_WAIT for one in done.operations):
            return self._lock_waits.finish(worker, done)
        messages = in_flight_lines(done.in_flight) if done.in_flight else ""
        return self._finish(worker, done, [(sql.SET_IN_FLIGHT, {"worker": worker, "messages": messages})])

    def _finish(self, worker: str, done: BatchResult, before: Sequence[Statement]) -> list[Send]:
        todo = list(before)
        ttl = self.layer.options["result_ttl"]
        if tasks := [delivery for delivery in done.acknowledged if delivery.is_task]:
            todo.append((sql_durable.ACKNOWLEDGE_TASKS, acknowledged_tasks(worker, tasks, ttl)))
        if others := [delivery for delivery in done.acknowledged if not delivery.is_task]:
            todo.append((sql_durable.ACKNOWLEDGE, {"worker": worker, **tokens(others)}))
        if failed := [failure for failure in done.failures if failure.delivery.is_task]:
            todo.append((sql_durable.FAIL_TASKS, failed_tasks(worker, failed, ttl)))
        if again := [failure for failure in done.failures if failure.retry_in is not None]:
            seconds = [failure.retry_in for failure in again]
            tries = [failure.attempts for failure in again]
            values = tokens([failure.delivery for failure in again]) | {"seconds": seconds, "tries": tries}
            todo.append((sql_durable.RETRY, {"worker": worker, **values}))
        if given_up := [failure for failure in done.failures if failure.retry_in is None]:
            errors = [failure.stored_error() for failure in given_up]
            tries = [failure.attempts for failure in given_up]
            values = tokens([failure.delivery for failure in given_up]) | {"errors": errors, "tries": tries}
            todo.append((sql_durable.GIVE_UP, {"worker": worker, **values}))
        if claims := [delivery for delivery in done.returned if delivery.durable]:
            todo.append((sql_durable.RELEASE, {"worker": worker, **tokens(claims)}))
        popped = [delivery for delivery in done.returned if not delivery.durable]
        sends = self.layer.resends(popped) if popped else []
        return self._write(todo, [*done.operations, *sends])

    def _write(self, before: Sequence[Statement], operations: Sequence[Operation]) -> list[Send]:
        """Run the statements and write the operations, together; return the last sends that found no room.

        Then wake those readers of this process tree for whom something was written. A NOTIFY takes a lock of the whole
        database at commit, and wakes one more process, which would write to the same pipe. If this process dies before
        it does, the poll finds the message, as with a NOTIFY that is lost.
        """
        plan = list(statements(self.layer, operations, self.local_wakeups))
        rows = self.session.execute([*before, *((text, values) for text, values, _ in plan)])
        if self.local_wakeups:
            wakes = {self.layer.routes[one.channel].wake for one in operations if isinstance(one, Send)}
            everybody = any(isinstance(one, SendGroup) for one in operations)
            for wake, pipe in self.local_wakeups.items():
                if everybody or wake in wakes:
                    pipe.notify()
        sends = plan[-1][2] if plan else []
        return without_room(self.layer, sends, rows) if sends else []

    # Periodic messages.

    def next_time(self, channel: str, every: str) -> tuple[datetime | None, datetime]:
        ((due, now),) = self.session.execute([(sql_durable.NEXT_TIME, {"channel": channel, "every": every})])
        return due, now

    def move_time(
        self, channel: str, every: str, due: datetime | None, following: datetime, sends: Sequence[Send]
    ) -> bool:
        values = {"channel": channel, "every": every, "due": due, "following": following}
        statement = sql_durable.FIRST_TIME if due is None else sql_durable.MOVE_TIME
        with self.session.transaction():
            moved = bool(self.session.execute([(statement, values)]))
            if moved:
                self.apply(sends)
        return moved

    def keep_times(self, entries: Sequence[tuple[str, str]]) -> datetime:
        channels, everys = [channel for channel, _ in entries], [every for _, every in entries]
        values = {"channels": channels, "everys": everys}
        ((now,),) = self.session.execute([(sql_durable.KEEP_TIMES, values)])
        return now  # type: ignore[no-any-return]

    def drop_times(self, before: datetime) -> None:
        self.session.execute([(sql_durable.DROP_TIMES, {"before": before})])

    # Liveness.

    def register(self, name: str, kind: str, queue: str = "") -> None:
        values = {"name": name, "kind": kind, "queue": queue, "lease": self.layer.options["lease"]}
        values |= {"host": socket.gethostname(), "pid": os.getpid(), "reads": codec.FORMAT}
        finished = (sql.FINISHED, {"unfinished": name + UNFINISHED})
        ((row_id,),) = self.session.execute([finished, (sql.REGISTER, values)])
        self._lock(name, row_id)

    def renew(self, name: str) -> bool:
        rows = self.session.execute([(sql.RENEW, {"name": name, "lease": self.layer.options["lease"]})])
        if rows and self._locked != (name, self.session.generation):
            self._lock(name, rows[0][0])
        if not rows:  # others have cleaned up after it
            self._lock_waits.clear()
        return bool(rows)

    def _lock(self, name: str, row_id: int) -> None:
        ((granted,),) = self.session.execute([(sql.LOCK, {"id": row_id})])
        if granted:  # else a clean-up has it for a moment: the next renewal tries again
            self._locked = (name, self.session.generation)

    def record_work(self, name: str, work: str) -> None:
        self.session.execute([(sql.RECORD_WORK, {"name": name, "work": work})])

    def workers(self) -> dict[str, dict[str, Any]]:
        rows = self.session.execute([(sql.WORKERS, {})])
        return {name: read_work(work) for name, work in rows}

    def heads(self, channels: Sequence[str]) -> dict[str, tuple[int, int]]:
        rows = self.session.execute([(sql_durable.PROMOTE, {}), (sql.HEADS, {"queues": list(channels)})])
        return {channel: (head, last) for channel, head, last in rows}

    def count_live(self, queue: str) -> tuple[int, int]:
        ((workers, servers),) = self.session.execute([(sql.COUNT_LIVE, {"queue": queue})])
        return int(workers), int(servers)

    def emptied(self, name: str) -> bool:
        if self._marked == (name, self.session.generation):
            return False
        missed = bool(self.session.execute([(sql.MARK, {"worker": name})]))
        known, self._marked = self._marked[0] == name, (name, self.session.generation)
        return missed and known

    def unfinished(self, reply_channels: Sequence[str]) -> set[str]:
        values = {"reply_channels": list(reply_channels)}
        return {channel for (channel,) in self.session.execute([(sql.UNFINISHED_OF_CLIENTS, values)])}

    def unregister(self, name: str) -> None:
        self._lock_waits.retry(now=True)
        self._cleaner.clean_up_after(name)
        self._lock_waits.clear()

    def clean_up_after(self, name: str) -> None:
        self._cleaner.clean_up_after(name)

    def clean_up(self) -> None:
        until = time.monotonic() + LONGEST
        self._cleaner.expire(until)
        self.trim_histories(until)
        self._cleaner.clean_up_closed_connections()
        if self.layer.wakeups and not self.session.listens:
            self.layer.wakeup_check.look(
                lambda statement, values: self.session.execute([(statement, values)])
            )
        elif self.layer.wakeups and threading.get_ident() == self._waiter:
            # On Django's connection, which only this thread may use.
            self.layer.wakeup_check.look(self.layer.query_for_check)
        # A restart of the database frees every lock, so no process counts as dead for one lease after our reconnect.
        if time.monotonic() - self.session.connected_at >= self.layer.options["lease"]:
            self._cleaner.clean_up_expired()

    # Measuring.

    def clock(self) -> float:
        ((now,),) = self.session.execute([(sql_samples.CLOCK, {})])
        return float(now)

    def write_sample(self, moment: int, source: str, data: str) -> bool:
        values = {"moment": moment, "source": source, "data": data}
        return bool(self.session.execute([(sql_samples.WRITE_SAMPLE, values)]))

    def gauges(self) -> dict[str, Any] | None:
        values = {"most": measures.MOST, "others": measures.OTHERS}
        limit = (sql_samples.LIMIT, {"milliseconds": COUNT_WITHIN_MS})
        try:
            rows = self.session.execute([limit, (sql_samples.GAUGES, values)])
        except Cancelled:
            return None
        return gauges(rows)

    def complete_sample(self, moment: int, data: str) -> None:
        values = {"moment": moment, "data": data, "kept": samples.KEPT}
        self.session.execute([(sql_samples.COMPLETE_SAMPLE, values), (sql_samples.DROP_SAMPLES, values)])

    def newest_sample(self) -> str:
        rows = self.session.execute([(sql_samples.NEWEST_SAMPLE, {})])
        return str(rows[0][0]) if rows else ""

    def close(self) -> None:
        self.session.close()
