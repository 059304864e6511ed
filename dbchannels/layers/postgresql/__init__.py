"""The layer on PostgreSQL: rows, SKIP LOCKED, and NOTIFY for wakeups.

This module is the sender's side: it runs on Django's connection, so that a send is part of the caller's transaction.
``link`` is the reader's side, on a connection of its own, a ``session``. The statements themselves are in ``sql``,
``sql_durable`` and ``sql_processes``; ``statements`` chooses among them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import closing, nullcontext
from typing import Any

from django.db import Error, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from dbchannels import names
from dbchannels.conf import LayerSettings
from dbchannels.exceptions import ChannelFull, LayerUnavailable
from dbchannels.layers.health import is_unavailable, may_pass
from dbchannels.layers.operations import Delivery, Operation, Send, SendGroup
from dbchannels.layers.orm import DjangoLayer
from dbchannels.layers.postgresql import sql, sql_durable, sql_groups
from dbchannels.layers.postgresql.link import PostgreSQLLink
from dbchannels.layers.postgresql.members import MembersSession
from dbchannels.layers.postgresql.session import Session, one_line, session_name
from dbchannels.layers.postgresql.statements import (
    CapacityCache,
    RouteCache,
    acknowledged_tasks,
    broadcast,
    single,
    sql_capacities,
    statements,
    tokens,
    without_room,
)
from dbchannels.layers.postgresql.wakeup_check import WakeupCheck

__all__ = ["PostgreSQLLayer"]

log = logging.getLogger("dbchannels.layer")

NOTIFY_ROOM = 1.0  # seconds for which a sender relies on the last answer about the queue of notifications

POOLER = (
    "A pooler in transaction mode stands between this process and the database: wakeups and session locks do not work "
    "through it. Connect the layer directly: DBCHANNELS[%r]['OPTIONS']['direct'] = {'HOST': ..., 'PORT': ...}. "
    "Otherwise readers poll every %g s, and only leases tell which processes are dead."
)


class PostgreSQLLayer(DjangoLayer):
    """The product's layer. See BaseLayer for what the methods take and give."""

    def __init__(self, settings: LayerSettings) -> None:
        super().__init__(settings)
        #: Whether sends NOTIFY the readers.
        self.wakeups = bool(self.options["wakeups"])
        self.routes = RouteCache(self)
        self.capacities = CapacityCache()
        self.wakeup_check = WakeupCheck(self.poll_interval)
        self.sql_capacities = sql_capacities(self.options)
        #: time.monotonic() until which the queue of notifications is known to be less than half full. A NOTIFY fails
        #: its transaction when that queue is full, which one idle listener inside a transaction can bring about; but to
        #: ask in each send costs 15 to 25 us of 130, and nobody fills the other 4 GB within a second.
        #: https://www.postgresql.org/docs/current/sql-notify.html
        self._notify_room_until = 0.0

    def link(self, name: str = "", listen: bool = True) -> PostgreSQLLink:
        session = self.session(session_name(name or "reader"), listen and self.wakeups)
        return PostgreSQLLink(self, session)

    def session(self, name: str, listen: bool = False) -> Session:
        """Return a new connection of the layer's own, not yet opened, to the database of the layer's alias."""
        return Session(self._session_settings(), name, listen)

    def members_session(self) -> MembersSession:
        return MembersSession(self._session_settings(), session_name("members"))

    def _session_settings(self) -> dict[str, Any]:
        # Django's wrapper knows the name of the test database; settings.DATABASES would not.
        return {**connections[self.database].settings_dict, **self.options["direct"]}

    def write(self, operations: Sequence[Operation], drop: bool = False) -> list[Send]:
        connection = connections[self.database]
        # With binding by the server psycopg 3 takes no string of several statements.
        one_by_one = bool(connection.settings_dict["OPTIONS"].get("server_side_binding"))
        if len(operations) == 1:  # a broadcast or a usual message, as most writes are
            short, asks, (operation,) = None, False, operations
            if isinstance(operation, SendGroup):
                short = broadcast(self, operation)
            elif isinstance(operation, Send):
                asks = one_by_one or time.monotonic() >= self._notify_room_until
                short = single(self, operation, asks=asks)
            if short:
                rows = execute_in_django(connection, *short, fetch=asks and self.wakeups)
                if rows:
                    has_room = rows[0][0] is not None
                    self._notify_room_until = time.monotonic() + NOTIFY_ROOM if has_room else 0.0
                return []
        refused: list[Send] = []
        plan = list(statements(self, operations))
        # Inside the caller's transaction this is a savepoint: after ChannelFull nothing was sent.
        several = len(plan) > 1 or bool(plan and plan[0][2]) or one_by_one
        with (
            transaction.atomic(using=self.database) if several else nullcontext(),
            connection.cursor() as cursor,
        ):
            for text, values, sent in plan:
                # One string of several statements is one round trip and one transaction; but psycopg 3 would give the
                # rows of the first one, where those of the last one are wanted.
                for statement in text.split(";") if sent or one_by_one else [text]:
                    cursor.execute(statement, values)
                if sent:
                    refused += without_room(self, sent, cursor.fetchall())
                    if refused and not drop:
                        raise ChannelFull(names.split(refused[0].channel)[0])
        return refused

    def group_count(self, group: str) -> int:
        return int(self._query(sql_groups.GROUP_COUNT, {"group": names.check_group_name(group)})[0][0])

    def group_channels(self, group: str) -> list[str]:
        rows = self._query(sql_groups.GROUP_CHANNELS, {"group": names.check_group_name(group)})
        return [channel for (channel,) in rows]

    def group_users(self, group: str) -> list[str]:
        rows = self._query(sql_groups.GROUP_USERS, {"group": names.check_group_name(group)})
        return sorted(user_id for (user_id,) in rows)

    def acknowledge(self, worker: str, delivery: Delivery) -> bool:
        text, values = sql_durable.ACKNOWLEDGE, {"worker": worker, **tokens([delivery])}
        if delivery.is_task:
            text = sql_durable.ACKNOWLEDGE_TASKS
            values = acknowledged_tasks(worker, [delivery], self.options["result_ttl"])
        with connections[self.database].cursor() as cursor:
            cursor.execute(text, values)
            return bool(cursor.rowcount)

    def dead_letter_ids(self, channels: Sequence[str] = ()) -> list[int]:
        return [row[0] for row in self._query(sql_durable.DEAD_LETTER_IDS, {"channels": list(channels)})]

    def replay(self, ids: Iterable[int], to: str = "") -> int:
        values = {"ids": list(ids), "to": to, "wakes": self.wakeups}
        return int(self._query(sql_durable.REPLAY, values)[0][0])

    def wake(self, kinds: set[str]) -> None:
        if self.wakeups:
            self._query(sql.WAKE, {"wake": sorted(kinds)})

    def flush(self) -> None:
        with transaction.atomic(using=self.database), connections[self.database].cursor() as cursor:
            for statement in sql.FLUSH.split(";"):
                cursor.execute(statement)
        self._received.clear()
        self.capacities.clear()

    def statistics(self, channel: str | None) -> dict[str, float]:
        ((waiting, in_flight, age),) = self._query(sql.STATISTICS, {"channel": channel})
        return {"messages_pending": waiting, "messages_in_flight": in_flight, "messages_max_age": age}

    def _query(self, statement: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        with connections[self.database].cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall()  # type: ignore[no-any-return]

    def query_for_check(self, statement: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Run a statement of the wakeups' check on Django's connection."""
        try:
            return self._query(statement, values)
        except Error as error:
            if not is_unavailable(error):
                raise
            raise LayerUnavailable(one_line(error)) from error

    def check(self) -> None:
        try:
            with closing(self.session(session_name("check"))) as session:
                ((present,),) = session.execute([(sql.TABLES_PRESENT, {})])
                pooled = self.behind_pooler(session)
            if pooled:
                log.warning(POOLER, self.alias, self.poll_interval())
        except LayerUnavailable as error:
            unavailable = LayerUnavailable(
                f"The database {self.database!r} cannot be used ({error}): start it, or correct DATABASES."
            )
            unavailable.may_pass = may_pass(error)
            raise unavailable from error
        if not present:
            raise LayerUnavailable(
                f"The database {self.database!r} has no tables for the channels yet: run 'manage.py migrate'."
            )

    def behind_pooler(self, session: Session) -> bool:
        """Whether a pooler in transaction mode stands before the database; ``session`` is one of the layer's own."""
        session.execute([(sql.BACKEND, {})])
        if not session.pooled:
            return False
        # It is in transaction mode if it gives two open sessions the same backend.
        with closing(self.session(session_name("check"))) as other:
            backends = [[one.execute([(sql.BACKEND, {})]) for one in (session, other)] for _ in range(10)]
        return any(own == others for own, others in backends)

    def describe(self) -> str:
        with closing(self.session(session_name("check"))) as session:
            ((version, name),) = session.execute([(sql.SERVER, {})])
        wake = "LISTEN/NOTIFY" if self.wakeups else "polling"
        return f"PostgreSQL {version.split()[0]}, database {name}; wakeups by {wake}"


def execute_in_django(connection: Any, text: str, values: Any, fetch: bool = False) -> list[tuple[Any, ...]]:
    """Execute a statement on Django's connection, in its transaction; return its rows if ``fetch``.

    Django's cursor wraps psycopg2's twice, to log and to show queries: 15 us of the 50 that a send takes in Python.
    So it is used only if queries are logged or wrapped, or with another driver. Raises Django's errors.
    """
    wrapped = connection.queries_logged or connection.execute_wrappers or connection.connection is None
    if not is_psycopg3 and not wrapped:  # what connection.cursor() does besides
        connection.validate_thread_sharing()
        connection.close_if_health_check_failed()
        if connection.connection is None:
            connection.connect()
        connection.validate_no_broken_transaction()
        with connection.wrap_database_errors, connection.connection.cursor() as cursor:
            cursor.execute(text, values)
            return cursor.fetchall() if fetch else []
    with connection.cursor() as cursor:
        cursor.execute(text, values)
        return cursor.fetchall() if fetch else []
