"""What a consumer's options do: retries, back-off, and one transaction for everything."""

from __future__ import annotations

import asyncio
import logging
import re

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connections, transaction
from django.utils import timezone

from dbchannels import (
    Channel,
    ConsumeLater,
    DenyConnection,
    Group,
    ResponseLater,
    WebSocketCloseException,
    WebsocketConsumer,
    channel_layers,
    route,
)
from dbchannels.models import DeadLetter, DurableMessage, Membership
from dbchannels.routing.table import Routing
from dbchannels.testing.contract.case import drain, waiting
from dbchannels.worker.executor import completed
from dbchannels.worker.worker import Worker
from tests import kinds
from tests.visitors import Visitor

pytestmark = kinds.on_databases


@pytest.fixture
def new_worker(layer):
    """Make workers, on record, whose sessions are closed at the end."""
    made = []

    def new(consumer, channel="own", **options):
        made.append(
            Worker(channel_layers["default"], Routing([route(channel, consumer, **options)]), only=[channel])
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


def test_the_log_says_whose_fault_it_was_and_what_comes_of_the_message(layer, new_worker, caplog):
    worker = new_worker(boom, retries=1, backoff=0)
    layer.send("own", {})
    while worker.run_once():
        pass
    first, second = [one.getMessage() for one in caplog.records if one.name == "dbchannels.worker"]
    assert first.startswith(
        f"{boom.__module__}.{boom.__qualname__} raised on a message of own:\n    Traceback"
    )
    assert first.endswith("This was attempt 1 of 2; the next is in 0.0 s.")
    assert "attempt 2 of 2: it is a dead letter now" in second and "'manage.py replay own'" in second
    assert "attempt" not in rows(layer, DeadLetter).get().error


async def boom_later(message):
    await sync_to_async(boom)(message)


def boom_again(message):
    try:
        boom(message)
    except RuntimeError as error:
        raise ValueError("again") from error


class Booms(WebsocketConsumer):
    def receive(self, text=None, bytes=None):
        boom(text)


@pytest.mark.parametrize(
    ("channel", "consume", "names"),
    [
        ("own", transaction.atomic(boom_again), ["boom_again", "boom", "boom_again"]),
        ("own", boom_later, ["boom_later", "boom"]),
        ("websocket.receive", Booms.as_consumer(), ["receive", "boom"]),
    ],
)
def test_a_traceback_begins_at_the_sites_code(layer, new_worker, caplog, channel, consume, names):
    layer.send(channel, {"reply_channel": "reply.web!a", "path": "/", "text": "hi", "order": 1})
    worker = new_worker(consume, channel=channel)
    assert worker.run_once()
    frames = re.findall(r'File "(.+)", line \d+, in (\w+)', caplog.messages[0])
    assert [name for path, name in frames if path == __file__] == names
    assert frames[0] == (__file__, names[0])


def test_a_message_that_kills_its_worker_each_time_is_a_dead_letter_in_the_end(layer, new_worker, new_link):
    ran = []
    layer.send("own", {"number": 1})
    link = new_link(layer)
    for number in range(3):
        name = f"killed-{number}"
        link.register(name, "worker")
        assert len(link.claim(["own"], 10, name)) == 1
        link.clean_up_after(name)
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


# Groups.


@pytest.mark.parametrize("channel", ["websocket.connect", "http.request", "websocket.receive"])
def test_a_membership_tells_whether_the_clients_first_message_made_it(layer, new_worker, channel):
    """The last id of a client that comes back counts for these groups alone."""

    def join(message):
        Group("at-once", immediately=True).add(message.reply_channel)
        Group("group").add(message.reply_channel)
        with transaction.atomic(using=layer.database):
            Group("together").add(message.reply_channel)
        Group("others").add("reply.web!b")

    layer.send(channel, {"reply_channel": "reply.web!a", "path": "/", "order": 1})
    assert new_worker(join, channel=channel).run_once()
    found = dict(rows(layer, Membership).values_list("group", "since"))
    own = 0 if channel == "websocket.receive" else None
    assert found == {"at-once": own, "group": own, "together": own, "others": 0}


# Delays.


def test_an_idle_reader_knows_when_the_next_message_is_due(layer, new_link):
    link = new_link(layer)
    assert link.next_due() is None
    layer.send("own", {}, delay=3600)
    due = link.next_due()
    assert due is None if not layer.wakeups else 3500 < due <= 3600


# Later, and the end of a connection.


@pytest.fixture
def socket(layer, new_link):
    """A client with a WebSocket, on record."""
    one = Visitor(layer, new_link(layer)).opens()
    drain(layer, "websocket.connect")
    yield one
    one.ends()


@pytest.fixture
def run(work_off):
    """Run a consumer for what waits on a channel."""
    return lambda channel, consumer, **options: work_off(route(channel, consumer, **options))


def send_and(error):
    """Return a consumer that sends, and then raises."""

    def consume(message):
        Channel("out").send({})
        raise error

    return consume


def test_a_frame_that_is_wanted_later_goes_back_to_its_server(layer, socket, run, caplog):
    socket.says("hi")
    run("websocket.receive", send_and(ConsumeLater))
    assert socket.told() == [{"again": 1}]
    assert (waiting(layer, "out"), caplog.records) == (0, [])


def test_a_message_of_the_sites_own_that_is_wanted_later_waits_as_one_that_failed(layer, run, caplog):
    layer.send("own", {"number": 1})
    run("own", send_and(ConsumeLater), backoff=3600)
    (message,) = rows(layer, DurableMessage)
    assert (message.attempts, message.due_at > message.sent_at, waiting(layer, "out")) == (1, True, 0)
    assert caplog.records == []  # no traceback: nothing has failed


def test_a_request_that_is_wanted_later_is_asked_to_come_again(layer, run):
    layer.send("http.request", {"reply_channel": "reply.v1!r", "path": "/", "headers": []})
    run("http.request", send_and(ConsumeLater))
    (answer,) = drain(layer, "reply.v1!")
    assert answer["status"] == 503 and [b"Retry-After", b"1"] in answer["headers"]


@pytest.mark.parametrize(
    ("answers", "is_logged"),
    [
        ([{"status": 200}, {"status": 404}], True),
        (
            [
                {"status": 200, "more_content": True},
                {"content": b"a", "more_content": True},
                {"content": b""},
            ],
            False,
        ),
    ],
)
def test_a_second_response_to_a_request_is_logged(layer, run, caplog, answers, is_logged):
    def consume(message):
        for answer in answers:
            message.reply_channel.send(answer)

    layer.send("http.request", {"reply_channel": "reply.v1!r", "path": "/", "headers": []})
    run("http.request", consume)
    assert ("has sent more than one response" in caplog.text) == is_logged
    assert drain(layer, "reply.v1!")[: len(answers)] == answers


def test_a_disconnect_that_nobody_can_bring_again_is_an_error(layer, run, caplog):
    gone = {"reply_channel": "reply.v1!r", "path": "/", "code": 1006, "order": -1}
    layer.send("websocket.disconnect", gone)
    run("websocket.disconnect", send_and(ConsumeLater))
    assert "ConsumeLater" in caplog.text
    assert drain(layer, "reply.v1!") == []


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ("connect", {"accept": True, "close": 4000}),
        ("receive", {"close": 4000}),
        ("disconnect", {"close": 4000}),
    ],
)
@pytest.mark.parametrize("atomic", [False, True])
def test_an_exception_closes_the_connection(layer, socket, run, step, told, atomic, caplog):
    {"connect": socket.opens, "receive": lambda: socket.says("hi"), "disconnect": socket.leaves}[step]()
    run(f"websocket.{step}", send_and(WebSocketCloseException(4000)), atomic=atomic)
    assert socket.told() == [told]
    assert (waiting(layer, "out"), caplog.records) == (0, [])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DenyConnection, "raise WebSocketCloseException to close"),
        (ResponseLater, "send to the reply channel"),
    ],
)
def test_an_exception_for_other_channels_is_an_error(layer, socket, run, caplog, error, told):
    socket.says("hi")
    run("websocket.receive", send_and(error))
    layer.send("own", {})
    run("own", send_and(error), retries=0)
    assert [one.getMessage().count(told) for one in caplog.records] == [1, 1]


def test_an_exception_closes_with_a_reason(socket, run):
    socket.says("hi")
    run("websocket.receive", send_and(WebSocketCloseException(4000, "Not here.")))
    assert socket.told() == [{"close": 4000, "reason": "Not here."}]
    with pytest.raises(ValueError, match="The reason of a close must be a str"):
        WebSocketCloseException(4000, 5)


def test_where_there_is_no_connection_to_close_it_is_an_error(layer, run, caplog):
    layer.send("own", {})
    run("own", send_and(WebSocketCloseException(4000)), retries=0)
    assert rows(layer, DeadLetter).get().error.endswith("The consumer closes the connection with 4000.\n")


# Async.


@pytest.mark.parametrize("atomic", [False, True])
def test_an_async_consumer_runs_to_its_end(layer, run, atomic):
    seen = []

    async def consume(message):
        await asyncio.sleep(0)
        Channel("out").send({"number": 1})
        await DeadLetter.objects.using(layer.database).acreate(
            channel="kept", payload=b"", attempts=0, sent_at=timezone.now(), error=""
        )
        await sync_to_async(Channel("out").send)({"number": 2})
        Channel("out").send({"number": 3})
        seen.append(waiting_in_thread())
        await sync_to_async(lambda: seen.append(connections[layer.database].in_atomic_block))()

    def waiting_in_thread():
        return asyncio.get_running_loop().is_running()

    layer.send("own", {})
    run("own", consume, atomic=atomic)
    assert seen == [True, atomic]
    assert [one["number"] for one in drain(layer, "out")] == [1, 2, 3]
    assert rows(layer, DeadLetter).get().channel == "kept"
    assert not rows(layer, DurableMessage).exists()


@pytest.mark.parametrize("atomic", [False, True])
def test_an_async_consumer_that_raises_has_sent_nothing(layer, run, atomic):
    async def consume(message):
        Channel("out").send({"number": 1})
        await sync_to_async(Channel("out").send)({"number": 2})
        raise RuntimeError("as asked for")

    layer.send("own", {})
    run("own", consume, atomic=atomic, backoff=3600)
    assert waiting(layer, "out") == 0
    assert rows(layer, DurableMessage).get().attempts == 1


def test_what_an_atomic_async_consumer_sends_is_gone_with_a_lost_claim(layer, run):
    async def consume(message):
        Channel("out").send({"number": 1})
        await rows(layer, DurableMessage).aupdate(claimed_by="another")

    layer.send("own", {})
    run("own", consume, atomic=True)
    assert waiting(layer, "out") == 0


async def send_out(message):
    Channel("out").send({"number": 1})


class Sending(WebsocketConsumer):
    """What a class runs is no coroutine any more."""

    CHANNELS = ("own",)

    def consume(self):
        completed(send_out(self.message))


@pytest.mark.parametrize(
    "consume", [send_out, async_to_sync(send_out), Sending], ids=["async", "sync", "class"]
)
def test_what_an_atomic_async_consumer_sends_is_in_its_transaction(layer, new_worker, consume):
    """The worker is killed after the commit, in front of what it would write next."""
    worker = new_worker(consume, atomic=True)
    layer.send("own", {})
    (claimed,) = worker.link.claim(["own"], 1, worker.name)
    result = worker._executor.execute(claimed, worker.name)
    assert (list(result.operations), result.failure) == ([], None)
    assert drain(layer, "out") == [{"number": 1}]
    assert not rows(layer, DurableMessage).exists()


def test_the_orm_is_refused_where_django_refuses_it(layer, run):
    async def consume(message):
        Channel("out", immediately=True).send({})

    layer.send("own", {})
    run("own", consume, retries=0)
    assert "SynchronousOnlyOperation" in rows(layer, DeadLetter).get().error
