"""Django's database connections between two messages: kept open in a worker, and as clean as new ones.

A setting, a role, a temporary table, a lock, a LISTEN or a transaction of one message must not be there for the next,
which is another client's. A new connection to PostgreSQL takes 3 to 5 ms. So psycopg's connection is set aside after
DISCARD ALL, and Django gets it back when the next message connects. That takes 15 us, about as long as the SELECT 1 of
a health check; Django's own set-up and the receivers of ``connection_created`` run as on a new connection. A DISCARD
ALL at the start of the next message would leave the locks of this one to a worker that has nothing to do. See
https://www.postgresql.org/docs/current/sql-discard.html
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from django.core import signals
from django.db import Error, close_old_connections, connections
from django.db.backends.signals import connection_created

from dbchannels.wakeup import wait_readable

# PQTRANS_IDLE, PQTRANS_INTRANS and PQTRANS_INERROR of libpq, in psycopg 2 and 3.
_IDLE, _OPEN = 0, (2, 3)

_kept = False  # in a worker's process
# Of threads that are not a worker's: a consumer's own, or those in which a coroutine asks the database.
_of_threads: dict[Any, threading.Thread] = {}
#: The cursor_factory with which each of psycopg's connections was opened: OpenTelemetry, for one, gives its own.
_factories: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def keep() -> None:
    """Keep connections between the messages of this process; the end of a request closes none of them."""
    global _kept
    _kept = True
    for signal in (signals.request_started, signals.request_finished):
        signal.disconnect(close_old_connections)
    connection_created.connect(_note)
    for connection in connections.all():
        if connection.vendor == "postgresql" and _is_pooled(connection):
            _reset_in_pool(connection)


def _note(connection: Any, **_: Any) -> None:
    _of_threads[connection] = threading.current_thread()
    if connection.vendor == "postgresql":
        _factories.setdefault(connection.connection, connection.connection.cursor_factory)


def _close_orphans() -> None:
    """Close the connections of threads that have ended: their locks would be held until Python frees the objects."""
    for connection, thread in list(_of_threads.items()):
        ended = not thread.is_alive()
        if ended or thread is threading.current_thread():
            noted = _of_threads.pop(connection, None)  # None: another worker's thread was faster
            if ended and noted is not None:
                connection.inc_thread_sharing()  # or only its own thread may close it
                connection.close()


def end_message() -> None:
    """Leave the calling thread's connections for the next message."""
    _close_orphans()
    connection: Any
    for connection in connections.all(initialized_only=True):
        connection.queries_log.clear()
        kept = _kept and connection.connection is not None
        if kept and (connection.vendor == "sqlite" or _is_pooled(connection)):
            # To open a file again is cheap; Django keeps a database in memory. The pool resets what it has back.
            connection.close()
        elif not kept or connection.vendor != "postgresql":
            connection.close_if_unusable_or_obsolete()
        else:
            # As long as Django would keep the connection, or CONN_MAX_AGE is 0.
            max_age, close_at = connection.settings_dict["CONN_MAX_AGE"], connection.close_at
            is_young = max_age == 0 or close_at is None or time.monotonic() < close_at
            raw, opened_by = connection.connection, connection.get_connection_params()
            if is_young and _is_like_new(connection, raw, opened_by) and _discard_all(raw):
                _set_aside(connection, opened_by)
            else:
                connection.close()
        # An engine of its own may keep on its wrapper what the message has set, as django-tenants keeps the tenant.
        is_own = not type(connection).__module__.startswith("django.")
        if _kept and is_own and connection.vendor == "postgresql":
            _renew(connection)


def open_blocks() -> dict[str, int]:
    """Return how many blocks of ``atomic()`` are open, by the database's alias: in a worker none, in tests some."""
    found = connections.all(initialized_only=True)
    return {one.alias: len(one.atomic_blocks) for one in found if one.in_atomic_block}


def end_transactions(before: Mapping[str, int]) -> list[str]:
    """Roll back the transactions that a message has left open, and close their connections; return the aliases."""
    left = []
    for connection in connections.all(initialized_only=True):
        depth, raw = before.get(connection.alias, 0), connection.connection
        if depth:
            is_open = len(connection.atomic_blocks) > depth
        elif connection.in_atomic_block or raw is None or not connection.settings_dict["AUTOCOMMIT"]:
            is_open = connection.in_atomic_block
        elif connection.vendor == "postgresql":
            is_open = not raw.closed and raw.info.transaction_status in _OPEN
        else:
            is_open = getattr(raw, "in_transaction", False)  # SQLite's
        if not is_open:
            continue
        left.append(connection.alias)
        if depth:
            while len(connection.atomic_blocks) > depth:
                connection.atomic_blocks[-1].__exit__(Error, Error(), None)
            continue
        if _is_pooled(connection) and raw is not None:
            raw.close()  # or the pool gives it to the next message
        connection.in_atomic_block = False  # or Django waits for the end of the block, which does not come
        connection.close()
        if connection.closed_in_transaction:  # it had been closed already, inside of the block
            connection.connection = None
    return left


def _is_pooled(connection: Any) -> bool:
    return bool(connection.settings_dict["OPTIONS"].get("pool"))


def _reset_in_pool(connection: Any) -> None:
    """Have psycopg's pool reset what comes back, whoever returns it: a consumer, or a thread of a consumer's, too."""
    options = connection.settings_dict["OPTIONS"]
    pool = {} if options["pool"] is True else options["pool"]

    def reset(raw: Any) -> None:
        if (own := pool.get("reset")) is not None:
            own(raw)
        wrapper: Any = connections[connection.alias]  # this thread is the pool's
        if not (_is_like_new(wrapper, raw, wrapper.get_connection_params()) and _discard_all(raw)):
            raise Error("This connection is not as it was opened.")  # so the pool opens another one
        wrapper._configure_connection(raw)  # as the pool has opened it

    connection.close()
    connection.close_pool()
    options["pool"] = {**pool, "reset": reset}


def _is_like_new(connection: Any, raw: Any, opened_by: Mapping[str, Any]) -> bool:
    """Whether nothing is left that DISCARD ALL does not undo: in psycopg's own object."""
    options = connection.settings_dict["OPTIONS"]
    if raw.closed or not raw.autocommit or raw.info.transaction_status != _IDLE:
        return False
    # What psycopg adds to each BEGIN by itself; ``readonly`` is psycopg2's.
    added = getattr(raw, "read_only", None), getattr(raw, "readonly", None), raw.deferrable
    if added != (None, None, None):
        return False
    if (raw.isolation_level, raw.cursor_factory) != (options.get("isolation_level"), _factories.get(raw)):
        return False
    if hasattr(raw, "row_factory"):  # psycopg 3's
        from psycopg.rows import tuple_row

        if raw.row_factory != opened_by.get("row_factory", tuple_row):
            return False
        names = "_notifies_backlog", "_notify_handlers", "_notice_handlers"
        return raw.prepare_threshold == opened_by["prepare_threshold"] and not any(
            getattr(raw, name, None) for name in names
        )
    raw.notices = []
    return raw.encoding == "UTF8" and not raw.notifies


def _set_aside(connection: Any, opened_by: Mapping[str, Any]) -> None:
    """Close the connection for Django, whose next ``connect()`` gets psycopg's, if the parameters are the same."""
    aside = connection.connection, opened_by, connection.close_at, os.getpid()
    connection._close = lambda: None  # everything else that close() does, a subclass's too, is done
    try:
        connection.close()
    finally:
        del connection._close
    connection.get_new_connection = partial(_reconnect, connection, *aside)


def _reconnect(
    connection: Any,
    raw: Any,
    opened_by: Mapping[str, Any],
    close_at: float | None,
    process: int,
    parameters: dict[str, Any],
) -> Any:
    del connection.get_new_connection
    # A child that a consumer has forked must not use its parent's connection.
    if os.getpid() == process:
        if parameters == opened_by and _is_alive(raw):
            if connection.settings_dict["CONN_MAX_AGE"]:
                connection.close_at = close_at
            return raw
        raw.close()
    return connection.get_new_connection(parameters)


def _renew(connection: Any) -> None:
    """Put a new wrapper in the place of a connection's; it has the connection that was set aside."""
    new: Any = connections.create_connection(connection.alias)
    connections[connection.alias] = new
    if (aside := vars(connection).pop("get_new_connection", None)) is not None:
        new.get_new_connection = partial(_reconnect, new, *aside.args[1:])


def _is_alive(raw: Any) -> bool:
    """Whether the database has not ended the connection meanwhile: then its socket would be readable."""
    return not raw.closed and (not wait_readable([raw.fileno()], 0.0) or _discard_all(raw))


def _discard_all(raw: Any) -> bool:
    """Make the connection as clean as new; False when the database has ended it."""
    try:
        with raw.cursor() as cursor:
            cursor.execute("DISCARD ALL")
    except Exception:  # psycopg2's or psycopg 3's
        return False
    return True
