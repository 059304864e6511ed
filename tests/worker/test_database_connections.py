"""Django's connections between two messages: nothing of the one before is there, and PostgreSQL's are kept."""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing

import pytest
from django.core import signals
from django.db import close_old_connections, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.backends.signals import connection_created

from dbchannels.testing.contract.case import wait_until
from dbchannels.worker import database_connections

pytestmark = pytest.mark.postgresql

#: All that a session keeps between two statements. A setting of the site's own that was reset is "" and no more NULL.
STATE = """
SELECT current_user, session_user, current_setting('search_path'), coalesce(current_setting('app.tenant', true), ''),
       current_setting('default_transaction_read_only'), current_setting('statement_timeout'),
       current_setting('TimeZone'),
       (SELECT count(*) FROM pg_class WHERE relname = 'left_behind'),
       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
       (SELECT count(*) FROM pg_listening_channels()), (SELECT count(*) FROM pg_prepared_statements),
       (SELECT count(*) FROM pg_cursors WHERE is_holdable)
"""
DIRT = [
    "SELECT set_config('app.tenant', 'anna', false)",
    "DO $$ BEGIN PERFORM set_config('app.tenant', 'anna', false); END $$",
    "SET ROLE pg_monitor",
    "SET SESSION AUTHORIZATION pg_monitor",
    "SET search_path = anna",
    "SET default_transaction_read_only = on",
    "SET statement_timeout = 60000",
    "SET TIME ZONE 'Asia/Tokyo'",
    "CREATE TEMPORARY TABLE left_behind (id int)",
    "SELECT pg_advisory_lock(12345)",
    "LISTEN left_behind",
    "PREPARE left_behind AS SELECT 1",
    "DECLARE left_behind CURSOR WITH HOLD FOR SELECT 1",
]


@pytest.fixture
def connection(tables):
    """Django's connection as a worker's message finds it, the process's first."""
    database_connections.keep()
    one = connections["default"]
    one.close()
    yield one
    one.ensure_connection()
    one.close()  # what was set aside would keep the test database from going
    database_connections._kept = False
    connection_created.disconnect(database_connections._note)
    database_connections._of_threads.clear()
    for signal in (signals.request_started, signals.request_finished):
        signal.connect(close_old_connections)


def ask(connection, query):
    """Return the first row, on whatever Django's connection is."""
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone() if cursor.description else None


def pid(connection):
    """Return which session of the database it is."""
    return ask(connection, "SELECT pg_backend_pid()")[0]


@pytest.mark.parametrize("dirt", DIRT)
def test_a_message_finds_its_connection_as_clean_as_a_new_one(connection, dirt):
    fresh, first = ask(connection, STATE), pid(connection)
    ask(connection, dirt)
    assert ask(connection, STATE) != fresh
    database_connections.end_message()
    assert ask(connection, STATE) == fresh
    assert pid(connection) == first


def test_what_a_message_holds_is_let_go_before_the_next_one(connection):
    first, other = pid(connection), connection.copy()
    ask(connection, "SELECT pg_advisory_lock(12345)")
    database_connections.end_message()
    assert ask(other, f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = {first}") == (0,)
    other.close()


def set_rows(connection, raw):
    if is_psycopg3:
        from psycopg.rows import dict_row as rows

        raw.row_factory = rows
    else:
        from psycopg2.extras import DictCursor as rows

        raw.cursor_factory = rows


def set_encoding(connection, raw):
    ask(connection, "SET client_encoding = 'LATIN1'") if is_psycopg3 else raw.set_client_encoding("LATIN1")


def add_handler(connection, raw):
    if is_psycopg3:
        raw.add_notify_handler(print)
        raw.add_notice_handler(print)


def leave_notice(connection, raw):
    ask(connection, "DO $$ BEGIN RAISE NOTICE 'of anna'; END $$")


def leave_notification(connection, raw):
    ask(connection, "LISTEN left_behind")
    ask(connection, "NOTIFY left_behind, 'of anna'")


@pytest.mark.parametrize("leave", [set_rows, set_encoding, add_handler, leave_notice, leave_notification])
def test_nothing_stays_in_the_driver_s_own_object(connection, leave):
    def kept():
        connection.ensure_connection()
        raw = connection.connection
        names = (
            "cursor_factory row_factory encoding notices _notify_handlers _notice_handlers _notifies_backlog"
        )
        return [
            list(one) if hasattr(one, "append") else one
            for one in (getattr(raw, name, None) for name in names.split())
        ]

    fresh = kept()
    leave(connection, connection.connection)
    database_connections.end_message()
    assert kept() == fresh
    assert ask(connection, "SELECT '\u20ac'") == ("\u20ac",)


def test_a_cursor_of_a_tracer_is_no_reason_to_open_another_connection(connection, monkeypatch):
    """OpenTelemetry gives each connection a subclass of the cursor_factory that Django asks for."""
    connect = connection.Database.connect

    def traced(**parameters):
        return connect(
            **{**parameters, "cursor_factory": type("Traced", (parameters["cursor_factory"],), {})}
        )

    connection.close()
    monkeypatch.setattr(connection.Database, "connect", traced)
    first = pid(connection)
    database_connections.end_message()
    assert pid(connection) == first


def test_what_a_thread_of_a_consumer_has_left_open_is_closed(connection):
    found = []

    def work():
        found.append(pid(connections["default"]))
        ask(connections["default"], "SELECT pg_advisory_lock(12345)")

    with closing(connection.copy()) as other:
        for _ in range(3):  # each would wait for the lock of the one before
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            thread.join(10)
            assert not thread.is_alive()
            pid(connection)
            database_connections.end_message()
            held = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = {found[-1]}"
            wait_until(lambda held=held: ask(other, held) == (0,))
    assert not database_connections._of_threads


def test_what_the_driver_says_at_each_begin_goes_too(connection):
    connection.ensure_connection()
    for name in ("readonly" if hasattr(connection.connection, "readonly") else "read_only", "deferrable"):
        setattr(connection.connection, name, True)
        database_connections.end_message()
        connection.ensure_connection()
        assert getattr(connection.connection, name) is None


def test_the_site_s_own_set_up_runs_as_on_a_new_connection(connection):
    seen = []

    def prepare(connection, **_):
        seen.append(pid(connection))
        ask(connection, "SELECT set_config('app.tenant', 'everybody', false)")

    connection_created.connect(prepare)
    try:
        for _ in range(3):
            assert ask(connection, "SELECT current_setting('app.tenant')") == ("everybody",)
            database_connections.end_message()
    finally:
        connection_created.disconnect(prepare)
    assert len(seen) == 3 and len(set(seen)) == 1


def test_a_message_that_needs_no_database_asks_it_nothing(connection):
    first = pid(connection)
    database_connections.end_message()
    for _ in range(3):
        database_connections.end_message()
        assert connection.connection is None
    assert pid(connection) == first


def test_one_that_the_database_has_ended_is_opened_anew(connection):
    first = pid(connection)
    database_connections.end_message()
    other = connection.copy()
    ask(other, f"SELECT pg_terminate_backend({first})")
    while ask(other, f"SELECT count(*) FROM pg_stat_activity WHERE pid = {first}")[0]:
        time.sleep(0.01)
    other.close()
    assert pid(connection) != first


@pytest.mark.parametrize(
    ("age", "left", "kept"), [(0, -1, True), (60, 60, True), (60, -1, False), (None, None, True)]
)
def test_a_conn_max_age_of_the_site_s_is_kept(connection, monkeypatch, age, left, kept):
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", age)
    first = pid(connection)
    if age:
        connection.close_at = close_at = time.monotonic() + left
    ask(connection, DIRT[0])
    database_connections.end_message()
    assert (pid(connection) == first) is kept
    assert not ask(connection, "SELECT current_setting('app.tenant', true)")[0]
    assert not (age and kept) or connection.close_at == close_at


def test_what_a_consumer_closes_is_closed(connection):
    first = pid(connection)
    connection.close()
    assert pid(connection) != first


def test_a_child_that_is_forked_leaves_its_parent_s_alone(connection, monkeypatch):
    first = pid(connection)
    database_connections.end_message()
    aside = connection.get_new_connection
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        assert pid(connection) != first
    raw = aside.args[1]
    assert not raw.closed  # the parent's
    raw.close()


def test_one_that_was_opened_by_other_parameters_is_not_used(connection, monkeypatch):
    first = pid(connection)
    database_connections.end_message()
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "application_name", "another")
    assert pid(connection) != first
    assert ask(connection, "SHOW application_name") == ("another",)


def test_a_subclass_of_a_connection_sees_it_closed(connection, monkeypatch):
    """As django-tenants does, which notes there what search_path it has set."""
    closed = []
    close = type(connection).close
    monkeypatch.setattr(type(connection), "close", lambda self: (closed.append(1), close(self))[1])
    connection.ensure_connection()
    database_connections.end_message()
    assert closed == [1]


class TenantsWrapper(DatabaseWrapper):
    """Keeps a tenant until another one is set, as that of django-tenants does."""

    tenant = "public"


def test_a_tenant_that_an_engine_of_its_own_keeps_is_not_there_for_the_next(connection, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            connections, "create_connection", lambda alias: TenantsWrapper(connection.settings_dict, alias)
        )
        connections["default"] = connections.create_connection("default")
        try:
            first = pid(connections["default"])
            for uses_it in (True, False, True):
                connections["default"].tenant = "anna"
                assert not uses_it or pid(connections["default"]) == first
                used = connections["default"]
                database_connections.end_message()
                assert connections["default"].tenant == "public"
                assert "get_new_connection" not in vars(used)  # only one of them may have psycopg's
        finally:
            connections["default"].close()
            vars(connections["default"]).pop("get_new_connection").args[1].close()
            connections["default"] = connection


def leave_atomic(connection):
    transaction.atomic().__enter__()


def leave_two(connection):
    leave_atomic(connection)
    leave_atomic(connection)


def leave_autocommit_off(connection):
    connection.set_autocommit(False)
    ask(connection, "SELECT 1")


def leave_begin(connection):
    ask(connection, "BEGIN")


def leave_failed(connection):
    leave_atomic(connection)
    with pytest.raises(Exception, match="no_such_table"):
        ask(connection, "SELECT * FROM no_such_table")


def leave_closed(connection):
    leave_atomic(connection)
    connection.close()


@pytest.mark.parametrize(
    "leave", [leave_closed, leave_atomic, leave_two, leave_autocommit_off, leave_begin, leave_failed]
)
def test_a_transaction_that_was_left_open_is_ended(connection, leave):
    first, before = pid(connection), database_connections.open_blocks()
    assert database_connections.end_transactions(before) == []
    leave(connection)
    assert database_connections.end_transactions(before) == ["default"]
    assert database_connections.end_transactions(before) == []
    database_connections.end_message()
    assert pid(connection) != first
    assert connection.get_autocommit() and not connection.in_atomic_block


def test_in_a_test_s_transaction_only_what_is_inside_ends(connection):
    with transaction.atomic():
        before = database_connections.open_blocks()
        assert before == {"default": 1}
        leave_two(connection)
        assert database_connections.end_transactions(before) == ["default"]
        assert database_connections.open_blocks() == before
        assert ask(connection, "SELECT 1") == (1,)


def test_a_file_of_sqlite_is_opened_anew(connection):
    file = connections["sqlite"]
    ask(file, "CREATE TEMPORARY TABLE left_behind (id int)")
    database_connections.end_message()
    assert ask(file, "SELECT count(*) FROM temp.sqlite_master") == (0,)


if is_psycopg3:  # see tests/layers/test_psycopg3.py

    def test_the_pool_of_psycopg_3_is_given_clean_connections(connection, monkeypatch):
        """It refuses every CONN_MAX_AGE but 0."""
        pooled = connection.copy()
        monkeypatch.setitem(
            pooled.settings_dict, "OPTIONS", {**pooled.settings_dict["OPTIONS"], "pool": {"min_size": 1}}
        )
        monkeypatch.setattr(connections, "all", lambda initialized_only=False: [pooled])
        try:
            database_connections.keep()
            fresh, first = ask(pooled, STATE), pid(pooled)
            for dirt in (*DIRT, "SELECT 1"):
                for end in (
                    database_connections.end_message,
                    pooled.close,
                ):  # the other by the consumer itself
                    ask(pooled, dirt)
                    end()
                    assert pooled.connection is None
                    assert (ask(pooled, STATE), pid(pooled)) == (fresh, first)
            leave_begin(pooled)
            assert database_connections.end_transactions({}) == ["default"]
            assert ask(pooled, STATE) == fresh
            assert pid(pooled) != first
            pooled.in_atomic_block = True
            pooled.close()  # inside of the block: the pool has it back, and the block stays open
            assert database_connections.end_transactions({}) == ["default"]
            assert ask(pooled, STATE) == fresh
        finally:
            pooled.close()
            pooled.close_pool()
