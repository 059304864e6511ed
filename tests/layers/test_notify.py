"""Whether wakeups arrive is found out by a probe, and said once; so is a queue that fills, and a pooler between."""

from __future__ import annotations

import logging
import threading
from unittest.mock import Mock

import psycopg2
import pytest
from django.db import connections

from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.postgresql import session as session_module
from dbchannels.layers.postgresql import sql
from dbchannels.layers.postgresql import wakeup_check as module
from dbchannels.layers.postgresql.link import PostgreSQLLink
from dbchannels.layers.postgresql.session import connection_parameters
from dbchannels.layers.postgresql.wakeup_check import PROBE, WakeupCheck
from dbchannels.testing.contract.case import DEADLINE, raises, wait_until
from tests import kinds

on_postgresql = kinds.only("postgresql")

FAILING = "Wakeups do not arrive: the poll finds the messages every 1 s. "
AGAIN = "Wakeups arrive again."


class Database:
    """Answers what the check asks, and says what came of it."""

    def __init__(self):
        self.usage = 0.0
        self.sends = True
        self.sent = []

    def __call__(self, statement, values):
        if statement == sql.PROBE and self.sends:
            self.sent.append(values["wake"])
        return [(self.usage, statement == sql.PROBE and self.sends, None)]


@pytest.fixture
def database():
    """One whose notifications go nowhere."""
    return Database()


def wait(check, *payloads, generation=1):
    """Wait as a link does whose session hears these payloads."""
    session = Mock(listens=True, generation=generation, wait=Mock(return_value=set(payloads)))
    return link_of(check, session).wait(0.0)


def link_of(check, session):
    return PostgreSQLLink(Mock(wakeup_check=check, poll_interval=lambda: 1.0), session)


@pytest.fixture
def check(monkeypatch):
    """A check of a process that listens and has waited; a probe is overdue at once."""
    monkeypatch.setattr(module, "PROBE_WITHIN", -3600.0)
    made = WakeupCheck(lambda: 1.0)
    wait(made)
    return made


@pytest.fixture
def said(caplog):
    """Return the beginnings of all log lines, shortened to what they are known by."""
    known = (FAILING, AGAIN, "The database's queue", "A pooler in transaction mode")

    def lines():
        texts = [record.getMessage() for record in caplog.records]
        return [next((one for one in known if text.startswith(one)), text) for text in texts]

    return lines


# Probes.


def test_probes_that_arrive_are_nothing_to_speak_of(check, database, said):
    for _ in range(3):
        check._looked_at = -3600.0
        check.look(database)
        assert wait(check, "h", database.sent[-1]) == {"h"}
    assert (len(database.sent), said()) == (3, [])


def test_one_that_does_not_arrive_is_said_once_and_so_is_their_coming_back(check, database, said):
    for _ in range(4):
        check.look(database)
    assert said() == [FAILING]
    wait(check, database.sent[-1])
    assert said() == [FAILING, AGAIN]
    check._looked_at = -3600.0
    check.look(database)
    check.look(database)
    assert said() == [FAILING, AGAIN, FAILING]


def test_while_they_arrive_one_in_half_a_minute_is_enough(check, database):
    for _ in range(5):
        check.look(database)
        wait(check, database.sent[-1])
    assert len(database.sent) == 1


def test_one_that_is_not_overdue_is_waited_for(check, database, said, monkeypatch):
    monkeypatch.setattr(module, "PROBE_WITHIN", 3600.0)
    for _ in range(3):
        check.look(database)
    assert (len(database.sent), said()) == (1, [])


def test_while_nobody_waits_none_is_missed(database, said, monkeypatch):
    """A worker that always has messages never waits, and hears nothing."""
    monkeypatch.setattr(module, "PROBE_WITHIN", 0.0)
    check = WakeupCheck(lambda: 1.0)
    check.listener = 1
    for _ in range(3):
        check.look(database)
    assert said() == []
    wait(check)  # it has waited, long enough, and has heard none
    check.look(database)
    assert said() == [FAILING]


def test_a_wait_that_ends_with_its_session_proves_nothing(database, said, monkeypatch):
    monkeypatch.setattr(module, "PROBE_WITHIN", 0.0)
    check = WakeupCheck(lambda: 1.0)
    check.listener = 1
    check.look(database)
    ended = Mock(listens=True, wait=Mock(side_effect=LayerUnavailable))
    with pytest.raises(LayerUnavailable):
        link_of(check, ended).wait(0.0)
    check.look(database)
    assert said() == []


def test_who_does_not_listen_sends_none(database, said):
    check = WakeupCheck(lambda: 1.0)
    for _ in range(3):
        check.look(database)
    assert (database.sent, said()) == ([], [])


def test_one_sent_before_a_reconnect_proves_nothing(check, database, said):
    check.look(database)
    wait(check, generation=2)
    check.look(database)
    assert said() == []


def test_probes_of_others_are_for_nobody(check):
    assert wait(check, PROBE + "other", "d") == {"d"}


def test_none_is_missed_that_was_not_sent(check, database, said):
    database.sends = False
    for _ in range(3):
        check.look(database)
    assert said() == []


def test_a_queue_that_fills_is_said_once_a_minute(check, database, said):
    database.usage = 0.09
    check.look(database)
    assert said() == []
    database.usage = 0.12
    for _ in range(3):
        check.look(database)
    assert said().count("The database's queue") == 1
    check._queue_fills._logged_at -= 61
    check.look(database)
    assert said().count("The database's queue") == 2


# On the database.


@on_postgresql
def test_a_probe_comes_from_one_session_to_another(layer, new_link, said):
    listener, cleaner = new_link(layer), layer.link(listen=False)
    listener.wait(0)
    cleaner.clean_up()
    assert layer.wakeup_check._probe is not None
    wait_until(lambda: listener.wait(DEADLINE) == set() and layer.wakeup_check._probe is None)
    assert said() == []
    cleaner.close()


@on_postgresql
def test_a_worker_that_listens_itself_is_sent_its_probe_by_django(layer, new_link):
    link = new_link(layer)
    link.wait(0)
    asked = []
    layer.query_for_check = lambda statement, values: asked.append(statement) or [(0.0, True, "")]
    link.clean_up()
    assert asked == [sql.PROBE]


@on_postgresql
def test_a_thread_beside_the_one_that_waits_sends_no_probe(layer, new_link):
    """It would need a connection of Django's of its own."""
    link = new_link(layer)
    link.wait(0)
    layer.query_for_check = lambda statement, values: pytest.fail("It asked.")
    thread = threading.Thread(target=link.clean_up)
    thread.start()
    thread.join(DEADLINE)
    assert layer.wakeup_check._probe is None


@on_postgresql
@pytest.mark.parametrize("error", ["OperationalError", "InterfaceError", "DatabaseError"])
def test_a_probe_by_django_in_an_outage_is_one_sentence(layer, monkeypatch, error):
    def fail(*_):
        with connections["default"].wrap_database_errors:
            raise getattr(connections["default"].Database, error)("gone\nin two lines")

    monkeypatch.setattr(layer, "_query", fail)
    with pytest.raises(LayerUnavailable) as refused:
        layer.query_for_check(sql.QUEUE_USAGE, {})
    assert str(refused.value) == "gone"


@on_postgresql
def test_without_wakeups_nothing_is_probed(new_layer, new_link):
    silent = new_layer(wakeups=False)
    link = new_link(silent)
    link.wait(0)
    link.clean_up()
    assert silent.wakeup_check._probe is None


@on_postgresql
def test_a_full_queue_is_sent_no_probe(layer, monkeypatch):
    monkeypatch.setattr(sql, "PROBE", sql.PROBE.replace("< 0.5", "< 0"))
    ((usage, sent, _),) = layer.query_for_check(sql.PROBE, {"wake": "probe.1"})
    assert (0.0 <= usage < 0.5, sent) == (True, False)


# A pooler.


@on_postgresql
def test_nothing_is_said_of_a_direct_connection(layer, new_link, said):
    layer.check()
    link = new_link(layer)
    link.claim(["own"], 1, "w1")
    assert (said(), link.session.pooled, bool(link.session._prepared)) == ([], False, True)


@on_postgresql
def test_a_pooler_that_gives_sessions_one_backend_is_said_at_the_start(layer, said, monkeypatch):
    monkeypatch.setattr(sql, "FIND", sql.FIND.replace("pg_catalog.pg_backend_pid()", "0"))
    monkeypatch.setattr(sql, "BACKEND", "SELECT 0")
    layer.check()
    assert said() == ["A pooler in transaction mode"]


@on_postgresql
def test_a_pooler_with_a_backend_for_each_session_is_none_to_speak_of(layer, said, monkeypatch):
    monkeypatch.setattr(sql, "FIND", sql.FIND.replace("pg_catalog.pg_backend_pid()", "0"))
    layer.check()
    assert said() == []


@on_postgresql
def test_nothing_is_set_or_prepared_through_a_pooler(layer, new_link, monkeypatch):
    """It would stay in a session of the database's that the site's own statements get next."""
    monkeypatch.setattr(sql, "FIND", sql.FIND.replace("pg_catalog.pg_backend_pid()", "0"))
    link = new_link(layer)
    layer.send("own", {})
    assert len(link.claim(["own"], 1, "w1")) == 1
    assert link.session.execute([("SELECT count(*) FROM pg_prepared_statements", {})]) == [(0,)]
    assert link.session.execute([("SHOW enable_seqscan", {})]) == [("on",)]
    assert link.session.execute([("SHOW search_path", {})]) == [
        ("pg_catalog, pg_temp",)
    ]  # within a transaction
    with link.session._connection.cursor() as cursor:
        cursor.execute("SHOW search_path")
        assert cursor.fetchone() == ('"$user", public',)


@on_postgresql
def test_the_layers_own_connections_go_the_direct_way(new_layer):
    layer = new_layer(direct={"HOST": "127.0.0.1", "PORT": "1"})
    layer.send("own", {})
    with raises(LayerUnavailable) as refused:
        layer.check()
    assert "127.0.0.1" in refused.sentence


# Notifications that are not ours.


@pytest.fixture
def stranger():
    """A session of another program's."""
    settings = connections["default"].settings_dict
    made = psycopg2.connect(**connection_parameters(settings, "stranger"))
    made.autocommit = True
    yield made.cursor()
    made.close()


FLOOD = "SELECT pg_notify('dbchannels', repeat('x', 7990) || g) FROM generate_series(1, {0}) AS g"


@pytest.fixture
def flooded(new_layer, new_link, stranger):
    """A layer, and a link with 1,000 strange notifications in front of it."""
    layer = new_layer(poll_interval=3600)
    link = new_link(layer)
    link.wait(0)
    stranger.execute(FLOOD.format(1000))
    return layer, link


@on_postgresql
def test_garbage_is_a_wakeup(flooded, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG, "dbchannels")
    monkeypatch.setattr(session_module, "PAUSE", 0)
    _, link = flooded
    assert link.wait(DEADLINE) == set()  # at once, long before the poll
    assert caplog.records == []


@on_postgresql
def test_while_the_reader_rests_garbage_is_dropped_and_what_is_ours_is_heard(flooded, monkeypatch):
    monkeypatch.setattr(session_module, "PAUSE", DEADLINE)
    layer, link = flooded
    layer.send("own", {})
    assert link.wait(DEADLINE) == {"d"}
    assert link.session._connection.notifies == []


@on_postgresql
def test_the_names_of_queues_are_short_enough(layer, new_link):
    link = new_link(layer)
    link.wait(0)
    name = "reply." + "a" * 92 + "!"
    layer.send(name + "b", {})
    assert link.wait(DEADLINE) == {name}
