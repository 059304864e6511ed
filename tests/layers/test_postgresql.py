"""What only the PostgreSQL layer does: wakeups, sessions of its own, UNLOGGED tables."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from fnmatch import fnmatchcase

import psycopg2
import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from dbchannels import channel_layers, codec
from dbchannels.exceptions import ChannelFull, LayerUnavailable
from dbchannels.layers import postgresql
from dbchannels.layers.operations import BatchResult
from dbchannels.layers.postgresql import prepared, sql, sql_durable, sql_groups
from dbchannels.layers.postgresql.session import Session, connection_parameters, session_name
from dbchannels.layers.postgresql.statements import CapacityCache, ScanHints, single, sql_pattern
from dbchannels.models import InFlight
from dbchannels.testing.contract.case import DEADLINE, in_thread, raises, wait_until
from dbchannels.testing.contract.operating import make_dead_letters
from tests import kinds

pytestmark = [kinds.only("postgresql"), pytest.mark.usefixtures("layer")]

AT_ONCE = DEADLINE / 2  # seconds; the polls of these tests are an hour apart


@pytest.fixture
def patient(new_layer):
    """A layer whose readers find nothing without being woken."""
    return new_layer(poll_interval=3600)


def query(statement, *values):
    """Return the rows that a statement gives on Django's connection."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall()


def terminate(session):
    """End a session from outside, as an operator does."""
    ((terminated,),) = query(
        "SELECT pg_terminate_backend(%s)", session.execute([("SELECT pg_backend_pid()", {})])[0][0]
    )
    assert terminated
    wait_until(lambda: not query("SELECT 1 FROM pg_stat_activity WHERE application_name = %s", session._name))


@contextmanager
def waiting_thread(link):
    """Wait in a thread for wakeups or an error; give the list into which (one of them, seconds) will go."""
    ended = []

    def wait():
        started = time.monotonic()
        try:
            result = wait_until(lambda: link.wait(DEADLINE))
        except LayerUnavailable as error:
            result = error
        ended.append((result, time.monotonic() - started))

    # Connected and listening before anything is sent.
    link.wait(0)
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    yield ended
    thread.join(2 * DEADLINE)


# Wakeups.


@pytest.mark.parametrize(
    ("channel", "payload"),
    [
        ("http.request", "h"),
        ("websocket.receive", "w"),
        ("own", "d"),
        ("reply.a!b", "reply.a!"),
        ("body?x", "body?x"),
    ],
)
def test_a_send_wakes_its_readers(patient, new_link, channel, payload):
    with waiting_thread(new_link(patient)) as ended:
        patient.send(channel, {})
    ((payloads, seconds),) = ended
    assert payloads == {payload}
    assert seconds < AT_ONCE


def test_a_broadcast_wakes_every_server_once(patient, new_link):
    for channel in ("reply.a!1", "reply.a!2", "reply.b!1", "http.request", "own"):
        patient.group_add("group", channel)
    link = new_link(patient)
    link.wait(0)
    patient.send_group("group", {})
    assert wait_until(lambda: link.wait(DEADLINE)) == {"reply.a!", "reply.b!", "h", "d"}


def test_a_wakeup_comes_at_commit_and_never_after_a_rollback(patient, new_link):
    link = new_link(patient)
    link.wait(0)
    with transaction.atomic():
        patient.send("http.request", {})
        transaction.set_rollback(True)
    with transaction.atomic():
        patient.send("own", {})
        assert link.wait(0.01) == set()
    assert link.wait(DEADLINE) == {"d"}


def test_a_wakeup_that_comes_during_a_statement_is_not_lost(patient, new_link):
    link = new_link(patient)
    link.wait(0)
    patient.send("http.request", {})
    link.claim(["own"], 1, "w1")  # the notification comes with this answer, and the socket is silent then
    started = time.monotonic()
    assert link.wait(DEADLINE) == {"h"}
    assert time.monotonic() - started < AT_ONCE


def test_without_wakeups_nobody_is_notified(new_layer, new_link):
    listening = new_link(new_layer())
    listening.wait(0)
    silent = new_layer(wakeups=False)
    silent.send("http.request", {})
    silent.send("own", {})
    silent.group_add("group", "reply.a!b")
    silent.send_group("group", {})
    assert listening.wait(0.05) == set()
    assert silent.poll_interval() == 0.05
    assert not silent.wakeups


@pytest.mark.parametrize("channel", ["own", "http.request"])
def test_nobody_is_notified_while_the_queue_of_notifications_is_full(patient, new_link, monkeypatch, channel):
    statements = sys.modules[single.__module__]
    full = tuple(text.replace("< 0.5", "< 0") for text in statements._ASKING)
    assert full != statements._ASKING
    monkeypatch.setattr(statements, "_ASKING", full)
    patient.send(channel, {})  # counts, and learns the channel's room
    patient._notify_room_until = 0.0
    listening = new_link(patient)
    listening.wait(0)
    patient.send(channel, {})
    patient.send(channel, {})
    assert listening.wait(0.05) == set()
    assert patient._notify_room_until == 0.0
    assert patient.channel_statistics(channel)["messages_pending"] == 3


@pytest.mark.parametrize("channel", ["own", "http.request"])
def test_the_queue_of_notifications_is_asked_once_for_many_sends(patient, monkeypatch, channel):
    monkeypatch.setattr(postgresql, "NOTIFY_ROOM", 3600)
    with CaptureQueriesContext(connection) as queries:
        for _ in range(20):
            patient.send(channel, {})
    asking = [one for one in queries if "NOTIFY" not in one["sql"] and "VALUES" in one["sql"]]
    assert len(asking) == 1
    assert len([one for one in queries if "; NOTIFY dbchannels" in one["sql"]]) >= 18


def test_the_queue_of_notifications_is_asked_again_after_a_while(patient, monkeypatch):
    monkeypatch.setattr(postgresql, "NOTIFY_ROOM", 0)
    with CaptureQueriesContext(connection) as queries:
        for _ in range(5):
            patient.send("own", {})
    assert len([one for one in queries if "pg_notification_queue_usage" in one["sql"]]) == 5


def test_a_connection_that_binds_on_the_server_is_given_single_statements(patient, new_link, monkeypatch):
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "server_side_binding", True)
    link = new_link(patient)
    link.wait(0)
    with CaptureQueriesContext(connection) as queries:
        for channel in ("own", "own", "http.request", "http.request"):
            patient.send(channel, {})
            wait_until(lambda: link.wait(DEADLINE))
        patient.send("own", {}, priority=1)
        patient.send_many([("own", {}), ("reply.a!b", {})])
    assert len(queries) > 4
    assert [one["sql"] for one in queries if ";" in one["sql"]] == []


def test_a_waiting_link_notices_its_sessions_end_at_once(patient, new_link):
    link = new_link(patient)
    with waiting_thread(link) as ended:
        terminate_waiting(link)
    ((error, seconds),) = ended
    assert isinstance(error, LayerUnavailable)
    assert seconds < AT_ONCE
    # The next wait has a new session, which listens.
    link.wait(0)
    patient.send("own", {})
    assert link.wait(DEADLINE) == {"d"}


def terminate_waiting(link):
    """End the session of a link that another thread waits with."""
    assert query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
        link.session._name,
    ) == [(True,)]


# Sessions.


def test_a_terminated_session_is_replaced(layer, new_link):
    link = new_link(layer)
    layer.send("http.request", {})
    terminate(link.session)
    with pytest.raises(LayerUnavailable):
        link.receive_many(["http.request"], 1)
    assert link.session.generation == 2
    assert len(link.receive_many(["http.request"], 1)) == 1
    assert link.session.generation == 2


def test_a_finish_that_failed_can_be_written_again(layer, new_link):
    link = new_link(layer)
    layer.send("own", {})
    claimed = link.claim(["own"], 1, "w1")
    done = BatchResult([layer.make_send("other", {})], claimed)
    terminate(link.session)
    with pytest.raises(LayerUnavailable):
        link.finish("w1", done)
    link.finish("w1", done)
    assert layer.channel_statistics("own")["messages_pending"] == 0
    assert layer.channel_statistics("other")["messages_pending"] == 1


def test_a_transaction_whose_session_ends_is_undone(layer):
    session = layer.session("dbchannels test transaction")
    with pytest.raises(LayerUnavailable), session.transaction():
        session.execute([("DELETE FROM dbchannels_process", {})])
        terminate(session)
        session.execute([("SELECT 1", {})])
    assert session.execute([("SELECT 2", {})]) == [(2,)]
    session.close()


def test_a_transaction_ends_by_what_its_block_does(layer):
    session = layer.session("dbchannels test transaction")
    columns = '"group", channel, recipient, added_at'
    insert = f"INSERT INTO dbchannels_membership ({columns}) VALUES (%(g)s, 'own', '', now())"
    with pytest.raises(KeyError), session.transaction():
        session.execute([(insert, {"g": "undone"})])
        raise KeyError
    with session.transaction():
        session.execute([(insert, {"g": "done"})])
    assert layer.group_channels("undone") == []
    assert layer.group_channels("done") == ["own"]
    session.close()


def test_several_statements_are_one_transaction(layer):
    session = layer.session("dbchannels test transaction")
    with pytest.raises(psycopg2.errors.DivisionByZero):
        session.execute([("DELETE FROM dbchannels_membership", {}), ("SELECT 1 / %(zero)s", {"zero": 0})])
    layer.group_add("group", "own")
    with pytest.raises(psycopg2.errors.DivisionByZero):
        session.execute([("DELETE FROM dbchannels_membership", {}), ("SELECT 1 / %(zero)s", {"zero": 0})])
    assert layer.group_channels("group") == ["own"]
    session.close()


def test_a_database_that_is_down_is_one_sentence(layer):
    settings = {**connection.settings_dict, "HOST": "/nowhere", "OPTIONS": {}}
    session = Session(settings, "dbchannels test", listen=True)
    for call in (
        lambda: session.execute([("SELECT 1", {})]),
        lambda: session.wait(0),
        session.transaction().__enter__,
    ):
        with pytest.raises(LayerUnavailable) as raised:
            call()
        assert "/nowhere" in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_link_sees_that_the_unlogged_tables_are_empty(layer, new_link):
    link, other = new_link(layer), new_link(layer)
    assert not link.emptied("server")
    assert not other.emptied("another")
    link.session.close()
    assert not link.emptied("server")  # the row is there
    link.session.close()
    InFlight.objects.all().delete()  # as a crash does
    assert link.emptied("server")
    assert not link.emptied("server")
    assert not link.emptied("renamed")
    assert not other.emptied("another")  # its session has not been lost


def test_which_clients_have_messages_that_are_not_finished(layer, new_link):
    link = new_link(layer)
    for number in range(3):
        layer.send("http.request", {"reply_channel": f"reply.a!{number}"})
    link.receive_many(["http.request"], 1, "worker")
    assert link.unfinished([f"reply.a!{number}" for number in range(4)]) == {f"reply.a!{n}" for n in range(3)}


def test_a_server_that_takes_no_writes_is_left(layer):
    session = layer.session("dbchannels test")
    session.execute([("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", {})])
    with pytest.raises(LayerUnavailable, match="read-only transaction"):
        session.execute([(sql.RECORD_WORK, {"name": "nobody", "work": ""})])
    session.execute([(sql.RECORD_WORK, {"name": "nobody", "work": ""})])
    assert session.generation == 2
    session.close()


def test_a_connection_of_django_that_takes_no_writes_is_an_outage(layer):
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION READ ONLY")
        with pytest.raises(LayerUnavailable, match="read-only transaction"):
            layer.query_for_check(sql.RECORD_WORK, {"name": "nobody", "work": ""})
        transaction.set_rollback(True)


def test_the_check_says_what_to_do(layer, monkeypatch):
    layer.check()
    monkeypatch.setitem(connection.settings_dict, "NAME", "postgres")
    with raises(LayerUnavailable) as refused:
        layer.check()
    assert "manage.py migrate" in refused.sentence
    monkeypatch.setitem(connection.settings_dict, "NAME", "no_such_database")
    with raises(LayerUnavailable) as refused:
        layer.check()
    assert "no_such_database" in refused.sentence


def test_the_banner_names_the_server(layer, new_layer):
    name = connection.settings_dict["NAME"]
    assert layer.describe().startswith("PostgreSQL 1")
    assert layer.describe().endswith(f"database {name}; wakeups by LISTEN/NOTIFY")
    assert new_layer(wakeups=False).describe().endswith("wakeups by polling")


def test_sessions_say_whose_they_are(layer, new_link):
    session = new_link(layer).session
    assert session.execute([("SHOW application_name", {})]) == [(session_name("test"),)]
    assert session_name("worker").startswith("dbchannels worker ")


def test_parameters_are_what_libpq_takes():
    given = {
        "NAME": "site",
        "USER": "me",
        "PASSWORD": "",
        "HOST": None,
        "PORT": 5433,
        "OPTIONS": {"sslmode": "require", "pool": True, "server_side_binding": True, "keepalives_idle": 60},
    }
    parameters = connection_parameters(given, "x" * 100)
    assert parameters["application_name"] == "x" * 63
    assert parameters["keepalives_idle"] == 60
    assert parameters["connect_timeout"] == 5
    assert {key for key in parameters if key in ("password", "host", "pool", "server_side_binding")} == set()
    assert (parameters["dbname"], parameters["user"], parameters["port"]) == ("site", "me", 5433)
    assert parameters["sslmode"] == "require"


def test_each_of_several_addresses_has_two_seconds_to_answer():
    given = {"HOST": "a,b", "PORT": "1,2", "OPTIONS": {"target_session_attrs": "read-write"}}
    assert connection_parameters(given, "x")["connect_timeout"] == 2
    assert connection_parameters(given, "x")["target_session_attrs"] == "read-write"
    parameters = connection_parameters(given, "x", ("a", "1"))
    assert (parameters["host"], parameters["port"]) == ("b,a", "2,1")
    assert connection_parameters({**given, "PORT": ""}, "x", ("a", "5432"))["host"] == "b,a"
    assert connection_parameters({**given, "PORT": 3}, "x")["port"] == "3,3"
    assert connection_parameters({**given, "PORT": "1,2,3"}, "x")["port"] == "1,2,3"
    given["OPTIONS"]["connect_timeout"] = 7
    assert connection_parameters(given, "x")["connect_timeout"] == 7


# Rows.


def test_two_links_at_once_take_each_message_once(layer, new_link):
    layer.send_many(("http.request", {"number": number}) for number in range(500))
    layer.send_many(("own", {"number": number}) for number in range(500))
    taken: list[bytes] = []

    def take(link):
        while found := link.receive_many(["http.request"], 7) + link.claim(["own"], 7, link.session._name):
            taken.extend(one.channel.encode() + one.payload for one in found)

    threads = [threading.Thread(target=take, args=[new_link(layer)], daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(6 * DEADLINE)
    assert len(taken) == len(set(taken)) == 1000


def test_a_message_that_commits_late_is_found(layer, new_link):
    """A lower id that is seen after a higher one: why nobody may read by ``id > last seen``."""
    link = new_link(layer)
    other = connections.create_connection("default")
    try:
        with transaction.atomic():
            layer.send("http.request", {"number": 1})
            with other.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO dbchannels_protocolmessage (channel, recipients, reply_channel, payload, expires_at)"
                    " VALUES ('http.request', '', '', '', now() + interval '1 minute')"
                )
            assert len(link.receive_many(["http.request"], 10)) == 1
    finally:
        other.close()
    assert len(link.receive_many(["http.request"], 10)) == 1


def test_adding_a_member_of_a_live_server_again_writes_nothing(layer, new_link):
    new_link(layer).register("server", "server", "reply.a!")

    def row():
        return query("SELECT xmin, ctid, expires_at FROM dbchannels_membership")

    layer.group_add("group", "reply.a!b")
    before = row()
    layer.group_add("group", "reply.a!b")
    assert row() == before
    assert before[0][2] is None


PATTERNS = [
    "reply.*",
    "*.daily",
    "a?c",
    "a!?",
    "a-z",
    "a[bc]d",
    "a[!b]d",
    "a[^b]d",
    "[a",
    "a*b*c",
    "x.y",
    "[]a]",
    "",
]
NAMES = [
    "reply.a!b",
    "x.daily",
    "a!c",
    "a?c",
    "abc",
    "a!b",
    "a-z",
    "abd",
    "acd",
    "a^d",
    "[a",
    "axbxc",
    "x.y",
    "xzy",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_mean_the_same_in_sql(layer, pattern):
    select = "SELECT name FROM unnest(%s::text[]) AS given(name) WHERE name ~ %s"
    rows = query(select, NAMES, sql_pattern(pattern))
    assert [row[0] for row in rows] == [name for name in NAMES if fnmatchcase(name, pattern)]


# Unique keys, when two send at once.


@contextmanager
def another_sender():
    """Give a second connection of Django's, in a transaction that is open until the block ends."""
    thread_ready, thread_done = threading.Event(), threading.Event()
    sent = []

    def send():
        with transaction.atomic():
            channel_layers["default"].send("own", {"number": 2}, unique="a")
            thread_ready.set()
            thread_done.wait(DEADLINE)
        sent.append(True)
        connections.close_all()

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    assert thread_ready.wait(DEADLINE), "The second sender was made to wait."
    yield
    thread_done.set()
    thread.join(DEADLINE)
    assert sent


def test_a_second_sender_of_a_unique_key_does_not_wait_and_loses_nothing(layer, new_link):
    link = new_link(layer)
    with another_sender():
        layer.send("own", {"number": 1}, unique="a")  # the other's row is not committed
    assert layer.channel_statistics("own")["messages_pending"] == 2
    assert len(link.claim(["own"], 10, "w1")) == 1
    assert link.claim(["own"], 10, "w1") == []
    assert layer.channel_statistics("own")["messages_pending"] == 0


def test_a_message_that_a_sender_relies_on_is_not_claimed_before_its_commit(layer, new_link):
    link = new_link(layer)
    layer.send("own", {"number": 1}, unique="a")
    with another_sender():
        assert link.claim(["own"], 10, "w1") == []
    assert len(link.claim(["own"], 10, "w1")) == 1
    assert layer.channel_statistics("own")["messages_pending"] == 0


@pytest.mark.parametrize("claims", [True, False])
def test_a_message_that_a_sender_relies_on_is_not_taken_along_nor_waited_for(layer, new_link, claims):
    link = new_link(layer)
    layer.send("own", {"number": 0}, unique="a")
    (taken,) = link.claim(["own"], 1, "w1")
    layer.send("own", {"number": 1}, unique="a")
    with another_sender():  # its own is not queued: number 1, which it has locked, will do
        link.finish("w1", BatchResult(returned=[taken]))
        found = link.claim(["own"], 10, "w1") if claims else link.receive_many(["own"], 10)
        assert [one.payload for one in found] == [taken.payload]
        assert layer.channel_statistics("own")["messages_pending"] == 1
    assert len(link.claim(["own"], 10, "w1")) == 1


# Scan hints.


def received(link, limit=20):
    return [one.payload for one in link.receive_many(["http.x"], limit)]


def sent(number):
    return [codec.encode({"number": one}) for one in range(number)]


@pytest.fixture
def at_once(monkeypatch):
    """Let a hint rise with the next look but one, and no look at the whole come by itself."""
    monkeypatch.setattr(ScanHints, "COSTLY", 0.0)
    monkeypatch.setattr(ScanHints, "LAG", 0.0)
    monkeypatch.setattr(ScanHints, "WHOLE_EVERY", 3600.0)


def late(layer, link):
    """Send one whose id is below that of another which was taken meanwhile; return the link's next two looks."""
    assert [received(link), received(link)] == [[], []]  # it is connected, and knows the session
    with transaction.atomic():
        layer.send("http.x", {"number": 0})
        in_thread(layer, lambda: layer.send("http.x", {"number": 1})).join(10)
        assert received(link) == sent(2)[1:]
        assert [received(link), received(link)] == [[], []]  # from here on the hint is above it
    return received(link), received(link)


def test_what_was_committed_late_is_found_by_the_next_look_at_the_whole(layer, new_link, at_once):
    link = new_link(layer)
    assert late(layer, link) == ([], [])
    link._hints._whole_at = 0.0
    assert received(link) == sent(1)


def test_what_was_committed_late_is_found_at_once_within_the_lag(layer, new_link, at_once, monkeypatch):
    monkeypatch.setattr(ScanHints, "LAG", 3600.0)
    assert late(layer, new_link(layer)) == (sent(1), [])


def test_nothing_that_waits_is_passed_over(layer, new_link, at_once):
    """A look that is full leaves what is behind it; another queue's ids are no matter."""
    link = new_link(layer)
    for number in range(6):
        layer.send("http.x", {"number": number})
        layer.send("http.y", {"number": number})
    assert received(link) == sent(6)  # the whole, which finds all of x
    assert len(link.receive_many(["http.y"], 2)) == 2
    assert [len(link.receive_many(["http.y", "http.x"], 3)) for _ in range(3)] == [3, 1, 0]


def test_after_a_crash_of_the_database_ids_start_anew_and_are_found(layer, new_link, at_once):
    link = new_link(layer)
    layer.send("http.x", {"number": 0})
    assert received(link) == sent(1)
    query("SELECT 1")
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE dbchannels_protocolmessage RESTART IDENTITY")
    terminate(link.session)
    with pytest.raises(LayerUnavailable):
        received(link)
    layer.send("http.x", {"number": 0})
    assert received(link) == sent(1)


def test_dead_rows_do_not_lead_a_look_away_from_the_queues_index(layer, new_link):
    """With what an ANALYZE says of them the primary key would cost no more, and go through those of all queues."""
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE dbchannels_protocolmessage")
        cursor.execute(
            "INSERT INTO dbchannels_protocolmessage (channel, recipients, reply_channel, payload, sent_at, expires_at)"
            " SELECT 'http.' || repeat('x', 90), '', '', '', now(), now() + interval '60 s'"
            " FROM generate_series(1, 40000)"
        )
        cursor.execute("DELETE FROM dbchannels_protocolmessage")
        cursor.execute("ANALYZE dbchannels_protocolmessage")
    link = new_link(layer)
    assert received(link) == []
    (one,) = prepared.BY_TEXT[sql.RECEIVE]
    values = {"queues": ["http." + "x" * 90], "limit": 20, "scan_from": [0]}
    rows = link.session.execute([("EXPLAIN (COSTS OFF) " + one.execute, values)])
    plan = "\n".join(row[0] for row in rows)
    assert "dbchannels_protocol_queue" in plan, plan
    values = {"channel": "http.request", "reply_channels": ["reply.a!b"] * 500}
    rows = link.session.execute([("EXPLAIN (COSTS OFF) " + sql.WITHDRAW, values)])
    plan = "\n".join(row[0] for row in rows)
    assert "Index Scan using dbchannels_protocol_queue" in plan, plan


# Prepared statements.


def prepared_names(link):
    return {name for (name,) in link.session.execute([("SELECT name FROM pg_prepared_statements", {})])}


def test_the_claim_is_planned_once_for_each_session(layer, new_link):
    link = new_link(layer)
    for number in range(2):
        layer.send("own", {})
        assert len(link.claim(["own"], 1, f"w{number}")) == 1
        assert prepared_names(link) == {"dbchannels_promote", "dbchannels_claim"}
        ((generic, custom),) = link.session.execute(
            [("SELECT sum(generic_plans), sum(custom_plans) FROM pg_prepared_statements", {})]
        )
        assert (generic, custom) == (2, 0)
        terminate(link.session)
        with pytest.raises(LayerUnavailable):
            link.claim(["own"], 1, "w")


@pytest.mark.parametrize("loss", ["DEALLOCATE ALL", "PREPARE dbchannels_claim AS SELECT 1"])
def test_a_connection_that_keeps_no_prepared_statements_is_served_without(layer, new_link, loss):
    """As behind a pooler that gives each transaction another connection: lost, or there already."""
    link = new_link(layer)
    layer.send_many([("own", {})] * 2)
    if loss.startswith("DEALLOCATE"):
        link.claim(["own"], 1, "w")
    link.session.execute([(loss, {})])
    while link.claim(["own"], 1, "w"):
        pass
    assert query("SELECT sum(attempts), count(*) FROM dbchannels_durablemessage WHERE claimed_by = 'w'") == [
        (2, 2)
    ]


# Plans.

ROWS = 1_000_000
CHANNELS = 10_000
MANY = 1000  # channels, for what reads many


def plan_of(statement, values):
    """Return the plan of a statement as text, after the tables were filled."""
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN (COSTS OFF) " + statement, values)
        return "\n".join(row[0] for row in cursor.fetchall())


@contextmanager
def without_indexes(cursor, *tables):
    """Drop the indexes of tables and make them again after the block: that is quicker than to fill them row by row."""
    cursor.execute(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
        " WHERE indrelid = ANY(%s::regclass[]) AND NOT indisprimary",
        [list(tables)],
    )
    indexes = cursor.fetchall()
    for name, _ in indexes:
        cursor.execute(f"DROP INDEX {name}")
    try:
        yield
    finally:
        for _, definition in indexes:
            cursor.execute(definition)


@pytest.fixture
def full_tables(layer):
    """Fill the tables with a million rows each: a tenth delayed, some claimed, some with a unique key."""
    durable, protocol = "dbchannels_durablemessage", "dbchannels_protocolmessage"
    with connection.cursor() as cursor, without_indexes(cursor, durable, protocol):
        cursor.execute(
            f"INSERT INTO {durable}"
            " (channel, payload, attempts, sent_at, due_at, unique_key, claimed_by, priority)"
            f" SELECT 'own' || g % {CHANNELS}, '', 0, now(), CASE WHEN g % 10 = 0 THEN now() + interval '1 h' END,"
            " CASE WHEN g % 20 = 1 THEN 'key-' || g ELSE '' END, CASE WHEN g % 1000 = 3 THEN 'w' || g % 50 END, g % 3"
            f" FROM generate_series(1, {ROWS}) AS g"
        )
        cursor.execute(
            f"INSERT INTO {protocol} (channel, recipients, reply_channel, payload, expires_at)"
            f" SELECT 'http.' || g % {CHANNELS}, '', '', '', now() + interval '1 h'"
            f" FROM generate_series(1, {ROWS}) AS g"
        )
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE dbchannels_durablemessage")
        cursor.execute("VACUUM ANALYZE dbchannels_protocolmessage")
    yield
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE dbchannels_durablemessage, dbchannels_protocolmessage")


def reading(number):
    """Return the statements that read so many channels, with their values and the index that they go by."""
    own = {"queues": [f"own{one}" for one in range(number)], "limit": 20, "worker": "w"}
    http = {"queues": [f"http.{one}" for one in range(number)], "limit": 20, "worker": "w"}
    http["scan_from"] = [0] * number
    limited = {**own, "at_most": [2] * number}
    return [
        (sql.RECEIVE, http, "dbchannels_protocol_queue"),
        (sql.RECEIVE_IN_FLIGHT, http, "dbchannels_protocol_queue"),
        (sql_durable.CLAIM, own, "dbchannels_durable_queue"),
        (sql_durable.CLAIM_LIMITED, limited, "dbchannels_durable_queue"),
        (sql_durable.LOCK_LIMITED, limited, "dbchannels_durable_queue"),
        (sql_durable.RECEIVE_DURABLE, own, "dbchannels_durable_queue"),
    ]


#: By their ids, or by the worker: either is an index of few rows.
CLAIMED = "Index Scan using dbchannels_durable"
TOKEN = {"worker": "w", "ids": [1, 2, 3], "attempts": [1, 1, 1]}
ONE = {
    "channels": ["own7"],
    "payloads": [b""],
    "priorities": [0],
    "delays": [0.0],
    "due_ats": [None],
    "tasks": [""],
}
#: The others on the way of a message, with the index that they go by.
HOT = [
    (sql_durable.SEND_UNIQUE, {**ONE, "unique_keys": ["key-21"]}, "dbchannels_durable_unique"),
    (sql_durable.PROMOTE, {}, "dbchannels_durable_due"),
    (sql_durable.NEXT_DUE, {}, "dbchannels_durable_due"),
    (sql_durable.ACKNOWLEDGE, TOKEN, CLAIMED),
    (sql_durable.RELEASE, TOKEN, CLAIMED),
    (sql_durable.RETRY, {**TOKEN, "seconds": [1.0, 1.0, 1.0], "tries": [1, 1, 1]}, CLAIMED),
    (sql_durable.GIVE_UP, {**TOKEN, "errors": ["", "", ""], "tries": [1, 1, 1]}, CLAIMED),
    (sql_durable.UNCLAIM, {"name": "w3"}, "dbchannels_durable_claims"),
    (sql_durable.RELEASE_ALL, {"worker": "w3"}, "dbchannels_durable_claims"),
    (sql.EXPIRE_MESSAGES, {"limit": 5000}, "dbchannels_protocolmessage_pkey"),
    (sql.REPLIES_OF, {"queue": "http.7"}, "dbchannels_protocol_queue"),
    (sql.REQUESTS_OF, {"queue": "reply.a!"}, "dbchannels_protocol_queue"),
    (sql.STATISTICS, {"channel": "own7"}, "dbchannels_durable_queue"),
    (sql.WITHDRAW, {"channel": "http.7", "reply_channels": ["a!b", "a!c"]}, "dbchannels_protocol_queue"),
]


@pytest.mark.slow
@pytest.mark.usefixtures("full_tables")
def test_with_a_million_rows_every_hot_statement_goes_by_an_index():
    for statement, values, index in [*reading(1), *reading(50), *reading(MANY), *HOT]:
        plan = plan_of(statement, values)
        assert index in plan, plan
        assert "Seq Scan on dbchannels_durablemessage" not in plan, plan
        assert "Seq Scan on dbchannels_protocolmessage" not in plan, plan
        assert "Sort Key: dbchannels" not in plan, plan  # of what was taken, and never of the table


def test_a_cleanup_drops_all_that_has_expired_however_much(new_layer, new_link, monkeypatch):
    monkeypatch.setattr("dbchannels.layers.postgresql.cleanup.BATCH", 3)
    short, layer = new_layer(expiry=0.01), new_layer()
    short.send_many([("http.request", {"number": number}) for number in range(10)])
    layer.send("http.request", {"number": 10})
    wait_until(lambda: layer.channel_statistics("http.request")["messages_pending"] == 1)
    new_link(layer).clean_up()
    assert query("SELECT count(*) FROM dbchannels_protocolmessage") == [(1,)]


def prepared_plan(link, costs="OFF"):
    values = {"queues": ["own0"], "limit": 20, "worker": "w"}
    rows = link.session.execute([(f"EXPLAIN (COSTS {costs}) " + prepared.CLAIM.execute, values)])
    return "\n".join(row[0] for row in rows)


@pytest.mark.parametrize(
    ("limits", "anew"),
    [
        ({"REPLAN_ANYWAY": 0}, True),
        ({"REPLAN_AFTER": 0, "OFTEN": 0}, True),
        ({"REPLAN_AFTER": 0, "SLOW": 0}, True),
        ({"REPLAN_AFTER": 0, "SLOW": 3600}, False),
        ({"OFTEN": 0, "SLOW": 0, "REPLAN_AFTER": 3600}, False),
    ],
    ids=["after a while", "often", "slow", "seldom", "a moment ago"],
)
def test_a_claim_is_planned_anew_when_it_pays(layer, new_link, monkeypatch, limits, anew):
    with connection.cursor() as cursor:
        cursor.execute(
            "TRUNCATE dbchannels_durablemessage"
        )  # or pages that are free already would take the rows
    link = new_link(layer)
    link.claim(["own0"], 1, "w")
    before = prepared_plan(link, "ON")
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO dbchannels_durablemessage (channel, payload, attempts, unique_key)"
            " SELECT 'own' || g % 2, '', 0, g::text FROM generate_series(1, 2000) AS g"
        )
    link.session._slow = False  # on a slow machine it may have been
    for name, value in limits.items():
        monkeypatch.setattr(prepared, name, value)
    link.session.execute([("SELECT 1", {})])
    link.claim(["own0"], 1, "w")
    for name in ("REPLAN_AFTER", "REPLAN_ANYWAY"):  # and not by the look at it
        monkeypatch.setattr(prepared, name, 3600)
    assert (prepared_plan(link, "ON") != before) == anew


def test_a_claim_that_was_planned_on_empty_tables_stays_with_the_index(layer, new_link):
    link = new_link(layer)
    with connection.cursor() as cursor:
        cursor.execute(
            "VACUUM ANALYZE dbchannels_durablemessage"
        )  # so that its size is known, and is nothing
    link.claim(["own0"], 1, "w")
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO dbchannels_durablemessage (channel, payload, attempts)"
            " SELECT 'own' || g % 2, '', 0 FROM generate_series(1, 2000) AS g"
        )
    plan = prepared_plan(link)
    assert "dbchannels_durable_queue" in plan, plan
    assert "Seq Scan on" not in plan, plan
    assert "Bitmap" not in plan, plan


def test_the_users_of_a_group_are_found_by_indexes(layer):
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO dbchannels_connection (reply_channel, server, path, user_id)"
            " SELECT 'reply.s!' || g, 's', '/', g % 5000 FROM generate_series(1, 100000) AS g"
        )
        cursor.execute(
            'INSERT INTO dbchannels_membership ("group", channel, recipient)'
            " SELECT 'group-' || g % 1000, 'reply.s!', g FROM generate_series(1, 100000) AS g"
        )
        cursor.execute("ANALYZE dbchannels_connection")
        cursor.execute("ANALYZE dbchannels_membership")
    plan = plan_of(sql_groups.GROUP_USERS, {"group": "group-7"})
    assert "Seq Scan" not in plan, plan
    assert len(layer.group_users("group-7")) == 5


def test_nobody_waits_for_a_replay_under_way(layer, new_link):
    make_dead_letters(new_link(layer), 2)
    ids = layer.dead_letter_ids()
    moved = []
    with transaction.atomic():
        assert layer.replay(ids[:1]) == 1
        in_thread(layer, lambda: moved.append(layer.replay(ids))).join(10)
        assert moved == [1]
    assert layer.channel_statistics("own")["messages_pending"] == 2


def test_a_replay_wakes_the_workers(layer, new_link):
    make_dead_letters(new_link(layer), 1)
    reader = new_link(layer)
    reader.wait(0)
    assert layer.replay([0]) == 0
    assert reader.wait(0) == set()
    layer.replay(layer.dead_letter_ids())
    assert reader.wait(10) == {"d"}


# Room.


def test_a_capacity_is_counted_once_for_many_sends(new_layer, monkeypatch, django_assert_num_queries):
    monkeypatch.setattr(CapacityCache, "VALID", 3600)  # seconds, however long the sends take
    layer = new_layer(capacity=1000)
    layer.send("http.request", {})
    with django_assert_num_queries(100):  # one statement each, the counting ones would be two
        for _ in range(100):
            layer.send("http.request", {})


def test_a_sender_never_exceeds_a_capacity(new_layer):
    layer = new_layer(capacity=50)
    sent = 0
    with pytest.raises(ChannelFull):
        while True:
            layer.send("http.request", {})
            sent += 1
    assert sent == layer.channel_statistics("http.request")["messages_pending"] == 50
