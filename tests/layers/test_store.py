"""The rules that a layer in tables brings: who is dead by the lease, what is told, and what is let go."""

from __future__ import annotations

import pytest

from dbchannels import codec
from dbchannels.conf import OPTIONS, LayerSettings
from dbchannels.layers.memory import MemoryLayer
from dbchannels.layers.operations import Connect
from dbchannels.testing.contract.case import drain


class Clocked(MemoryLayer):
    """Its time passes when the test says so."""

    now = 1000.0

    def clock(self):
        return self.now


@pytest.fixture
def layer():
    return Clocked(LayerSettings("default", None, "default", None, {**OPTIONS, "lease": 10, "expiry": 60}))


@pytest.fixture
def link(layer):
    return layer.link()


def kept(layer):
    """Return the kinds and names of the tables that there are."""
    return set(layer._tables) - {("numbers", "")}


def test_who_does_not_renew_is_dead_after_three_leases(layer, link):
    for worker in ("w1", "w2"):
        link.register(worker, "worker")
    layer.now += 29
    assert link.renew("w2")
    link.clean_up()
    assert link.renew("w1")
    layer.now += 31
    link.clean_up()
    assert not link.renew("w1") and not link.renew("w2")


def test_the_workers_on_record_are_known(link):
    link.register("w1", "worker")
    link.register("s", "server", "reply.s!")
    assert link.workers() == {"w1": {"takes": [], "runs": "", "since": ""}}
    link.unregister("w1")
    assert link.workers() == {}


def test_the_work_of_a_dead_worker_is_told_and_given_back(layer, link):
    link.register("w1", "worker")
    layer.send("http.request", {"reply_channel": "reply.s!a"})
    layer.send_many([("own", {"number": number}) for number in range(2)])
    link.receive_many(["http.request"], 1, "w1")
    assert [one.attempt for one in link.claim(["own"], 2, "w1")] == [1, 1]
    layer.now += 31
    link.clean_up()
    assert layer.receive(["reply.s!"]) == ("reply.s!a", {"lost": "worker died", "channel": "http.request"})
    assert layer.global_statistics()["messages_in_flight"] == 0
    link.register("w2", "worker")
    (alone,) = link.claim(["own"], 2, "w2")
    assert (codec.decode(alone.payload), alone.attempt) == ({"number": 0}, 1)
    link.clean_up_after("w2")  # it was alone, so this attempt counts
    assert [one.attempt for one in link.claim(["own"], 2, "w3")] == [2]


def test_a_dead_server_takes_its_channels_along(layer, link):
    link.register("s", "server", "reply.s!")
    link.apply([Connect("reply.s!a", "s", "/chat/"), Connect("reply.t!a", "t", "/")])
    for channel in ("reply.s!a", "reply.t!a", "own"):
        layer.group_add("group", channel)
    layer.send("reply.s!a", {})
    layer.now += 31
    link.clean_up()
    link.clean_up()
    assert layer.group_channels("group") == ["reply.t!a", "own"]
    assert layer.receive(["reply.s!"]) == (None, None)
    assert [(one["path"], one["code"]) for one in drain(layer, "websocket.disconnect")] == [("/chat/", 1006)]


def test_a_membership_lasts_as_long_as_its_server(layer, link):
    link.register("s", "server", "reply.s!")
    for channel in ("reply.s!a", "reply.t!a", "own"):
        layer.group_add("group", channel)
    layer.now += layer.group_expiry
    assert layer.group_channels("group") == ["reply.s!a"]
    layer.send("reply.s!a", {})
    layer.now += 60
    assert layer.group_channels("group") == ["reply.s!a"]  # not even a message that expired takes it out
    assert layer.receive(["reply.s!"]) == (None, None)


def test_what_expires_unread_is_told_to_its_client(layer, link):
    layer.send("http.request", {"reply_channel": "reply.s!a"})
    layer.now += 59
    link.clean_up()
    assert layer.receive(["reply.s!"]) == (None, None)
    layer.now += 1
    link.clean_up()
    assert layer.receive(["reply.s!"]) == ("reply.s!a", {"lost": "expired", "channel": "http.request"})


def test_nothing_is_kept_of_what_has_gone(layer, link):
    for number in range(100):
        layer.send(f"body?{number}", {})
        layer.group_add(f"group-{number}", "own")
    layer.send("own", {})
    for number in range(99):
        assert layer.receive([f"body?{number}"])[0]
        layer.group_discard(f"group-{number}", "own")
    link.claim(["own"], 1, "w1")
    assert kept(layer) == {("waiting", "body?99"), ("members", "group-99"), ("claims", "w1")}
    layer.now += layer.group_expiry
    link.clean_up()
    assert kept(layer) == {("claims", "w1")}
    layer.flush()
    assert kept(layer) == set()


def test_the_banner_says_how_its_readers_find_messages(layer, monkeypatch):
    assert layer.describe() == "Clocked; readers are woken"
    monkeypatch.setattr(layer, "wakeups", False)
    assert layer.describe().startswith("Clocked; readers poll every ")
