"""A site's transaction stays open on what a consumer adds or identifies: only that consumer's result waits for it."""

from __future__ import annotations

import pytest

from dbchannels import Group
from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.operations import (
    BatchResult,
    Connect,
    Delivery,
    GroupAdd,
    GroupClear,
    GroupDiscard,
    Identify,
    Keep,
)
from dbchannels.layers.postgresql import lock_waits
from dbchannels.models import Connection, DurableMessage, InFlight
from dbchannels.routing.table import Routing, route
from dbchannels.testing.contract.case import DEADLINE, drain, in_thread, wait_until
from dbchannels.worker.worker import Worker
from tests import kinds
from tests.layers.test_open_transactions import open_transaction, query

pytestmark = kinds.only("postgresql")

MEMBER, OTHER = "reply.s!a", "reply.s!b"

#: What the stranger's transaction does, and what a consumer does that waits for it.
LOCKS = {
    "add": (lambda layer: layer.group_add("new", MEMBER), [GroupAdd("new", MEMBER)]),
    "add again": (lambda layer: layer.group_discard("group", MEMBER), [GroupAdd("group", MEMBER)]),
    "discard": (lambda layer: layer.group_clear("group"), [GroupDiscard("group", MEMBER)]),
    "clear": (lambda layer: layer.group_discard("group", MEMBER), [GroupClear("group")]),
    "identify": (lambda layer: layer.identify(MEMBER, "7"), [Identify(MEMBER, "12")]),
    "keep": (lambda layer: layer.identify(MEMBER, "7"), [Keep(MEMBER, b"kept", None)]),
}


@pytest.fixture
def link(layer, new_link):
    """A worker's link; two connections are open, and one of them is in a group."""
    link = new_link(layer)
    link.apply([Connect(MEMBER, "s", "/"), Connect(OTHER, "s", "/")])
    layer.group_add("group", MEMBER)
    link.register("w1", "worker")
    return link


@pytest.fixture
def at_once(monkeypatch):
    """Blocked results are tried again at each look."""
    monkeypatch.setattr(lock_waits, "RETRY_EVERY", 0.0)


def take(layer, link, *reply_channels):
    """Let these connections send a frame each, and the worker receive them."""
    for reply_channel in reply_channels:
        layer.send("websocket.receive", {"reply_channel": reply_channel})
    taken = link.receive_many(["websocket.receive"], 10, "w1")
    assert [one.reply_channel for one in taken] == list(reply_channels)
    return taken


def batch(layer, taken, *operations, **rest):
    """Return what came of the messages: what their consumers did, and each frame's end."""
    written, ends = [], []
    for delivery, done in zip(taken, operations, strict=True):
        written += done
        if delivery.reply_channel:
            written.append(layer.make_send(delivery.reply_channel, {"finished": delivery.reply_channel}))
        ends.append((delivery, len(written)))
    return BatchResult(written, [one for one in taken if one.durable], boundaries=ends, **rest)


def told(layer):
    """Return which connections have been told of their frames' ends, in order."""
    return [message["finished"] for message in drain(layer, "reply.s!")]


@pytest.mark.parametrize(("lock", "operations"), LOCKS.values(), ids=LOCKS)
def test_the_others_of_the_batch_are_written(layer, link, at_once, lock, operations):
    taken = take(layer, link, MEMBER, OTHER)
    with open_transaction(layer, lambda: lock(layer)):
        # The deadline of a statement would end one that waits, as LayerUnavailable.
        link.finish("w1", batch(layer, taken, operations, [GroupAdd("other", OTHER)]))
        assert (told(layer), layer.group_channels("other")) == ([OTHER], [OTHER])
        assert take(layer, link) == [] and told(layer) == []
    assert take(layer, link) == []
    assert told(layer) == [MEMBER]


@pytest.mark.parametrize(("lock", "operations"), LOCKS.values(), ids=LOCKS)
def test_a_result_that_is_blocked_alone_holds_up_nobody(layer, link, at_once, lock, operations):
    taken = take(layer, link, MEMBER)
    with open_transaction(layer, lambda: lock(layer)):
        link.finish("w1", batch(layer, taken, operations))
        assert told(layer) == []
    take(layer, link)
    assert told(layer) == [MEMBER]


def test_what_comes_next_is_written_and_what_is_of_the_same_connection_stays_behind(layer, link, at_once):
    first = take(layer, link, MEMBER)
    with open_transaction(layer, lambda: layer.identify(MEMBER, "7")):
        link.finish("w1", batch(layer, first, [Identify(MEMBER, "12")]))
        second = take(layer, link, MEMBER, OTHER)
        link.finish("w1", batch(layer, second, [Identify(MEMBER, "13")], [GroupAdd("other", OTHER)]))
        assert told(layer) == [OTHER]
        third = take(layer, link, MEMBER)
        link.finish("w1", batch(layer, third, []))
        assert told(layer) == []
    take(layer, link)
    assert told(layer) == [MEMBER] * 3
    assert Connection.objects.get(reply_channel=MEMBER).user_id == "13"


def test_a_durable_message_ends_with_what_its_consumer_did(layer, link, at_once):
    layer.send_many([("own", {}), ("own", {})])
    taken = link.claim(["own"], 2, "w1")
    with open_transaction(layer, lambda: layer.group_clear("group")):
        link.finish("w1", batch(layer, taken, [GroupDiscard("group", MEMBER)], []))
        assert [row.id for row in DurableMessage.objects.all()] == [taken[0].id]
        assert layer.channel_statistics("own")["messages_in_flight"] == 1
    assert link.claim(["own"], 2, "w1") == []
    assert not DurableMessage.objects.exists()


def test_what_is_blocked_is_in_flight_until_it_is_written(layer, link, at_once):
    taken = take(layer, link, MEMBER, OTHER)
    with open_transaction(layer, lambda: layer.identify(MEMBER, "7")):
        link.finish("w1", batch(layer, taken, [Identify(MEMBER, "12")], []))
        assert {one.worker: one.lines() for one in InFlight.objects.all()} == {
            "w1": [],
            "w1" + InFlight.BLOCKED: [("websocket.receive", MEMBER)],
        }
        take(layer, link, OTHER)  # which writes the worker's own row anew
        assert layer.global_statistics()["messages_in_flight"] == 2
        link.finish("w1", BatchResult())
    take(layer, link)
    assert [one.lines() for one in InFlight.objects.all()] == [[]]


def test_the_client_of_a_blocked_result_is_told_when_its_worker_dies(layer, link, new_link):
    layer.send("own", {})
    taken = take(layer, link, MEMBER) + link.claim(["own"], 1, "w1")
    with open_transaction(layer, lambda: layer.identify(MEMBER, "7")):
        link.finish("w1", batch(layer, taken, [Identify(MEMBER, "12")], [Identify(MEMBER, "12")]))
        new_link(layer).clean_up_after("w1")
        assert drain(layer, "reply.s!") == [{"lost": "worker died", "channel": "websocket.receive"}]
        assert not link.renew("w1")
    link.register("w2", "worker")
    assert [one.attempt for one in link.claim(["own"], 1, "w2")] == [2]
    assert (told(layer), Connection.objects.get(reply_channel=MEMBER).user_id) == ([], "")


def test_a_worker_that_ends_tries_once_more(layer, link):
    taken = take(layer, link, MEMBER)
    with open_transaction(layer, lambda: layer.identify(MEMBER, "7")):
        link.finish("w1", batch(layer, taken, [Identify(MEMBER, "12")]))
        assert told(layer) == []
    link.unregister("w1")
    assert told(layer) == [MEMBER]
    assert not InFlight.objects.exists()


def test_an_outage_between_two_parts_writes_none_of_them_twice(layer, link, at_once, monkeypatch):
    taken = take(layer, link, OTHER, MEMBER, "reply.s!c")
    write, fails = link._lock_waits._write, [False, False, True]

    def once(worker, done, before):
        if fails and fails.pop(0):
            raise LayerUnavailable("gone")
        return write(worker, done, before)

    monkeypatch.setattr(link._lock_waits, "_write", once)
    done = batch(layer, taken, [], [Identify(MEMBER, "12")], [])
    with open_transaction(layer, lambda: layer.identify(MEMBER, "7")):
        with pytest.raises(LayerUnavailable):
            link.finish("w1", done)
        link.finish("w1", done)
        assert told(layer) == [OTHER, "reply.s!c"]
    take(layer, link)
    assert told(layer) == [MEMBER]


def test_sends_that_found_no_room_are_given_back_later(new_layer, new_link, at_once):
    layer = new_layer(channel_capacity={"http.few": 1})
    link = new_link(layer)
    link.apply([Connect(MEMBER, "s", "/")])
    link.register("w1", "worker")
    layer.send("http.few", {})
    taken, refused = take(layer, link, MEMBER), layer.make_send("http.few", {})
    with open_transaction(layer, lambda: layer.identify(MEMBER, "7")):
        done = BatchResult([Identify(MEMBER, "12"), refused], boundaries=[(taken[0], 2)])
        assert link.finish("w1", done) == []
    take(layer, link)
    other = take(layer, link, OTHER)
    assert link.finish("w1", batch(layer, other, [GroupAdd("group", OTHER)])) == [refused]


def test_of_many_that_are_blocked_a_few_are_tried_in_turn(layer, link, monkeypatch):
    monkeypatch.setattr(lock_waits, "RETRY_EVERY", 3600.0)
    channels = [f"reply.s!m{number}" for number in range(20)]
    link.apply([Connect(one, "s", "/") for one in channels])
    for one in channels[:-1]:
        layer.group_add("group", one)
    taken = [Delivery("websocket.receive", b"", (), one) for one in channels]

    def lock():
        for one in channels:
            layer.identify(one, "7")

    with open_transaction(layer, lock):
        link.finish("w1", batch(layer, taken, *([Identify(one, "12")] for one in channels)))
        tries = []
        write = link._lock_waits._write
        monkeypatch.setattr(
            link._lock_waits,
            "_write",
            lambda *given: tries.append(given[1].boundaries[0][0].reply_channel) or write(*given),
        )
        for _ in range(4):
            link._lock_waits.retry(now=True)
        assert tries == channels
        link._lock_waits.retry()  # not before it is time
        assert len(tries) == 20
    wait_until(lambda: link._lock_waits.retry(now=True) or not link._lock_waits.busy)
    assert sorted(told(layer)) == sorted(channels)


def test_a_worker_goes_on_with_the_frames_of_others(layer, new_link, at_once):
    seen = []

    def consume(message):
        seen.append(message.reply_channel.name)
        Group("group").add(message.reply_channel)
        message.reply_channel.send({"text": "hi"})

    worker = Worker(layer, Routing([route("websocket.receive", consume)]))
    worker._register()
    try:
        layer.group_add("group", MEMBER)
        for channel in (MEMBER, OTHER, MEMBER, OTHER):
            layer.send("websocket.receive", {"reply_channel": channel, "order": 1, "path": "/"})
        with open_transaction(layer, lambda: layer.group_discard("group", MEMBER)):
            while worker.run_once():
                pass
            assert seen == [MEMBER, OTHER, MEMBER, OTHER]
            assert layer.group_channels("group") == [MEMBER, OTHER]  # as the stranger's is not committed
            assert told_in_full(layer) == [(OTHER, "hi", 1)] * 2
        worker.run_once()
        assert told_in_full(layer) == [(MEMBER, "hi", 1)] * 2
    finally:
        worker.link.close()


def told_in_full(layer):
    """Return what each connection was sent: a text, with the number of the frame that is finished."""
    found = []
    while (received := layer.receive(["reply.s!"]))[0]:
        found.append((received[0], received[1]["text"], received[1]["finished"]))
    return found


def test_who_waits_for_nothing_costs_no_statement_more(layer, link, monkeypatch):
    taken = take(layer, link, MEMBER)
    ran = []
    run = link.session.execute
    monkeypatch.setattr(
        link.session,
        "execute",
        lambda statements: ran.append([text for text, _ in statements]) or run(statements),
    )
    link.finish("w1", batch(layer, taken, []))
    assert [len(texts) for texts in ran] == [2]


def test_a_moments_lock_is_waited_for(layer, link, monkeypatch):
    """Such as another worker's, that adds the same channel just now."""
    monkeypatch.setattr(lock_waits, "LOCK_TIMEOUT_MS", 9000)
    taken = take(layer, link, MEMBER)
    done = batch(layer, taken, [Identify(MEMBER, "12")])
    waits = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%lock_timeout%'"
    )
    with open_transaction(layer, lambda: layer.identify(MEMBER, "7")):
        thread = in_thread(layer, lambda: link.finish("w1", done))
        wait_until(lambda: query(layer, waits))
    thread.join(DEADLINE)
    assert not link._lock_waits.busy
    assert told(layer) == [MEMBER]
