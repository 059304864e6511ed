"""What an operator does in the admin or by a command: pause, resume, cancel, reschedule."""

from __future__ import annotations

import pytest

from dbchannels.exceptions import InvalidMessage, InvalidName
from dbchannels.layers.operations import BatchResult, Failure
from dbchannels.models import DeadLetter, DurableMessage
from tests import kinds

pytestmark = kinds.on_all_databases


def channels_of(deliveries):
    return [one.channel for one in deliveries]


def ids(layer, **fields):
    return list(layer.rows(DurableMessage).filter(**fields).order_by("id").values_list("id", flat=True))


def test_a_paused_channel_stands_still_and_the_others_go_on(layer, new_link):
    link = new_link(layer)
    layer.send_many([("own", {}), ("other", {})])
    assert layer.pause("own", "ann") and not layer.pause("own", "bob")
    assert layer.paused()["own"].paused_by == "ann"
    claimed = link.claim(["own", "other"], 10, "w1")
    assert channels_of(claimed) == ["other"]
    assert link.claim(["own"], 10, "w1", {"own": 1}) == []
    assert layer.receive(["own"]) == (None, None)
    assert link.heads(["own", "other"]).keys() == set()  # the server does not report that it waits
    assert layer.resume("own") and not layer.resume("own")
    assert channels_of(link.claim(["own"], 10, "w1")) == ["own"]


def test_a_paused_channel_takes_messages_and_keeps_their_times(layer, new_link):
    link = new_link(layer)
    layer.pause("own")
    layer.send("own", {}, delay=0.01)
    assert link.claim(["own"], 1, "w1") == []
    layer.send("own", {})
    assert len(ids(layer)) == 2


def test_a_flush_ends_all_pauses(layer):
    layer.pause("own")
    layer.flush()
    assert layer.paused() == {}


@pytest.mark.parametrize("channel", ["http.request", "websocket.receive", "reply.a!b"])
def test_channels_on_which_clients_wait_cannot_be_paused(layer, channel):
    with pytest.raises(InvalidName, match="cannot be paused"):
        layer.pause(channel)
    assert layer.paused() == {}


def test_resuming_wakes_workers(layer, new_link):
    link = new_link(layer)
    layer.pause("own")
    layer.send("own", {})
    link.wait(0.0)  # from now on it listens
    while link.wait(0.1):
        pass
    layer.resume("own")
    assert not layer.wakeups or "d" in link.wait(5.0)


def test_what_waits_is_deleted_and_what_runs_is_marked(layer, new_link):
    link = new_link(layer)
    layer.send_many([("own", {}), ("own", {})])
    (running,) = link.claim(["own"], 1, "w1")
    assert link.cancelled_by("w1", running) == ""
    assert layer.cancel(ids(layer), "ann") == (1, 1)
    assert link.cancelled_by("w1", running) == "ann"
    assert link.cancelled_by("w2", running) == ""  # it has no claim
    assert layer.cancel(ids(layer), "bob") == (0, 0)
    assert link.cancelled_by("w1", running) == "ann"


def test_a_cancelled_message_that_is_given_back_says_so_to_the_next_worker(layer, new_link):
    link = new_link(layer)
    layer.send("own", {})
    (running,) = link.claim(["own"], 1, "w1")
    layer.cancel([running.id], "ann")
    link.finish("w1", BatchResult(failures=[Failure(running, "it raised", 0.0)]))
    (again,) = link.claim(["own"], 1, "w2")
    assert (again.id, again.cancelled_by) == (running.id, "ann")
    assert running.cancelled_by == ""


def test_a_delayed_message_is_made_due_now(layer, new_link):
    link = new_link(layer)
    layer.send("own", {}, delay=3600)
    assert link.claim(["own"], 1, "w1") == []
    assert layer.reschedule(ids(layer), delay=0) == 1
    assert layer.reschedule(ids(layer), delay=0) == 0  # it has waited since the first time
    (message,) = link.claim(["own"], 1, "w1")
    assert message.waited < 60


def test_a_waiting_message_is_delayed(layer, new_link):
    link = new_link(layer)
    layer.send_many([("own", {"number": 1}), ("own", {"number": 2})])
    assert layer.reschedule(ids(layer)[:1], delay=3600) == 1
    assert len(link.claim(["own"], 10, "w1")) == 1
    assert layer.reschedule(ids(layer, claimed_by__isnull=False), delay=10) == 0  # a worker has it


def test_the_highest_priority_is_taken_first(layer, new_link):
    layer.send_many([("own", {"number": 1}), ("own", {"number": 2})])
    last = ids(layer)[1]
    assert layer.reschedule([last], priority=5) == 1
    assert new_link(layer).claim(["own"], 1, "w1")[0].id == last


@pytest.mark.parametrize("changes", [{"delay": -1}, {"delay": 1e12}, {"priority": 40_000}, {"priority": 1.5}])
def test_what_a_send_refuses_is_refused(layer, changes):
    layer.send("own", {})
    with pytest.raises(InvalidMessage):
        layer.reschedule(ids(layer), **changes)


def test_dead_letters_move_to_another_channel(layer, new_link):
    link = new_link(layer)
    layer.send("own", {"number": 1})
    failed = [Failure(one, "traceback", None) for one in link.claim(["own"], 1, "w1")]
    link.finish("w1", BatchResult(failures=failed))
    assert layer.replay(layer.dead_letter_ids(), to="other") == 1
    assert channels_of(link.claim(["own", "other"], 1, "w1")) == ["other"]
    assert not layer.rows(DeadLetter).exists()


def test_a_delivery_says_how_long_it_has_waited(layer, new_link):
    link = new_link(layer)
    layer.send_many([("own", {}), ("http.request", {})])
    layer.send("own", {}, delay=0.01)
    taken = [*link.receive_many(["http.request"], 1), *link.claim(["own"], 1, "w1")]
    assert all(0 <= one.waited < 60 for one in taken)
