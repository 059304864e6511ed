"""``manage.py channels_doctor`` on a PostgreSQL that is broken in one way each."""

from __future__ import annotations

from contextlib import closing
from types import SimpleNamespace

import psycopg2
import pytest
from django.db import connection, connections

from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.postgresql import sql
from dbchannels.management import doctor
from dbchannels.management.doctor import database
from dbchannels.management.doctor.patient import Patient
from tests import kinds

pytestmark = kinds.only("postgresql")


@pytest.fixture
def examined(layer):
    """Run one check of the database; return its findings."""

    def run(check):
        patient = Patient(layer, 1, reachable=True, migrated=True)
        return [(one.level, one.text) for one in doctor.in_time(check, patient)]

    return run


def run(text):
    with connection.cursor() as cursor:
        cursor.execute(text)


def test_a_clock_that_lags_is_reported(examined, monkeypatch):
    assert examined(database.clock)[0][0] == "ok"
    real = database.time
    for lag, said in ((30, "30 s behind"), (-30, "30 s ahead of")):
        late = SimpleNamespace(time=lambda lag=lag: real.time() - lag, monotonic=real.monotonic)
        monkeypatch.setattr(database, "time", late)
        ((status, text),) = examined(database.clock)
        assert status == "wrong" and said in text


def test_too_many_sessions_are_reported(examined, monkeypatch):
    ((status, text),) = examined(database.server_sessions)
    assert status == "ok" and "of them the layer's own" in text
    monkeypatch.setattr(database, "BUSY_SESSIONS", 0.0)
    ((status, text),) = examined(database.server_sessions)
    assert status == "wrong" and "raise max_connections" in text


def test_a_table_without_autovacuum_is_reported(examined):
    run("ALTER TABLE dbchannels_durablemessage SET (autovacuum_enabled = off)")
    try:
        assert examined(database.autovacuum) == [
            (
                "wrong",
                "autovacuum is off for dbchannels_durablemessage: run ALTER TABLE dbchannels_durablemessage RESET "
                "(autovacuum_enabled).",
            )
        ]
    finally:
        run("ALTER TABLE dbchannels_durablemessage RESET (autovacuum_enabled)")
    assert examined(database.autovacuum)[0][0] == "ok"


def test_dead_rows_are_reported(examined, monkeypatch):
    monkeypatch.setattr(database, "DEAD_ROWS", 10**9)  # other tests leave as many as they like
    assert examined(database.dead_rows)[0][0] == "ok"
    monkeypatch.setattr(database, "DEAD_ROWS", 6)
    rows = [("dbchannels_sample", 7, 3, None)]
    monkeypatch.setattr(Patient, "rows", lambda self, statement, values=None: rows)
    assert examined(database.dead_rows)[0][1].startswith(
        "dbchannels_sample has 7 dead rows, and was vacuumed never"
    )
    monkeypatch.setattr(database, "DEAD_ROWS", 7)
    assert examined(database.dead_rows)[0][0] == "ok"


def test_an_open_transaction_is_named(examined, monkeypatch, layer):
    monkeypatch.setattr(database, "OPEN_TRANSACTION", 0.0)
    settings = connections[layer.database].settings_dict
    keys = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    given = {keyword: settings[key] for key, keyword in keys.items() if settings.get(key)}
    with closing(psycopg2.connect(**given, application_name="a report")) as other:
        with other.cursor() as cursor:
            cursor.execute("SELECT 1")
        found = examined(database.transactions)
        assert any(status == "wrong" and "a report, idle in transaction" in text for status, text in found), (
            found
        )
        other.rollback()


def test_a_queue_of_notifications_that_fills_is_reported(examined, monkeypatch):
    assert examined(database.transactions)[0][0] == "ok"
    monkeypatch.setattr(database, "QUEUE_FILLS", -1.0)
    assert "The queue of notifications is 0% full" in examined(database.transactions)[0][1]


def test_notifications_that_do_not_arrive_are_reported(examined, monkeypatch):
    monkeypatch.setattr(database.sql, "WAKE", "SELECT %(wake)s::text[]")
    monkeypatch.setattr(database, "ARRIVES", 0.05)
    assert sql.WAKE == database.sql.WAKE
    ((status, text),) = examined(database.wakeups)
    assert status == "wrong" and text.startswith("No notification arrives")


def test_a_database_that_is_read_only_is_reported(examined, layer):
    name = connections[layer.database].settings_dict["NAME"]
    run(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        found = examined(database.database)
        assert found[0][0] == "ok" and found[1][0] == "wrong"
        assert found[1][1].startswith("Transactions are read-only by a setting of the database or the role")
    finally:
        run("SET default_transaction_read_only = off")
        run(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    assert len(examined(database.database)) == 1


def test_without_permission_to_look_it_says_so_and_goes_on(examined, layer, monkeypatch):
    run("CREATE ROLE plain")
    run("REVOKE SELECT ON pg_catalog.pg_stat_activity, pg_catalog.pg_stat_user_tables FROM PUBLIC")
    settings = connections[layer.database].settings_dict
    monkeypatch.setitem(settings, "OPTIONS", {**settings["OPTIONS"], "assume_role": "plain"})
    try:
        for check in (database.server_sessions, database.dead_rows, database.transactions):
            found = examined(check)
            assert found and found[-1][0] == "note", found
            assert found[-1][1].startswith(
                "This role may not look: The database refuses this: permission denied"
            )
    finally:
        monkeypatch.undo()
        run("GRANT SELECT ON pg_catalog.pg_stat_activity, pg_catalog.pg_stat_user_tables TO PUBLIC")
        run("DROP ROLE plain")


def test_a_database_that_does_not_answer_is_reported_and_what_needs_it_is_left_out(layer, monkeypatch):
    def away():
        raise LayerUnavailable("It is down.\nIs it running?")

    monkeypatch.setattr(layer, "describe", away)
    found = [(name, one.level, one.text) for name, one in doctor.examine(Patient(layer, 1))][-2:]
    said = "The database 'default' does not answer (It is down.): start it, or correct DATABASES."
    assert found == [
        ("database", "wrong", said),
        ("database", "note", "What needs the database was left out."),
    ]


@pytest.mark.parametrize(
    ("check", "rows", "said"),
    [
        ("database", [(True, True)], "The database is a standby, which nobody can write to"),
        ("autovacuum", [("off", "on")], "autovacuum is off, so the tables"),
        ("autovacuum", [("on", "off")], "autovacuum is off, so the tables"),
    ],
)
def test_settings_of_the_server_are_reported(examined, monkeypatch, check, rows, said):
    monkeypatch.setattr(Patient, "rows", lambda self, statement, values=None: rows)
    status, text = examined(getattr(database, check))[-1]
    assert status == "wrong" and text.startswith(said)


def test_wakeups_that_are_slow_or_off_or_behind_a_pooler_are_reported(examined, layer, monkeypatch):
    monkeypatch.setattr(database, "SLOW_WAKEUP", 0.0)
    ((status, text),) = examined(database.wakeups)
    assert status == "note" and text.endswith("where 1 ms is usual: the machines are busy or far apart.")
    monkeypatch.setattr(type(layer), "behind_pooler", lambda self, session: True)
    ((status, text),) = examined(database.wakeups)
    assert status == "wrong" and "['OPTIONS']['direct'] = {'HOST': ..., 'PORT': ...}" in text
    monkeypatch.setitem(layer.options, "wakeups", False)
    assert examined(database.wakeups)[0][1].startswith("Wakeups are off (OPTIONS['wakeups']): readers poll ")
