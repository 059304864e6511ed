"""Who is dead, who finds out, and what is cleaned up after a worker or a server."""

from __future__ import annotations

import pytest

from dbchannels import codec
from dbchannels.layers.operations import BatchResult, Connect, Failure
from dbchannels.models import (
    Connection,
    DeadLetter,
    DurableMessage,
    InFlight,
    Membership,
    Process,
    ProtocolMessage,
)
from dbchannels.testing.contract.case import drain, wait_until
from tests import kinds

pytestmark = kinds.on_all_databases

LEASE = 0.05  # seconds


@pytest.fixture
def quick(new_layer):
    """A layer whose processes are dead soon after they stop renewing."""
    return new_layer(lease=LEASE)


def rows(layer, model):
    """Return a query set on the layer's database."""
    return model.objects.using(layer.database)


def swept(link, condition):
    """Clean up again and again until the condition holds."""

    def look():
        link.clean_up()
        return condition()

    return wait_until(look)


def die(link):
    """Let a link go as a killed process does: its session ends, its records stay."""
    link.close()


def test_registering_puts_a_process_on_record(layer, new_link):
    link = new_link(layer)
    link.register("s1", "server", "reply.s1!")
    link.register("s1", "server", "reply.s1!")
    process = rows(layer, Process).get()
    assert (process.name, process.kind, process.queue) == ("s1", "server", "reply.s1!")
    assert process.pid
    before = process.lease_until
    assert link.renew("s1")
    assert rows(layer, Process).get().lease_until > before
    assert not link.renew("unknown")


def test_a_cleanup_leaves_the_living_alone(layer, new_link):
    link, other = new_link(layer), new_link(layer)
    link.register("w1", "worker")
    layer.send("own", {})
    layer.send("http.request", {"reply_channel": "reply.s1!c1"})
    layer.group_add("group", "own")
    link.claim(["own"], 1, "w1")
    link.receive_many(["http.request"], 1, "w1")
    other.clean_up()
    assert rows(layer, Process).count() == rows(layer, InFlight).count() == 1
    assert rows(layer, DurableMessage).get().claimed_by == "w1"
    assert layer.group_channels("group") == ["own"]
    assert layer.receive(["reply.s1!"]) == (None, None)


def test_a_cleanup_finds_a_dead_worker(quick, new_link):
    worker, other = new_link(quick), new_link(quick)
    worker.register("w1", "worker")
    quick.send_many([("own", {"number": number}) for number in range(3)])
    for client in ("c1", "c2"):
        quick.send("http.request", {"reply_channel": f"reply.s1!{client}"})
    quick.send("websocket.receive", {"reply_channel": "reply.s2!c3"})
    assert len(worker.claim(["own"], 3, "w1")) == 3
    assert len(worker.receive_many(["http.request", "websocket.receive"], 3, "w1")) == 3
    die(worker)
    swept(other, lambda: not rows(quick, Process).exists())
    assert not rows(quick, InFlight).exists()
    told = sorted(quick.receive(["reply.s1!", "reply.s2!"]) for _ in range(3))
    assert [channel for channel, _ in told] == ["reply.s1!c1", "reply.s1!c2", "reply.s2!c3"]
    assert [notice["lost"] for _, notice in told] == ["worker died"] * 3
    assert [notice["channel"] for _, notice in told] == ["http.request", "http.request", "websocket.receive"]
    assert set(rows(quick, DurableMessage).values_list("claimed_by", "attempts", "alone")) == {
        (None, 0, True)
    }


def test_a_cleanup_finds_a_dead_server(quick, new_link):
    server, other = new_link(quick), new_link(quick)
    server.register("s1", "server", "reply.s1!")
    server.apply([Connect(f"reply.s1!c{number}", "s1", f"/{number}/") for number in range(3)])
    server.apply([Connect("reply.s2!c9", "s2", "/")])
    for channel in ("reply.s1!c0", "reply.s1!c1", "reply.s2!c9", "own"):
        quick.group_add("group", channel)
    quick.send("reply.s1!c0", {})
    die(server)
    swept(other, lambda: not rows(quick, Process).exists())
    assert sorted(quick.group_channels("group")) == ["own", "reply.s2!c9"]
    assert list(rows(quick, Connection).values_list("reply_channel", flat=True)) == ["reply.s2!c9"]
    assert quick.receive(["reply.s1!"]) == (None, None)
    ended = drain(quick, "websocket.disconnect")
    assert sorted(one["path"] for one in ended) == ["/0/", "/1/", "/2/"]
    assert {one["code"] for one in ended} == {1006}
    assert {one["reply_channel"] for one in ended} == {"reply.s1!c0", "reply.s1!c1", "reply.s1!c2"}


def test_the_dead_are_cleaned_up_after_once(quick, new_link):
    server = new_link(quick)
    server.register("s1", "server", "reply.s1!")
    server.apply([Connect("reply.s1!c1", "s1", "/")])
    die(server)
    for _ in range(3):
        new_link(quick).clean_up_after("s1")
    new_link(quick).unregister("s1")
    assert len(drain(quick, "websocket.disconnect")) == 1


def test_a_message_that_kills_its_worker_is_counted_when_it_was_alone(quick, new_link):
    quick.send_many([("own", {"number": number}) for number in range(2)])
    link = new_link(quick)
    seen = []
    for worker in ("w1", "w2", "w3"):
        link.register(worker, "worker")
        claimed = link.claim(["own"], 10, worker)
        seen.append([(codec.decode(one.payload)["number"], one.attempt) for one in claimed])
        link.clean_up_after(worker)
    # Together first, so that nobody knows which one it was; then one by one.
    assert seen == [[(0, 1), (1, 1)], [(0, 1)], [(0, 2)]]


def test_a_worker_that_ends_well_leaves_nothing(layer, new_link):
    link = new_link(layer)
    link.register("w1", "worker")
    layer.send("http.request", {"reply_channel": "reply.s1!c1"})
    link.receive_many(["http.request"], 1, "w1")
    link.finish("w1", BatchResult())
    link.unregister("w1")
    assert not rows(layer, Process).exists()
    assert not rows(layer, InFlight).exists()
    assert layer.receive(["reply.s1!"]) == (None, None)


def test_what_a_worker_holds_is_on_record(layer, new_link):
    link = new_link(layer)
    layer.send("http.request", {"reply_channel": "reply.s1!c1"})
    layer.send("http.request", {"reply_channel": "reply.s1!c2"})
    layer.send("websocket.receive", {})
    taken = link.receive_many(["http.request", "websocket.receive"], 3, "w1")
    held = rows(layer, InFlight).get(worker="w1")
    assert held.lines() == [
        ("http.request", "reply.s1!c1"),
        ("http.request", "reply.s1!c2"),
        ("websocket.receive", ""),
    ]
    link.finish("w1", BatchResult(in_flight=taken[1:2]))
    assert rows(layer, InFlight).get(worker="w1").lines() == [("http.request", "reply.s1!c2")]
    link.finish("w1", BatchResult())
    assert rows(layer, InFlight).get(worker="w1").lines() == []


def test_what_expires_unread_is_told_to_its_client(new_layer, new_link):
    layer = new_layer(expiry=0.05)
    layer.send("http.request", {"reply_channel": "reply.s1!c1"})
    link = new_link(layer)
    swept(link, lambda: not rows(layer, ProtocolMessage).filter(channel="http.request").exists())
    notice = codec.decode(rows(layer, ProtocolMessage).get(channel="reply.s1!").payload)
    assert notice == {"lost": "expired", "channel": "http.request"}


def test_a_cleanup_drops_memberships_that_ended(new_layer, new_link):
    layer = new_layer(group_expiry=0.05)
    layer.group_add("group", "own")
    swept(new_link(layer), lambda: not rows(layer, Membership).exists())


def test_a_dead_letter_tells_the_story(layer, new_link):
    link = new_link(layer)
    layer.send("own", {"number": 7})
    for worker in ("w1", "w2"):
        (claimed,) = link.claim(["own"], 1, worker)
        link.finish(worker, BatchResult(failures=[Failure(claimed, "first", 0)]))
    (claimed,) = link.claim(["own"], 1, "w3")
    traceback = "x" * 20_000 + "NUL \0, half a pair \udc80."
    link.finish("w3", BatchResult(failures=[Failure(claimed, traceback, None)]))
    letter = rows(layer, DeadLetter).get()
    assert (letter.channel, letter.attempts, letter.content()) == ("own", 3, {"number": 7})
    assert letter.error.endswith("xNUL \\0, half a pair \\udc80.")
    assert len(letter.error) == 16_384 + len("\\0\\udc80") - 2
    assert not rows(layer, DurableMessage).exists()
    assert letter.sent_at <= letter.failed_at
