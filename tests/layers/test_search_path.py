"""Nothing that another role plants in a schema of the search_path is called, and settings of a role change nothing."""

from __future__ import annotations

from contextlib import contextmanager
from uuid import uuid4

import pytest
from django.db import DatabaseError, connection

from dbchannels.layers.operations import BatchResult, Connect, Disconnect, Failure, GroupAdd, Keep, Send
from dbchannels.layers.overview import MOST, STATES
from dbchannels.models import Process
from tests import kinds

pytestmark = kinds.only("postgresql")

#: What fits better than PostgreSQL's own where an argument has another type than its parameter, or an exact one here
#: and "anyarray" there.
FUNCTIONS = """
unnest(text[]) unnest(bytea[]) unnest(varchar[]) unnest(uuid[]) cardinality(text[]) count(varchar) min(int8)
pg_notify(text,varchar) pg_notify(varchar,text) split_part(varchar,text,int) regexp_split_to_table(varchar,text)
hashtextextended(varchar,int) hashtextextended(text,int) hashtextextended(varchar,int8) string_agg(varchar,text)
sha256(text) encode(bytea,varchar) convert_to(varchar,text) dbchannels_digest(varchar) dbchannels_digest(text)
dbchannels_audience_key(int8,numeric) pg_try_advisory_lock(int4) sum(numeric,int) hashtext(varchar)
quote_ident(name) pg_has_role(oid,varchar) to_regclass(varchar) set_config(varchar,varchar,boolean)
dbchannels_send_group(text,bytea,numeric,text[],int[],boolean,varchar[])
"""
OPERATORS = "= <> < <= > >= + - * || ~ !~ ~~ !~~"
OPERANDS = """
varchar,varchar varchar,text text,varchar float8,numeric numeric,float8 numeric,interval int8,numeric int4,numeric
name,text name,varchar smallint,int4
"""
TRAP = "RETURNS {} LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a planted {} was called'; END $$"


def run(*texts):
    with connection.cursor() as cursor:
        for text in texts:
            cursor.execute(text)


@pytest.fixture
def stranger(tables):
    """A role that may create objects in the schema public, as any may in databases of PostgreSQL before 15."""
    run("CREATE ROLE stranger", "GRANT CREATE, USAGE ON SCHEMA public TO stranger")
    yield "stranger"
    run("DROP OWNED BY stranger CASCADE", "DROP ROLE stranger")


def plant(role, operators):
    """Let the role make them all."""
    texts = []
    for one in FUNCTIONS.split():
        texts.append(f"CREATE FUNCTION public.{one} {TRAP.format('bool', one)}")
    for number, operator in enumerate(OPERATORS.split() if operators else []):
        for types in OPERANDS.split():
            left, right = types.split(",")[:2]
            name = f"public.trap_{number}_{left}_{right}"
            texts.append(f"CREATE FUNCTION {name}({left}, {right}) {TRAP.format('bool', operator)}")
            texts.append(
                f"CREATE OPERATOR public.{operator} (FUNCTION = {name}, LEFTARG = {left}, RIGHTARG = {right})"
            )
    run(f"SET ROLE {role}", *texts, "RESET ROLE")
    with pytest.raises(DatabaseError, match="was called"):
        run("SELECT unnest('{}'::text[])")


def give_up(link, retry_in):
    """Claim a message and fail it."""
    (delivery,) = link.claim(["own"], 1, "w")
    failure = Failure(delivery, "error", retry_in)
    link.finish("w", BatchResult([], [], [failure], [], [], [(delivery, 0)]))


def everything(layer, link):
    """Let a link run what a worker and a server do."""
    link.register("s", Process.SERVER, "reply.s!")
    link.register("w", Process.WORKER, "http.request")
    members = [GroupAdd("group", f"reply.s!{number}") for number in range(50)]
    sends = [Send(name, b"\x80", "", 60.0) for name in ("own", "other", "http.request", "reply.s!1")]
    link.apply([Connect("reply.s!1", "s", "/"), *members, *sends, *sends, Keep("reply.s!1", b"x", "-")])
    link.apply([Send("own", b"\x80", "", 60.0, unique="key"), Send("own", b"\x80", "", 60.0, delay=9.0)])
    link.receive_many(["http.request", "reply.s!"], 10, "w")
    give_up(link, 1.0)
    give_up(link, None)
    deliveries = link.claim(["own", "other"], 10, "w", {"other": 1})
    link.finish(
        "w", BatchResult([], deliveries[:1], [], deliveries[1:], [], [(one, 0) for one in deliveries])
    )
    link.apply(
        [Send("tasks", b"\x80", "", 60.0, task=str(uuid4()), priority=priority) for priority in (0, 0, 1)]
    )
    done, failed, _ = link.claim(["tasks"], 3, "w")
    link.finish("w", BatchResult(acknowledged=[done], failures=[Failure(failed, "error", None)]))
    link.next_due()
    link.renew("w")
    link.workers()
    link.count_live("http.request")
    link.record_work("w", "work")
    link.heads(["own", "http.request"])
    link.apply([Disconnect("reply.s!1")])
    link.clean_up()
    link.unregister("s")
    link.unregister("w")


def test_sessions_and_functions_of_ours_call_nothing_that_is_planted(layer, new_link, stranger):
    plant(stranger, operators=True)
    everything(layer, new_link(layer))


def test_what_a_site_calls_on_its_own_connection_calls_none_either(layer, new_link, stranger):
    link = new_link(layer)
    link.register("s", Process.SERVER, "reply.s!")
    plant(stranger, operators=True)
    for channel in ("own", "http.request", "reply.s!x"):
        layer.send(channel, {})
        layer.send_many([(channel, {}), (channel, {"a": 1})])
        layer.group_add("group", channel)
    layer.capacities.clear()
    layer.send_many([("http.request", {}), ("reply.s!y", {})])
    layer.send("own", {}, unique="key")
    layer.send("own", {}, delay=9)
    layer.send_group("group", {})
    layer.identify("reply.s!x", "7")
    layer.keep("reply.s!x", session=b"x")
    assert layer.group_count("group") == len(layer.group_channels("group")) == 3
    assert layer.group_users("group") == []
    layer.group_discard("group", "own")
    layer.group_clear("group")
    layer.channel_statistics("own")
    layer.global_statistics()
    with connection.cursor() as cursor:
        cursor.execute(STATES, {"most": MOST, "channels": 9})
        assert cursor.fetchall()
    (delivery,) = link.claim(["own"], 1, "w")
    assert layer.acknowledge("w", delivery)
    layer.replay(layer.dead_letter_ids(["own"]))
    layer.replay([1])


@contextmanager
def set_for_all(**settings):
    """Set these for every new session of the database."""
    name = connection.settings_dict["NAME"]
    run(*(f"ALTER DATABASE {name} SET {key} = {value}" for key, value in settings.items()))
    try:
        yield
    finally:
        run(*(f"ALTER DATABASE {name} RESET {key}" for key in settings))


HARMFUL = {
    "default_transaction_isolation": "'serializable'",
    "default_transaction_read_only": "on",
    "statement_timeout": "2000",
    "lock_timeout": "2000",
    "idle_in_transaction_session_timeout": "2000",
    "idle_session_timeout": "2000",
    "client_encoding": "'LATIN1'",
    "standard_conforming_strings": "off",
    "bytea_output": "'escape'",
    "timezone": "'Asia/Kathmandu'",
    "datestyle": "'SQL, DMY'",
    "intervalstyle": "'sql_standard'",
    "enable_indexscan": "off",
}


def test_settings_of_the_database_leave_our_sessions_as_they_must_be(layer, new_link):
    with set_for_all(**HARMFUL):
        everything(layer, link := new_link(layer))
        for name in HARMFUL:
            if name.endswith("_timeout"):
                assert link.session.execute([(f"SHOW {name}", {})]) == [("0",)], name
        assert link.session.execute([("SHOW transaction_isolation", {})]) == [("read committed",)]
        link.apply([Connect("reply.s!\u20ac", "s", "/\u20ac")])


def test_tables_that_are_not_on_the_path_of_new_sessions_are_found_by_their_owner(layer, new_link):
    with set_for_all(search_path="nowhere"):
        link = new_link(layer)
        everything(layer, link)
        layer.check()


def test_the_schema_may_have_any_name(layer, new_link):
    tables = [model for model in connection.introspection.table_names() if model.startswith("dbchannels_")]
    run('CREATE SCHEMA "of %s; ours"', *(f'ALTER TABLE {one} SET SCHEMA "of %s; ours"' for one in tables))
    run("SET search_path = public")
    try:
        from importlib import import_module

        storage = import_module("dbchannels.migrations.0002_postgresql_storage")
        run('SET search_path = "of %s; ours", public')
        storage.run(connection, storage.UPDATE_TALLY + storage.SEND_GROUP)
        with set_for_all(search_path='"of %s; ours"'):
            everything(layer, new_link(layer))
        layer.group_add("group", "reply.a!b")
        layer.send_group("group", {})
    finally:
        run(*(f'ALTER TABLE "of %s; ours".{one} SET SCHEMA public' for one in tables), "RESET search_path")
        storage.run(connection, storage.UPDATE_TALLY + storage.SEND_GROUP)
        run('DROP SCHEMA "of %s; ours" CASCADE')
