"""The layer on MariaDB: the contract, and what differs there from other databases."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import timedelta
from typing import Any

import pytest
import websocket
from django.core.management import call_command
from django.db import OperationalError, connections
from django.test import override_settings
from django.urls import reverse
from django.utils import timezone

from dbchannels import codec, conf
from dbchannels.checks.site import check_mysql
from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers import channel_layers, make_layer
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.database import DEADLOCKS, DatabaseLayer
from dbchannels.layers.database.mysql import packet_problem, problems
from dbchannels.layers.database.writer import Writer
from dbchannels.layers.operations import Connect, GroupDiscard
from dbchannels.models import (
    Connection,
    DeadLetter,
    DurableMessage,
    History,
    Membership,
    Process,
    ProtocolMessage,
)
from dbchannels.testing.contract.case import in_thread, wait_until
from dbchannels.testing.layers import LayerContract
from tests.browser.demosite import DemoSite
from tests.conftest import empty_tables
from tests.mariadb import MISSING, MariaDB, mariadb
from tests.test_admin import list_url, url
from tests.test_admin_acts import choose, confirm
from tests.test_examples import manage

pytestmark = [
    pytest.mark.mariadb,
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
    pytest.mark.usefixtures("mariadb_tables"),
    # PyMySQL leaves the socket of a failed connection to the garbage collector.
    pytest.mark.filterwarnings(
        r"ignore:Exception ignored in. <socket\.socket:pytest.PytestUnraisableExceptionWarning"
    ),
]


@pytest.fixture(scope="module")
def server(django_db_setup: None, django_db_blocker: Any) -> Iterator[MariaDB]:
    """A server with a database at the alias "mariadb", in which our tables are."""
    with mariadb() as server, django_db_blocker.unblock():
        entry = server.database("dbchannels")
        others = dict(connections.settings)
        connections.settings.update(connections.configure_settings({**others, "mariadb": entry}))
        try:
            call_command("migrate", database="mariadb", verbosity=0, skip_checks=True, run_syncdb=True)
            yield server
        finally:
            connections["mariadb"].close()
            del connections["mariadb"], connections.settings["mariadb"]


@pytest.fixture
def mariadb_tables(server: MariaDB, django_db_blocker: Any) -> Iterator[None]:
    """Open the database to the test and its threads, and empty the tables after it."""
    with django_db_blocker.unblock():
        yield
        empty_tables("mariadb")
        connections["mariadb"].close()
        channel_layers.clear()


class TestMariaDBLayer(LayerContract):
    layer_class = DatabaseLayer
    database = "mariadb"


@pytest.fixture
def layer(mariadb_tables: None) -> Iterator[BaseLayer]:
    """The layer, with the default options."""
    one = make_layer(conf.LayerSettings("default", None, "mariadb", None, conf.OPTIONS))
    yield one
    one.close()


def test_names_differ_by_case_and_by_a_space_at_the_end(layer):
    assert isinstance(layer, DatabaseLayer)
    layer.send("Mail", {"number": 1})
    layer.send("mail", {"number": 2})
    assert layer.receive(["MAIL"]) == (None, None)
    assert layer.receive(["mail"]) == ("mail", {"number": 2})
    for group in ("Room", "room"):
        layer.group_add(group, f"reply.a!{group}")
    assert (layer.group_channels("Room"), layer.group_channels("ROOM")) == (["reply.a!Room"], [])
    for key in ("a", "a ", "A", "\N{LATIN SMALL LETTER A WITH ACUTE}", "a"):
        layer.send("work", {}, unique=key)
    assert layer.channel_statistics("work")["messages_pending"] == 4


def test_text_has_all_characters_in_a_database_that_is_not_in_utf_8(layer):
    """The server's default is latin1."""
    layer.link().apply([Connect("reply.a!b", "a", "/\N{SNOWMAN}\U0001f600/")])
    layer.identify("reply.a!b", "\U0001f600")
    layer.group_add("g", "reply.a!b")
    assert layer.group_users("g") == ["\U0001f600"]
    assert Connection.objects.using("mariadb").get().path == "/\N{SNOWMAN}\U0001f600/"


def test_times_are_not_the_servers_local_time(server, layer):
    server.execute("SET GLOBAL time_zone = '+09:00'")
    connections["mariadb"].close()
    layer.group_add("g", "reply.a!b")
    layer.link().apply([Connect("reply.a!b", "a", "/")])
    for moment in (
        Membership.objects.using("mariadb").get().added_at,
        Connection.objects.using("mariadb").get().connected_at,
    ):
        assert abs(timezone.now() - moment) < timedelta(hours=1)
    server.execute("SET GLOBAL time_zone = 'SYSTEM'")


def test_readers_take_each_message_once(layer):
    """SKIP LOCKED: none waits for another, and none fails by a deadlock for good."""
    for number in range(200):
        layer.send("http.request" if number % 2 else "own", {"number": number})
    taken: list[int] = []
    start = threading.Barrier(4)

    def read() -> None:
        link = layer.link()
        start.wait()
        while layer.global_statistics()["messages_pending"]:
            try:
                name = threading.current_thread().name
                found = link.receive_many(["http.request"], 5) + link.claim(["own"], 5, name)
            except LayerUnavailable:  # a deadlock: its caller tries again
                continue
            taken.extend(codec.decode(one.payload)["number"] for one in found)
        link.close()

    readers = [in_thread(layer, read) for _ in range(4)]
    for reader in readers:
        reader.join(60)
    assert sorted(taken) == list(range(200))


def test_a_claim_reads_little_of_what_waits(layer):
    """Or a channel in which much waits would take the longer to empty, the more waits in it."""
    payload = codec.encode({})
    DurableMessage.objects.using("mariadb").bulk_create(
        [DurableMessage(channel="work", payload=payload) for _ in range(2000)], batch_size=500
    )
    link = layer.link()
    _rows("ANALYZE TABLE dbchannels_durablemessage")
    _rows("FLUSH STATUS")
    assert len(link.claim(["a", "work", "z"], 10, "w")) == 10
    read = sum(int(number) for _, number in _rows("SHOW SESSION STATUS LIKE 'Handler_read%'"))
    assert read < 200, f"{read} rows or keys were read."


def test_a_send_that_ends_in_a_deadlock_is_sent_again(server, layer):
    channels = ["reply.a!b", "reply.a!c"]
    for channel in channels:
        layer.group_add("g", channel)
    # By the unique key: a scan of the index on channel and recipient would lock both rows at once.
    key = "`group` = 'g' AND channel = 'reply.a!' AND recipient = %s"
    lock = (
        f"SELECT 1 FROM dbchannels_membership FORCE INDEX (dbchannels_membership_once) WHERE {key} FOR UPDATE"
    )
    with closing(connections.create_connection("mariadb")) as other, other.cursor() as cursor:
        cursor.execute("SET autocommit = 0")
        # The transaction that has changed less is the one that the server rolls back.
        cursor.execute("CREATE TABLE IF NOT EXISTS heavy (number INT) ENGINE = InnoDB")
        cursor.executemany("INSERT INTO heavy VALUES (%s)", [(number,) for number in range(500)])
        cursor.execute(lock, ["c"])
        writing = in_thread(layer, lambda: layer.write([discard("b"), discard("c")]))
        # Not information_schema.innodb_trx: polled more often than ten times a second, it keeps what it showed first.
        wait_until(lambda: "LOCK WAIT" in innodb_status(server))
        cursor.execute(lock, ["b"])  # now each waits for the other
        cursor.execute("COMMIT")
    writing.join(30)
    assert "LATEST DETECTED DEADLOCK" in innodb_status(server)
    assert layer.group_channels("g") == []


def innodb_status(server: MariaDB) -> str:
    """Return what InnoDB says of its transactions and locks."""
    ((_, _, status),) = server.execute("SHOW ENGINE INNODB STATUS")
    return status


def discard(recipient: str) -> GroupDiscard:
    """Return an operation that takes a member out of the group."""
    return GroupDiscard("g", f"reply.a!{recipient}")


def test_a_deadlock_that_comes_again_and_again_is_raised_and_in_the_callers_transaction_at_once(
    layer, monkeypatch
):
    tries = []

    def fail(writer: Writer, operation: Any) -> None:
        tries.append(operation)
        raise OperationalError(1213, "Deadlock found when trying to get lock")

    monkeypatch.setattr(Writer, "write", fail)
    with pytest.raises(OperationalError):
        layer.send("own", {})
    assert len(tries) == DEADLOCKS + 1
    tries.clear()
    with pytest.raises(OperationalError), layer.atomic():
        layer.send("own", {})
    assert len(tries) == 1


def test_a_session_that_is_killed_and_a_server_that_restarts_are_outages(server, layer):
    link = layer.link()
    layer.send("http.request", {"number": 1})

    def kill() -> None:
        ((number,),) = _rows("SELECT CONNECTION_ID()")
        server.execute(f"KILL {number}")

    def restart() -> None:
        server.stop()
        with pytest.raises(LayerUnavailable, match="The layer's database cannot be used now") as gone:
            link.receive_many(["http.request"], 1)
        assert gone.value.may_pass
        server.start()

    kill()
    layer.check()
    for fault in (kill, restart):
        link.renew("nobody")
        fault()
        with suppress(LayerUnavailable):  # what the session says at its next use
            link.renew("nobody")
        link.renew("nobody")
    assert [codec.decode(one.payload) for one in link.receive_many(["http.request"], 5)] == [{"number": 1}]


def _rows(statement: str) -> list[tuple[Any, ...]]:
    with connections["mariadb"].cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def test_what_does_not_fit_is_reported(server, layer):
    connection = connections["mariadb"]
    (told,) = problems(connection, conf.OPTIONS["max_message_size"])
    assert told.startswith("A worker opens a new session for each message")
    connection.settings_dict["CONN_MAX_AGE"] = 60
    assert problems(connection, conf.OPTIONS["max_message_size"]) == []
    server.execute("SET GLOBAL max_allowed_packet = 2097152")
    connection.close()
    connection.settings_dict["OPTIONS"]["isolation_level"] = "repeatable read"
    try:
        told = problems(connection, conf.OPTIONS["max_message_size"])
        assert [one.split(",")[0] for one in told] == [
            "Its transactions are REPEATABLE-READ",
            "It takes statements of at most 2097152 bytes",
        ]
        with pytest.raises(LayerUnavailable, match="set max_allowed_packet to 2293760 or more"):
            layer.check()
        with override_settings(DBCHANNELS={"default": {"DATABASE": "mariadb"}}):
            found = check_mysql(None, databases=["mariadb"])
            assert [(one.id, one.msg.partition(". ")[0]) for one in found] == [
                ("dbchannels.W023", "The layer 'default' is on the database 'mariadb'")
            ] * 2
            assert check_mysql(None, databases=[]) == []
    finally:
        del connection.settings_dict["OPTIONS"]["isolation_level"]
        connection.settings_dict["CONN_MAX_AGE"] = 0
        server.execute("SET GLOBAL max_allowed_packet = 16777216")
        connection.close()
    layer.check()


def test_the_largest_message_fits_the_least_packet(server, layer):
    """Each byte is one that has to be escaped."""
    limit = conf.OPTIONS["max_message_size"]
    server.execute("SET GLOBAL max_allowed_packet = 2293760")
    connections["mariadb"].close()
    assert packet_problem(connections["mariadb"], limit) == ""
    message = {"bytes": b"'" * limit, "path": "'" * (codec.ENVELOPE - 100)}
    layer.send("http.request", message)
    server.execute("SET GLOBAL max_allowed_packet = 16777216")
    connections["mariadb"].close()
    assert layer.receive(["http.request"]) == ("http.request", message)


def test_the_layer_says_that_it_polls(layer):
    assert not layer.wakeups
    assert layer.describe() == "MariaDB, database dbchannels; readers poll every 0.05 s"


@pytest.mark.django_db(databases=["default", "mariadb"])
def test_the_admin_shows_the_rows_and_acts_on_them(layer, settings, admin_client):
    settings.DBCHANNELS = {"default": {"DATABASE": "mariadb"}}
    now, empty = timezone.now(), codec.encode({})
    message, later = {"channel": "jobs", "payload": empty, "sent_at": now}, now + timedelta(hours=1)
    process = {"kind": Process.WORKER, "host": "web1", "pid": 1, "lease_until": now}
    made = [
        layer.rows(DurableMessage).create(**message),
        layer.rows(DeadLetter).create(**message, failed_at=now, attempts=1, error="ValueError"),
        layer.rows(ProtocolMessage).create(**message, expires_at=later),
        layer.rows(History).create(group="chat", payload=empty, expires_at=later),
        layer.rows(Membership).create(group="chat", channel="reply.web!", recipient="abc"),
        layer.rows(Connection).create(reply_channel="reply.web!abc", server="web", path="/chat/"),
        layer.rows(Process).create(name="worker-1", **process),
    ]
    lists = [admin_client.get(list_url(type(row))) for row in made]
    pages = [admin_client.get(url(row)) for row in made]
    assert [response.status_code for response in lists + pages] == [200] * 2 * len(made)
    assert "jobs" in admin_client.get(reverse("admin:dbchannels_channelstate_changelist")).content.decode()
    confirm(admin_client, choose(admin_client, "replay", made[1]))
    assert (layer.rows(DeadLetter).count(), layer.rows(DurableMessage).count()) == (0, 2)


def test_the_chat_of_the_examples(server, tmp_path, monkeypatch):
    """Two visitors of a room read each other, through runchannels and its workers."""
    (tmp_path / "MySQLdb.py").write_text("import pymysql\n\npymysql.install_as_MySQLdb()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    entry = server.database("examples", "CHARACTER SET utf8mb4")
    site = DemoSite(entry, tmp_path)
    migrated = manage(entry, "migrate", "--verbosity", "0")
    assert migrated.returncode == 0, migrated.stderr
    try:
        address = site.demo().url.replace("http:", "ws:") + "/chat/tea/?name="
        ann, ben = (websocket.create_connection(address + name, timeout=15) for name in ("ann", "ben"))
        for number, visitor in enumerate((ann, ben, ann)):
            visitor.send(json.dumps({"type": "say", "text": f"\U0001f375 {number}"}))
            for listener in (ann, ben):
                assert hear(listener, "said")["line"]["text"] == f"\U0001f375 {number}"
        ben.close()
        assert hear(ann, "left")["person"]["name"] == "ben"
        ann.close()
    finally:
        site.end()


def hear(visitor: websocket.WebSocket, kind: str) -> Any:
    """Return the next frame of this kind; fail after 15 s without one: the server's pings come every 20."""
    while True:
        frame = json.loads(visitor.recv())
        if frame["type"] == kind:
            return frame
