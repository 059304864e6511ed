"""The layer on PostgreSQL: rows, SKIP LOCKED, and NOTIFY for wakeups.

``sql`` holds every statement, ``session`` the connection of the layer's own, ``link`` the reader's side, and
this module the sender's: it runs on Django's connection, so that a send is part of the caller's transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from django.db import Error, connections, transaction

from dbchannels import names
from dbchannels.conf import LayerSettings
from dbchannels.exceptions import ChannelFull, LayerUnavailable
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.cleanup import ClosedConnections
from dbchannels.layers.database.writer import check_text, find_records
from dbchannels.layers.health import is_unavailable, may_pass
from dbchannels.layers.operations import Delivery, Operation, Record, Send, SendGroup
from dbchannels.layers.postgresql import sql, sql_durable
from dbchannels.layers.postgresql.destinations import Destinations
from dbchannels.layers.postgresql.link import PostgreSQLLink
from dbchannels.layers.postgresql.notify import Wakes
from dbchannels.layers.postgresql.notify_check import WakeupCheck
from dbchannels.layers.postgresql.notify_queue import NotifyQueue
from dbchannels.layers.postgresql.plain_cursor import execute
from dbchannels.layers.postgresql.queue_cache import Room
from dbchannels.layers.postgresql.session import Session, one_line, session_name
from dbchannels.layers.postgresql.statements import (
    broadcast,
    single,
    sql_capacities,
    statements,
    without_room,
)

__all__ = ["PostgreSQLLayer"]

log = logging.getLogger("dbchannels.layer")

POOLER = (
    "A pooler in transaction mode stands between this process and the database: wakeups and session locks do not work "
    "through it. Give the layer a direct way, DBCHANNELS[%r]['OPTIONS']['direct'] = {'HOST': ..., 'PORT': ...}; "
    "without, readers look every %g s, and leases alone say who is dead."
)


class PostgreSQLLayer(BaseLayer):
    """The product's layer. See BaseLayer for what the methods take and give."""

    def __init__(self, settings: LayerSettings) -> None:
        super().__init__(settings)
        self.room = Room()
        self.closed_connections = ClosedConnections()
        self.notify_queue = NotifyQueue()
        self.wakeup_check = WakeupCheck(self.poll_interval)
        self.sql_capacities = sql_capacities(self.options)
        self.destinations = Destinations(self)

    @property
    def wakeups(self) -> bool:  # type: ignore[override]
        """Whether sends NOTIFY the readers (OPTIONS["wakeups"])."""
        return bool(self.options["wakeups"])

    def link(self, name: str = "", listen: bool = True) -> PostgreSQLLink:
        session = self.session(session_name(name or "reader"), listen and self.wakeups)
        return PostgreSQLLink(self, session)

    def session(self, name: str, listen: bool = False) -> Session:
        """Return a new connection of the layer's own, not yet opened, to the database of the layer's alias."""
        # Django's wrapper knows the name of the test database; settings.DATABASES would not.
        return Session({**connections[self.database].settings_dict, **self.options["direct"]}, name, listen)

    def write(self, operations: Sequence[Operation], drop: bool = False) -> list[Send]:
        if len(operations) == 1 and self._write_single(operations[0]):
            return []
        refused: list[Send] = []
        plan = list(statements(self, operations))
        # Inside the caller's transaction this is a savepoint: who catches ChannelFull there has sent nothing.
        one_by_one = self._is_one_by_one(connections[self.database])
        several = len(plan) > 1 or bool(plan and plan[0][2]) or one_by_one
        together = transaction.atomic(using=self.database) if several else nullcontext()
        with together, connections[self.database].cursor() as cursor:
            for text, values, sent in plan:
                # One string of several statements is one round trip and one transaction; but psycopg 3 would
                # give the first one's rows, where the last one's are wanted.
                for statement in text.split(";") if sent or one_by_one else [text]:
                    cursor.execute(statement, values)
                if sent:
                    refused += without_room(self, sent, cursor.fetchall())
                    if refused and not drop:
                        raise ChannelFull(names.split(refused[0].channel)[0])
        return refused

    def _write_single(self, operation: Operation) -> bool:
        """Write a send or a broadcast, which are most of what is written; False where it has to go the other way."""
        if isinstance(operation, SendGroup):
            execute(connections[self.database], *broadcast(self, operation, Wakes(self)))
            return True
        return isinstance(operation, Send) and self._send_single(operation)

    def _send_single(self, send: Send) -> bool:
        """Write one usual message by the shortest way; False where it has to go the other."""
        connection = connections[self.database]
        asks = not self.notify_queue.has_room() or self._is_one_by_one(connection)
        statement = single(self, send, Wakes(self), asks)
        if statement is None:
            return False
        wants_answer = asks and self.wakeups
        rows = execute(connection, *statement, fetch=wants_answer)
        if wants_answer:
            self.notify_queue.learn(rows[0][0] is not None)
        return True

    @staticmethod
    def _is_one_by_one(connection: Any) -> bool:
        """Whether a connection takes no string of several statements: psycopg 3's, with binding by the server."""
        return bool(connection.settings_dict["OPTIONS"].get("server_side_binding"))

    def check_text(self, what: str, text: str) -> None:
        check_text(self.database, what, text)

    def group_count(self, group: str) -> int:
        return int(self._of_group(sql.GROUP_COUNT, group)[0][0])

    def connections(
        self, after: str = "", limit: int = 500, *, watched: bool = False, **fields: Sequence[str]
    ) -> list[Record]:
        return find_records(self.database, after, limit, watched, fields)

    def group_channels(self, group: str) -> list[str]:
        return [row[0] for row in self._of_group(sql.GROUP_CHANNELS, group)]

    def group_users(self, group: str) -> list[str]:
        return sorted(row[0] for row in self._of_group(sql.GROUP_USERS, group))

    def _of_group(self, statement: str, group: str) -> list[tuple[Any, ...]]:
        return self._query(statement, {"group": names.check_group_name(group)})

    def acknowledge(self, worker: str, delivery: Delivery) -> bool:
        token = {"worker": worker, "ids": [delivery.id], "attempts": [delivery.attempt]}
        with connections[self.database].cursor() as cursor:
            cursor.execute(sql_durable.ACKNOWLEDGE, token)
            return bool(cursor.rowcount)

    def dead_letter_ids(self, channels: Sequence[str] = ()) -> list[int]:
        return [row[0] for row in self._query(sql_durable.DEAD_LETTER_IDS, {"channels": list(channels)})]

    def replay(self, ids: Iterable[int]) -> int:
        return int(self._query(sql_durable.REPLAY, {"ids": list(ids), "wakes": self.wakeups})[0][0])

    def flush(self) -> None:
        with transaction.atomic(using=self.database), connections[self.database].cursor() as cursor:
            for statement in sql.FLUSH.split(";"):
                cursor.execute(statement)
        self._spread.clear()
        self.room.forget()

    def global_statistics(self) -> dict[str, float]:
        return self._statistics(None)

    def channel_statistics(self, channel: str) -> dict[str, float]:
        return self._statistics(names.check_channel_name(channel))

    def _statistics(self, channel: str | None) -> dict[str, float]:
        ((waiting, in_flight, age),) = self._query(sql.STATISTICS, {"channel": channel})
        return {"messages_pending": waiting, "messages_held": in_flight, "messages_max_age": age}

    def _query(self, statement: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        with connections[self.database].cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall()  # type: ignore[no-any-return]

    def ask(self, statement: str, values: dict[str, str]) -> tuple[float, bool]:
        """Run a statement of the wakeups' check on Django's connection."""
        try:
            ((usage, sent, _),) = self._query(statement, values)
        except Error as error:
            if not is_unavailable(error):
                raise
            raise LayerUnavailable(one_line(error)) from error
        return usage, sent

    def check(self) -> None:
        session = self.session(session_name("check"))
        try:
            ((present,),) = session.run([(sql.TABLES_PRESENT, {})])
            if self._shares_backends(session):
                log.warning(POOLER, self.alias, self.poll_interval())
        except LayerUnavailable as error:
            away = LayerUnavailable(
                f"The database {self.database!r} cannot be used ({error}): start it, or correct DATABASES."
            )
            away.may_pass = may_pass(error)
            raise away from error
        finally:
            session.close()
        if not present:
            raise LayerUnavailable(
                f"The database {self.database!r} has no tables for the channels yet: run 'manage.py migrate'."
            )

    def _shares_backends(self, session: Session) -> bool:
        """Whether a pooler gives two open sessions the same backend, as it does when each has it for a transaction."""
        if not session.pooled:
            return False
        other = self.session(session_name("check"))
        try:
            return any(session.run([(sql.BACKEND, {})]) == other.run([(sql.BACKEND, {})]) for _ in range(10))
        finally:
            other.close()

    def describe(self) -> str:
        session = self.session(session_name("check"))
        try:
            ((version, name),) = session.run([(sql.SERVER, {})])
        finally:
            session.close()
        wake = "LISTEN/NOTIFY" if self.wakeups else "polling"
        return f"PostgreSQL {version.split()[0]}, database {name}; wakeups by {wake}"
