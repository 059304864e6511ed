"""Between the hub and the layer: batches, order, replies, outages, and threads that nothing ends but ``stop``."""

from __future__ import annotations

import logging
import math
import os
import queue
import re
import threading
from itertools import groupby

import gevent
import pytest

from dbchannels import codec
from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers import relay as relay_module
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.memory import MemoryLayer
from dbchannels.layers.operations import Connect, Disconnect, Send, Withdraw
from dbchannels.layers.relay import OutboxFull, next_batch
from dbchannels.models import Connection, Process
from dbchannels.protocol import DECLARED_DEAD
from dbchannels.server.housekeeper import Overload
from dbchannels.server.relay import Relay
from dbchannels.server.server import GeventHub
from dbchannels.testing.contract.case import drain
from dbchannels.wakeup import Backoff, WakeupPipe, wait_readable
from tests import kinds
from tests.server.test_server import until

on_both = kinds.only("memory", "postgresql")
on_postgresql = kinds.only("postgresql")
in_memory = kinds.only("memory")


TERMINATE_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name ~ 'publisher|receiver|housekeeper'
"""


class Receiver:
    """Collects what is delivered."""

    resume = None

    def __init__(self, relay):
        self.replies = []
        self.channel = relay.open(self)

    def deliver(self, reply):
        self.replies.append(reply)

    def messages(self):
        return [reply.message for reply in self.replies]


class Harness:
    """A layer whose links can be made to fail, and record what they are asked."""

    def __init__(self, layer):
        self.layer = layer
        self.applied = []  # batches
        self.asked = []  # names of methods, in order
        self.faults = {}  # method: exceptions to raise, in turn
        self.poison = None  # an operation that no batch may hold
        self.gate = threading.Event()
        self.gate.set()
        make_link = layer.link
        layer.link = lambda *args, **options: Watched(make_link(*args, **options), self)

    def outage(self, method, error, times=1):
        self.faults[method] = [error] * times

    def operations(self, kind):
        return [one for batch in self.applied for one in batch if isinstance(one, kind)]


APPLY = ("apply", "apply_as")


class Watched:
    """A link that fails as its harness says."""

    def __init__(self, link, harness):
        self._link, self._harness = link, harness

    def __getattr__(self, name):
        def call(*args):
            self._harness.asked.append(name)
            if self._harness.faults.get(name):
                raise self._harness.faults[name].pop()
            return self._apply(name, *args) if name in APPLY else getattr(self._link, name)(*args)

        return call

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "local_wakeups":
            self._link.local_wakeups = value

    def _apply(self, method, *args):
        operations = args[-1]
        self._harness.gate.wait(10)
        if self._harness.poison in operations:
            raise ValueError("poison")
        refused = getattr(self._link, method)(*args)
        self._harness.applied.append(list(operations))
        return refused


@pytest.fixture
def new_relay(new_layer):
    """Make relays, started, with OPTIONS of their layer as keywords; each has its harness as ``harness``."""
    made = []

    def new(wakeups=None, **options):
        layer = new_layer(**{"poll_interval": 0.02, **options})
        harness = Harness(layer)
        relay = Relay(layer, wakeups or {}, GeventHub())
        relay.deaths, relay.harness = [], harness
        relay.declared_dead = lambda: relay.deaths.append(relay.name)
        relay.start()
        made.append(relay)
        return relay

    yield new
    for relay in made:
        relay.harness.gate.set()
        stop(relay)


@pytest.fixture
def relay(new_relay):
    return new_relay()


@pytest.fixture
def told(caplog):
    """The warnings and errors that were logged."""
    caplog.set_level(logging.WARNING, "dbchannels.server")
    return lambda: [record.getMessage() for record in caplog.records]


def stop(relay):
    """Stop it in a native thread, as the server does, once."""
    if any(thread.is_alive() for thread in relay._threads):
        gevent.get_hub().threadpool.apply(relay.stop)


def send(relay, number, reply_channel="", channel="http.request"):
    fields = {"number": number} | ({"reply_channel": reply_channel} if reply_channel else {})
    relay.send(relay.make_send(channel, fields))


def numbers(relay, count, channel="http.request"):
    """Wait until so many messages were received from the channel; return their numbers."""
    found = []

    def look():
        found.extend(message["number"] for message in drain(relay.layer, channel))
        return len(found) >= count

    until(look)
    return found


def answer(relay, receiver, **message):
    relay.layer.send(receiver.channel, message)


def rows(relay, model):
    return list(model.objects.using(relay.layer.database).all())


# --- towards the layer


@on_both
def test_what_is_sent_arrives_in_order(relay):
    for number in range(50):
        send(relay, number)
    assert numbers(relay, 50) == list(range(50))


@in_memory
def test_the_link_of_the_base_class_is_enough(new_relay, monkeypatch):
    monkeypatch.setattr(MemoryLayer, "link", BaseLayer.link)
    relay = new_relay(lease=0.0)  # so that each look renews it, and does all chores
    receiver = Receiver(relay)
    send(relay, 1, receiver.channel)
    assert numbers(relay, 1) == [1]
    answer(relay, receiver, text="hi")
    until(receiver.messages)
    assert receiver.messages() == [{"text": "hi"}] and relay.deaths == []
    until(lambda: relay.harness.asked.count("renew") > 1)


@on_both
def test_what_piles_up_while_one_batch_is_written_is_the_next(relay):
    relay.harness.gate.clear()
    send(relay, 0)
    until(lambda: "apply" in relay.harness.asked)
    for number in range(1, 1_201):
        send(relay, number)
    relay.harness.gate.set()
    until(lambda: sum(map(len, relay.harness.applied)) == 1_201)
    assert [len(batch) for batch in relay.harness.applied] == [1, 500, 500, 200]
    sent = [codec.decode(one.payload)["number"] for one in relay.harness.operations(Send)]
    assert sent == list(range(1_201))


@on_both
def test_a_batch_holds_records_first_and_sends_last(relay):
    relay.harness.gate.clear()
    send(relay, 0)
    until(lambda: "apply" in relay.harness.asked)
    relay.send(Connect("reply.s!a", relay.name, "/a"), relay.make_send("websocket.connect", {"number": 1}))
    relay.send(Disconnect("reply.s!b"))
    relay.send(Connect("reply.s!c", relay.name, "/c"), relay.make_send("websocket.connect", {"number": 2}))
    relay.harness.gate.set()
    until(lambda: len(relay.harness.applied) == 2)
    batch = relay.harness.applied[1]
    assert [type(one) for one in batch] == [Connect, Connect, Disconnect, Send, Send]
    assert [one.path for one in batch[:2]] == ["/a", "/c"]
    assert [codec.decode(one.payload)["number"] for one in batch[3:]] == [1, 2]


@on_postgresql
def test_connections_are_on_record_until_they_end(relay):
    channels = [relay.queue + local for local in "ab"]
    relay.send(*(Connect(channel, relay.name, "/x") for channel in channels))
    until(lambda: len(rows(relay, Connection)) == 2)
    relay.send(Disconnect(channels[0]))
    until(lambda: len(rows(relay, Connection)) == 1)
    (left,) = rows(relay, Connection)
    assert (left.reply_channel, left.server, left.path) == (channels[1], relay.name, "/x")


@on_both
def test_the_outbox_is_bounded(relay, monkeypatch):
    monkeypatch.setattr(relay_module, "OUTBOX", 3)
    relay.harness.gate.clear()
    send(relay, 0)
    until(lambda: "apply" in relay.harness.asked)
    for number in range(1, 5):
        send(relay, number)
    with pytest.raises(OutboxFull):
        send(relay, 5)
    relay.harness.gate.set()
    assert numbers(relay, 5) == [0, 1, 2, 3, 4]
    send(relay, 6)
    assert numbers(relay, 1) == [6]


@on_both
def test_who_found_a_channel_full_is_told(new_relay):
    relay = new_relay(channel_capacity={"http.request": 2})
    receivers = [Receiver(relay) for _ in range(4)]
    for number, receiver in enumerate(receivers):
        send(relay, number, receiver.channel)
        until(lambda count=number + 1: sum(map(len, relay.harness.applied)) == count)
    until(lambda: receivers[3].replies)
    notice = {"lost": "full", "channel": "http.request"}
    assert [one.messages() for one in receivers] == [[], [], [notice], [notice]]
    assert numbers(relay, 2) == [0, 1]


# --- from the layer


@on_both
def test_replies_reach_their_receivers_in_order(relay):
    one, two = Receiver(relay), Receiver(relay)
    for number in range(30):
        answer(relay, (one, two)[number % 2], number=number)
    until(lambda: len(one.replies) == len(two.replies) == 15)
    assert [message["number"] for message in one.messages()] == list(range(0, 30, 2))
    assert [message["number"] for message in two.messages()] == list(range(1, 30, 2))


@on_both
def test_more_than_a_batch_of_replies_arrives(relay):
    receiver = Receiver(relay)
    channel = receiver.channel
    relay.layer.send_many([(channel, {"number": number}) for number in range(1_100)])
    until(lambda: len(receiver.replies) == 1_100)
    assert [message["number"] for message in receiver.messages()] == list(range(1_100))


@on_postgresql
def test_a_broadcast_is_one_reply_for_all(relay):
    receivers = [Receiver(relay) for _ in range(3)]
    for receiver in receivers:
        relay.layer.group_add("g", receiver.channel)
    relay.layer.send_group("g", {"text": "x"})
    until(lambda: all(one.replies for one in receivers))
    replies = {id(one.replies[0]) for one in receivers}
    assert len(replies) == 1  # so its frame is made once


@on_both
def test_a_receiver_that_is_closed_gets_nothing_more(relay):
    gone, there = Receiver(relay), Receiver(relay)
    assert relay.waiting() == 2
    relay.close(gone.channel)
    relay.close(gone.channel)
    answer(relay, gone, number=1)
    answer(relay, there, number=2)
    until(lambda: there.replies)
    assert gone.replies == [] and relay.waiting() == 1


@on_both
def test_a_reply_to_a_stranger_takes_it_out_of_its_groups_once(relay):
    stranger = relay.queue + "stranger"
    relay.layer.group_add("g", stranger)
    relay.layer.send(stranger, {"text": "x"})
    until(lambda: relay.harness.operations(Disconnect))
    receiver = Receiver(relay)
    answer(relay, receiver, number=1)
    until(lambda: receiver.replies)
    assert relay.harness.operations(Disconnect) == [Disconnect(stranger)]
    assert relay.layer.group_channels("g") == []


@on_both
def test_who_has_left_is_taken_out_of_its_groups_once_for_many_messages(relay):
    """Else clients that come and go while a site sends would fill the outbox, and others would get 503."""
    stranger = relay.queue + "stranger"
    relay.harness.gate.clear()
    send(relay, 0)
    until(lambda: "apply" in relay.harness.asked)
    relay.layer.send_many([(stranger, {"text": str(number)}) for number in range(50)])
    receiver = Receiver(relay)
    answer(relay, receiver, number=1)
    until(lambda: receiver.replies)
    assert relay._outbox.qsize() == 1
    relay.harness.gate.set()
    until(lambda: relay.harness.operations(Disconnect) == [Disconnect(stranger)])
    relay.layer.send(stranger, {"text": "again"})
    until(lambda: len(relay.harness.operations(Disconnect)) == 2)


@on_both
def test_the_head_of_events_for_a_stranger_leaves_nothing(relay):
    """No view waits to be told that nobody takes its stream."""
    stranger = relay.queue + "stranger"
    relay.layer.send(stranger, {"status": 200, "more_content": True, "server_sent_events": ""})
    until(lambda: relay.harness.operations(Disconnect))
    assert not relay.harness.operations(Send)


def test_replies_that_come_faster_than_they_are_delivered_leave_the_hub_to_others():
    hub, most, ran = GeventHub(), 1_000_000, []

    def another():
        ran.append(None)
        if len(ran) < most:
            hub.call(another)

    hub.start()
    hub.call(another)
    gevent.sleep(0.001)
    assert 0 < len(ran) < most
    ran += [None] * most  # no more come
    before = len(ran)
    until(lambda: len(ran) > before)  # none is forgotten


@on_both
def test_a_receiver_that_raises_harms_nobody_else(relay, told):
    class Bad(Receiver):
        def deliver(self, reply):
            raise RuntimeError("bad")

    bad, good = Bad(relay), Receiver(relay)
    answer(relay, bad, number=1)
    answer(relay, good, number=2)
    until(lambda: good.replies)
    assert told() == ["One reply could not be delivered and was left out."]


@on_both
@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"\x05", b"\x93\x01", codec.encode({"a": 1})[:-1]])
def test_a_row_that_is_no_message_is_lost_alone(relay, told, garbage):
    one, two = Receiver(relay), Receiver(relay)
    relay.layer.write([Send(one.channel, garbage, "", 60, 0)])
    answer(relay, two, number=2)
    answer(relay, one, number=1)
    until(lambda: two.replies and len(one.replies) == 2)
    assert one.messages() == [{"lost": "worker died"}, {"number": 1}]
    assert two.messages() == [{"number": 2}]
    (said,) = told()
    assert said.startswith("A reply could not be read and was left out: ")


@on_both
def test_those_can_be_told_that_no_reply_will_come_who_wait_on_a_queue_of_the_past(relay):
    receivers = [Receiver(relay), Receiver(relay)]
    relay._past_queues.add(relay.queue)
    relay.queue = "reply.new!"
    newcomer = Receiver(relay)  # between the new name and the hub's hearing of it
    Relay.declared_dead(relay)
    until(lambda: receivers[1].replies)
    assert [one.messages() for one in receivers] == [[{"lost": DECLARED_DEAD}]] * 2
    assert newcomer.messages() == []


@on_both
def test_a_view_that_reads_a_body_whose_client_was_answered_is_told_at_once(relay):
    receiver = Receiver(relay)
    local = receiver.channel.partition("!")[2]
    relay.close(receiver.channel)
    relay.layer.send(receiver.channel, {"body": {"until": 100}})
    link = relay.layer.link()
    (told,) = until(lambda: link.receive_many([f"http.request.body?{local}"], 2))
    assert codec.decode(told.payload) == {"content": b"", "more_content": False, "closed": True}
    relay.layer.send(receiver.channel, {"body": b"of a response"})
    relay.layer.send(receiver.channel, {"text": "from a group"})
    newcomer = Receiver(relay)
    answer(relay, newcomer, number=1)
    until(lambda: newcomer.replies)
    send(relay, 7)
    until(lambda: len(relay.harness.operations(Send)) == 2)  # for the last two messages nothing was sent
    assert numbers(relay, 1) == [7]
    assert set(relay.harness.operations(Disconnect)) == {Disconnect(receiver.channel)}
    link.close()


# --- outages


@in_memory
def test_a_request_whose_client_was_answered_in_an_outage_is_not_run_after_it(relay):
    relay.harness.gate.clear()
    send(relay, 0)
    until(lambda: "apply" in relay.harness.asked)
    gone, waiting = Receiver(relay), Receiver(relay)
    for number, receiver in enumerate((gone, waiting), 1):
        send(relay, number, receiver.channel)
    send(relay, 3, gone.channel, channel="http.disconnect")
    relay.close(gone.channel)
    relay.harness.gate.set()
    assert numbers(relay, 2) == [0, 2]
    assert numbers(relay, 1, "http.disconnect") == [3]  # others may have heard of it already


@in_memory
@pytest.mark.parametrize("others", [0, 1])
def test_a_request_whose_client_was_answered_while_it_was_tried_again_is_not_run(relay, told, others):
    gone = Receiver(relay)
    relay.harness.outage("apply", LayerUnavailable("It is down."), 10_000)
    relay.send(
        relay.make_send("http.request", {"number": 1, "reply_channel": gone.channel}),
        *(relay.make_send("http.request", {"number": 2}) for _ in range(others)),
    )
    until(told)
    relay.harness.outage("renew", LayerUnavailable("It is down."), 10_000)
    relay.close(gone.channel)
    asked = len(relay.harness.asked)
    until(lambda: len(relay.harness.asked) > asked + 2)
    assert len(told()) == 1  # nothing was written, and the outage goes on
    relay.harness.faults.clear()
    send(relay, 3)
    assert numbers(relay, 1 + others) == [2] * others + [3]
    until(lambda: len(told()) == 2)


@in_memory
def test_a_server_whose_lease_has_ended_in_an_outage_renews_it_before_it_tries_again(relay):
    asked, down = relay.harness.asked, LayerUnavailable("It is down.")
    relay.harness.outage("apply", down, 10_000)
    send(relay, 0)
    until(lambda: "apply" in asked)
    relay.harness.outage("renew", down, 10_000)
    relay._renewed_at = -math.inf
    until(lambda: asked.count("renew") > 1)
    tries, tries_of_lease = asked.count("apply"), asked.count("renew")
    until(lambda: asked.count("renew") > tries_of_lease + 1)
    assert asked.count("apply") == tries
    relay.harness.faults.clear()
    assert numbers(relay, 1) == [0]


def test_what_flooding_clients_leave_behind_is_one_statement_of_each_kind():
    outbox = queue.SimpleQueue()
    for _ in range(3):
        outbox.put([Withdraw("http.request", "r!a"), Disconnect("r!a")])
    batch, _ = next_batch(outbox)
    assert [kind for kind, _ in groupby(map(type, batch))] == [Disconnect, Withdraw]


@in_memory
def test_an_outage_loses_nothing_and_keeps_the_order(relay, told):
    relay.harness.gate.clear()
    send(relay, 0)
    until(lambda: "apply" in relay.harness.asked)
    relay.harness.outage("apply", LayerUnavailable("It is down."), 3)
    for number in range(1, 601):
        send(relay, number)
    relay.harness.gate.set()
    assert numbers(relay, 601) == list(range(601))
    began, ended = told()
    assert began == f"server-{os.getpid()}: The layer cannot be used now (It is down.); trying again."
    assert re.fullmatch(r"server-\d+: The layer can be used again, after \d+\.\d s\.", ended)


@in_memory
def test_replies_are_read_again_after_an_outage(relay):
    receiver = Receiver(relay)
    relay.harness.outage("receive_many", LayerUnavailable("It is down."), 3)
    relay.harness.outage("wait", LayerUnavailable("It is down."), 1)
    answer(relay, receiver, number=1)
    answer(relay, receiver, number=2)
    until(lambda: len(receiver.replies) == 2)
    assert [message["number"] for message in receiver.messages()] == [1, 2]


@on_postgresql
def test_a_terminated_session_is_replaced(relay):
    receiver = Receiver(relay)
    session = relay.layer.session("killer")
    session.execute([(TERMINATE_OTHERS, {})])
    session.close()
    for number in range(3):
        send(relay, number)
        answer(relay, receiver, number=number)
    assert numbers(relay, 3) == [0, 1, 2]
    until(lambda: len(receiver.replies) == 3)
    assert all(thread.is_alive() for thread in relay._threads)


# --- what nobody thought of


@on_both
def test_a_batch_that_cannot_be_written_loses_only_the_culprit(relay, told):
    culprit, others = Receiver(relay), [Receiver(relay) for _ in range(3)]
    relay.harness.gate.clear()
    send(relay, 0)
    until(lambda: "apply" in relay.harness.asked)
    send(relay, 1, others[0].channel)
    relay.harness.poison = relay.make_send("http.request", {"reply_channel": culprit.channel})
    relay.send(relay.harness.poison)
    send(relay, 2, others[1].channel)
    relay.harness.gate.set()
    assert numbers(relay, 3) == [0, 1, 2]
    until(lambda: culprit.replies)
    assert culprit.messages() == [{"lost": "worker died", "channel": "http.request"}]
    assert not any(one.replies for one in others)
    assert told() == ["The layer cannot take this (Send); it was left out."]
    send(relay, 3)
    assert numbers(relay, 1) == [3]


@on_postgresql
@pytest.mark.parametrize(
    "changed", [{"expiry": 1e300}, {"expiry": float("nan")}, {"channel": "http.request\0"}]
)
def test_what_the_database_refuses_loses_only_itself(relay, told, changed):
    culprit = Receiver(relay)
    relay.send(relay.make_send("http.request", {"reply_channel": culprit.channel})._replace(**changed))
    send(relay, 1)
    assert numbers(relay, 1) == [1]
    until(lambda: culprit.replies)
    assert culprit.messages()[0]["lost"] == "worker died"
    assert len(told()) == 1


@in_memory
def test_many_that_cannot_be_written_are_two_lines_in_the_log(relay, told):
    relay.harness.gate.clear()
    send(relay, 0)
    until(lambda: "apply" in relay.harness.asked)
    relay.harness.poison = relay.make_send("http.request", {"number": 7})
    relay.send(*[relay.harness.poison] * 9)
    send(relay, 1)
    relay.harness.gate.set()
    assert numbers(relay, 2) == [0, 1]
    until(lambda: len(told()) > 1)
    assert told() == [
        "The layer cannot take this (Send); it was left out.",
        "9 operations of a batch of 10 were left out.",
    ]


@on_both
def test_a_listener_that_is_ended_again_and_again_is_back_as_soon_each_time(new_relay, monkeypatch):
    tries = []
    delay = Backoff.delay
    monkeypatch.setattr(Backoff, "delay", lambda self: tries.append(self.tries) or delay(self))
    relay = new_relay()
    relay.harness.outage("wait", LayerUnavailable("ended"), times=5)
    until(lambda: len(tries) == 5)
    assert tries == [0] * 5


@on_both
def test_the_receiver_survives_whatever_its_link_raises(relay, told):
    receiver = Receiver(relay)
    for number in range(2):
        relay.harness.outage("receive_many", RuntimeError("unheard of"), 3)
        until(lambda: not relay.harness.faults["receive_many"])
        answer(relay, receiver, number=number)
        until(lambda count=number + 1: len(receiver.replies) == count)
    assert told() == ["The messages could not be read; trying again."] * 2


@on_both
@pytest.mark.parametrize("method", ["renew", "clean_up", "clean_up_after"])
def test_the_housekeeper_survives_whatever_its_link_raises(new_relay, told, method):
    relay = new_relay(lease=0.6)  # long enough that a busy machine declares nobody dead
    relay.harness.outage(method, RuntimeError("unheard of"))
    relay.housekeeper.clean_up_after("somebody")
    until(lambda: not relay.harness.faults[method])
    relay.harness.asked.clear()
    until(lambda: relay.harness.asked.count("renew") > 2 and relay.harness.asked.count("clean_up") > 2)
    assert told() == ["A chore of this server failed and was left out."]


# --- liveness


@on_postgresql
def test_it_is_on_record_while_it_lives(relay):
    (process,) = rows(relay, Process)
    assert (process.name, process.kind, process.queue) == (relay.name, Process.SERVER, relay.queue)
    stop(relay)
    assert rows(relay, Process) == []


@on_postgresql
def test_a_worker_that_was_seen_to_die_is_cleaned_up_after(relay, new_link):
    receiver = Receiver(relay)
    link = new_link(relay.layer)
    link.register("w1", Process.WORKER)
    send(relay, 1, receiver.channel)
    until(lambda: link.receive_many(["http.request"], 1, "w1"))
    relay.housekeeper.clean_up_after("w1")
    until(lambda: receiver.replies)
    assert receiver.messages() == [{"lost": "worker died", "channel": "http.request"}]


@on_postgresql
def test_only_workers_on_the_same_layer_do_the_rest_of_a_servers_work(relay, new_link):
    ended = []
    relay.own_workers = lambda: {"own"}
    new_link(relay.layer).register("w1", Process.WORKER)
    relay.housekeeper.leave_work_to({"elsewhere"}, lambda: ended.append("wrong"))
    relay.housekeeper.leave_work_to({"w1", "w2"}, lambda: ended.append("right"))
    until(lambda: ended)
    assert ended == ["right"]
    assert relay.own_workers() == set()


@on_postgresql
def test_one_that_was_declared_dead_gets_a_new_name_and_goes_on(new_relay, new_link):
    relay = new_relay(lease=0.06)
    before, queue = relay.name, relay.queue
    new_link(relay.layer).clean_up_after(before)
    until(lambda: relay.deaths)
    assert relay.name != before and relay.queue != queue
    until(lambda: [process.name for process in rows(relay, Process)] == [relay.name])  # its lease is short
    receiver = Receiver(relay)
    answer(relay, receiver, number=1)
    until(lambda: receiver.replies)
    assert receiver.channel.startswith(relay.queue) and len(relay.deaths) == 1


@on_postgresql
def test_one_that_stood_still_says_nothing_under_the_name_that_it_lost(new_relay, new_link):
    relay = new_relay(lease=3600)
    until(lambda: "clean_up" in relay.harness.asked)  # the housekeeper's first look is over
    new_link(relay.layer).clean_up_after(relay.name)
    relay._renewed_at -= 7200
    send(relay, 1, Receiver(relay).channel)
    until(lambda: relay.harness.asked.count("renew") > 2)
    relay.housekeeper.look_soon()
    until(lambda: relay.deaths)
    send(relay, 2, Receiver(relay).channel)
    until(lambda: relay.harness.operations(Send))
    assert [one.reply_channel.startswith(relay.queue) for one in relay.harness.operations(Send)] == [True]


def begin(relay):
    """Do what a connection does that begins; return its reply channel."""
    channel = Receiver(relay).channel
    message = {"reply_channel": channel, "path": "/x", "order": 0}
    relay.send(Connect(channel, relay.name, "/x"), relay.make_send("websocket.connect", message))
    return channel


@kinds.only("postgresql", "sqlite")
def test_one_whose_clock_stood_still_begins_and_ends_no_connection_under_the_name_that_it_lost(
    new_relay, new_link
):
    relay = new_relay(lease=3600)
    until(lambda: "clean_up" in relay.harness.asked)
    old = begin(relay)
    until(lambda: relay.harness.operations(Send))
    new_link(relay.layer).clean_up_after(relay.name)  # its disconnect is sent
    lost = begin(relay)
    relay.send(relay.make_send("websocket.disconnect", {"reply_channel": old, "path": "/x", "order": 1}))
    until(lambda: relay.deaths)
    new = begin(relay)
    until(lambda: len(relay.harness.operations(Connect)) == 2)
    assert [one.reply_channel for one in rows(relay, Connection)] == [new]
    assert [one["reply_channel"] for one in drain(relay.layer, "websocket.connect")] == [old, new]
    assert [one["reply_channel"] for one in drain(relay.layer, "websocket.disconnect")] == [old]
    assert lost.startswith("reply.")


def test_a_record_and_its_message_are_one_batch_however_little_fits_into_one(relay, monkeypatch):
    monkeypatch.setattr("dbchannels.layers.relay.BATCH", 1)
    relay.harness.gate.clear()
    for _ in range(3):
        begin(relay)
    relay.harness.gate.set()
    until(lambda: len(relay.harness.operations(Send)) == 3)
    assert [[type(one) for one in batch] for batch in relay.harness.applied] == [[Connect, Send]] * 3


@on_postgresql
def test_one_whose_housekeeper_is_busy_renews_before_it_speaks(new_relay):
    relay = new_relay(lease=3600)
    until(lambda: "clean_up" in relay.harness.asked)
    relay.harness.outage("renew", RuntimeError("unheard of"))
    relay._renewed_at -= 7200
    send(relay, 1, Receiver(relay).channel)
    until(lambda: relay.harness.operations(Send))
    assert relay.deaths == []


@on_both
def test_stopping_writes_what_is_left_and_ends_the_threads(relay):
    relay.harness.gate.clear()
    for number in range(700):
        send(relay, number)
    gevent.spawn_later(0.01, relay.harness.gate.set)
    stop(relay)
    assert numbers(relay, 700) == list(range(700))
    assert not any(thread.is_alive() for thread in relay._threads)
    assert relay.harness.asked.count("close") == 3


@on_postgresql
def test_stopping_does_not_wait_for_the_next_poll(new_relay):
    relay = new_relay(poll_interval=3_600)
    until(lambda: "wait" in relay.harness.asked)
    stop(relay)
    assert not any(thread.is_alive() for thread in relay._threads)


@on_postgresql
def test_a_server_that_stops_leaves_no_connection_and_tells_its_consumers(relay):
    relay.send(Connect(relay.queue + "a", relay.name, "/x"))
    stop(relay)
    assert rows(relay, Connection) == [] and rows(relay, Process) == []
    _, message = relay.layer.receive(["websocket.disconnect"])
    assert message["code"] == 1006 and message["path"] == "/x"


# --- wakeups


@on_postgresql
@pytest.mark.parametrize(
    ("channel", "kind"),
    [("http.request", "h"), ("websocket.receive", "w"), ("thumbnails", "d"), ("asgi.delay", "d")],
)
def test_a_message_wakes_its_kind_of_worker_alone(new_relay, channel, kind):
    wakeups = {kind: WakeupPipe.new() for kind in "hwd"}
    relay = new_relay(wakeups, poll_interval=None)
    until(lambda: "wait" in relay.harness.asked)
    relay.layer.send(channel, {"number": 1})
    until(lambda: wait_readable([wakeups[kind].reader], 0))
    assert not wait_readable([wakeups[other].reader for other in wakeups if other != kind], 0)


@on_postgresql
def test_a_reply_wakes_no_worker(new_relay):
    wakeups = {kind: WakeupPipe.new() for kind in "hwd"}
    relay = new_relay(wakeups, poll_interval=None)
    receiver = Receiver(relay)
    answer(relay, receiver, number=1)
    until(lambda: receiver.replies)
    assert not wait_readable([wakeup.reader for wakeup in wakeups.values()], 0)


# Wakeups inside of the process tree.


@on_postgresql
def test_a_wakeup_has_it_read_its_replies(new_relay, new_link):
    relay = new_relay(poll_interval=3600)
    receiver = Receiver(relay)
    writer = new_link(relay.layer)
    writer.local_wakeups = {relay.queue: relay.reply_wakeup}
    until(lambda: "wait" in relay.harness.asked)
    writer.apply([Send(receiver.channel, codec.encode({"n": 1}), "", 60)])
    until(lambda: receiver.messages() == [{"n": 1}])


@on_postgresql
def test_workers_are_rung_for_only_while_all_on_record_are_its_own(new_relay, new_link):
    wakeup = WakeupPipe.new()
    relay = new_relay({"h": wakeup}, lease=0.3)
    link = new_link(relay.layer)

    def until_with(condition, *workers):
        """Wait, and keep these workers alive meanwhile."""
        until(lambda: [link.register(one, Process.WORKER) for one in workers] and condition())

    until_with(lambda: relay.harness.asked.count("clean_up") > 2, "own")
    assert relay._local_wakeups == {}  # it has none that is ready
    relay.own_workers = lambda: {"own", "another that is not on record yet"}
    until_with(lambda: relay._local_wakeups == {"h": wakeup}, "own")
    until_with(lambda: relay._local_wakeups == {}, "own", "stranger")
    link.unregister("stranger")
    until(lambda: relay._local_wakeups == {"h": wakeup})


@on_postgresql
def test_its_own_workers_are_woken_without_a_notification(new_relay, new_link):
    wakeup = WakeupPipe.new()
    relay = new_relay({"h": wakeup}, poll_interval=3600, lease=0.3)
    listener = new_link(relay.layer)
    listener.wait(0)
    relay.own_workers = lambda: {"own"}
    until(lambda: relay._local_wakeups)
    relay.send(relay.make_send("http.request", {"path": "/"}))
    until(lambda: wait_readable([wakeup.reader], 0))
    assert listener.wait(0.05) == set()


@kinds.only("postgresql", "sqlite")
def test_what_waits_since_all_workers_are_busy_is_told_of(new_relay, new_link, monkeypatch, caplog):
    monkeypatch.setattr(Overload, "PATIENCE", 0.3)
    relay = new_relay(lease=0.3)
    link = new_link(relay.layer)
    link.register("w1", Process.WORKER)
    link.record_work("w1", '{"takes": ["own"], "runs": "exports", "since": "2026-11-28 14:03:02"}')
    relay.layer.send("own", {})
    until(lambda: "w1 runs exports since 2026-11-28 14:03:02" in caplog.text)
    assert caplog.text.count("Messages on own have waited") == 1


@on_postgresql
def test_workers_of_two_projects_are_told_of_once(new_relay, new_link, caplog):
    relay = new_relay(lease=0.3)
    link = new_link(relay.layer)
    for name in ("w1", "w2"):
        link.register(name, Process.WORKER)
        link.record_work(name, f'{{"takes": ["http.request"], "site": "{name}"}}')
    until(lambda: "The workers w1 and w2 answer the same requests" in caplog.text)
    asked = len(relay.harness.asked)
    until(lambda: relay.harness.asked[asked:].count("clean_up") > 1)
    assert caplog.text.count("answer the same requests") == 1


# Logins.


@pytest.mark.parametrize("has_sessions", [True, False])
def test_once_a_minute_the_logins_of_its_sockets_are_looked_at(new_relay, monkeypatch, has_sessions):
    relay = new_relay(lease=0.3)
    relay.housekeeper.has_sessions = has_sessions
    asked = len(relay.harness.asked)
    until(lambda: relay.harness.asked[asked:].count("clean_up") > 1)
    assert drain(relay.layer, "websocket.logins") == []
    relay.housekeeper._checked_at -= 60
    asked = len(relay.harness.asked)
    until(lambda: relay.harness.asked[asked:].count("clean_up") > 2)
    found = drain(relay.layer, "websocket.logins")
    assert found == ([{"server": relay.name}] if has_sessions else [])
