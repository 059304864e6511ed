"""What a consumer's options do: retries, back-off, and one transaction for everything."""

from __future__ import annotations

import logging

import pytest

from dbchannels import Channel, Group, channel_layers, route
from dbchannels.models import DeadLetter, DurableMessage, Membership
from dbchannels.routing import Routing
from dbchannels.testing.layer_case import drain, waiting
from dbchannels.worker import Worker
from tests import kinds

pytestmark = kinds.on_databases


@pytest.fixture
def new_worker(layer):
    """Make workers, on record, whose sessions are closed at the end."""
    made = []

    def new(consumer, **options):
        made.append(
            Worker(channel_layers["default"], Routing([route("own", consumer, **options)]), only=["own"])
        )
        made[-1]._register()
        return made[-1]

    yield new
    for one in made:
        one.link.close()


def rows(layer, model):
    """Return a query set on the layer's database."""
    return model.objects.using(layer.database)


def boom(message):
    raise RuntimeError("as asked for")


# Retries.


def test_a_consumers_own_retries_go_before_the_setting(layer, new_worker):
    worker = new_worker(boom, retries=1, backoff=0)
    layer.send("own", {})
    while worker.run_once():
        pass
    assert rows(layer, DeadLetter).get().attempts == 2
    assert worker.consumed == 2


@pytest.mark.parametrize("backoff", [0, 0.0, lambda attempt: 0])
def test_a_consumers_own_backoff_is_seconds_or_a_function(layer, new_worker, backoff):
    worker = new_worker(boom, backoff=backoff)
    layer.send("own", {})
    while worker.run_once():
        pass
    assert worker.consumed == 6


NONE = [lambda attempt: -1, lambda attempt: float("nan"), lambda attempt: "soon", lambda attempt: 1 / 0]


@pytest.mark.parametrize("backoff", NONE)
def test_a_backoff_that_is_none_leaves_the_usual_one(layer, new_worker, backoff, caplog):
    worker = new_worker(boom, backoff=backoff)
    layer.send("own", {})
    with caplog.at_level(logging.CRITICAL, "dbchannels.worker"):
        assert worker.run_once()
    (message,) = rows(layer, DurableMessage)
    assert 0.5 < (message.due_at - message.sent_at).total_seconds() < 60


def test_a_message_that_kills_its_worker_each_time_is_a_dead_letter_in_the_end(layer, new_worker, new_link):
    ran = []
    layer.send("own", {"number": 1})
    link = new_link(layer)
    for number in range(3):
        name = f"killed-{number}"
        link.register(name, "worker")
        assert len(link.claim(["own"], 10, name)) == 1
        link.bury(name)
    worker = new_worker(ran.append, retries=2)
    assert worker.run_once()
    assert ran == []
    letter = rows(layer, DeadLetter).get()
    assert letter.content() == {"number": 1}
    assert "Each of 3 attempts to run this message ended its worker" in letter.error
    assert letter.attempts == 3


# One transaction.


def keep_and_send(message):
    Channel("out").send({"number": message["number"]})
    Group("group").add("own")


def test_an_atomic_consumers_sends_and_the_end_of_its_message_are_one(layer, new_worker):
    layer.send("own", {"number": 1})
    assert new_worker(keep_and_send, atomic=True).run_once()
    assert drain(layer, "out") == [{"number": 1}]
    assert layer.group_channels("group") == ["own"]
    assert not rows(layer, DurableMessage).exists()


def test_an_atomic_consumer_that_raises_has_done_nothing(layer, new_worker):
    def consume(message):
        keep_and_send(message)
        boom(message)

    layer.send("own", {"number": 1})
    assert new_worker(consume, atomic=True).run_once()
    assert waiting(layer, "out") == 0
    assert not rows(layer, Membership).exists()
    assert rows(layer, DurableMessage).get().attempts == 1


def test_an_atomic_consumer_whose_claim_was_lost_has_done_nothing(layer, new_worker):
    """The worker stood still, was declared dead, and another one has its message now."""

    def consume(message):
        keep_and_send(message)
        rows(layer, DurableMessage).update(
            claimed_by="another"
        )  # rolled back with the rest, so it stays ours

    layer.send("own", {"number": 1})
    assert new_worker(consume, atomic=True).run_once()
    assert waiting(layer, "out") == 0
    assert layer.group_channels("group") == []
    assert rows(layer, DurableMessage).get().attempts == 1


# Delays.


def test_an_idle_reader_knows_when_the_next_message_is_due(layer, new_link):
    link = new_link(layer)
    assert link.next_due() is None
    layer.send("own", {}, delay=3600)
    due = link.next_due()
    assert due is None if not layer.wakeups else 3500 < due <= 3600
