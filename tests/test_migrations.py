"""The migrations: complete, reversible, and what they say to PostgreSQL about storage."""

from __future__ import annotations

import pytest
from django.apps import apps
from django.core.management import call_command
from django.core.management.sql import emit_post_migrate_signal
from django.db import connections

from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers import channel_layers
from dbchannels.models import DurableMessage, ProtocolMessage
from dbchannels.testing.contract.case import raises
from tests import kinds

TABLES = {
    "dbchannels_protocolmessage",
    "dbchannels_audience",
    "dbchannels_durablemessage",
    "dbchannels_deadletter",
    "dbchannels_membership",
    "dbchannels_tally",
    "dbchannels_process",
    "dbchannels_inflight",
    "dbchannels_connection",
    "dbchannels_schedule",
    "dbchannels_channelstate",
    "dbchannels_sample",
    "dbchannels_history",
    "dbchannels_trimmed",
    "dbchannels_taskresult",
}
UNLOGGED = {"dbchannels_protocolmessage", "dbchannels_inflight", "dbchannels_audience", "dbchannels_sample"}
BUSY = TABLES - {
    "dbchannels_deadletter",
    "dbchannels_schedule",
    "dbchannels_channelstate",
    "dbchannels_sample",
    "dbchannels_trimmed",
    "dbchannels_taskresult",
}
EARLY_VACUUM = {
    "autovacuum_vacuum_scale_factor=0.0",
    "autovacuum_vacuum_threshold=1000",
    "autovacuum_vacuum_cost_delay=0",
    "autovacuum_analyze_scale_factor=0.0",
    "autovacuum_analyze_threshold=5000",
}
UPDATED_IN_PLACE = {"dbchannels_inflight", "dbchannels_process", "dbchannels_durablemessage"}

postgresql = kinds.only("postgresql")
both = kinds.only("postgresql", "sqlite")


def ours(layer):
    """Return our tables in a database."""
    return {name for name in connections[layer.database].introspection.table_names() if name in TABLES}


def query(layer, statement, *values):
    """Return the rows of a statement."""
    with connections[layer.database].cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall()


def persistence(layer):
    """Return how PostgreSQL keeps each table and index of ours: p is logged, u is not."""
    statement = (
        "SELECT relname, relpersistence FROM pg_class WHERE relname LIKE 'dbchannels_%%' AND relkind = 'r'"
    )
    return {
        name: bytes(kind).decode() if isinstance(kind, bytes) else kind
        for name, kind in query(layer, statement)
    }


def storage(layer):
    """Return the storage parameters of each table of ours."""
    statement = (
        "SELECT relname, reloptions FROM pg_class WHERE relname LIKE 'dbchannels_%%' AND relkind = 'r'"
    )
    return {name: set(options or ()) for name, options in query(layer, statement)}


def migrate(layer, target):
    """Migrate dbchannels in a layer's database."""
    arguments = ["dbchannels", target] if target else ["dbchannels"]
    call_command("migrate", *arguments, database=layer.database, verbosity=0, interactive=False)


@pytest.fixture
def back_to(layer):
    """Migrate back to there; in the end all is as it was."""
    yield lambda target: migrate(layer, target)
    migrate(layer, None)
    assert ours(layer) == TABLES


def test_the_tables_are_those_of_the_models():
    assert {model._meta.db_table for model in apps.get_app_config("dbchannels").get_models()} == TABLES


def test_no_migration_is_missing(tables, capsys):
    call_command("makemigrations", "dbchannels", check=True, dry_run=True, verbosity=1)
    assert "No changes detected" in capsys.readouterr().out


@both
def test_all_tables_are_there(layer):
    assert ours(layer) == TABLES


@postgresql
def test_what_means_nothing_after_a_crash_is_not_logged(layer):
    assert persistence(layer) == {table: "u" if table in UNLOGGED else "p" for table in TABLES}


@postgresql
def test_busy_tables_are_vacuumed_early(layer):
    for table, options in storage(layer).items():
        vacuum = {option for option in options if option.startswith("autovacuum")}
        assert vacuum == (EARLY_VACUUM if table in BUSY else set()), table


@postgresql
def test_tables_whose_rows_are_updated_leave_room_on_each_page(layer):
    roomy = {table for table, options in storage(layer).items() if "fillfactor=70" in options}
    assert roomy == UPDATED_IN_PLACE


@postgresql
def test_identities_are_bigint(layer):
    statement = """
        SELECT table_name, data_type, is_identity FROM information_schema.columns
        WHERE table_name LIKE 'dbchannels_%%' AND column_name = 'id' AND data_type <> 'uuid'
    """
    numbered = {
        "protocolmessage",
        "audience",
        "history",
        "durablemessage",
        "deadletter",
        "membership",
        "tally",
        "process",
        "sample",
        "schedule",
    }
    assert sorted(query(layer, statement)) == sorted(
        (f"dbchannels_{name}", "bigint", "YES") for name in numbered
    )


@postgresql
def test_a_message_can_have_an_id_beyond_32_bits(layer):
    for model in (ProtocolMessage, DurableMessage):
        sequence = f"pg_get_serial_sequence('{model._meta.db_table}', 'id')"
        ((last,),) = query(layer, f"SELECT nextval({sequence})")
        query(layer, f"SELECT setval({sequence}, 3000000000)")
        layer.send("own" if model is DurableMessage else "http.request", {"number": 7})
        assert model.objects.get().id == 3_000_000_001
        query(layer, f"SELECT setval({sequence}, {last})")
    link = layer.link()
    (delivery,) = link.claim(["own"], 1, "w1")
    assert (delivery.id, delivery.attempt) == (3_000_000_001, 1)
    link.close()


@both
def test_the_hot_statements_have_their_indexes(layer):
    connection = connections[layer.database]
    with connection.cursor() as cursor:
        found = {
            (table, tuple(one["columns"]))
            for table in TABLES
            for one in connection.introspection.get_constraints(cursor, table).values()
            if one["index"] or one["unique"]
        }
    assert found >= {
        ("dbchannels_protocolmessage", ("channel", "id")),
        ("dbchannels_audience", ("key",)),
        ("dbchannels_audience", ("expires_at",)),
        ("dbchannels_durablemessage", ("channel", "priority", "id")),
        ("dbchannels_durablemessage", ("channel", "unique_key", "id")),
        ("dbchannels_durablemessage", ("due_at", "channel")),
        ("dbchannels_durablemessage", ("claimed_by", "channel")),
        ("dbchannels_membership", ("group", "channel", "recipient")),
        ("dbchannels_membership", ("channel", "recipient")),
        ("dbchannels_process", ("name",)),
        ("dbchannels_process", ("queue",)),
        ("dbchannels_connection", ("server",)),
        ("dbchannels_history", ("position",)),
        ("dbchannels_history", ("group", "position")),
        ("dbchannels_history", ("id",)),
        ("dbchannels_history", ("expires_at",)),
    }


@both
def test_back_to_zero_and_forth_again(layer, back_to):
    layer.send("own", {})
    layer.send("http.request", {})
    back_to("zero")
    assert ours(layer) == set()
    migrate(layer, None)
    assert ours(layer) == TABLES
    assert layer.receive(["own", "http.request"]) == (None, None)
    layer.send("own", {"number": 7})
    assert layer.receive(["own"]) == ("own", {"number": 7})


@postgresql
def test_forth_again_is_stored_as_before(layer, back_to):
    before = persistence(layer), storage(layer)
    back_to("zero")
    assert persistence(layer) == {}
    migrate(layer, None)
    assert (persistence(layer), storage(layer)) == before


@both
def test_back_by_one_and_forth_again_keeps_the_messages(layer, back_to):
    layer.send("own", {"number": 7})
    back_to("0001")
    migrate(layer, None)
    assert layer.receive(["own"]) == ("own", {"number": 7})


@both
def test_a_database_that_was_not_migrated_is_one_sentence(layer, back_to):
    back_to("zero")
    with raises(LayerUnavailable) as refused:
        channel_layers["default"].check()
    assert "run 'manage.py migrate'" in refused.sentence


@postgresql
def test_tables_made_without_migrations_can_broadcast_too(layer):
    with connections[layer.database].cursor() as cursor:
        cursor.execute("DROP FUNCTION dbchannels_send_group, dbchannels_keep_group")
    apps.get_app_config("dbchannels").ready()
    for _ in range(2):  # it is there already at the second
        emit_post_migrate_signal(verbosity=0, interactive=False, db=layer.database)
    layer.group_add("group", "reply.a!b")
    for history in (None, 1):
        layer.send_group("group", {"text": "hi"}, history=history)
        assert layer.receive(["reply.a!"]) == ("reply.a!b", {"text": "hi"})
