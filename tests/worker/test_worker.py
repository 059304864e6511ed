"""The worker: which consumer runs, what it sent and when that is written, and what no message can do to it."""

from __future__ import annotations

import asyncio
import decimal
import os
import threading
import time
import uuid
from collections import Counter
from contextvars import ContextVar
from unittest.mock import Mock

import pytest
from django.db import connections, transaction
from django.http import HttpResponse
from django.urls import get_script_prefix, get_urlconf, path, set_script_prefix, set_urlconf
from django.utils import timezone, translation
from django.utils.translation import get_language

from dbchannels import Channel, DenyConnection, Group, ResponseLater, codec, conf, route
from dbchannels import wakeup as wakeup_module
from dbchannels.exceptions import InvalidConfiguration, LayerUnavailable
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.memory import MemoryLayer
from dbchannels.layers.operations import Send
from dbchannels.layers.store import StoreLayer
from dbchannels.layers.tasks import task_failed
from dbchannels.models import DeadLetter, DurableMessage, InFlight, Process
from dbchannels.protocol import CHUNK
from dbchannels.signals import message_dead, worker_ready
from dbchannels.testing.contract.case import drain, in_thread, wait_until, waiting
from dbchannels.wakeup import WakeupPipe, wait_readable
from dbchannels.worker import database_connections, executor, worker
from dbchannels.worker.batch import BatchSizer
from dbchannels.worker.executor import backoff
from dbchannels.worker.worker import PROTOCOL_CHANNELS, ProcessContext, new_worker_name
from tests import kinds
from tests.clocks import patch_time

REPLIES = "reply.s1!"
CLIENT = "reply.s1!c1"
BOOM = "The consumer's own words."


@pytest.fixture
def batches_of(monkeypatch):
    """Let workers take so many messages at once, whatever their consumers' pace."""

    def take(number):
        fixed = property(lambda self: number, lambda self, learned: None)
        monkeypatch.setattr(BatchSizer, "limit", fixed, raising=False)

    return take


@pytest.fixture
def at_once(monkeypatch):
    """Let failed messages run again at once, and return the attempts after which they failed."""
    attempts = []

    def backoff(attempt):
        attempts.append(attempt)
        return 0.0

    monkeypatch.setattr(executor, "backoff", backoff)
    return attempts


def frame(layer, channel="websocket.receive", order=1, client=CLIENT, **fields):
    """Send what an interface server sends of a WebSocket."""
    layer.send(channel, {"reply_channel": client, "path": "/chat/", "order": order, **fields})


def request(layer, path="/", **fields):
    """Send what an interface server sends of an HTTP request."""
    content = {
        "method": "GET",
        "http_version": "1.1",
        "query_string": b"",
        "headers": [[b"host", b"testserver"]],
    }
    layer.send("http.request", {"reply_channel": CLIENT, "path": path, **content, **fields})


def replies(layer):
    """Return what the interface server is told, in order."""
    return drain(layer, REPLIES)


def work(one):
    """Run batches until nothing waits; return how many there were."""
    batches = 0
    while one.run_once():
        batches += 1
        assert batches < 50, "The worker finds more and more."
    return batches


def rows(layer, model):
    """Return a query set on the layer's database."""
    return model.objects.using(layer.database)


def boom(message, **captures):
    """A consumer that fails."""
    raise RuntimeError(BOOM)


def quiet(message, **captures):
    """A consumer that does nothing."""


def raising(error):
    """Return a consumer that sends, and then raises this."""

    def consume(message):
        Channel("out").send({"from": "the one that raised"})
        raise error

    return consume


@kinds.only("memory")
def test_the_link_of_the_base_class_is_enough(new_layer, new_worker, at_once, monkeypatch):
    monkeypatch.setattr(MemoryLayer, "link", BaseLayer.link)
    layer, ran = new_layer(lease=0.0), []  # so that each look renews it, and does all chores

    def twice(message):
        ran.append(message["number"])
        if len(ran) == 1:
            raise RuntimeError(BOOM)

    one = new_worker(route("own", twice), route("websocket.receive", quiet))
    Channel("own").send({"number": 1})
    frame(layer)
    work(one)
    assert ran == [1, 1] and replies(layer) == [{"finished": 1}]
    one._keep_alive()
    assert one.measures.events["renewals"] > 0 and waiting(layer, "own") == 0


# Shares.


def counting(counts):
    """Return a consumer that counts its messages by their channel."""

    def consume(message):
        counts[message.channel.name] += 1

    return consume


@pytest.mark.parametrize("batch", [1, 20])
@kinds.only("postgresql", "sqlite", "memory")
def test_channels_that_are_busy_have_equal_shares_a_limited_one_too(layer, new_worker, batches_of, batch):
    batches_of(batch)
    counts = Counter()
    busy, number = ("a", "b", "c", "limited"), 20 * batch
    idle = [route(f"idle{one}", quiet) for one in range(20)]
    routes = [route(one, counting(counts), concurrency=1 if one == "limited" else None) for one in busy]
    one = new_worker(routes[0], *idle, *routes[1:], only=["?", "idle*", "limited"])
    layer.send_many([(channel, {}) for channel in busy for _ in range(number)])
    while sum(counts.values()) < number * 2:
        one.run_once()
    assert {channel: pytest.approx(number / 2, rel=0.2) for channel in busy} == counts


@kinds.only("postgresql", "sqlite", "memory")
def test_a_quiet_channel_is_in_the_next_batch_whatever_the_priorities_of_a_busy_one(
    layer, new_worker, batches_of
):
    batches_of(5)
    ran = []
    order = [route(name, lambda message: ran.append(message.channel.name)) for name in ("busy", "quiet")]
    one = new_worker(*order, only=["busy", "quiet"])
    for _ in range(15):
        layer.send("busy", {}, priority=100)
    one.run_once()
    layer.send("quiet", {})
    one.run_once()
    assert ran == ["busy"] * 5 + ["quiet"] + ["busy"] * 4


def test_protocol_channels_are_served_in_turn(layer, new_worker, batches_of):
    batches_of(1)
    ran = []
    one = new_worker(
        *(route(name, lambda message: ran.append(message.channel.name)) for name in PROTOCOL_CHANNELS)
    )
    for _ in range(3):
        frame(layer, "websocket.receive")
        frame(layer, "websocket.disconnect")
    work(one)
    assert sorted(ran[:2]) == sorted(ran[2:4]) == ["websocket.disconnect", "websocket.receive"]


@kinds.only("postgresql")
def test_limited_channels_cost_no_round_trip(layer, new_worker, monkeypatch):
    one = new_worker(route("own", quiet), route("limited", quiet, concurrency=1))
    for _ in range(2):
        one.run_once()
        one.link.next_due()
    runs, run = [], one.link.session._execute
    monkeypatch.setattr(one.link.session, "_execute", lambda statements: runs.append(1) or run(statements))
    one.run_once()
    one.link.next_due()
    assert len(runs) == 3  # a pop, a claim, and when the next one is due


# Channels.


def test_it_reads_the_protocol_and_each_channel_with_a_consumer_once(new_worker):
    one = new_worker(route("thumbnails", quiet), route("websocket.receive", quiet), route("thumbnails", boom))
    assert one.channels == [*PROTOCOL_CHANNELS, "thumbnails"]


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        ({"only": ["http.*"]}, ["http.request", "http.disconnect"]),
        ({"only": ["http.*", "thumb*"]}, ["http.request", "http.disconnect", "thumbs.large", "thumbs.small"]),
        ({"exclude": ["*.*"]}, []),
        ({"only": ["thumbs.*"], "exclude": ["*.large"]}, ["thumbs.small"]),
        ({"exclude": ["websocket.*", "thumbs.?mall"]}, ["http.request", "http.disconnect", "thumbs.large"]),
        ({"only": ["HTTP.*"]}, []),
    ],
)
@kinds.only("memory")
def test_patterns_choose_its_channels(new_worker, options, channels):
    one = new_worker(route("thumbs.large", quiet), route("thumbs.small", quiet), **options)
    assert one.channels == channels


def test_what_is_not_its_own_is_left(layer, new_worker):
    frame(layer)
    layer.send("own", {})
    layer.send("other", {})
    assert work(new_worker(route("own", quiet), route("other", quiet), only=["other"])) == 1
    assert [waiting(layer, channel) for channel in ("websocket.receive", "own", "other")] == [1, 1, 0]


def test_nothing_waits_nothing_is_done(layer, new_worker):
    assert new_worker(route("own", quiet)).run_once() is False
    assert new_worker(route("own", quiet), only=["own"]).run_once() is False


def test_messages_that_somebody_waits_for_go_first(layer, new_worker, batches_of):
    seen = []
    batches_of(2)
    layer.send_many([("own", {}), ("own", {})])
    frame(layer)
    frame(layer, client="reply.s1!c2")
    one = new_worker(
        route("own", lambda message: seen.append("own")),
        route("websocket.receive", lambda message: seen.append("frame")),
    )
    assert one.run_once()
    assert seen == ["frame", "frame"]
    assert work(one) == 1
    assert seen == ["frame", "frame", "own", "own"]
    assert one.consumed == 4


# What a consumer sends.


def test_sends_are_written_in_order_when_the_consumer_has_ended(layer, new_worker):
    seen = []

    def consume(message):
        for number in range(3):
            Channel("out").send({"number": number})
        Group("room").add(message.reply_channel)
        Group("room").send({"text": "hi"})
        Group("room").discard(message.reply_channel)
        seen.append((waiting(layer, "out"), Group("room").channels()))

    frame(layer, order=7)
    assert new_worker(route("websocket.receive", consume)).run_once()
    assert seen == [(0, [])]
    assert [one["number"] for one in drain(layer, "out")] == [0, 1, 2]
    assert replies(layer) == [{"text": "hi"}, {"finished": 7}]
    assert layer.group_channels("room") == []


def test_into_a_full_reply_channel_goes_the_last_word_alone(new_layer, new_worker):
    """Without it the connection would wait for ever for the end of its frame."""
    layer = new_layer(capacity=1)

    def consume(message):
        for text in "abc":
            message.reply_channel.send({"text": text})

    layer.send(CLIENT, {"text": "in the way"})
    for _ in range(2):
        frame(layer, order=7)
        assert new_worker(route("websocket.receive", consume)).run_once()
    assert replies(layer) == [{"text": "in the way"}] + [{"text": "c", "finished": 7}] * 2


def test_sends_of_one_that_raises_are_dropped_and_those_of_its_neighbours_are_not(
    layer, new_worker, batches_of
):
    def consume(message):
        Channel("out").send({"number": message["number"]})
        if message["number"] == 1:
            raise RuntimeError(BOOM)

    batches_of(3)
    for number in range(3):
        frame(layer, client=f"reply.s1!c{number}", number=number)
    assert work(new_worker(route("websocket.receive", consume))) == 1
    assert [one["number"] for one in drain(layer, "out")] == [0, 2]
    assert replies(layer) == [{"finished": 1}] * 3


@kinds.on_databases
def test_sends_and_acknowledgement_are_written_together_or_not_at_all(layer, new_worker):
    layer.send("own", {})
    one = new_worker(route("own", lambda message: Channel("out").send({})))
    finish = one.link.finish
    impossible = Send("out", b"", "", 60.0, "no number")
    one.link.finish = lambda name, done: finish(
        name, done._replace(operations=[*done.operations, impossible])
    )
    with pytest.raises(Exception):  # noqa: B017, PT011  (each database has its own words)
        one.run_once()
    assert waiting(layer, "out") == 0
    assert rows(layer, DurableMessage).get().channel == "own"


def test_immediately_is_written_while_the_consumer_runs(layer, new_worker):
    seen = []

    def consume(message):
        Channel("out").send({"number": 1})
        Channel("out", immediately=True).send({"number": 2})
        seen.extend(drain(layer, "out"))

    frame(layer)
    assert new_worker(route("websocket.receive", consume)).run_once()
    assert seen == [{"number": 2}]
    assert drain(layer, "out") == [{"number": 1}]


@kinds.on_databases
def test_a_send_inside_atomic_takes_along_what_was_buffered(layer, new_worker):
    seen = []

    def consume(message):
        Channel("out").send({"number": 1})
        with transaction.atomic(using=layer.database):
            Channel("out").send({"number": 2})
        seen.append(waiting(layer, "out"))
        Channel("out").send({"number": 3})

    layer.send("own", {})
    assert new_worker(route("own", consume)).run_once()
    assert seen == [2]
    assert [one["number"] for one in drain(layer, "out")] == [1, 2, 3]


@kinds.on_databases
def test_what_a_transaction_rolled_back_was_never_sent(layer, new_worker):
    def consume(message):
        Channel("out").send({"number": 1})
        with transaction.atomic(using=layer.database):
            Channel("out").send({"number": 2})
            transaction.set_rollback(True, using=layer.database)
        Channel("out").send({"number": 3})

    layer.send("own", {})
    assert new_worker(route("own", consume)).run_once()
    assert [one["number"] for one in drain(layer, "out")] == [1, 3]


@kinds.on_databases
def test_what_was_committed_before_the_consumer_raised_stands(layer, new_worker, at_once):
    def consume(message):
        with transaction.atomic(using=layer.database):
            Channel("out").send({"number": 1})
        Channel("out").send({"number": 2})
        raise RuntimeError(BOOM)

    frame(layer)
    assert new_worker(route("websocket.receive", consume)).run_once()
    assert [one["number"] for one in drain(layer, "out")] == [1]


def test_a_group_reaches_who_is_in_it_when_the_consumer_ends(layer, new_worker):
    layer.group_add("room", "reply.s1!c2")

    def consume(message):
        Group("room").add(message.reply_channel)
        Group("room").send({"text": "hi"})

    frame(layer)
    assert new_worker(route("websocket.receive", consume)).run_once()
    assert sorted(map(str, replies(layer))) == ["{'finished': 1}", "{'text': 'hi'}", "{'text': 'hi'}"]


# WebSockets.


@pytest.mark.parametrize("channel", ["websocket.connect", "websocket.receive", "websocket.disconnect"])
def test_a_consumer_that_returns_has_finished_its_frame(layer, new_worker, channel):
    frame(layer, channel, order=3)
    assert new_worker(route(channel, quiet)).run_once()
    assert replies(layer) == [{"finished": 3}]


def test_its_replies_go_before_the_word_that_it_has_finished(layer, new_worker):
    def consume(message):
        message.reply_channel.send({"text": "a"})
        message.reply_channel.send({"text": "b"})

    frame(layer, order=0, channel="websocket.connect")
    assert new_worker(route("websocket.connect", consume)).run_once()
    assert replies(layer) == [{"text": "a"}, {"text": "b", "finished": 0}]


@pytest.mark.parametrize(
    ("channel", "message"),
    [(CLIENT + "x", {"text": "a"}), (CLIENT, {f"key{number}": number for number in range(15)})],
)
def test_what_cannot_say_so_itself_goes_before_the_word(layer, new_worker, channel, message):
    frame(layer, order=3)
    assert new_worker(route("websocket.receive", lambda _: Channel(channel).send(message))).run_once()
    assert replies(layer) == [message, {"finished": 3}]


def test_a_clients_own_word_for_it_does_not_count(layer, new_worker):
    """A consumer that sends back whatever came sends this key too."""
    frame(layer, order=3)
    echo = route(
        "websocket.receive", lambda message: message.reply_channel.send({"finished": 9, "text": "a"})
    )
    assert new_worker(echo).run_once()
    assert replies(layer) == [{"finished": 3, "text": "a"}]


def test_captures_reach_the_consumer(layer, new_worker):
    seen = []
    frame(layer, path="/chat/tea/")
    join = route("websocket.receive", lambda message, room: seen.append(room), path=r"^/chat/(?P<room>\w+)/$")
    assert new_worker(join).run_once()
    assert seen == ["tea"]


def test_no_route_at_all_is_404(layer, new_worker):
    frame(layer, "websocket.connect", order=0)
    assert new_worker(route("websocket.receive", quiet, path="^/other/$")).run_once()
    assert replies(layer) == [{"accept": False, "status": 404, "finished": 0}]


def test_a_receive_route_alone_accepts(layer, new_worker):
    frame(layer, "websocket.connect", order=0)
    assert new_worker(route("websocket.receive", quiet, path="^/chat/$")).run_once()
    assert replies(layer) == [{"finished": 0}]


def test_replies_that_find_their_channel_full_are_told_of_in_one_line(new_layer, new_worker, caplog):
    layer = new_layer(capacity=1)

    def answer(message):
        for text in "abc":
            message.reply_channel.send({"text": text})

    one = new_worker(route("websocket.receive", answer))
    layer.send(CLIENT, {"text": "in the way"})
    frame(layer)
    assert one.run_once()
    assert [record.getMessage() for record in caplog.records if record.name == "dbchannels.worker"] == [
        "2 message(s) of consumers were dropped, the last for reply.s1!: their channel was full. "
        "Its reader is too slow, or OPTIONS['capacity'] too low."
    ]


@pytest.mark.parametrize("channel", ["websocket.receive", "websocket.disconnect"])
def test_a_frame_without_a_route_is_finished_without_a_word(layer, new_worker, channel):
    frame(layer, channel, order=2)
    assert new_worker().run_once()
    assert replies(layer) == [{"finished": 2}]


def test_a_connection_can_be_denied(layer, new_worker, caplog):
    frame(layer, "websocket.connect", order=0)
    assert new_worker(route("websocket.connect", raising(DenyConnection()))).run_once()
    assert replies(layer) == [{"accept": False, "status": 403, "finished": 0}]
    assert waiting(layer, "out") == 0
    assert not caplog.records


def test_a_connect_that_fails_is_500_and_its_traceback_is_logged(layer, new_worker, caplog):
    frame(layer, "websocket.connect", order=0)
    assert new_worker(route("websocket.connect", raising(RuntimeError(BOOM)))).run_once()
    assert replies(layer) == [{"accept": False, "status": 500, "finished": 0}]
    assert waiting(layer, "out") == 0
    assert "websocket.connect" in caplog.text and BOOM in caplog.text


@pytest.mark.parametrize("channel", ["websocket.receive", "websocket.disconnect"])
def test_a_frame_that_fails_does_not_hold_up_the_next(layer, new_worker, channel):
    frame(layer, channel, order=5)
    assert new_worker(route(channel, boom)).run_once()
    assert replies(layer) == [{"finished": 5}]


def test_the_disconnect_of_a_dead_servers_client_is_answered_to_nobody(layer, new_worker):
    seen = []
    frame(layer, "websocket.disconnect", order=-1)
    assert new_worker(route("websocket.disconnect", lambda message: seen.append(message["path"]))).run_once()
    assert seen == ["/chat/"]
    assert replies(layer) == []


# HTTP.


def test_a_view_answers(layer, new_worker):
    request(layer)
    assert new_worker().run_once()
    (response,) = replies(layer)
    assert (response["status"], response["content"]) == (200, b"hello")
    assert not response.get("more_content")


def test_a_consumer_may_take_requests_before_the_views(layer, new_worker):
    request(layer, path="/api/")
    request(layer, path="/")
    answer = route("http.request", lambda message: message.reply_channel.send({"status": 204}), path="^/api/")
    assert work(new_worker(answer))
    assert sorted(one["status"] for one in replies(layer)) == [200, 204]


@pytest.mark.parametrize(
    "error", [RuntimeError(BOOM), SystemExit(1), DenyConnection(), asyncio.CancelledError()]
)
@kinds.only("postgresql", "memory")
def test_a_request_whose_consumer_fails_is_answered_at_once(layer, new_worker, error):
    request(layer)
    assert new_worker(route("http.request", raising(error))).run_once()
    assert replies(layer) == [{"error": "consumer"}]
    assert waiting(layer, "out") == 0


@pytest.mark.parametrize("atomic", [False, True])
def test_a_consumer_may_leave_its_answer_to_others(layer, new_worker, atomic):
    """What it sent before is kept, and the server is told to wait."""

    def leave(message):
        Channel("out").send({"to": message.reply_channel.name})
        raise ResponseLater

    request(layer)
    assert new_worker(route("http.request", leave, atomic=atomic)).run_once()
    assert replies(layer) == [{"later": True}]
    assert drain(layer, "out") == [{"to": CLIENT}]


@kinds.only("memory")
def test_elsewhere_to_leave_an_answer_is_an_error(layer, new_worker, caplog):
    layer.send("websocket.connect", {"reply_channel": CLIENT, "path": "/", "order": 0})
    assert new_worker(route("websocket.connect", raising(ResponseLater()))).run_once()
    assert replies(layer) == [{"accept": False, "status": 500, "finished": 0}]


@kinds.only("memory")
def test_a_client_that_left_is_told_to_those_who_want_to_know(layer, new_worker):
    found = []
    layer.send("http.disconnect", {"reply_channel": CLIENT, "path": "/a"})
    layer.send("http.disconnect", {"reply_channel": CLIENT, "path": "/b"})
    work(new_worker(route("http.disconnect", lambda message: found.append(message["path"]), path="^/a")))
    assert found == ["/a"]
    assert replies(layer) == [] and waiting(layer, "http.disconnect") == 0


def test_a_request_that_is_none_is_answered_at_once(layer, new_worker):
    layer.send("http.request", {"reply_channel": CLIENT})
    assert new_worker().run_once()
    assert replies(layer) == [{"error": "consumer"}]


def test_what_a_view_sends_is_written_with_its_response(layer, new_worker, monkeypatch):
    def respond(self, message, link, its_layer):
        Channel("out").send({"number": 1})
        return [its_layer.reply(message["reply_channel"], {"status": 200})]

    monkeypatch.setattr(executor.ApplicationViews, "respond", respond)
    request(layer)
    assert new_worker().run_once()
    assert drain(layer, "out") == [{"number": 1}]
    assert replies(layer) == [{"status": 200}]


@pytest.mark.parametrize("channel", ["own", "http.request"])
@kinds.on_databases
def test_a_consumers_broken_connection_is_let_go(layer, new_worker, channel, at_once, monkeypatch):
    closed = []
    monkeypatch.setattr(executor.Executor, "tidy", staticmethod(lambda: closed.append(channel)))
    layer.send(channel, {"reply_channel": CLIENT})
    assert new_worker(route(channel, boom)).run_once()
    assert closed == [channel]


def large(request):
    """A view whose response takes several chunks."""
    return HttpResponse(b"x" * (2 * CHUNK + 1))


urlpatterns = [path("large/", large)]


def test_a_large_response_goes_out_while_it_is_made(layer, new_worker, settings):
    settings.ROOT_URLCONF = __name__
    request(layer, path="/large/")
    assert new_worker().run_once()
    head, *chunks, end = replies(layer)
    assert (head["status"], head["more_content"], end["more_content"]) == (200, True, False)
    assert b"".join(chunk["content"] for chunk in chunks) == b"x" * (2 * CHUNK + 1)


# Durable messages.


def test_a_durable_message_is_done_once(layer, new_worker):
    seen = []
    layer.send("own", {"number": 7})
    one = new_worker(route("own", lambda message: seen.append((message["number"], message.attempt))))
    assert work(one) == 1
    assert seen == [(7, 1)]
    assert waiting(layer, "own") == 0


@kinds.on_databases
def test_the_attempt_is_counted_before_the_consumer_runs(layer, new_worker):
    seen = []

    def consume(message):
        row = rows(layer, DurableMessage).get()
        seen.append((row.attempts, row.claimed_by, message.attempt))

    layer.send("own", {})
    one = new_worker(route("own", consume), name="w1")
    assert one.run_once()
    assert seen == [(1, "w1", 1)]
    assert not rows(layer, DurableMessage).exists()


def test_one_that_fails_is_tried_again_later(layer, new_worker):
    seen = []

    def consume(message):
        seen.append(message.attempt)
        raise RuntimeError(BOOM)

    layer.send("own", {})
    assert work(new_worker(route("own", consume))) == 1  # it is due again in 0.75 s at the earliest
    assert seen == [1]
    assert waiting(layer, "own") == 1


def test_after_the_retries_it_is_a_dead_letter_with_its_traceback(new_layer, new_worker, at_once):
    layer = new_layer(retries=2)
    seen = []

    def consume(message):
        seen.append(message.attempt)
        Channel("out").send({})
        boom(message)

    layer.send("own", {"number": 7})
    assert work(new_worker(route("own", consume))) == 3
    assert (seen, at_once) == ([1, 2, 3], [1, 2])
    assert (waiting(layer, "own"), waiting(layer, "out")) == (0, 0)
    attempts, content, error = dead_letter(layer)
    assert (attempts, content) == (3, {"number": 7})
    assert "Traceback" in error and "in boom" in error and error.endswith(f"RuntimeError: {BOOM}\n")


def dead_letter(layer):
    """Return (attempts, content, error) of the only one."""
    if isinstance(layer, StoreLayer):
        (letter,) = layer.table("letters").values()
        return letter.attempts, codec.decode(letter.payload), letter.error
    letter = rows(layer, DeadLetter).get()
    return letter.attempts, letter.content(), letter.error


def test_without_retries_the_first_failure_is_the_last(new_layer, new_worker):
    layer = new_layer(retries=0)
    layer.send("own", {})
    assert work(new_worker(route("own", boom))) == 1
    assert dead_letter(layer)[0] == 1


def test_one_that_no_route_matches_becomes_a_dead_letter_that_says_so(new_layer, new_worker, caplog):
    layer = new_layer(retries=0)
    layer.send("own", {"kind": "b"})
    assert work(new_worker(route("own", quiet, kind="^a$"))) == 1
    assert dead_letter(layer)[2] == (
        "dbchannels.exceptions.InvalidMessage: No route on own has filters that match this message: correct them, or "
        "add a route without filters after them.\n"
    )
    assert caplog.messages[0].startswith(
        "No consumer ran for a message of own:\n    dbchannels.exceptions.Invalid"
    )


def test_a_success_after_a_failure_leaves_nothing(layer, new_worker, at_once):
    seen = []

    def consume(message):
        seen.append(message.attempt)
        Channel("out").send({"attempt": message.attempt})
        if message.attempt == 1:
            boom(message)

    layer.send("own", {})
    assert work(new_worker(route("own", consume))) == 2
    assert seen == [1, 2]
    assert drain(layer, "out") == [{"attempt": 2}]
    assert waiting(layer, "own") == 0


def test_one_that_fails_does_not_take_its_batch_along(layer, new_worker, batches_of):
    seen = []

    def consume(message):
        seen.append(message["number"])
        if message["number"] == 1:
            boom(message)

    batches_of(3)
    layer.send_many([("own", {"number": number}) for number in range(3)])
    assert work(new_worker(route("own", consume))) == 1
    assert seen == [0, 1, 2]
    assert waiting(layer, "own") == 1


def test_delays_between_attempts_grow_to_an_hour(monkeypatch):
    monkeypatch.setattr(executor.random, "uniform", lambda low, high: 1.0)
    assert [backoff(attempt) for attempt in range(1, 7)] == [1, 5, 25, 125, 625, 3125]
    assert backoff(7) == backoff(30_000) == 3600


def test_each_delay_is_jittered_by_a_quarter():
    delays = {backoff(2) for _ in range(50)}
    assert len(delays) > 1
    assert all(3.75 <= delay <= 6.25 for delay in delays)


# It never dies.


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(BOOM),
        SystemExit(3),
        asyncio.CancelledError(),
        KeyboardInterrupt(),
        GeneratorExit(),
        RecursionError(),
        InvalidConfiguration(BOOM),
        LayerUnavailable(BOOM),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "half a \udc80 pair"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_exception_of_a_consumer_ends_it(layer, new_worker, error):
    seen = []
    frame(layer, text="bad")
    layer.send("own", {})
    frame(layer, order=2, text="good", client="reply.s1!c2")
    one = new_worker(
        route("websocket.receive", raising(error), text="bad"),
        route("websocket.receive", lambda message: seen.append(message["text"])),
        route("own", raising(error)),
    )
    work(one)
    assert seen == ["good"]
    assert sorted(answer["finished"] for answer in replies(layer)) == [1, 2]
    assert (waiting(layer, "own"), waiting(layer, "out")) == (1, 0)


def test_an_exception_that_cannot_be_shown_does_not_end_it(layer, new_worker):
    class Unspeakable(Exception):
        def __str__(self):
            raise RuntimeError(BOOM)

    frame(layer)
    layer.send("own", {})
    assert work(
        new_worker(route("websocket.receive", raising(Unspeakable())), route("own", raising(Unspeakable())))
    )
    assert replies(layer) == [{"finished": 1}]


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\x01", b"\x90", b"\xc0", b"\x81\xa1a", b"\x81\x01\x02", b"\x80\x80"]
)
@pytest.mark.parametrize("channel", ["websocket.connect", "websocket.receive", "http.request", "own"])
@kinds.only("postgresql", "memory")
def test_a_payload_that_is_no_message_does_not_end_it(layer, new_worker, channel, payload):
    layer.write([Send(channel, payload, CLIENT, 60.0, 0)])
    frame(layer, order=9)
    work(new_worker(route("websocket.receive", quiet), route("own", quiet)))
    lost = {"websocket.connect", "websocket.receive"} & {channel}  # its server ends the connection then
    told = (
        [{"error": "consumer"}]
        if channel == "http.request"
        else [{"lost": "worker died", "channel": one} for one in lost]
    )
    assert sorted(replies(layer), key=str) == sorted([*told, {"finished": 9}], key=str)
    assert waiting(layer, channel) == 0  # the durable one is a dead letter, see below


@pytest.mark.parametrize("order", ["x", 1.5, [], None, -7])
@pytest.mark.parametrize("consume", [quiet, boom])
def test_an_order_that_is_none_is_answered_to_nobody(layer, new_worker, order, consume):
    """A site may send on a protocol channel itself, whatever it means by that."""
    frame(layer, order=order)
    assert work(new_worker(route("websocket.receive", consume))) == 1
    assert replies(layer) == []


def test_it_outlives_an_outage_of_the_layer_and_says_so_in_two_lines(
    layer, new_worker, run, monkeypatch, caplog
):
    seen = threading.Event()
    one = new_worker(route("own", lambda message: seen.set()), name="w1")
    claim, failures = one.link.claim, []

    def broken(*arguments):
        if len(failures) < 4:
            failures.append(time.monotonic())
            raise LayerUnavailable("The database has gone for a walk.")
        return claim(*arguments)

    monkeypatch.setattr(one.link, "claim", broken)
    run(one)
    layer.send("own", {})
    assert seen.wait(10)
    wait_until(lambda: "again, after" in caplog.text)
    lines = [record.getMessage() for record in caplog.records if record.name == "dbchannels.worker"]
    assert [line.split(" (")[0].split(",")[0] for line in lines] == [
        "w1: The layer cannot be used now",
        "w1: The layer can be used again",
    ]
    assert failures[3] - failures[0] >= 0.05  # three pauses, none shorter than 0.025 s


@kinds.only("memory")
def test_an_outage_lasts_as_long_as_nothing_can_be_written(layer, new_worker, run, monkeypatch, caplog):
    one = new_worker(route("own", quiet), name="w1")
    renew, tries = one.link.renew, []

    def broken(name):
        tries.append(len(caplog.records))
        if len(tries) < 5:
            raise LayerUnavailable("The database can only be read.")
        return renew(name)

    run(one)
    wait_until(lambda: one._work_on_record)
    monkeypatch.setattr(one.link, "renew", broken)
    one._renewed_at = 0.0  # long ago
    wait_until(lambda: "again, after" in caplog.text)
    assert tries == [0, 0, 1, 1, 1]
    assert len(caplog.records) == 2


def test_what_consumers_did_is_written_after_an_outage(layer, new_worker, monkeypatch):
    layer.send("own", {})
    one = new_worker(route("own", lambda message: Channel("out").send({"number": 1})))
    finish, tries = one.link.finish, []

    def broken(*arguments):
        tries.append(1)
        if len(tries) < 3:
            raise LayerUnavailable("The database has gone for a walk.")
        finish(*arguments)

    monkeypatch.setattr(one.link, "finish", broken)
    assert work(one) == 1
    assert len(tries) == 3
    assert drain(layer, "out") == [{"number": 1}]


def test_what_was_popped_runs_though_the_claim_after_it_fails(layer, new_worker, batches_of, monkeypatch):
    batches_of(5)
    frame(layer)
    one = new_worker(route("websocket.receive", quiet), route("own", quiet))

    def broken(*arguments):
        raise LayerUnavailable("The database has gone for a walk.")

    monkeypatch.setattr(one.link, "claim", broken)
    assert one.run_once()
    assert replies(layer) == [{"finished": 1}]
    with pytest.raises(LayerUnavailable):
        one.run_once()


# Long work.


def test_what_waits_behind_a_long_consumer_is_handed_back_unattempted(layer, new_worker, run, batches_of):
    released, seen = threading.Event(), []

    def consume(message):
        seen.append((message.get("number"), message.attempt))
        released.wait(10)

    batches_of(4)
    layer.send_many([("own", {"number": number}) for number in range(3)])
    frame(layer, number="frame")
    one = new_worker(route("own", consume), route("websocket.receive", consume), name="w1")
    run(one)
    # The frame runs first; three durable ones wait behind it until they are back.
    wait_until(lambda: seen and waiting(layer, "own") == 3)
    assert seen == [("frame", 0)]
    other = new_worker(route("own", lambda message: seen.append((message["number"], message.attempt))))
    assert work(other) == 1
    assert seen[1:] == [(0, 1), (1, 1), (2, 1)]
    released.set()
    wait_until(lambda: waiting(layer, REPLIES) == 1)
    assert replies(layer) == [{"finished": 1}]


@kinds.on_databases
def test_what_runs_stays_on_record_while_the_rest_goes_back(layer, new_worker, run, batches_of):
    released = threading.Event()
    batches_of(2)
    for client in ("reply.s1!c1", "reply.s1!c2"):
        frame(layer, client=client)
    run(new_worker(route("websocket.receive", lambda message: released.wait(10)), name="w1"))
    wait_until(lambda: waiting(layer, "websocket.receive") == 1)
    (lines,) = [held.lines() for held in rows(layer, InFlight)]
    assert lines == [("websocket.receive", "reply.s1!c1")]
    released.set()
    wait_until(lambda: waiting(layer, REPLIES) == 2)
    wait_until(lambda: rows(layer, InFlight).get().lines() == [])


def test_the_lease_is_renewed_while_a_consumer_runs(new_layer, new_worker, run):
    new_layer(lease=0.15)
    released, renewals = threading.Event(), []
    one = new_worker(route("own", lambda message: released.wait(10)))
    renew = one.link.renew
    one.link.renew = lambda name: renewals.append(threading.current_thread().name) or renew(name)
    one.layer.send("own", {})
    run(one)
    wait_until(lambda: renewals.count("watchdog") >= 2)
    released.set()


def test_a_lease_that_was_not_renewed_in_an_outage_is_renewed_well_before_servers_look(
    new_layer, new_worker, monkeypatch
):
    """Half a lease after a crash of the database a server takes what no worker has on record for lost."""
    new_layer(lease=12.0)
    one, tries = new_worker(route("own", quiet)), []

    def away(name):
        tries.append(name)
        raise LayerUnavailable("away")

    monkeypatch.setattr(one.link, "renew", away)
    one._renewed_at = 0.0  # long ago
    one._look_after()
    one._look_after()
    assert len(tries) == 1  # not at each look
    now = time.monotonic()
    patch_time(monkeypatch, worker, monotonic=lambda: now + 1.1)
    one._look_after()
    assert len(tries) == 2


def test_the_lease_is_renewed_while_nothing_comes_however_rare_the_poll(new_layer, new_worker, run):
    new_layer(lease=0.15, poll_interval=3600)
    renewals = []
    one = new_worker(route("own", quiet))
    renew = one.link.renew
    one.link.renew = lambda name: renewals.append(name) or renew(name)
    run(one)
    wait_until(lambda: len(renewals) >= 3)


def test_a_batch_that_is_full_wakes_another_worker(layer, new_worker, batches_of):
    wakeup = WakeupPipe.new()
    batches_of(2)
    layer.send_many([("own", {})] * 3)
    one = new_worker(route("own", quiet), only=["own"], process=ProcessContext(wakeups=[wakeup]))
    wakeup.notify()
    wakeup.notify()
    assert one.run_once()
    assert wait_readable([wakeup.reader], 0) == {wakeup.reader}
    assert one.run_once()  # takes all rings, finds the third, and rings for nobody
    assert not wait_readable([wakeup.reader], 0)
    for descriptor in wakeup:
        os.close(descriptor)


def test_who_comes_too_late_for_a_wakeup_goes_on_waiting(layer, new_worker, monkeypatch):
    wakeup, looks = WakeupPipe.new(), []
    one = new_worker(route("own", quiet), process=ProcessContext(wakeups=[wakeup]))

    def faster(descriptors, timeout):
        """Another worker of the same wakeup took the first ring; the poll ends the second wait."""
        looks.append(timeout)
        return {wakeup.reader} if len(looks) == 1 else set()

    monkeypatch.setattr(wakeup_module, "wait_readable", faster)
    one._wait()
    assert len(looks) == 2
    assert looks[1] < looks[0]  # it is the rest of the same wait
    looks.clear()
    wakeup.notify()
    one._wait()
    assert len(looks) == 1
    for descriptor in wakeup:
        os.close(descriptor)


def claims_of(one, monkeypatch):
    """The list to which a worker adds each of its claims."""
    claims, claim = [], one.link.claim
    monkeypatch.setattr(one.link, "claim", lambda *given: claims.append(given) or claim(*given))
    return claims


def test_protocol_messages_do_not_wait_for_a_claim_that_would_find_nothing(
    layer, new_worker, batches_of, monkeypatch
):
    batches_of(5)
    one = new_worker(route("own", quiet), route("websocket.receive", quiet))
    claims = claims_of(one, monkeypatch)
    monkeypatch.setattr(worker, "CLAIM_WITHIN", 3600)
    assert not one.run_once()
    assert len(claims) == 1
    frame(layer)
    assert one.run_once()
    assert len(claims) == 1
    assert not one.run_once()  # but nobody goes to sleep without one
    assert len(claims) == 2
    monkeypatch.setattr(one, "_claim_by", 0.0)
    frame(layer)
    layer.send("own", {})
    assert one.run_once()
    assert (len(claims), one.consumed) == (3, 3)


def test_a_claim_is_overdue_by_what_goes_before_it_and_not_by_sleep(
    layer, new_worker, batches_of, monkeypatch
):
    batches_of(5)
    one = new_worker(route("own", quiet), route("websocket.receive", quiet))
    claims = claims_of(one, monkeypatch)
    monkeypatch.setattr(worker, "CLAIM_WITHIN", 0.02)
    assert not one.run_once()
    for number in (1, 2):  # the first one is no later for what the worker has slept; the next one is
        time.sleep(max(0.02, one._patience) * 2)
        frame(layer)
        assert one.run_once()
        assert len(claims) == number


# The end.


def test_stop_finishes_what_runs_and_hands_back_the_rest_unattempted(layer, new_worker, batches_of):
    seen = []
    one = new_worker(
        route(
            "own",
            lambda message: (seen.append(message["number"]), one.stop(), Channel("out").send({"done": 1})),
        )
    )
    batches_of(3)
    layer.send_many([("own", {"number": number}) for number in range(3)])
    assert one.run_once()
    assert (seen, drain(layer, "out")) == ([0], [{"done": 1}])
    assert waiting(layer, "own") == 2
    again = new_worker(route("own", lambda message: seen.append((message["number"], message.attempt))))
    assert work(again) == 1
    assert seen == [0, (1, 1), (2, 1)]


def test_stop_hands_frames_back_too(layer, new_worker, batches_of):
    one = new_worker(route("websocket.receive", lambda message: one.stop()))
    batches_of(3)
    for order in range(1, 4):
        frame(layer, order=order, client=f"reply.s1!c{order}")
    assert one.run_once()
    assert replies(layer) == [{"finished": 1}]
    assert [message["order"] for message in drain(layer, "websocket.receive")] == [2, 3]


@kinds.on_databases
def test_it_is_on_record_while_it_runs_and_leaves_nothing_behind(layer, new_worker, run):
    one = new_worker(route("own", quiet), name="w1", registered=False)
    thread = run(one)
    process = wait_until(lambda: rows(layer, Process).first())
    assert (process.name, process.kind, process.pid) == ("w1", "worker", os.getpid())
    layer.send("own", {})
    wait_until(lambda: not rows(layer, DurableMessage).exists())
    one.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert not rows(layer, Process).exists()
    assert not rows(layer, InFlight).exists()


@kinds.only("sqlite", "memory")
def test_it_takes_itself_off_the_record_after_its_watch_has_ended(layer, new_worker, run):
    """A watch that is late would find no record, take the worker for declared dead, and make a new one."""
    watching, unregistered, order = threading.Event(), threading.Event(), []

    def keep_alive():
        if threading.current_thread().name == "watchdog":
            watching.set()
            unregistered.wait(0.2)
            order.append("watch")

    def consume(message):
        watching.wait(10)
        one.stop()

    one = new_worker(route("own", consume))
    one._keep_alive = keep_alive
    one.link.unregister = lambda name: (order.append("unregister"), unregistered.set())
    layer.send("own", {})
    run(one).join(10)
    assert order == ["watch", "unregister"]


def test_stop_ends_one_that_is_idle(layer, new_worker, run):
    one = new_worker(route("own", quiet))
    looked, wait = threading.Event(), one.link.wait
    one.link.wait = lambda *arguments: looked.set() or wait(*arguments)
    thread = run(one)
    assert looked.wait(10)
    one.stop()
    thread.join(10)
    assert not thread.is_alive()


@kinds.on_databases
@pytest.mark.parametrize("channel", ["own", "http.request"])
def test_what_a_worker_runs_when_it_is_abandoned_goes_back_without_an_attempt(
    layer, new_worker, run, channel
):
    started, ended, ran = threading.Event(), threading.Event(), []

    def slow(message):
        ran.append(message.get("number"))
        started.set()
        ended.wait(10)

    one = new_worker(route(channel, slow), registered=False)
    thread = run(one)
    layer.send_many([(channel, {"number": number, "reply_channel": CLIENT}) for number in range(3)])
    assert started.wait(10)
    one.stop()
    one.abandon()
    assert rows(layer, Process).count() == rows(layer, InFlight).count() == 0
    ended.set()
    thread.join(10)
    assert ran == [0]
    if channel == "own":
        left = rows(layer, DurableMessage).values_list("claimed_by", "attempts", "alone")
        assert list(left) == [(None, 0, False)] * 3
    else:  # its client is told; the others wait
        assert replies(layer) == [{"lost": "worker died", "channel": channel}]
        assert waiting(layer, channel) == 2


class Instant:
    """A Backoff without delays."""

    tries = 0

    def delay(self):
        """Count, and wait for nothing."""
        self.tries += 1
        return 0.0


# Declared dead.


@kinds.on_databases
def test_one_that_was_declared_dead_goes_on_as_a_new_one(layer, new_worker, new_link):
    seen = []
    one = new_worker(route("own", lambda message: seen.append(1)), name="w1")
    new_link(layer).clean_up_after("w1")
    layer.send("own", {})
    one._renewed_at = 0.0  # long ago
    assert one.run_once()
    assert seen == [1]
    assert one.name != "w1"
    assert [process.name for process in rows(layer, Process)] == [one.name]
    assert waiting(layer, "own") == 0


@kinds.on_databases
def test_what_it_had_in_flight_when_it_was_declared_dead_is_not_its_own(
    layer, new_worker, new_link, batches_of
):
    seen = []

    def consume(message):
        seen.append((message["number"], message.attempt))
        if len(seen) == 1:
            new_link(layer).clean_up_after("w1")  # it stands still here for a long time
            one._renewed_at = 0.0
            one._keep_alive()  # and its watch finds out

    one = new_worker(route("own", consume), name="w1")
    batches_of(3)
    layer.send_many([("own", {"number": number}) for number in range(3)])
    assert one.run_once()
    assert seen == [(0, 1)]
    # The acknowledgement came too late: all three run again, one by one, and none is blamed.
    left = rows(layer, DurableMessage).values_list("attempts", "claimed_by", "alone")
    assert sorted(left) == [(0, None, True)] * 3
    assert work(one) == 3
    assert seen[1:] == [(0, 1), (1, 1), (2, 1)]


def test_names_of_workers_are_new():
    names = {new_worker_name() for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith(f"worker-{os.getpid()}-") for name in names)


# Changed code.


@kinds.only("postgresql", "sqlite")
@pytest.mark.parametrize("channel", ["own", "http.request"])
def test_a_worker_with_old_code_gives_back_what_it_took_and_is_replaced(
    layer, new_worker, monkeypatch, channel
):
    monkeypatch.setattr(worker, "OUTDATED", 0.0)
    outdated, replaced, ran = [False], [], []
    one = new_worker(
        route(channel, lambda message: ran.append(message["number"])),
        process=ProcessContext(is_outdated=lambda: outdated[0], replace=lambda: replaced.append(True)),
    )
    layer.send(channel, {"number": 1})
    assert one.run_once() and ran == [1]
    outdated[0] = True
    assert not one.run_once() and not replaced  # nothing to do
    layer.send(channel, {"number": 2})
    assert not one.run_once() and replaced
    assert ran == [1] and waiting(layer, channel) == 1
    if channel == "own":
        assert rows(layer, DurableMessage).get().attempts == 0


# What is on record.


@kinds.only("postgresql", "sqlite")
def test_a_busy_worker_has_on_record_what_it_takes_and_runs(layer, new_worker, new_link, run):
    started, ended = threading.Event(), threading.Event()

    def slow(message):
        started.set()
        ended.wait(10)

    def recorded():
        return new_link(layer).workers()[one.name]

    idle = {"takes": ["own"], "site": conf.site_mark(), "runs": "", "since": "", "id": None}
    idle |= {"soft_timeout": 0.0, "hard_timeout": 0.0}
    one = new_worker(route("own", slow, soft_timeout=30, hard_timeout=60), only=["own"], registered=False)
    run(one)
    wait_until(
        lambda: new_link(layer).workers().get(one.name, {}).get("takes")
    )  # it is on record a moment before its work is
    assert recorded() == idle
    layer.send("own", {})
    started.wait(10)
    one._renewed_at = 0.0
    work = wait_until(lambda: recorded()["runs"] and recorded())
    assert (work["id"], work["soft_timeout"], work["hard_timeout"]) == (
        rows(layer, DurableMessage).get().id,
        30,
        60,
    )
    assert work["runs"] == "own" and abs(time.time() - parsed(work["since"])) < 60
    ended.set()
    wait_until(lambda: not one._batch.running()[0])
    one._renewed_at = 0.0
    one._wake.notify()
    wait_until(lambda: recorded() == idle)


def parsed(text):
    """Return the moment that a local time names."""
    return time.mktime(time.strptime(text, "%Y-%m-%d %H:%M:%S"))


# What one message leaves to the next: nothing.


KEPT = ContextVar("KEPT", default=None)


def surroundings():
    """Return what a consumer finds that another one may have set."""
    return (
        get_language(),
        timezone.get_current_timezone_name(),
        get_script_prefix(),
        get_urlconf(),
        KEPT.get(),
    )


def set_surroundings(*_, **__):
    """Be a consumer, or a view, that sets them all and puts nothing back."""
    translation.activate("de")
    timezone.activate("Asia/Tokyo")
    set_script_prefix("/elsewhere/")
    set_urlconf("tests.urls")
    KEPT.set("anna")
    return HttpResponse()


urlpatterns += [path("sets/", set_surroundings)]


@kinds.only("memory")
def test_a_worker_in_a_thread_has_the_script_prefix_of_its_process(layer, new_worker):
    seen = []
    set_script_prefix("/site/")
    try:
        one = new_worker(route("sees", lambda message: seen.append(get_script_prefix())))
    finally:
        set_script_prefix("/")
    layer.send("sees", {})
    thread = in_thread(layer, one.run)
    wait_until(lambda: seen)
    one.stop()
    thread.join()
    assert seen == ["/site/"]


@kinds.only("memory")
def test_the_language_and_the_like_of_one_message_are_not_there_for_the_next(layer, new_worker, settings):
    settings.ROOT_URLCONF = __name__
    seen, before = [], surroundings()
    one = new_worker(
        route("sets", set_surroundings), route("sees", lambda message: seen.append(surroundings()))
    )
    for send in (lambda: layer.send("sets", {}), lambda: request(layer, path="/sets/", root_path="/below")):
        send()
        work(one)
        layer.send("sees", {})
        work(one)
        assert seen.pop() == before == surroundings()


@kinds.only("memory")
def test_what_the_process_has_in_its_context_is_not_shared_by_its_messages(layer, new_worker):
    """As a scope of Sentry's SDK, or the context of decimal numbers: objects that anybody can change."""
    seen = []

    def change(message):
        seen.append(decimal.getcontext().prec)
        decimal.getcontext().prec = 5

    one = new_worker(route("changes", change))

    def begin():
        decimal.getcontext()  # is made when it is first asked for
        one.run()

    layer.send_many([("changes", {}), ("changes", {})])
    thread = in_thread(layer, begin)
    wait_until(lambda: len(seen) == 2)
    one.stop()
    thread.join()
    assert seen == [28, 28]


@kinds.only("memory")
def test_what_cannot_be_copied_is_shared(layer, new_worker):
    class Immutable(dict):
        """As a Context of OpenTelemetry."""

        def __setitem__(self, key, value):
            raise ValueError

    kept, seen = ContextVar("kept"), []
    one = new_worker(route("own", lambda message: seen.append(kept.get())))

    def begin():
        kept.set(Immutable(a=1))
        one.run_once()

    layer.send("own", {})
    in_thread(layer, begin).join(20)
    assert seen == [{"a": 1}]


@kinds.only("memory")
def test_what_a_thread_leaves_open_after_its_message_is_closed_without_another_message(
    layer, new_worker, run, monkeypatch
):
    left, thread = Mock(), threading.Thread(target=int)
    thread.start()
    thread.join()
    one = new_worker(route("own", quiet), process=ProcessContext(wakeups=[WakeupPipe.new()]))
    layer.send("own", {})
    run(one)
    wait_until(lambda: one.consumed)
    monkeypatch.setitem(database_connections._of_threads, left, thread)
    one._renewed_at = 0.0  # long ago
    wait_until(lambda: left.close.called)
    assert not database_connections._of_threads


@pytest.mark.parametrize("signal", [message_dead, task_failed, worker_ready])
@kinds.on_databases
def test_receivers_of_signals_between_two_messages_leave_nothing_either(
    layer, new_worker, run, caplog, signal
):
    seen, before = [], surroundings()

    def leave(**_):
        layer.send("sees", {})
        set_surroundings()
        transaction.atomic(using=layer.database).__enter__()

    def see(message):
        seen.append((surroundings(), connections[layer.database].in_atomic_block))

    layer.write([layer.make_send("fails", {}, task=str(uuid.uuid4()))])
    signal.connect(leave, dispatch_uid=1)
    try:
        run(new_worker(route("fails", boom, retries=0), route("sees", see), registered=False))
        wait_until(lambda: seen)
    finally:
        signal.disconnect(dispatch_uid=1)
    assert seen == [(before, False)]
    assert "A transaction was left open on the database" in caplog.text


@kinds.on_databases
def test_a_transaction_that_is_left_open_fails_its_message_and_no_other(layer, new_worker, caplog):
    seen = []

    def leave(message):
        transaction.atomic(using=layer.database).__enter__()
        Channel("out").send({})
        rows(layer, Process).create(name="left behind", kind="worker", pid=1, lease_until=timezone.now())

    def see(message):
        seen.append(connections[layer.database].in_atomic_block)

    layer.send("leaves", {})
    layer.send("sees", {})
    work(new_worker(route("leaves", leave), route("sees", see)))
    assert seen == [False]
    assert (
        f"A transaction was left open on the database '{layer.database}' and was rolled back" in caplog.text
    )
    assert waiting(layer, "leaves") == 1  # it is tried again
    assert drain(layer, "out") == []
    assert not rows(layer, Process).filter(name="left behind").exists()


@kinds.on_databases
def test_also_one_inside_of_an_atomic_consumer_s(layer, new_worker, caplog):
    def leave(message):
        transaction.atomic(using=layer.database).__enter__()

    layer.send("leaves", {})
    work(new_worker(route("leaves", leave, atomic=True)))
    assert "left open" in caplog.text
    assert waiting(layer, "leaves") == 1


def leaves_open(request):
    """A view that does the same."""
    transaction.atomic().__enter__()
    return HttpResponse("as if")


urlpatterns += [path("leaves-open/", leaves_open)]


@kinds.only("postgresql")
def test_a_view_that_leaves_one_open_is_500(layer, new_worker, settings):
    settings.ROOT_URLCONF = __name__
    request(layer, path="/leaves-open/")
    assert new_worker().run_once()
    assert replies(layer) == [{"error": "consumer"}]
    assert not connections["default"].in_atomic_block


# Payloads that nobody can read.


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\x81", b"\x91\x01", b"\x80\x80", b"\x81\xa1\xff\x01", b"\x81\x01\x01"]
)
@kinds.only("postgresql", "memory")
def test_one_that_cannot_be_decoded_is_dead_at_once(layer, new_worker, caplog, payload):
    dead = []
    message_dead.connect(
        lambda content, error, **_: dead.append((content, error)), weak=False, dispatch_uid=1
    )
    send = layer.make_send("own", {})._replace(payload=payload)
    layer.write([send, layer.make_send("own", {"number": 1})])
    seen = []
    try:
        work(new_worker(route("own", lambda message: seen.append(message["number"]))))
    finally:
        message_dead.disconnect(dispatch_uid=1)
    assert seen == [1] and waiting(layer, "own") == 0
    ((content, error),) = dead
    assert content == {} and error.startswith("The payload cannot be decoded (")
    (record,) = caplog.records
    assert record.getMessage().startswith("A message on own cannot be read. The payload cannot be decoded (")


@kinds.only("postgresql", "memory")
def test_a_request_that_cannot_be_decoded_is_one_line(layer, new_worker, caplog):
    send = layer.make_send("http.request", {"reply_channel": CLIENT})._replace(payload=b"\xc1")
    layer.write([send])
    assert new_worker().run_once()
    (record,) = caplog.records
    assert record.getMessage().startswith("A message on http.request cannot be read. ")
    assert replies(layer) == [{"error": "consumer"}]
