"""The database takes a statement and its answer never comes: noticed in time, and nothing stays in no hands."""

from __future__ import annotations

import gc
import threading
import time

import pytest
from django.conf import settings
from django.db import connection

from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.operations import BatchResult, Delivery
from dbchannels.layers.postgresql import session as session_module
from dbchannels.layers.postgresql.session import Session
from dbchannels.models import DurableMessage, InFlight
from dbchannels.testing.contract.case import drain, wait_until
from tests import kinds
from tests.proxy import proxied

pytestmark = [kinds.only("postgresql"), pytest.mark.usefixtures("layer")]


NAME = "dbchannels test silence"
PATIENT, IMPATIENT = (
    3.0,
    0.2,
)  # seconds: a busy machine answers within the first, and nothing comes in a silence


@pytest.fixture
def answer_within(monkeypatch):
    """Sessions that wait for an answer for so many seconds; ``answer_within(IMPATIENT)`` changes that."""

    def change(seconds):
        monkeypatch.setattr(session_module, "ANSWER_WITHIN", seconds)

    change(PATIENT)
    monkeypatch.setattr(session_module, "_deadlines", session_module._Deadlines())
    return change


@pytest.fixture
def proxy_and_session(answer_within):
    """A session through a proxy."""
    entry = {**settings.DATABASES["default"], "NAME": connection.settings_dict["NAME"]}
    with proxied(entry) as (proxy, through):
        session = Session(through, NAME, listen=False)
        yield proxy, session
        session.close()


def backends(name=NAME):
    """Return the process ids of a session's other ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", [name])
        return [pid for (pid,) in cursor.fetchall()]


def value_of(session, expression):
    """Return what the database says that an expression is."""
    ((value,),) = session.execute([(f"SELECT {expression}", {})])
    return value


# The deadline.


def test_silence_ends_a_statement_and_the_next_one_has_a_new_session(proxy_and_session, answer_within):
    proxy, session = proxy_and_session
    assert value_of(session, "1") == 1
    (before,) = backends()
    proxy.fall_silent()
    answer_within(IMPATIENT)
    with pytest.raises(LayerUnavailable, match=r"no answer within 0\.2 s"):
        value_of(session, "2")
    assert backends() == [before]  # the other end has heard of nothing
    proxy.speak()
    answer_within(PATIENT)
    assert value_of(session, "3") == 3


def test_a_new_session_ends_the_old_one_whose_end_nobody_told(proxy_and_session, answer_within):
    proxy, session = proxy_and_session
    session.execute([("SELECT pg_advisory_lock(42)", {})])
    (before,) = backends()
    proxy.forget()
    answer_within(IMPATIENT)
    with pytest.raises(LayerUnavailable):
        value_of(session, "1")
    answer_within(PATIENT)
    assert backends() == [before]
    assert value_of(session, "2") == 2
    wait_until(lambda: before not in backends())
    assert value_of(session, "pg_try_advisory_lock(42)") is True


def test_silence_while_connecting_ends_too(proxy_and_session, monkeypatch):
    proxy, session = proxy_and_session
    monkeypatch.setitem(session._settings, "OPTIONS", {"connect_timeout": 2})
    proxy.fall_silent()
    with pytest.raises(LayerUnavailable):
        value_of(session, "1")
    proxy.speak()
    assert value_of(session, "2") == 2


def test_a_statement_in_time_and_a_session_at_rest_are_left_alone(proxy_and_session, answer_within):
    _, session = proxy_and_session
    value_of(session, "pg_sleep(0.05)")
    answer_within(IMPATIENT)
    session.wait(0.5)
    answer_within(PATIENT)
    assert value_of(session, "1") == 1
    assert session.generation == 1


def test_each_session_is_watched_and_none_that_was_closed(proxy_and_session):
    _, session = proxy_and_session
    for _ in range(3):
        session.execute([("SELECT 1", {})])
        assert list(session_module._deadlines.sessions) == [session]
        session.close()
        assert list(session_module._deadlines.sessions) == []
    assert sum(thread.name == "deadlines" for thread in threading.enumerate()) >= 1


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_session_that_is_forgotten_ends(answer_within):
    session = Session(
        {**settings.DATABASES["default"], "NAME": connection.settings_dict["NAME"]}, NAME, False
    )
    assert value_of(session, "1") == 1
    assert len(backends()) == 1
    time.sleep(PATIENT / 10 * 2)  # the thread of the deadlines has looked at it
    del session
    gc.collect()
    wait_until(lambda: not backends())


def test_two_threads_may_close_a_session_at_once(proxy_and_session, monkeypatch):
    _, session = proxy_and_session
    value_of(session, "1")
    drop = session_module._deadlines.drop

    def close_meanwhile(one):
        monkeypatch.setattr(session_module._deadlines, "drop", drop)
        one.close()
        drop(one)

    monkeypatch.setattr(session_module._deadlines, "drop", close_meanwhile)
    session.close()
    assert value_of(session, "2") == 2


def test_a_transaction_of_a_silent_client_ends_by_itself(proxy_and_session):
    _, session = proxy_and_session
    with session.transaction():
        assert value_of(session, "current_setting('idle_in_transaction_session_timeout')") == "15s"
    assert value_of(session, "current_setting('idle_in_transaction_session_timeout')") == "0"


# What was taken when the answer was lost.


@pytest.fixture
def lose_answers(monkeypatch):
    """Let the next statements of a link be done, and their answers be lost."""

    def lose(link, number=1):
        execute = link.session._execute
        left = [number]

        def execute_and_lose(statements):
            rows = execute(statements)
            if not left[0] or statements[-1][0].startswith("PREPARE"):
                return rows
            left[0] -= 1
            raise LayerUnavailable("no answer")

        monkeypatch.setattr(link.session, "_execute", execute_and_lose)

    return lose


@pytest.fixture
def worker(layer, new_link):
    """A link that is a worker's."""
    link = new_link(layer)
    link.register("w1", "worker")
    return link


def test_a_claim_without_an_answer_is_claimed_again(layer, worker, lose_answers):
    layer.send_many([("own", {}), ("own", {})])
    worker.claim([], 1, "w1")
    layer_rows = DurableMessage.objects.using(layer.database)
    worker.claim(["other"], 1, "w1")  # the statement is prepared by now
    lose_answers(worker)
    with pytest.raises(LayerUnavailable):
        worker.claim(["own"], 2, "w1")
    assert set(layer_rows.values_list("claimed_by", "attempts")) == {("w1", 1)}
    assert [(one.attempt, one.durable) for one in worker.claim(["own"], 2, "w1")] == [(1, True)] * 2


def test_no_other_workers_claim_is_touched(layer, worker, new_link, lose_answers):
    layer.send_many([("own", {}), ("own", {})])
    new_link(layer).claim(["own"], 1, "w2")
    lose_answers(worker)
    with pytest.raises(LayerUnavailable):
        worker.claim(["own"], 1, "w1")
    assert len(worker.claim(["own"], 2, "w1")) == 1
    assert DurableMessage.objects.using(layer.database).filter(claimed_by="w2").count() == 1


def test_a_pop_without_an_answer_is_told_to_its_client(layer, worker, lose_answers):
    layer.send("http.request", {"reply_channel": "reply.s1!c1"})
    lose_answers(worker)
    with pytest.raises(LayerUnavailable):
        worker.receive_many(["http.request"], 1, "w1")
    assert InFlight.objects.using(layer.database).get().lines() == [("http.request", "reply.s1!c1")]
    assert worker.receive_many(["http.request"], 1, "w1") == []
    assert drain(layer, "reply.s1!") == [{"lost": "worker died", "channel": "http.request"}]
    worker.receive_many(["http.request"], 1, "w1")
    assert drain(layer, "reply.s1!") == []


def test_what_was_finished_after_the_doubt_is_not_told_as_lost(layer, worker, lose_answers):
    lose_answers(worker)
    with pytest.raises(LayerUnavailable):
        worker.receive_many(["http.request"], 1, "w1")
    layer.send("http.request", {"reply_channel": "reply.s1!c1"})
    assert [type(one) for one in worker.receive_many(["http.request"], 1, "w1")] == [Delivery]
    worker.finish("w1", BatchResult())
    worker.receive_many(["http.request"], 1, "w1")
    assert drain(layer, "reply.s1!") == []
