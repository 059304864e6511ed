"""Messages that somebody cancels while a worker has them: they become dead letters that say so."""

from __future__ import annotations

import asyncio
import logging

import pytest
from django.contrib.auth.models import User

from dbchannels import Channel, route
from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.operations import BatchResult, Failure
from dbchannels.models import DeadLetter, DurableMessage
from dbchannels.signals import message_dead
from dbchannels.testing.contract.case import drain, wait_until, waiting
from dbchannels.worker import watchdog
from tests import kinds
from tests.worker.test_watchdog import failed, site  # noqa: F401  (the fixture)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Ask twenty times a second whether a message was cancelled."""
    monkeypatch.setattr(watchdog, "ASK_EVERY", 0.05)


def cancel(layer, by="ann"):
    """Cancel all messages; return how many were deleted, and how many a worker had."""
    return layer.cancel(list(layer.rows(DurableMessage).values_list("id", flat=True)), by)


def letters(layer):
    return list(layer.rows(DeadLetter).order_by("id"))


@pytest.fixture
def dead():
    """What the signal ``message_dead`` said."""
    said = []

    def note(sender, **fields):
        said.append((fields["channel"], fields["attempts"], fields["error"].partition(" this message")[0]))

    message_dead.connect(note)
    yield said
    message_dead.disconnect(note)


@kinds.on_databases
def test_a_consumer_that_runs_is_ended_and_never_retried(layer, site, dead, caplog):  # noqa: F811
    site.start(route("own", site.hang, retries=5, backoff=0))
    layer.send("own", {})
    wait_until(lambda: site.ran)
    with caplog.at_level(logging.WARNING, "dbchannels.worker"):
        assert cancel(layer) == (0, 1)
        assert site.replaced.wait(60)
    letter = failed(layer, DeadLetter)
    first, _, stack = letter.error.partition("\n")
    assert first == (
        f"ann cancelled this message after its consumer had run for {first.split(' s, ')[0].split()[-1]} s, so its "
        "worker was replaced. The consumer stood here:"
    )
    assert "self.release.wait(60)" in stack
    assert (letter.attempts, waiting(layer, "own")) == (1, 0)
    assert "The consumer of a message on own is ended. " in caplog.text and "ann cancelled" in caplog.text
    wait_until(lambda: dead == [("own", 1, "ann cancelled")])
    site.end()  # it comes to itself after all: nothing of it counts
    assert (site.ran, drain(layer, "out"), len(letters(layer))) == (["own"], [], 1)


@kinds.on_databases
def test_a_coroutine_is_ended_too(layer, site):  # noqa: F811
    async def wait(message):
        site.ran.append("own")
        while not site.release.is_set():
            await asyncio.sleep(0.02)

    site.start(route("own", wait))
    layer.send("own", {})
    wait_until(lambda: site.ran)
    cancel(layer)
    assert site.replaced.wait(60)
    assert "await asyncio.sleep(0.02)" in failed(layer, DeadLetter).error


@kinds.on_databases
def test_those_behind_it_are_not_touched(layer, site):  # noqa: F811
    site.start(route("own", site.hang))
    layer.send_many([("own", {"number": number}) for number in range(3)])
    wait_until(lambda: site.ran and waiting(layer, "own") == 2)
    running = layer.rows(DurableMessage).get(claimed_by__isnull=False).id
    assert layer.cancel([running], "ann") == (0, 1)
    assert site.replaced.wait(60)
    assert (len(letters(layer)), waiting(layer, "own")) == (1, 2)


@kinds.on_databases
def test_a_consumer_that_nobody_cancels_goes_on(layer, site):  # noqa: F811
    asked = []
    site.start(route("own", site.hang))
    look = site.worker._watchdog._cancelled_by
    site.worker._watchdog._cancelled_by = lambda delivery: asked.append(delivery) or look(delivery)
    layer.send("own", {})
    wait_until(lambda: len(asked) > 2)
    assert not site.replaced.is_set() and letters(layer) == []


@kinds.on_databases
def test_an_outage_is_no_answer(layer, site):  # noqa: F811
    asked = []

    def away(delivery):
        asked.append(delivery)
        raise LayerUnavailable("The database is away.")

    site.start(route("own", site.hang))
    look, site.worker._watchdog._cancelled_by = site.worker._watchdog._cancelled_by, away
    layer.send("own", {})
    wait_until(lambda: len(asked) > 2)
    cancel(layer)
    assert not site.replaced.is_set()
    site.worker._watchdog._cancelled_by = look
    assert site.replaced.wait(60)


@kinds.on_databases
def test_a_protocol_message_is_never_asked_about(layer, site):  # noqa: F811
    site.start(route("websocket.receive", site.hang))
    asked = []
    site.worker._watchdog._cancelled_by = asked.append
    layer.send("websocket.receive", {"reply_channel": "reply.s!c", "path": "/", "order": 0})
    wait_until(lambda: site.worker._batch.running()[1] > 0.3)
    assert asked == []


@pytest.mark.parametrize("attempt", [1, 2])
@kinds.on_databases
def test_a_message_that_was_cancelled_before_does_not_run(layer, work_off, new_link, dead, caplog, attempt):
    link, ran = new_link(layer), []
    layer.send("own", {})
    for _ in range(attempt):
        (taken,) = link.claim(["own"], 1, "w1")
        layer.cancel([taken.id], "ann") if taken.attempt == attempt else None
        again = [Failure(taken, "it raised", 0.0)] if attempt == 2 and taken.attempt == 1 else []
        link.finish("w1", BatchResult(failures=again, returned=[] if again else [taken]))
    layer.send("own", {"number": 2})
    with caplog.at_level(logging.WARNING, "dbchannels.worker"):
        work_off(route("own", lambda message: ran.append(message.content)))
    letter = failed(layer, DeadLetter)
    again = " again" if attempt == 2 else ""
    assert letter.error == f"ann cancelled this message before it ran{again}."
    assert letter.attempts == attempt - 1
    assert ran == [{"number": 2}]
    assert dead == [("own", attempt - 1, "ann cancelled")]
    assert f"A message on own does not run. {letter.error}" in caplog.messages


@kinds.on_databases
def test_a_long_stack_leaves_room_for_who_it_was(layer, site):  # noqa: F811
    def deeper(message, depth=300):
        return other(message, depth) if depth else site.hang(message)

    def other(message, depth):
        return deeper(message, depth - 1)

    site.start(route("own", deeper))
    layer.send("own", {})
    wait_until(lambda: site.ran)
    cancel(layer, by="a" * 200)
    assert site.replaced.wait(60)
    error = failed(layer, DeadLetter).error
    assert error.startswith("a" * 200 + " cancelled this message after ")
    assert "self.release.wait(60)" in error and len(error) <= 16_384


@kinds.only("postgresql")  # on SQLite nobody could cancel it: the consumer has the only write lock
def test_the_transaction_of_a_consumer_is_rolled_back(layer, site):  # noqa: F811
    def book(message):
        User.objects.create(username="booked")
        Channel("out").send({})
        site.hang(message)

    site.start(route("own", book, atomic=True))
    layer.send("own", {})
    wait_until(lambda: site.ran)
    cancel(layer)
    assert site.replaced.wait(60)
    assert len(letters(layer)) == 1
    site.end()  # here the process goes on, and its claim is lost
    assert not User.objects.exists()
    assert (drain(layer, "out"), waiting(layer, "own"), len(letters(layer))) == ([], 0, 1)
