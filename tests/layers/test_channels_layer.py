"""A channel layer for Channels 4: its documented contract, many event loops, outages, and what ends without a word."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from asgiref.sync import async_to_sync
from django.db import connections, transaction
from django.test import override_settings
from psycopg2 import OperationalError

from dbchannels import Channel, Group, codec, conf
from dbchannels.checks.site import check_channel_layers, check_leftovers
from dbchannels.exceptions import InvalidConfiguration, InvalidMessage, InvalidName, LayerUnavailable
from dbchannels.layers import channel_layers
from dbchannels.layers import relay as relay_module
from dbchannels.layers.operations import UNFINISHED, Send
from dbchannels.layers.postgresql import members
from dbchannels.layers.postgresql.members import MembersSession
from dbchannels.models import DurableMessage, Membership, Process
from tests import kinds
from tests.harness import until

pytest.importorskip("channels")

from channels import exceptions as channels_exceptions

from dbchannels.layers.channels import ChannelLayer
from dbchannels.layers.channels import relay as module
from dbchannels.layers.channels.local import LocalDelivery

HELLO = {"type": "test.message", "text": "hello"}
shared = kinds.only("postgresql", "sqlite")
on_postgresql = kinds.only("postgresql")

TERMINATE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name ~ %(name)s
"""
SESSIONS = """
SELECT application_name FROM pg_stat_activity
WHERE datname = current_database() AND application_name ~ 'publisher|receiver|housekeeper|members'
"""


@pytest.fixture
def new_channels(new_layer, layer_kind, monkeypatch):
    """Make Channels' layers, with OPTIONS of DBCHANNELS, and CONFIG as keywords."""
    made = []

    def new(options=None, **config):
        backend, database = kinds.LAYERS[layer_kind]
        entry = {"BACKEND": backend, "DATABASE": database, "OPTIONS": options or {}}
        monkeypatch.setattr(conf.settings, "DBCHANNELS", {"default": entry}, raising=False)
        if not made:
            new_layer(**(options or {}))
        made.append(ChannelLayer(**config))
        return made[-1]

    yield new
    for one in made:
        async_to_sync(one.close)()


@pytest.fixture
def layer(new_channels):
    return new_channels(capacity=3)


def run(coroutine, within=20):
    """Run a coroutine in an event loop of its own."""
    return asyncio.run(asyncio.wait_for(coroutine, within))


def rows(layer, model):
    return layer._layer.rows(model)


async def nothing(layer, *channels, within=0.3):
    """Assert that no message comes."""
    for channel in channels:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(layer.receive(channel), within)


async def eventually(condition):
    """Wait, in the event loop, until a condition holds."""
    await in_thread(until, condition, "the condition", 20)


async def session_open(layer):
    """Wait until event loops may ask for the members of groups."""
    await eventually(lambda: layer._relay._local._members.ready)


async def in_thread(function, *args):
    """Call a function that uses Django's connections in a thread, which closes them."""

    def call():
        try:
            function(*args)
        finally:
            connections.close_all()

    await asyncio.get_running_loop().run_in_executor(None, call)


# The contract.


@shared
def test_a_plain_channel_is_a_queue(layer):
    async def test():
        for number in range(3):
            await layer.send("numbers", {**HELLO, "number": number})
        return [(await layer.receive("numbers"))["number"] for _ in range(3)]

    assert run(test()) == [0, 1, 2]


@shared
def test_a_channel_of_the_process_is_received_in_order(layer):
    async def test():
        channel = await layer.new_channel()
        assert re.fullmatch(r"specific\.[\w-]{22}![\w-]{22}", channel)
        found = []
        for number in range(20):
            await layer.send(channel, {**HELLO, "number": number})
            found.append(await layer.receive(channel))
        return found

    assert run(test()) == [{**HELLO, "number": number} for number in range(20)]


@shared
def test_groups(layer):
    async def test():
        own, other = await layer.new_channel(), await layer.new_channel("stranger")
        assert other.startswith("stranger.")
        for member in (own, own, other, "plain", "gone"):
            await layer.group_add("friends", member)
        await layer.group_discard("friends", "gone")
        await layer.group_discard("friends", "never-there")
        await layer.group_send("friends", HELLO)
        assert [await layer.receive(member) for member in (own, other, "plain")] == [HELLO] * 3
        await nothing(layer, own, "gone")

    run(test())
    assert layer.extensions == ("groups", "flush") and layer.group_expiry == 86_400


@shared
def test_a_full_channel_refuses_and_a_group_passes_it_over(layer):
    async def test():
        for _ in range(3):
            await layer.send("narrow", HELLO)
        with pytest.raises(layer.ChannelFull, match="The channel narrow is full"):
            await layer.send("narrow", HELLO)
        with pytest.raises(channels_exceptions.ChannelFull):
            await layer.send("narrow", HELLO)
        await layer.group_add("group", "narrow")
        for _ in range(5):
            await layer.group_send("group", HELLO)
        for _ in range(3):
            assert await layer.receive("narrow") == HELLO
        await nothing(layer, "narrow")

    run(test())


@shared
def test_capacities_by_name_glob_and_pattern(new_channels):
    layer = new_channels(
        capacity=5, channel_capacity={"one": 1, "two*": 2, re.compile(r"^(three|specific)\b"): 3}
    )

    async def fill(channel):
        for number in range(20):
            try:
                await layer.send(channel, HELLO)
            except layer.ChannelFull:
                return number

    assert [run(fill(channel)) for channel in ("one", "two-and-more", "three", "other")] == [1, 2, 3, 5]


@on_postgresql
def test_a_consumer_that_does_not_receive_fills_its_own_channel_alone(layer, caplog):
    async def test():
        busy, idle = await layer.new_channel(), await layer.new_channel()
        await layer.group_add("both", idle)
        for _ in range(5):
            await layer.group_send("both", HELLO)
        await eventually(lambda: "1 messages were dropped" in caplog.text)
        with pytest.raises(layer.ChannelFull):
            await layer.send(idle, HELLO)
        await layer.send(busy, HELLO)
        assert await layer.receive(busy) == HELLO
        assert [await layer.receive(idle) for _ in range(3)] == [HELLO] * 3
        await nothing(layer, idle)

    run(test())


@shared
def test_messages_expire(new_channels):
    layer = new_channels(expiry=0.2)

    async def test():
        channel = await layer.new_channel()
        for one in (channel, "plain"):
            await layer.send(one, HELLO)
        await asyncio.sleep(0.4)
        await nothing(layer, channel, "plain")

    run(test())


@shared
def test_a_channel_that_nobody_receives_leaves_its_groups(new_channels):
    layer = new_channels({"lease": 0.6}, expiry=0.2)

    async def test():
        left, alive = await layer.new_channel(), await layer.new_channel()
        for one in (left, alive):
            await layer.group_add("group", one)
        waits = asyncio.create_task(layer.receive(alive))
        await layer.group_send("group", HELLO)
        assert await waits == HELLO
        waits = asyncio.create_task(layer.receive(alive))
        await eventually(lambda: rows(layer, Membership).count() == 1)
        await layer.group_send("group", HELLO)
        assert await waits == HELLO

    run(test())


@shared
def test_a_message_is_as_it_was_when_it_was_sent(layer):
    message = {
        "type": "t",
        "nested": [1, (2, 3)],
        "bytes": b"\0",
        "none": None,
        "float": 0.5,
        "big": 2**63 - 1,
    }

    async def test():
        sending = asyncio.ensure_future(layer.send("plain", message))
        await asyncio.sleep(0)
        message["nested"][0] = "changed"
        await sending
        return await layer.receive("plain")

    found = run(test())
    assert found == {**message, "nested": [1, [2, 3]]}


@shared
def test_each_member_gets_a_message_of_its_own(layer):
    async def test():
        channels = [await layer.new_channel() for _ in range(2)]
        for one in channels:
            await layer.group_add("group", one)
        await layer.group_send("group", {"type": "t", "list": []})
        first, second = [await layer.receive(one) for one in channels]
        first["list"].append("mine")
        return second

    assert run(test()) == {"type": "t", "list": []}


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"type": "t", "set": {1}}, "contains a set: send sorted"),
        ({"type": "t", 1: 2}, "keys must be str"),
        ({"type": "t", "at": 2**64}, "does not fit into 64 bits"),
        ("text", "A message must be a dict"),
    ],
)
@on_postgresql
def test_what_cannot_be_sent_is_refused(layer, message, error):
    with pytest.raises(InvalidMessage, match=error):
        run(layer.send("plain", message))
    with pytest.raises(InvalidMessage, match=error):
        run(layer.group_send("group", message))


@on_postgresql
def test_large_messages(layer):
    large = {"type": "t", "text": "x" * 1_000_000}

    async def test():
        await layer.send("plain", large)
        assert await layer.receive("plain") == large
        with pytest.raises(channels_exceptions.MessageTooLarge):
            await layer.group_send("group", {"type": "t", "text": "x" * 2_000_000})

    run(test())


@pytest.mark.parametrize("name", ["ümlaut", "with space", "a!b!c", "new\n", "x" * 100, 7, ""])
@on_postgresql
def test_invalid_names(layer, name):
    for call in (
        layer.send(name, HELLO),
        layer.receive(name),
        layer.group_add("g", name),
        layer.group_send(name, HELLO),
    ):
        with pytest.raises((TypeError, InvalidName)):
            run(call)


@on_postgresql
def test_a_channel_of_another_process_is_not_received(layer):
    with pytest.raises(InvalidName, match=r"other\.A!b is not a channel of this process"):
        run(layer.receive("other.A!b"))


@on_postgresql
def test_a_message_without_a_type(layer):
    async def test():
        await layer.send("plain", {"text": "no type"})
        assert await layer.receive("plain") == {"text": "no type"}
        with pytest.raises(InvalidMessage, match="add a 'type'"):
            await layer.group_send("group", {"text": "no type"})

    run(test())


@shared
def test_flush_takes_what_is_of_channels_alone(layer):
    Channel("own").send({"id": 1})
    Group("friends").add("reply.A!b")

    async def test():
        channel = await layer.new_channel()
        await layer.group_add("friends", channel)
        await layer.group_add("friends", "plain")
        await layer.send("plain", HELLO)
        await layer.flush()
        await layer.group_send("friends", HELLO)
        await nothing(layer, channel, "plain")

    run(test())
    assert rows(layer, DurableMessage).count() == 1
    assert [one.channel for one in rows(layer, Membership)] == ["reply.A!"]


# Delivery within the process.


@on_postgresql
def test_what_stays_in_the_process_is_not_written(layer, monkeypatch):
    async def test():
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        await session_open(layer)
        monkeypatch.setattr(type(layer._layer.link()), "_write", None)
        monkeypatch.setattr(type(layer._layer.link()), "_pop", None)
        layer._relay._take = lambda link: False
        await layer.group_send("group", {**HELLO, "number": 1})
        await layer.send(channel, {**HELLO, "number": 2})
        await layer.group_send("nobody", HELLO)
        return [(await layer.receive(channel))["number"] for _ in range(2)]

    assert run(test()) == [1, 2]


@on_postgresql
def test_nothing_overtakes_what_waits_in_the_database(new_channels):
    layer = new_channels()

    async def test():
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        layer._relay._take = lambda link: False  # the reader takes nothing
        for number in range(0, 12, 4):
            await in_thread(Group("group").send_event, "test.message", {"number": number})
            await layer.group_send("group", {**HELLO, "number": number + 1})
            await in_thread(Channel(channel).send, {**HELLO, "number": number + 2})
            await layer.send(channel, {**HELLO, "number": number + 3})
            for expected in range(number, number + 4):
                assert (await layer.receive(channel))["number"] == expected

    run(test())


@on_postgresql
def test_members_here_and_elsewhere_get_messages_in_order(new_channels):
    layer, other = new_channels(), new_channels()

    async def test():
        mine, theirs = await layer.new_channel(), await other.new_channel()
        for group, member in (("both", mine), ("both", theirs), ("own", mine)):
            await layer.group_add(group, member)
        for number in range(40):
            # Not one after the other, so that some share a batch.
            await asyncio.gather(
                *(layer.group_send(group, {**HELLO, "number": number}) for group in ("both", "own"))
            )
        found = [(await layer.receive(mine))["number"] for _ in range(80)]
        assert found == [number for number in range(40) for _ in range(2)]
        assert [(await other.receive(theirs))["number"] for _ in range(40)] == list(range(40))

    run(test())


@on_postgresql
def test_memberships_that_others_change_count_at_once(new_channels):
    layer, other = new_channels(), new_channels()

    async def test():
        mine, second = await layer.new_channel(), await layer.new_channel()
        await layer.group_add("group", mine)
        for number in range(3):
            await layer.group_send("group", {**HELLO, "number": number})
            await other.group_add("group", second)
            await layer.group_send("group", {**HELLO, "number": number + 0.5})
            await other.group_discard("group", second)
            found = [(await layer.receive(mine))["number"] for _ in range(2)]
            assert found == [number, number + 0.5] == [number, (await layer.receive(second))["number"]]
        await other.group_discard("group", mine)
        await layer.group_send("group", HELLO)
        await nothing(layer, mine, second)

    run(test())


@on_postgresql
def test_a_delivery_that_an_outage_interrupts_happens_once(layer, monkeypatch):
    answer, failures = MembersSession.answer, iter([True])

    def fail(session):
        if next(failures, False):
            raise LayerUnavailable("It is down.")
        return answer(session)

    monkeypatch.setattr(MembersSession, "answer", fail)

    async def test():
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        await session_open(layer)
        await layer.group_send("group", HELLO)
        assert await layer.receive(channel) == HELLO
        await nothing(layer, channel)

    run(test())
    assert next(failures, None) is None


@on_postgresql
def test_no_thread_has_to_wake_up_for_what_stays_in_the_process(layer, monkeypatch):
    async def test():
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        await session_open(layer)
        monkeypatch.setattr(layer._relay, "_put", None)
        for number in range(3):
            await layer.group_send("group", {**HELLO, "number": number})
            assert (await layer.receive(channel))["number"] == number
        monkeypatch.undo()

    run(test())


@on_postgresql
def test_nothing_overtakes_what_was_popped_and_is_not_yet_delivered(layer):
    async def test():
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        await session_open(layer)
        relay = layer._relay
        with relay.popping:
            await layer.group_send("group", {**HELLO, "number": 2})
            relay.deliver([([channel], codec.encode({**HELLO, "number": 1}, 1000), 0.0)])
        return [(await layer.receive(channel))["number"] for _ in range(2)]

    assert run(test()) == [1, 2]


@on_postgresql
def test_an_event_loop_that_is_blocked_keeps_no_other_waiting(layer):
    async def test():
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        await session_open(layer)
        asking = asyncio.create_task(layer.group_send("group", {**HELLO, "number": 1}))
        await asyncio.sleep(0)
        thread = threading.Thread(target=lambda: run(layer.group_send("group", {**HELLO, "number": 2})))
        thread.start()
        thread.join(20)
        assert not asking.done() and not thread.is_alive()
        await asking
        assert sorted([(await layer.receive(channel))["number"] for _ in range(2)]) == [1, 2]

    run(test())


@on_postgresql
def test_an_event_loop_that_ends_while_it_asks_takes_nothing_along(new_channels, monkeypatch):
    layer = new_channels({"lease": 0.9})
    channel = run(layer.new_channel())
    run(layer.group_add("group", channel))
    run(session_open(layer))
    monkeypatch.setattr(LocalDelivery, "_look", lambda local, loop: None)
    loop = asyncio.new_event_loop()
    sends = [loop.create_task(layer.group_send("group", {**HELLO, "number": number})) for number in (1, 2)]
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    monkeypatch.undo()
    assert not any(one.done() for one in sends)

    async def test():
        assert [(await layer.receive(channel))["number"] for _ in range(2)] == [1, 2]
        await session_open(layer)
        await layer.group_send("group", HELLO)
        assert await layer.receive(channel) == HELLO

    run(test())


@on_postgresql
def test_a_layer_that_is_closed_while_it_asks_writes_what_is_left(layer, monkeypatch):
    async def test():
        monkeypatch.setattr(MembersSession, "answer", lambda session: (False, None))  # it is under way
        await layer.new_channel()
        await layer.group_add("plain", "plain")
        await session_open(layer)
        asking = [asyncio.create_task(layer.group_send("plain", HELLO)) for _ in range(2)]
        await asyncio.sleep(0)
        local = layer._relay._local
        assert local._asked and local._waiting
        await layer.close()
        await asyncio.gather(*asking)
        assert local._descriptor == -1 and not local._members.ready
        monkeypatch.undo()
        assert [await layer.receive("plain") for _ in range(2)] == [HELLO] * 2

    run(test())


@on_postgresql
def test_what_is_not_answered_is_written(new_channels, monkeypatch):
    layer = new_channels({"lease": 0.9})

    def sleep(session, groups, queues):
        yield "SELECT pg_sleep(60)", {}

    async def test():
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        await session_open(layer)
        monkeypatch.setattr(members, "ANSWER_WITHIN", 0.1)
        monkeypatch.setattr(MembersSession, "_questions", sleep)
        await layer.group_send("group", HELLO)
        assert await layer.receive(channel) == HELLO
        monkeypatch.undo()
        await session_open(layer)

    run(test())


@on_postgresql
def test_a_cancelled_send_lets_nothing_overtake_it(layer, monkeypatch):
    async def test():
        channel = await layer.new_channel()
        await session_open(layer)
        relay = layer._relay
        goes_on, exchange = threading.Event(), relay._exchange
        monkeypatch.setattr(relay, "_exchange", lambda *given: goes_on.wait(20) and exchange(*given))
        with relay.popping:  # so that the publisher has to write it
            sends = [asyncio.create_task(layer.send(channel, {**HELLO, "number": one})) for one in (1, 2)]
            await eventually(lambda: relay._sent)
        sends[1].cancel()
        sends.append(asyncio.create_task(layer.send(channel, {**HELLO, "number": 3})))
        await asyncio.sleep(0.2)  # in which it could be delivered
        goes_on.set()
        assert [(await layer.receive(channel))["number"] for _ in range(3)] == [1, 2, 3]
        await asyncio.gather(*sends, return_exceptions=True)
        assert [one.cancelled() for one in sends] == [False, True, False]

    run(test())


@on_postgresql
def test_the_members_session_comes_back_while_messages_are_sent(new_channels):
    layer = new_channels({"lease": 0.9})

    async def test():
        channel = await layer.new_channel()
        local = layer._relay._local
        await session_open(layer)
        lost = local._members.generation
        local._members.close()

        async def talk():
            while not (local._members.ready and local._members.generation > lost):
                await layer.send(channel, HELLO)
                assert await layer.receive(channel) == HELLO

        await asyncio.gather(talk(), talk())

    run(test())


@on_postgresql
def test_a_loop_forgets_the_socket_of_a_session_that_was_lost(layer, monkeypatch):
    """Its number may be another file's before the layer is closed."""

    def fail(*given):
        raise LayerUnavailable("It is down.")

    async def test():
        channel = await layer.new_channel()
        await session_open(layer)
        monkeypatch.setattr(MembersSession, "answer", fail)
        monkeypatch.setattr(layer._relay, "_exchange", fail)
        removed, loop = [], asyncio.get_running_loop()
        remove_reader = loop.remove_reader
        sending = asyncio.create_task(layer.send(channel, HELLO))
        await eventually(lambda: layer._relay._sent)
        monkeypatch.setattr(loop, "remove_reader", lambda one: removed.append(one) or remove_reader(one))
        await layer.close()
        with pytest.raises(LayerUnavailable):
            await sending
        await asyncio.sleep(0.01)  # it is the loop's turn
        assert removed == []

    run(test())


@on_postgresql
def test_nobody_waits_for_the_members_session(layer, monkeypatch):
    goes_on = threading.Event()
    monkeypatch.setattr(LocalDelivery, "open", lambda local: goes_on.wait(60))

    async def test():
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        await layer.group_send("group", HELLO)
        assert await layer.receive(channel) == HELLO

    try:
        run(test(), 5)
    finally:
        goes_on.set()


@on_postgresql
def test_a_members_session_that_cannot_connect_begins_with_the_best_host(layer, monkeypatch):
    def fail(*given):
        raise OperationalError("The connection took too long.")

    session = layer._layer.members_session()
    session.open()
    assert session._address != ("", "")  # of several hosts it would be the last one
    session.close()
    monkeypatch.setattr(members, "wait", fail)
    with pytest.raises(LayerUnavailable):
        session.open()
    assert session._address == ("", "") and not session.ready


# With dbchannels in one project.


@shared
def test_members_get_what_has_a_type_whoever_sent_it(layer):
    async def test():
        channel = await layer.new_channel()
        await layer.group_add("friends", channel)
        send = Group("friends").send
        for message in ({"text": "for WebSockets"}, {"type": "chat.message", "text": "for handlers"}):
            await in_thread(send, message)
        found = await layer.receive(channel)
        await nothing(layer, channel)
        return found

    assert run(test()) == {"type": "chat.message", "text": "for handlers"}


@on_postgresql
def test_a_send_is_in_no_transaction_of_the_caller(layer):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        async_to_sync(layer.send)("plain", HELLO)
        raise ZeroDivisionError
    assert run(layer.receive("plain")) == HELLO


# Event loops, threads and cancelled calls.


@shared
def test_cancelled_receives_lose_nothing(new_channels):
    layer, number = new_channels(capacity=1000), 60

    async def test():
        channel = await layer.new_channel()
        found = []

        async def take(one):
            found.append((await layer.receive(one))["number"])

        for name in (channel, "plain"):
            found.clear()
            sender = asyncio.create_task(send(name))
            while len(found) < number:
                crowd = [asyncio.create_task(take(name)) for _ in range(5)]
                await asyncio.wait(crowd, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
                for one in crowd:
                    one.cancel()
                await asyncio.gather(*crowd, return_exceptions=True)
            await sender
            assert sorted(found) == list(range(number))
            await nothing(layer, name)

    async def send(name):
        for one in range(number):
            await layer.send(name, {**HELLO, "number": one})

    run(test(), 60)


@on_postgresql
def test_many_event_loops_of_many_threads(new_channels):
    layer, loops = new_channels(capacity=1000), 200

    async def receive(channel, found):
        for _ in range(loops):
            found.append((await layer.receive(channel))["number"])

    async def test():
        channel, found = await layer.new_channel(), []
        await layer.group_add("all", channel)
        receiving = asyncio.create_task(receive(channel, found))

        def one(number):
            async def own():
                mine = await layer.new_channel()
                await layer.send(mine, HELLO)
                assert await layer.receive(mine) == HELLO
                await layer.group_send("all", {**HELLO, "number": number})

            async_to_sync(own)()

        with ThreadPoolExecutor(8) as pool:
            await asyncio.gather(
                *(asyncio.get_running_loop().run_in_executor(pool, one, number) for number in range(loops))
            )
        await receiving
        return sorted(found)

    assert run(test(), 60) == list(range(loops))
    assert layer._relay._sent == {} and layer._relay._inboxes == {}


@on_postgresql
def test_four_sessions_whatever_the_number_of_consumers(layer):
    async def test():
        for _ in range(100):
            channel = await layer.new_channel()
            await layer.group_add("all", channel)
        assert ("all", channel) in layer._relay._memberships

    run(test())
    names = [f"dbchannels {one} {os.getpid()}" for one in ("housekeeper", "members", "publisher", "receiver")]
    assert sorted(one for (one,) in query(layer, SESSIONS)) == names


@on_postgresql
def test_a_process_that_only_sends_has_one_session_and_no_record(layer):
    run(layer.group_send("all", HELLO))
    assert [one for (one,) in query(layer, SESSIONS)] == [f"dbchannels publisher {os.getpid()}"]
    assert not rows(layer, Process).exists()


def query(layer, text, **values):
    with closing(layer._layer.session("killer")) as session:
        return session.execute([(text, values)])


# Ends and outages.


@on_postgresql
def test_a_test_runner_can_drop_the_database(layer):
    run(layer.group_add("all", run(layer.new_channel())))
    until(lambda: len(query(layer, SESSIONS)) == 4, "the sessions are open")
    with connections[layer._layer.database]._nodb_cursor():
        # The server notices a moment later; DROP DATABASE waits for that.
        until(lambda: query(layer, SESSIONS) == [], "they are closed")


@shared
def test_the_process_is_on_record_until_it_closes_the_layer(layer):
    async def test():
        await layer.group_add("group", await layer.new_channel())
        return await layer.new_channel()

    run(test())
    (process,) = rows(layer, Process)
    assert (process.kind, process.pid) == (Process.CHANNELS, os.getpid())
    assert rows(layer, Membership).get().expires_at is None
    run(layer.close())
    assert not rows(layer, Process).exists() and not rows(layer, Membership).exists()
    run(layer.send("plain", HELLO))
    assert run(layer.receive("plain")) == HELLO


@shared
def test_what_a_dead_process_leaves_is_cleaned_up(layer, new_link):
    async def test():
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        return channel.partition("!")[0]

    name = run(test())
    new_link(channel_layers["default"]).clean_up_after(name)
    assert not rows(layer, Membership).exists()


@shared
def test_a_process_that_was_declared_dead_joins_its_groups_again(new_channels, new_link, caplog):
    layer = new_channels({"lease": 0.9})

    async def test():
        channel, left = await layer.new_channel(), await layer.new_channel()
        for group, member in (("group", channel), ("group", left), ("other", channel)):
            await layer.group_add(group, member)
        await layer.group_discard("group", left)
        link = new_link(channel_layers["default"])
        await in_thread(link.clean_up_after, channel.partition("!")[0])
        await eventually(lambda: rows(layer, Membership).count() == 2)
        await layer.group_send("group", HELLO)
        assert await layer.receive(channel) == HELLO

    run(test())
    assert "its channels join their groups again" in caplog.text


@on_postgresql
def test_what_was_locked_at_a_death_is_not_cleaned_up_after_a_return(new_channels, new_link):
    layer = new_channels({"lease": 0.9})

    async def test():
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        name, link = channel.partition("!")[0], new_link(channel_layers["default"])

        def declare_dead():
            with transaction.atomic():
                list(rows(layer, Membership).select_for_update())
                link.clean_up_after(name)
                until(rows(layer, Process).filter(name=name).exists, "the process is back")

        await in_thread(declare_dead)
        await in_thread(link.clean_up_after, name + UNFINISHED)
        await layer.group_send("group", HELLO)
        assert await layer.receive(channel) == HELLO

    run(test())


@pytest.mark.parametrize("session", ["publisher", "receiver", "housekeeper", "members"])
@on_postgresql
def test_a_terminated_session_is_replaced(layer, session):
    async def test():
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        for number in range(5):
            query(layer, TERMINATE, name=session)
            await layer.group_send("group", {**HELLO, "number": number})
            assert (await layer.receive(channel))["number"] == number
            await layer.send("plain", HELLO)
            assert await layer.receive("plain") == HELLO

    run(test())


@on_postgresql
def test_a_send_in_an_outage_waits_and_then_says_so(layer, monkeypatch):
    broken = threading.Event()
    apply = type(layer._layer.link()).apply

    def fail(link, operations):
        if broken.is_set():
            raise LayerUnavailable("It is down.")
        return apply(link, operations)

    monkeypatch.setattr(type(layer._layer.link()), "apply", fail)

    async def test():
        await layer.send("plain", HELLO)
        broken.set()
        waiting = asyncio.create_task(layer.send("plain", {**HELLO, "text": "late"}))
        await eventually(lambda: layer._relay.health.failing)
        broken.clear()
        await waiting
        assert [(await layer.receive("plain"))["text"] for _ in range(2)] == ["hello", "late"]
        broken.set()
        monkeypatch.setattr(module, "PATIENCE", 0.2)
        for _ in range(3):
            with pytest.raises(LayerUnavailable, match="It is down"):
                await layer.send("plain", HELLO)
        broken.clear()
        await layer.send("plain", HELLO)

    run(test())


@on_postgresql
def test_an_end_in_an_outage_does_not_say_that_it_is_over(layer, monkeypatch, caplog):
    def fail(link, operations):
        if operations:
            raise LayerUnavailable("It is down.")

    monkeypatch.setattr(type(layer._layer.link()), "apply", fail)
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    with pytest.raises(LayerUnavailable, match="It is down"):
        run(layer.send("plain", HELLO))
    layer.stop()
    assert "cannot be used now" in caplog.text and "can be used again" not in caplog.text


@on_postgresql
def test_an_operation_that_the_layer_cannot_take_fails_alone(layer, monkeypatch):
    apply = type(layer._layer.link()).apply

    def fail(link, operations):
        if any(getattr(one, "channel", "") == "poison?" for one in operations):
            raise ZeroDivisionError
        return apply(link, operations)

    monkeypatch.setattr(type(layer._layer.link()), "apply", fail)

    async def test():
        sends = (layer.send(one, HELLO) for one in ("plain", "poison", "other"))
        return await asyncio.gather(*sends, return_exceptions=True)

    assert [type(one) for one in run(test())] == [type(None), ZeroDivisionError, type(None)]


@shared
def test_a_send_beyond_what_may_wait_for_the_database_is_refused(layer, monkeypatch):
    async def test():
        with monkeypatch.context() as patch, pytest.raises(LayerUnavailable, match="Too many messages wait"):
            patch.setattr(relay_module, "OUTBOX", -1)
            await layer.send("plain", HELLO)
        await layer.send("plain", {**HELLO, "text": "later"})
        assert (await layer.receive("plain"))["text"] == "later"
        await nothing(layer, "plain")

    run(test())


@shared
@pytest.mark.parametrize("error", [LayerUnavailable("It is down."), ZeroDivisionError("a bug")])
def test_nothing_is_sent_until_the_process_is_on_record(layer, monkeypatch, caplog, error):
    look, broken = module.ChannelsRelay._look, threading.Event()

    def fail(relay, link):
        if broken.is_set():
            raise error
        look(relay, link)

    monkeypatch.setattr(module.ChannelsRelay, "_look", fail)
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    broken.set()

    async def test():
        channel = await layer.new_channel()
        with pytest.raises(LayerUnavailable, match="this process is not on record there"):
            await layer.send(channel, HELLO)
        broken.clear()
        await eventually(layer._relay._ready.is_set)
        await layer.send(channel, {**HELLO, "text": "later"})
        assert (await layer.receive(channel))["text"] == "later"

    run(test())
    logged = [record.exc_info[0] for record in caplog.records if record.exc_info]
    assert set(logged) == ({ZeroDivisionError} if isinstance(error, ZeroDivisionError) else set())


@shared
def test_what_an_event_loop_has_left_of_a_plain_channel_goes_to_another_process(new_channels, monkeypatch):
    ended, other = new_channels(), new_channels()
    monkeypatch.setattr(module, "SLOWEST_LOOP", 0.0)
    run(ended.send("other", HELLO))
    ended._relay.deliver([(["plain"], codec.encode(HELLO), 0.0)])
    ended._relay._let_go()
    assert run(other.receive("plain")) == HELLO


@shared
def test_a_message_that_cannot_be_read_is_left_out(layer, caplog):
    layer._layer.write([Send("plain?", b"\xc1", "", 60.0, certain=True)])
    connections.close_all()

    async def test():
        await layer.send("plain", HELLO)
        return await layer.receive("plain")

    assert run(test()) == HELLO
    assert "A message on plain could not be read and was left out: " in caplog.text


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # since Python 3.12
@on_postgresql
def test_a_forked_child_has_threads_and_sessions_of_its_own(layer):
    channel = run(layer.new_channel())
    run(layer.group_add("group", channel))
    child = os.fork()
    if not child:
        ended = 1
        try:
            mine = run(layer.new_channel())
            run(layer.send(mine, HELLO))
            assert run(layer.receive(mine)) == HELLO
            run(layer.group_send("group", {**HELLO, "text": "from the child"}))
            run(layer.close())
            ended = 0
        finally:
            os._exit(ended)
    assert os.waitpid(child, 0)[1] == 0
    assert run(layer.receive(channel))["text"] == "from the child"
    run(layer.send(channel, HELLO))
    assert run(layer.receive(channel)) == HELLO


# Settings.


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"hosts": [("127.0.0.1", 6379)]}, "has the unknown key 'hosts'"),
        ({"capacity": 0}, r"\['capacity'\] is 0: write a whole number"),
        ({"expiry": -1}, r"\['expiry'\] is -1: write seconds"),
        ({"channel_capacity": {"a": "b"}}, r"\['channel_capacity'\] is"),
        ({"channel_capacity": ["a"]}, r"\['channel_capacity'\] is"),
        ({"layer": "other"}, r"\['layer'\] is 'other': write an alias of DBCHANNELS"),
    ],
)
@on_postgresql
def test_mistakes_in_config(layer, config, problem):
    with pytest.raises(InvalidConfiguration, match=problem):
        ChannelLayer(**config)
    entry = {"BACKEND": conf.CHANNEL_LAYER_BACKEND, "CONFIG": config}
    with override_settings(CHANNEL_LAYERS={"default": entry}):
        (found,) = check_channel_layers(None)
    assert found.id == "dbchannels.E007" and re.search(problem, found.msg)


def test_without_channels_the_import_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "dbchannels.layers.channels")
    monkeypatch.setitem(sys.modules, "channels.layers", None)
    with pytest.raises(ImportError, match=r"pip install 'dbchannels\[channels\]'"):
        importlib.import_module("dbchannels.layers.channels")


def test_check_knows_the_backend():
    ours = {"BACKEND": conf.CHANNEL_LAYER_BACKEND, "CONFIG": {"capacity": 5}}
    with override_settings(CHANNEL_LAYERS={"default": ours}):
        assert check_channel_layers(None) == check_leftovers(None) == []


@pytest.mark.parametrize(
    "entry",
    [
        {"BACKEND": "dbchannels.ChannelLayer"},
        {"BACKEND": "dbchannels.layers.postgresql.PostgreSQLLayer"},
        conf.CHANNEL_LAYER_BACKEND,
    ],
)
def test_check_names_the_right_backend(entry):
    with override_settings(CHANNEL_LAYERS={"default": entry}):
        (found,) = check_channel_layers(None)
    assert (
        found.id == "dbchannels.E007" and f"write {{'BACKEND': '{conf.CHANNEL_LAYER_BACKEND}'}}" in found.msg
    )


@kinds.only("memory")
def test_a_layer_in_memory_is_refused(new_channels):
    with pytest.raises(InvalidConfiguration, match=r"use channels\.layers\.InMemoryChannelLayer"):
        new_channels()
    ours = {"BACKEND": conf.CHANNEL_LAYER_BACKEND}
    with override_settings(CHANNEL_LAYERS={"default": ours}):
        (found,) = check_channel_layers(None)
    assert "InMemoryChannelLayer" in found.msg
