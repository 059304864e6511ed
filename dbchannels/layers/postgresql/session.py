"""The layer's own connection to PostgreSQL: psycopg2, in autocommit mode.

Django's connection belongs to the site's code and its transactions, may be psycopg 3's, and must not LISTEN. Only what
the site's code sends runs there.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet

import psycopg2
import psycopg2.errors
from psycopg2.extensions import TRANSACTION_STATUS_IDLE as IDLE

from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.addresses import addresses, joined, prefer
from dbchannels.layers.postgresql import prepared, sql
from dbchannels.layers.postgresql.prepared import LOST
from dbchannels.wakeup import wait_readable

ANSWER_WITHIN = 10.0  # seconds; the slowest statement of the layer's own takes a few
IN_DOUBT = 30.0  # seconds: a statement may go on for a while after its session was given up, and succeed
LONGEST_PAYLOAD = 128  # bytes of our own, a queue's name; anybody who may connect can NOTIFY up to 7,999
PAUSE = 0.005  # seconds in which foreign notifications are only read and dropped, so that they rarely wake a reader

#: The names of our tables in a statement, and no others that begin like them.
_TABLE = re.compile(
    r"\bdbchannels_(?:protocolmessage|audience|durablemessage|deadletter|membership|tally|process|inflight|connection"
    r"|schedule|channelstate|sample|history|trimmed|taskresult|send_group|keep_group)\b"
)

Statement = tuple[str, dict[str, Any] | tuple[Any, ...]]

# libpq alone would notice a silent partition after two hours; with these it takes 15 s. Times are in seconds,
# tcp_user_timeout in milliseconds. sql.SETTINGS has the same for the other end, and _Deadlines sees what both miss.
# https://www.postgresql.org/docs/current/libpq-connect.html
_KEEPALIVE = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "connect_timeout": 5,
}
# Options of Django's backends that libpq does not know.
_NOT_LIBPQ = {
    "assume_role",
    "context",
    "cursor_factory",
    "isolation_level",
    "pool",
    "prepare_threshold",
    "server_side_binding",
}


def connection_parameters(
    settings: dict[str, Any], name: str, last: tuple[str, str] = ("", "")
) -> dict[str, Any]:
    """Turn an entry of Django's DATABASES into libpq's parameters; ``name`` shows in pg_stat_activity.

    Of several addresses, ``last`` (host, port) is tried last.
    """
    options = {key: value for key, value in settings.get("OPTIONS", {}).items() if key not in _NOT_LIBPQ}
    own = {
        "dbname": settings.get("NAME"),
        "user": settings.get("USER"),
        "password": settings.get("PASSWORD"),
        "host": settings.get("HOST"),
        "port": settings.get("PORT"),
    }
    given = {key: value for key, value in own.items() if value not in ("", None)}
    if pairs := addresses(settings):  # else libpq says what is wrong
        several = joined(sorted(pairs, key=lambda pair: pair == last))
        given["host"], given["port"] = several["HOST"], several["PORT"]
        given["connect_timeout"] = 2  # for each address: a host that is gone takes all of it
    # The encoding is the one that Django uses, whatever is set for the role.
    return {**_KEEPALIVE, **given, **options, "application_name": name[:63], "client_encoding": "UTF8"}


class Locked(LayerUnavailable):
    """A statement has waited for a row that an open transaction holds for as long as ``lock_timeout`` allows."""


class Cancelled(LayerUnavailable):
    """A statement took longer than its ``statement_timeout``, or somebody has cancelled it."""


class _Deadlines:
    """A thread that shuts the socket of each session whose statement is not answered within ``ANSWER_WITHIN``.

    The kernel notices a network that falls silent (``_KEEPALIVE``). But when a proxy or a pooler stops, its kernel
    still acknowledges what is sent, and libpq, which has a deadline for connecting only, would wait forever
    (https://www.postgresql.org/docs/current/libpq-connect.html). Once its socket is shut, libpq sees the session end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Those with a connection; weak, so that a session that is dropped without ``close`` ends.
        self.sessions: WeakSet[Session] = WeakSet()
        self._thread: threading.Thread | None = None

    def add(self, session: Session) -> None:
        with self._lock:
            self.sessions.add(session)
            if self._thread is None or not self._thread.is_alive():  # after a fork no other thread is left
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()

    def drop(self, session: Session) -> None:
        with self._lock:
            self.sessions.discard(session)

    def forget(self) -> None:
        """Leave the sessions of the parent alone, in a forked child: their sockets are the parent's too."""
        self.__init__()  # type: ignore[misc]  # the lock may have been held, too

    def _run(self) -> None:
        while True:
            time.sleep(ANSWER_WITHIN / 10)
            self._look()  # in a frame of its own, which would otherwise keep the last session alive

    def _look(self) -> None:
        with self._lock:
            for session in self.sessions:
                session.shut_when_overdue()


_deadlines = _Deadlines()
os.register_at_fork(after_in_child=_deadlines.forget)


class Session:
    """Executes statements and waits for notifications. It connects when it must and forgets a broken connection.

    Every method raises LayerUnavailable when the database cannot be used; calling again connects anew.
    """

    def __init__(self, settings: dict[str, Any], name: str, listen: bool) -> None:
        self._settings = settings
        self._name = name
        #: Whether the session LISTENs.
        self.listens = listen
        self._lock = threading.RLock()
        self._connection: Any = None
        # The connection's socket under a descriptor of our own: when it is to be shut, the connection's own number may
        # belong to another file.
        self._socket: socket.socket | None = None
        self._answer_due = 0.0  # time.monotonic(); 0: no statement is under way
        self._overdue = False  # the socket was shut
        #: By what statements take: time.monotonic() until which they may have taken something without an answer.
        self.in_doubt_until: dict[str, float] = defaultdict(float)
        #: Of several, the one that the last connection was to: when it is lost, a standby may have taken over.
        self._address = ("", "")
        self._schema = ""  # the schema of our tables, with a dot
        self._qualified: dict[str, str] = {}  # statements as written, and with that schema
        self._backend = 0  # the process id of this connection's backend, and then of the previous one's
        self._prepared: set[str] | None = set()  # names in this connection; None: it does not keep them
        self._planned_at = 0.0  # time.monotonic()
        self._ran = 0  # calls of execute since then
        self._slow = False  # one of them took long: its plan may suit what the tables held before
        self._within = False  # a transaction, which an error in a prepared statement would end
        #: A pooler stands between, which may give each transaction another session of the database.
        self.pooled = False
        #: Another number means that the session has been lost since.
        self.generation = 1
        self.connected_at = 0.0  # time.monotonic() of the last time

    # Statements.

    def execute(self, statements: Sequence[Statement], takes: str = "") -> list[tuple[Any, ...]]:
        """Execute the statements in one round trip and one transaction; return the rows of the last one.

        PostgreSQL treats a string of several statements as one implicit transaction: 6,300 a second, where BEGIN,
        INSERT, NOTIFY and COMMIT sent apart make 2,400 (section 55.2.2.1 of its documentation).

        ``takes`` names what the statements take out of the queues. If their answer is lost, the database may have given
        this process messages that it never saw: see ``in_doubt_until``.
        """
        with self._lock:
            try:
                self._ensure_connected()
                if self._prepared is not None and not self._within:
                    try:
                        return self._execute(self._planned(statements, self._prepared))
                    except LOST:
                        self._prepared = None
                return self._execute(statements)
            except LayerUnavailable:
                if takes:
                    self.in_doubt_until[takes] = time.monotonic() + IN_DOUBT
                raise
            except psycopg2.errors.UntranslatableCharacter:
                # It is in a path or a traceback, from clients and consumers.
                if self._within:
                    raise
                return self._execute([(text, _in_ascii(values)) for text, values in statements])

    def _execute(self, statements: Sequence[Statement]) -> list[tuple[Any, ...]]:
        started = time.monotonic()
        self._answer_due = started + ANSWER_WITHIN
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(self._text(cursor, statements))
                self._slow = self._slow or time.monotonic() - started > prepared.SLOW
                return cursor.fetchall() if cursor.description else []
        except psycopg2.Error as error:
            if isinstance(error, LOST) or not is_unavailable(error):
                raise
            if isinstance(error, psycopg2.errors.LockNotAvailable):  # the session is as it was
                raise Locked(one_line(error)) from error
            if isinstance(error, psycopg2.errors.QueryCanceled):
                raise Cancelled(one_line(error)) from error
            raise self._lost(error) from error
        finally:
            self._answer_due = 0.0

    def _text(self, cursor: Any, statements: Sequence[Statement]) -> bytes:
        parts = []
        for text, values in statements:
            if text not in self._qualified:  # the search_path has no schema that others may write to
                self._qualified[text] = _TABLE.sub(lambda found: self._schema + found[0], text)
            parts.append(cursor.mogrify(self._qualified[text], values))
        if self.pooled and self._schema and self._connection.get_transaction_status() == IDLE:
            parts.insert(0, sql.IN_EACH_TRANSACTION.encode())
        return b";".join(parts)

    def _planned(self, statements: Sequence[Statement], known: set[str]) -> list[Statement]:
        """Replace hot statements by the EXECUTE of what this connection has prepared, once; see prepared.py."""
        planned: list[Statement] = []
        for text, values in statements:
            found = prepared.BY_TEXT.get(text)
            planned += [(one.execute, values) for one in found] if found else [(text, values)]
            if found and (new := [one for one in found if one.name not in known]):
                self._execute([(one.prepare.replace("%", "%%"), {}) for one in new])
                known.update(one.name for one in new)
        age = time.monotonic() - self._planned_at
        busy = self._slow or self._ran >= prepared.OFTEN
        if not known or age < (prepared.REPLAN_AFTER if busy else prepared.REPLAN_ANYWAY):
            self._ran += 1
            return planned
        self._planned_at, self._ran, self._slow = time.monotonic(), 0, False
        return [("DISCARD PLANS", {}), *planned]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make one transaction of several calls of ``execute``, for rare work; roll back when the block raises."""
        with self._lock:
            self.execute([(sql.BEGIN, {})])
            self._within, end = True, "ROLLBACK"
            try:
                yield
                end = "COMMIT"
            finally:
                self._within = False
                if self._connection is not None:
                    self.execute([(end, {})])

    # Notifications.

    def wait(self, timeout: float, *others: int) -> set[str]:
        """Wait for notifications, or for one of the other descriptors to be readable; return the payloads.

        A notification that arrived with the answer to a statement is in the connection while its socket is silent, so
        the connection is looked at first. End of file on the socket is the end of the session: LayerUnavailable.
        """
        with self._lock:
            self._ensure_connected()
            connection = self._connection
        payloads, foreign = self._hear(connection, timeout, others)
        ends_at = time.monotonic() + PAUSE
        while foreign and not payloads and (left := ends_at - time.monotonic()) > 0:
            payloads, _ = self._hear(connection, left, ())
        return payloads

    def _hear(self, connection: Any, timeout: float, others: Sequence[int]) -> tuple[set[str], bool]:
        """Return the payloads that can be ours, and whether there were others."""
        if not connection.notifies and connection.fileno() in wait_readable(
            [connection.fileno(), *others], timeout
        ):
            try:
                connection.poll()
                # After the session was terminated the first poll() succeeds silently; only the next one raises.
                if not connection.notifies:
                    connection.poll()
            except psycopg2.Error as error:
                raise self._lost(error) from error
        payloads = {one.payload for one in connection.notifies}
        connection.notifies.clear()
        ours = {payload for payload in payloads if len(payload) <= LONGEST_PAYLOAD}
        return ours, len(ours) < len(payloads)

    # The connection.

    def _ensure_connected(self) -> None:
        if self._socket is not None and not self._connection.closed:
            return
        self.close()
        self._overdue = False
        try:
            self._connection = self._open(connection_parameters(self._settings, self._name, self._address))
            self._address = (str(self._connection.info.host), str(self._connection.info.port))
            prefer(self._address)
            self._socket = socket.socket(fileno=os.dup(self._connection.fileno()))
            _deadlines.add(self)
            self._answer_due = time.monotonic() + ANSWER_WITHIN
            with self._connection.cursor() as cursor:
                self._set_up(cursor)
        except psycopg2.Error as error:
            lost = self._lost(error)
            if not is_unavailable(error):
                raise
            raise lost from error
        finally:
            self._answer_due = 0.0
        self._backend = self._connection.get_backend_pid()
        # What is set or prepared through a pooler would stay in a session that the site gets next.
        self._prepared = None if self.pooled else set()
        self.connected_at = time.monotonic()

    def _open(self, parameters: dict[str, Any]) -> Any:
        connection = psycopg2.connect(**parameters)
        connection.autocommit = True
        return connection

    def _set_up(self, cursor: Any) -> None:
        if role := self._settings.get("OPTIONS", {}).get("assume_role"):
            cursor.execute(sql.ASSUME_ROLE, [role])
        cursor.execute(sql.FIND)
        backend, table = cursor.fetchone()
        self.pooled = backend != self._connection.get_backend_pid()
        if self.pooled:  # its sessions are the site's too, and what is set there stays
            first = [sql.IN_EACH_TRANSACTION]
        else:
            first = [sql.SAFE_PATH, sql.SETTINGS]
            if self._connection.server_version >= 170000:
                first.append(sql.TRANSACTION_TIMEOUT)
            # The database may not know yet that the previous session has ended: that one would keep its locks, and its
            # claim may be under way. The name is compared too, since the number may be another session's by now.
            first.append(sql.END_LAST)
        if self.listens:
            first.append(sql.LISTEN)
        values = {"pid": self._backend, "name": self._name[:63], "table": table}
        cursor.execute("; ".join([*first, sql.SCHEMAS]), values)
        schemas = [schema.replace("%", "%%") for (schema,) in cursor.fetchall()]
        self._schema = f"{schemas[0]}." if len(schemas) == 1 else ""
        self._qualified.clear()
        if not self._schema and not self.pooled:  # before the first migration
            cursor.execute("RESET search_path")

    def shut_when_overdue(self) -> None:
        """Shut the socket when an answer is overdue; called by the thread of the deadlines."""
        own = self._socket
        if own is not None and 0 < self._answer_due < time.monotonic():
            self._overdue = True
            with suppress(OSError):  # the other end has closed it just now
                own.shutdown(socket.SHUT_RDWR)

    def _lost(self, error: Exception) -> LayerUnavailable:
        """Close the connection that an error has broken; return the error to raise."""
        self.close()
        return LayerUnavailable(f"no answer within {ANSWER_WITHIN:g} s" if self._overdue else one_line(error))

    def close(self) -> None:
        """Close the connection; the next statement opens another. Two threads may do so at once."""
        connection, self._connection = self._connection, None
        own, self._socket = self._socket, None
        if own is not None:
            _deadlines.drop(self)
            own.close()
        if connection is not None:
            self.generation += 1
            with suppress(psycopg2.Error):
                connection.close()


def _in_ascii(values: Any) -> Any:
    """Return a statement's values with all texts in ASCII, which every encoding has; other characters are escaped."""
    if isinstance(values, str):
        return values.encode("ascii", "backslashreplace").decode()
    if isinstance(values, dict):
        return {name: _in_ascii(value) for name, value in values.items()}
    return type(values)(map(_in_ascii, values)) if isinstance(values, (list, tuple)) else values


def is_unavailable(error: psycopg2.Error) -> bool:
    """Whether an error means that the database cannot be used now, and not that a statement is wrong.

    When the server ends without a message, psycopg2 raises DatabaseError itself, the base class of the others. A
    server that takes no writes is a standby: it may be promoted, or the next connection may lead to the primary.
    """
    gone = (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.errors.ReadOnlySqlTransaction)
    return isinstance(error, gone) or type(error) is psycopg2.DatabaseError


def one_line(error: Exception) -> str:
    """Return the first line of the database's error message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def session_name(role: str) -> str:
    """Return the name of a session in pg_stat_activity: ``dbchannels worker 4711``."""
    return f"dbchannels {role} {os.getpid()}".replace("  ", " ")
