"""A connection of the layer's own to PostgreSQL, by psycopg2, in autocommit.

Not Django's: that one belongs to the site's code and its transactions, may be psycopg 3's, and may not LISTEN.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psycopg2
import psycopg2.errors
from psycopg2.extensions import TRANSACTION_STATUS_IDLE as IDLE

from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.postgresql import prepared, sql
from dbchannels.layers.postgresql.deadline import ANSWER_WITHIN, Deadline, watched
from dbchannels.layers.postgresql.prepared import LOST
from dbchannels.wakeup import wait_readable

LONGEST_PAYLOAD = 128  # bytes of ours, a queue's name; anybody who may connect can NOTIFY up to 7,999
REST = 0.005  # seconds in which strange ones are only read and dropped: so often at most they wake a reader

#: The names of our tables in a statement, and no others that begin like them.
_TABLE = re.compile(
    r"\bdbchannels_(?:protocolmessage|audience|durablemessage|deadletter|membership|tally|process|inflight|connection"
    r"|schedule|send_group)\b"
)

Statement = tuple[str, dict[str, Any] | tuple[Any, ...]]

# libpq alone would notice a silent partition after two hours. With these it does within 15 s; times in seconds,
# tcp_user_timeout in milliseconds; sql.SETTINGS says the same to the other end, deadline.py sees what they miss.
# https://www.postgresql.org/docs/current/libpq-connect.html
_KEEPALIVE = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "connect_timeout": 5,
}
# Options of Django's backends that are not libpq's.
_NOT_LIBPQ = {
    "assume_role",
    "context",
    "cursor_factory",
    "isolation_level",
    "pool",
    "prepare_threshold",
    "server_side_binding",
}


def connection_parameters(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """Turn an entry of Django's DATABASES into libpq's parameters; ``name`` shows in pg_stat_activity."""
    options = {key: value for key, value in settings.get("OPTIONS", {}).items() if key not in _NOT_LIBPQ}
    own = {
        "dbname": settings.get("NAME"),
        "user": settings.get("USER"),
        "password": settings.get("PASSWORD"),
        "host": settings.get("HOST"),
        "port": settings.get("PORT"),
    }
    given = {key: value for key, value in own.items() if value not in ("", None)}
    # The encoding is Django's own, whatever is set for the role.
    return {**_KEEPALIVE, **given, **options, "application_name": name[:63], "client_encoding": "UTF8"}


class Locked(LayerUnavailable):
    """A statement has waited for a row that somebody's open transaction holds, as long as ``lock_timeout`` says."""


class Session:
    """Runs statements, and waits for notifications; connects when it must, and forgets a broken connection.

    Every method raises LayerUnavailable when the database cannot be used; calling again connects anew.
    """

    def __init__(self, settings: dict[str, Any], name: str, listen: bool) -> None:
        self._settings = settings
        self._name = name
        self._listen = listen
        self._lock = threading.RLock()
        self._connection: Any = None
        self._deadline: Deadline | None = None  # with the connection
        self._schema = ""  # our tables', with a dot
        self._qualified: dict[str, str] = {}  # statements as they are written and with that schema
        self._backend = 0  # the process id of the connection's other end, and of the last one's
        self._prepared: set[str] | None = set()  # names in this connection; None: it does not keep them
        self._planned_at = 0.0  # time.monotonic()
        self._ran = 0  # times that statements were run since then
        self._slow = False  # one of them took long: its plan may be for what the tables held once
        self._within = False  # a transaction, which an error with what is prepared would end
        #: A pooler stands between, which may give each transaction another session of the database's.
        self.pooled = False
        #: How often it has connected: whoever remembers the number sees that the session is a new one.
        self.generation = 0
        self.connected_at = 0.0  # time.monotonic() of the last time

    # Out.

    def run(self, statements: Sequence[Statement]) -> list[tuple[Any, ...]]:
        """Run the statements in one round trip and one transaction; return the last one's rows.

        A string of several statements is one implicit transaction to PostgreSQL, at 6,300 a second where BEGIN,
        INSERT, NOTIFY and COMMIT sent apart make 2,400 (section 55.2.2.1 of its documentation).
        """
        with self._lock:
            self._connected()
            try:
                if self._prepared is not None and not self._within:
                    try:
                        return self._run(self._planned(statements, self._prepared))
                    except LOST:
                        self._prepared = None
                return self._run(statements)
            except (
                psycopg2.errors.UntranslatableCharacter
            ):  # a path, a traceback: what clients and consumers say
                if self._within:
                    raise
                return self._run([(text, _in_ascii(values)) for text, values in statements])

    def _run(self, statements: Sequence[Statement]) -> list[tuple[Any, ...]]:
        assert self._deadline
        try:
            with self._deadline, self._connection.cursor() as cursor:
                parts = [cursor.mogrify(self._qualify(text), values) for text, values in statements]
                if self.pooled and self._schema and self._connection.get_transaction_status() == IDLE:
                    parts.insert(0, sql.IN_EACH_TRANSACTION.encode())
                text = b";".join(parts)
                started = time.monotonic()
                cursor.execute(text)
                self._slow = self._slow or time.monotonic() - started > prepared.SLOW
                return cursor.fetchall() if cursor.description else []
        except psycopg2.Error as error:
            if isinstance(error, LOST) or not is_unavailable(error):
                raise
            if isinstance(error, psycopg2.errors.LockNotAvailable):  # the session is as it was
                raise Locked(one_line(error)) from error
            raise self._lost(error) from error

    def _qualify(self, text: str) -> str:
        """Put the schema before the names of our tables, as the search_path has none that others may write to."""
        qualified = self._qualified.get(text)
        if qualified is None:
            qualified = self._qualified[text] = _TABLE.sub(lambda found: self._schema + found[0], text)
        return qualified

    def _planned(self, statements: Sequence[Statement], known: set[str]) -> list[Statement]:
        """Put in the place of hot statements what runs them as this connection has planned them, once."""
        planned: list[Statement] = []
        for text, values in statements:
            found = prepared.BY_TEXT.get(text)
            planned += [(one.execute, values) for one in found] if found else [(text, values)]
            if found and (new := [one for one in found if one.name not in known]):
                self._run([(one.prepare.replace("%", "%%"), {}) for one in new])
                known.update(one.name for one in new)
        return [*self._replan(), *planned] if known else planned

    def _replan(self) -> list[Statement]:
        """Let plans be made anew for what the tables hold now, see prepared.py."""
        age = time.monotonic() - self._planned_at
        due = age >= prepared.REPLAN_AFTER and (self._slow or self._ran >= prepared.OFTEN)
        if not due and age < prepared.REPLAN_ANYWAY:
            self._ran += 1
            return []
        self._planned_at, self._ran, self._slow = time.monotonic(), 0, False
        return [("DISCARD PLANS", {})]

    @property
    def connected(self) -> bool:
        """Whether there is a connection; of one that the other end has given up it is seen later."""
        return self._deadline is not None and not self._connection.closed

    @property
    def listens(self) -> bool:
        """Whether it LISTENs."""
        return self._listen

    def transaction(self) -> Transaction:
        """Return a context in which several ``run`` are one transaction, for rare work."""
        return Transaction(self)

    def close(self) -> None:
        """Let the connection go; the next statement opens another."""
        connection, self._connection = self._connection, None
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            deadline.close()
        if connection is not None:
            with suppress(psycopg2.Error):
                connection.close()

    # In.

    def wait(self, timeout: float, *others: int) -> set[str]:
        """Wait for notifications, or for one of the other descriptors to be readable; return the payloads.

        A notification that came while a statement ran lies in the connection with its socket silent, so that is
        where to look first. End of file on the socket is the session's death: LayerUnavailable at once.
        """
        with self._lock:
            connection = self._connected()
        payloads, strange = self._hear(connection, timeout, others)
        ends_at = time.monotonic() + REST
        while strange and not payloads and (left := ends_at - time.monotonic()) > 0:
            payloads, _ = self._hear(connection, left, ())
        return payloads

    def _hear(self, connection: Any, timeout: float, others: Sequence[int]) -> tuple[set[str], bool]:
        """Return the payloads that can be ours, and whether there were others."""
        if not connection.notifies:
            descriptors = [connection.fileno(), *others]
            readable = wait_readable(descriptors, timeout)
            if connection.fileno() in readable:
                self._poll(connection)
        payloads = {one.payload for one in connection.notifies}
        connection.notifies.clear()
        ours = {payload for payload in payloads if len(payload) <= LONGEST_PAYLOAD}
        return ours, len(ours) < len(payloads)

    def _poll(self, connection: Any) -> None:
        try:
            connection.poll()
            # After the session was terminated the first poll() succeeds in silence; only the next one raises.
            if not connection.notifies:
                connection.poll()
        except psycopg2.Error as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> LayerUnavailable:
        """Let the connection go that an error has broken; return the error to raise."""
        silent = self._deadline is not None and self._deadline.overdue
        self.close()
        return LayerUnavailable(f"no answer within {ANSWER_WITHIN:g} s" if silent else one_line(error))

    def _connected(self) -> Any:
        if not self.connected:
            self.close()
            self._connect()
            # What is set or prepared through a pooler would stay in a session that is the site's next.
            self._prepared = None if self.pooled else set()
            self.generation += 1
            self.connected_at = time.monotonic()
        return self._connection

    def _connect(self) -> None:
        try:
            self._connection = psycopg2.connect(**connection_parameters(self._settings, self._name))
            self._connection.autocommit = True
            self._deadline = watched(self._connection)
            with self._deadline, self._connection.cursor() as cursor:
                self._set_up(cursor)
            self._backend = self._connection.get_backend_pid()
        except psycopg2.Error as error:
            lost = self._lost(error)
            if not is_unavailable(error):
                raise
            raise lost from error

    def _set_up(self, cursor: Any) -> None:
        if role := self._settings.get("OPTIONS", {}).get("assume_role"):
            cursor.execute(sql.ASSUME_ROLE, [role])
        cursor.execute(sql.FIND)
        backend, table = cursor.fetchone()
        self.pooled = backend != self._connection.get_backend_pid()
        if self.pooled:  # whose sessions are the site's too: what is set there stays
            first = [sql.IN_EACH_TRANSACTION]
        else:
            first = [sql.SAFE_PATH, sql.SETTINGS]
            if self._connection.server_version >= 170000:
                first.append(sql.TRANSACTION_TIMEOUT)
            # The database may not know yet that the last one has ended: it would keep its locks, and its claim may be
            # under way. By name, since the number may be another's by now.
            first.append(sql.END_LAST)
        if self._listen:
            first.append(sql.LISTEN)
        values = {"pid": self._backend, "name": self._name[:63], "table": table}
        cursor.execute("; ".join([*first, sql.SCHEMAS]), values)
        schemas = [schema.replace("%", "%%") for (schema,) in cursor.fetchall()]
        self._schema = f"{schemas[0]}." if len(schemas) == 1 else ""
        self._qualified.clear()
        if not self._schema and not self.pooled:  # before the first migration
            cursor.execute("RESET search_path")


def _in_ascii(values: Any) -> Any:
    """Return a statement's values with texts as each of the database's encodings takes them: the rest written out."""
    if isinstance(values, str):
        return values.encode("ascii", "backslashreplace").decode()
    if isinstance(values, dict):
        return {name: _in_ascii(value) for name, value in values.items()}
    return type(values)(map(_in_ascii, values)) if isinstance(values, (list, tuple)) else values


class Transaction:
    """``with session.transaction():`` - commits at the end, rolls back when the block raises."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> None:
        self._session._lock.acquire()
        try:
            self._session.run([(sql.BEGIN, {})])
            self._session._within = True
        except BaseException:
            self._session._lock.release()
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._session._within = False
            if self._session._connection is not None:
                self._session.run([("ROLLBACK" if kind else "COMMIT", {})])
        finally:
            self._session._lock.release()


def is_unavailable(error: psycopg2.Error) -> bool:
    """Whether an error means that the database cannot be used now, and not that a statement is wrong.

    Of a server that ended without a word psycopg2 says no more than DatabaseError, the base of them all.
    """
    gone = (psycopg2.OperationalError, psycopg2.InterfaceError)
    return isinstance(error, gone) or type(error) is psycopg2.DatabaseError


def one_line(error: Exception) -> str:
    """Return the first line of the database's own words."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def session_name(role: str) -> str:
    """Return what pg_stat_activity shows of a session: ``dbchannels worker 4711``."""
    return f"dbchannels {role} {os.getpid()}".replace("  ", " ")
