"""Workers that end by themselves: when nothing is left, after so many messages, or when they have grown so far."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta

import pytest
from django.utils import timezone

from dbchannels import Channel, channel_layers, route
from dbchannels.exceptions import LayerUnavailable
from dbchannels.models import DeadLetter, DurableMessage, Process, Schedule
from dbchannels.routing.table import Routing
from dbchannels.testing.contract.case import drain, in_thread, waiting
from dbchannels.worker import limits
from dbchannels.worker.batch import BatchSizer
from dbchannels.worker.limits import Limits
from dbchannels.worker.worker import Worker
from tests import kinds


@pytest.fixture
def work(layer):
    """Run a worker to its end, in this thread; fail if it does not end."""
    made = []

    def run(*routes, **options):
        made.append(Worker(channel_layers["default"], Routing(routes), **options))
        stuck = threading.Timer(60, made[-1].stop)
        stuck.start()
        made[-1].run()
        assert stuck.is_alive(), "it did not end by itself"
        stuck.cancel()
        assert not layer.rows(Process).exists()
        return made[-1]

    yield run
    for one in made:
        one.link.close()


@kinds.on_all_databases
def test_a_burst_ends_when_nothing_is_left(layer, work):
    ran = []

    def chain(message):
        ran.append(message["number"])
        if message["number"] < 5:
            Channel("own").send({"number": message["number"] + 1})

    layer.send_many([("own", {"number": 4}), ("own", {"number": 4})])
    one = work(route("own", chain), burst=True)
    assert (ran, one.consumed, waiting(layer, "own")) == ([4, 4, 5, 5], 4, 0)


@kinds.on_databases
def test_a_burst_with_nothing_to_do_ends_at_once(layer, work):
    assert work(route("own", print), burst=True).consumed == 0


@kinds.on_databases
def test_a_burst_leaves_what_is_not_due_what_is_paused_and_what_others_run(layer, work, new_link):
    layer.send("own", {"number": 1}, delay=3600)
    layer.send("paused", {})
    layer.pause("paused")
    layer.send("own", {"number": 2})
    new_link(layer).register("w1", Process.WORKER)
    (taken,) = new_link(layer).claim(["own"], 1, "w1")
    assert taken.attempt == 1
    layer.send("own", {"number": 3})
    ran = []
    worker = Worker(
        layer,
        Routing([route("own", lambda message: ran.append(message["number"])), route("paused", print)]),
        burst=True,
    )
    worker.run()
    assert ran == [3]
    assert layer.rows(DurableMessage).count() == 3
    assert layer.rows(DurableMessage).get(claimed_by="w1").id == taken.id


@kinds.on_databases
def test_a_retry_waits_for_the_next_burst_and_a_dead_letter_is_no_error(layer, work):
    def fail(message):
        raise ValueError

    layer.send("own", {})
    assert work(route("own", fail, retries=1, backoff=3600), burst=True).consumed == 1
    assert waiting(layer, "own") == 1
    layer.reschedule([layer.rows(DurableMessage).get().id], delay=0)
    assert work(route("own", fail, retries=1, backoff=3600), burst=True).consumed == 1
    assert (waiting(layer, "own"), layer.rows(DeadLetter).count()) == (0, 1)


@kinds.on_databases
def test_a_periodic_message_that_is_due_is_sent_and_runs(layer, work):
    ran = []
    regular = route("own", lambda message: ran.append(message["scheduled_at"]), every=timedelta(hours=1))
    assert work(regular, burst=True).consumed == 0  # it is new, and due in an hour
    layer.rows(Schedule).update(next_at=timezone.now() - timedelta(minutes=5))
    assert work(regular, burst=True).consumed == 1
    assert work(regular, burst=True).consumed == 0
    assert len(ran) == 1


@kinds.on_databases
def test_two_bursts_at_once_run_each_message_once(layer):
    layer.send_many([("own", {"number": number}) for number in range(50)])
    ran, workers = [], []
    for _ in range(2):
        routing = Routing([route("own", lambda message: ran.append(message["number"]))])
        workers.append(Worker(channel_layers["default"], routing, burst=True))
    threads = [in_thread(layer, one.run) for one in workers]
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert sorted(ran) == list(range(50))


@kinds.on_all_databases
def test_a_burst_takes_what_a_dead_worker_had_claimed(new_layer, new_link):
    """Where there is only cron, no other process would ever give it back."""
    layer = new_layer(lease=1.0)
    link, ran = new_link(layer), []
    link.register("w1", Process.WORKER)
    layer.send("own", {})
    assert len(link.claim(["own"], 1, "w1")) == 1
    link.close()  # with its lock
    layer.rows(Process).update(lease_until=timezone.now() - timedelta(minutes=1))
    worker = Worker(layer, Routing([route("own", lambda message: ran.append(message.attempt))]), burst=True)
    worker.run()
    assert ran == [2]
    assert not layer.rows(Process).exists()


@kinds.only("postgresql")
def test_a_burst_does_not_wait_for_ever_for_a_claim_that_nobody_gives_back(new_layer, new_link, monkeypatch):
    layer = new_layer(lease=1.0)
    worker = Worker(layer, Routing([route("own", print)]), burst=True)
    asked = []
    monkeypatch.setattr(worker.link, "awaits_claims", lambda channels: asked.append(channels) or True)
    worker.run()
    assert asked and not worker.stopping.is_set()


@pytest.mark.parametrize("where", ["claim", "finish", "register"])
@kinds.on_databases
def test_a_burst_gives_up_when_an_outage_lasts_too_long(layer, monkeypatch, where):
    worker = Worker(layer, Routing([route("own", print)]), burst=True, patience=0.2)
    layer.send("own", {})
    failed = []

    def away(*arguments, **options):
        failed.append(where)
        raise LayerUnavailable("The database is away.")

    monkeypatch.setattr(worker.link, where, away)
    with pytest.raises(LayerUnavailable, match="is away"):
        worker.run()
    assert len(failed) > 1
    worker.link.close()


@kinds.on_databases
def test_an_outage_that_ends_in_time_does_not_end_a_burst(layer, monkeypatch):
    ran = []
    worker = Worker(layer, Routing([route("own", lambda message: ran.append(1))]), burst=True, patience=3600)
    layer.send("own", {})
    claim, left = worker.link.claim, [1, 2, 3]

    def away(*arguments):
        if left:
            left.pop()
            raise LayerUnavailable("The database is away.")
        return claim(*arguments)

    monkeypatch.setattr(worker.link, "claim", away)
    worker.run()
    assert ran == [1]


# Limits.


@kinds.on_databases
def test_a_worker_ends_after_so_many_messages_and_gives_back_the_rest(layer, work, monkeypatch, caplog):
    monkeypatch.setattr(limits.random, "uniform", lambda least, most: most)
    monkeypatch.setattr(
        BatchSizer, "limit", property(lambda self: 10, lambda self, learned: None), raising=False
    )
    layer.send_many([("own", {"number": number}) for number in range(5)])
    ran = []
    with caplog.at_level(logging.INFO, "dbchannels.worker"):
        one = work(route("own", lambda message: ran.append(message["number"])), limits=Limits(messages=2))
    assert (ran, one.wants_successor, waiting(layer, "own")) == ([0, 1], True, 3)
    assert (
        f"Worker {one.name} has run 2 messages (--max-messages), so another one takes its place."
        in caplog.messages
    )
    assert set(layer.rows(DurableMessage).values_list("claimed_by", "attempts")) == {(None, 0)}


@kinds.on_databases
def test_a_worker_ends_when_it_has_grown_too_far(layer, work, monkeypatch, caplog):
    kept = []
    layer.send_many([("own", {}) for _ in range(3)])
    monkeypatch.setattr(limits, "resident_memory", lambda: 50 * 2**20 + sum(map(len, kept)))
    with caplog.at_level(logging.INFO, "dbchannels.worker"):
        one = work(route("own", lambda message: kept.append(b"." * 2**25)), limits=Limits(memory=100 * 2**20))
    assert (one.consumed, one.wants_successor, waiting(layer, "own")) == (2, True, 1)
    assert "has 114 MiB of memory (--max-memory)" in caplog.text


@kinds.only("sqlite")
def test_what_the_last_message_sent_is_written(layer, work):
    layer.send("own", {})
    work(route("own", lambda message: Channel("out").send({"from": "own"})), limits=Limits(messages=1))
    assert drain(layer, "out") == [{"from": "own"}]


@kinds.only("sqlite")
def test_a_worker_that_is_stopped_wants_no_successor(layer, work):
    layer.send("own", {})
    stopped = []
    one = Worker(
        layer, Routing([route("own", lambda message: stopped.append(one.stop()))]), limits=Limits(messages=1)
    )
    one.run()
    assert stopped and not one.wants_successor


def test_limits_differ_by_a_tenth_at_most():
    reached = [next(n for n in range(1, 200) if Limits(messages=100).reached(n)) for _ in range(200)]
    assert 90 <= min(reached) < max(reached) <= 100
    assert Limits().reached(10**9) == ""


def test_a_limit_below_what_a_worker_needs_is_warned_of(caplog):
    Limits(memory=1)
    assert "raise --max-memory" in caplog.text
    caplog.clear()
    Limits(memory=2**50)
    assert caplog.text == ""


def test_memory_is_counted_with_and_without_proc(monkeypatch):
    here = limits.resident_memory()
    monkeypatch.setattr("builtins.open", lambda *arguments: (_ for _ in ()).throw(OSError()))
    most = limits.resident_memory()
    monkeypatch.undo()
    assert 2**20 < here <= most * 1.1 < 2**36
