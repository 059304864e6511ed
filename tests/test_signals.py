"""What the worker's signals say, when, and that their receivers can do it no harm."""

from __future__ import annotations

import logging

import pytest
from django.db import connections, transaction

from dbchannels import Channel, route, signals
from dbchannels.exceptions import LayerUnavailable
from dbchannels.models import DeadLetter, DurableMessage
from dbchannels.testing.contract.case import waiting
from dbchannels.worker.worker import Worker
from tests import kinds

pytestmark = kinds.on_databases
SIGNALS = (signals.consumer_started, signals.consumer_finished, signals.worker_ready, signals.message_dead)


@pytest.fixture
def new_worker(make_worker, layer):
    """Make workers with one consumer, of the channel ``own``."""
    return lambda consumer, **options: make_worker(route("own", consumer, **options), only=["own"])


@pytest.fixture
def hear():
    """Connect receivers to signals for this test: ``hear(signal)`` returns what it has said, as a list of dicts."""
    connected, before = [], [list(signal.receivers) for signal in SIGNALS]

    def listen(signal, receiver=None, sender=None):
        said = []
        receive = receiver or (lambda **fields: said.append(fields))
        signal.connect(receive, sender=sender, weak=False)
        connected.append((signal, receive, sender))
        return said

    yield listen
    for signal, receive, sender in connected:
        assert signal.disconnect(receive, sender=sender)
    assert [signal.receivers for signal in SIGNALS] == before


def fine(message):
    """A consumer."""


def boom(message):
    raise RuntimeError("as asked for")


def consume(worker):
    """Run a worker until nothing waits."""
    while worker.run_once():
        pass


# Consumers.


def test_a_consumer_is_told_of_before_and_after(layer, new_worker, hear):
    order = []
    started = hear(signals.consumer_started)
    finished = hear(signals.consumer_finished)
    hear(signals.consumer_started, lambda **fields: order.append("started"))
    hear(signals.consumer_finished, lambda **fields: order.append("finished"))

    def consumer(message):
        order.append("runs")

    layer.send("own", {"n": 7})
    consume(new_worker(consumer))
    assert order == ["started", "runs", "finished"]
    assert [one["sender"] for one in (*started, *finished)] == [consumer, consumer]
    assert started[0]["message"].content == finished[0]["message"].content == {"n": 7}
    assert finished[0]["seconds"] >= 0 and finished[0]["error"] is None


def test_what_it_raised_is_told(layer, new_worker, hear):
    finished = hear(signals.consumer_finished)
    layer.send("own", {})
    consume(new_worker(boom, retries=1, backoff=0))
    assert [str(one["error"]) for one in finished] == ["as asked for"] * 2
    assert [one["message"].attempt for one in finished] == [1, 2]


def test_one_consumers_signals_can_be_heard_alone(layer, new_worker, hear):
    said = hear(signals.consumer_finished, sender=boom)
    layer.send("own", {})
    consume(new_worker(fine))
    assert said == []


def test_its_transaction_has_ended_by_then(layer, new_worker, hear):
    seen = []

    def look(**fields):
        seen.append(connections[layer.database].in_atomic_block)

    hear(signals.consumer_started, look)
    hear(signals.consumer_finished, look)
    layer.send("own", {})
    consume(new_worker(lambda message: look(), atomic=True))
    assert seen == [False, True, False]


@pytest.mark.parametrize("name", ["consumer_started", "consumer_finished"])
@pytest.mark.parametrize("atomic", [False, True])
def test_a_receiver_that_raises_is_logged_and_breaks_nothing(layer, new_worker, hear, caplog, name, atomic):
    def fail(**fields):
        with transaction.atomic(using=layer.database):
            DurableMessage.objects.using(layer.database).get(pk=0)

    hear(getattr(signals, name), fail)
    layer.send("own", {})
    with caplog.at_level(logging.ERROR):
        consume(new_worker(lambda message: Channel("other").send({}), atomic=atomic))
    assert [record.name for record in caplog.records] == ["django.dispatch"]
    assert (waiting(layer, "own"), waiting(layer, "other")) == (0, 1)


@pytest.mark.parametrize(("consumer", "sent"), [(fine, 1), (boom, 0)])
def test_what_a_receiver_sends_shares_the_consumers_fate(layer, new_worker, hear, consumer, sent):
    hear(signals.consumer_finished, lambda **fields: Channel("metrics").send({}))
    hear(signals.consumer_finished, lambda **fields: Channel("now", immediately=True).send({}))
    layer.send("own", {})
    consume(new_worker(consumer, retries=0))
    assert (waiting(layer, "metrics"), waiting(layer, "now")) == (sent, 1)


def test_a_consumer_that_cannot_be_a_sender_is_told_of_by_its_class(layer, new_worker, hear):
    class Consumer:
        __hash__ = None

        def __call__(self, message):
            pass

    said = hear(signals.consumer_finished)
    layer.send("own", {})
    consume(new_worker(Consumer()))
    assert [(one["sender"], one["error"]) for one in said] == [(Consumer, None)]


def test_nothing_is_made_when_nobody_listens(layer):
    assert signals.sending(fine, None) is signals.sending(boom, None)


# Dead letters.


def test_a_dead_letter_is_told_of_when_it_is_written(layer, new_worker, hear):
    said = hear(signals.message_dead)
    there = []
    hear(
        signals.message_dead,
        lambda **fields: there.append(DeadLetter.objects.using(layer.database).filter(channel="own").count()),
    )
    layer.send("own", {"n": 7})
    consume(new_worker(boom, retries=1, backoff=0))
    (letter,) = said
    assert (letter["sender"], letter["channel"], letter["content"], letter["attempts"]) == (
        Worker,
        "own",
        {"n": 7},
        2,
    )
    assert letter["error"].endswith("RuntimeError: as asked for\n")
    assert there == [1]


def test_a_failure_that_is_tried_again_is_none(layer, new_worker, hear):
    said = hear(signals.message_dead)
    layer.send("own", {})
    new_worker(boom, retries=1, backoff=60).run_once()
    assert said == []


def test_what_could_not_be_written_is_not_told(layer, new_worker, hear, monkeypatch):
    said = hear(signals.message_dead)
    worker = new_worker(boom, retries=0)
    layer.send("own", {})

    def away(*args):
        worker.stopping.set()
        raise LayerUnavailable("as asked for")

    monkeypatch.setattr(worker.link, "finish", away)
    monkeypatch.setattr(
        "dbchannels.worker.worker.Backoff.delay", lambda self: setattr(self, "tries", 99) or 0
    )
    worker.run_once()
    assert said == []


# Workers.


def test_a_worker_says_once_that_it_is_ready(layer, new_worker, hear):
    said = hear(signals.worker_ready)
    worker = new_worker(fine)
    hear(signals.worker_ready, lambda **fields: worker.stop())
    worker.run()
    assert [(one["sender"], one["name"], one["channels"]) for one in said] == [(Worker, worker.name, ["own"])]


def test_a_worker_survives_what_its_receivers_raise(layer, new_worker, hear, caplog):
    worker = new_worker(fine)

    def fail(**fields):
        worker.stop()
        raise RuntimeError("as asked for")

    hear(signals.worker_ready, fail)
    worker.run()
    assert "as asked for" in caplog.text
