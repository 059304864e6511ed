"""Events of groups: who gets them, what their handlers are, and what becomes of those without one."""

from __future__ import annotations

import logging
import re
import textwrap
from pathlib import Path

import pytest
from django.test import override_settings

from dbchannels import (
    Channel,
    Demultiplexer,
    Group,
    JsonWebsocketConsumer,
    WebsocketConsumer,
    consumer,
    event_stream,
    names,
    route,
    route_class,
)
from dbchannels.exceptions import InvalidMessage, InvalidName, MessageTooLarge
from dbchannels.protocol import is_event
from dbchannels.routing import table
from dbchannels.testing import ChannelClient, use_channels
from dbchannels.testing.client import LaterAnswer
from dbchannels.testing.sent import SentMessage
from dbchannels.worker import executor


class Room(WebsocketConsumer):
    groups = ["room-{room}"]  # noqa: RUF012

    def connect(self, message, room):
        self.channel_session["name"] = message.headers["X-Name"]

    def receive(self, text, room):
        Group(f"room-{room}").send_event("line.written", {"line": text, "by": self.channel_session["name"]})

    def line_written(self, event):
        name = self.channel_session["name"]
        if event["by"] != name:
            self.send(f"{name} in {self.captures['room']}: {event['line']}")

    async def slow_line(self, event):
        self.send(event["type"])

    def broken(self, event):
        self.send("never")
        raise RuntimeError("the handler")

    def kick(self, event):
        self.close(4001)

    note = "no method"


class Other(JsonWebsocketConsumer):
    def greet(self, event):
        self.send_json({"other": event["name"]})


class Streams(Demultiplexer):
    groups = ["streams"]  # noqa: RUF012
    consumers = {"one": Other, "two": Room}  # noqa: RUF012

    def greet(self, event):
        self.send("site")


@consumer("websocket.event", path="/function/", type="chat.*")
def on_chat(message):
    message.reply_channel.send({"text": f"{message['type']} {message['event']['n']}"})


table._decorated.remove(table._decorated[-1])  # it is only in this file's routes

ROUTES = [
    route_class(Room, path="/room/<slug:room>/"),
    route_class(Streams, path="/streams/<slug:room>/"),
    route("websocket.connect", lambda message: Group("f").add(message.reply_channel), path="/function/"),
    route("websocket.event", on_chat, path="/function/", type=r"^chat\."),
]


@pytest.fixture
def channels(db):
    with override_settings(DBCHANNELS={"default": {"ROUTING": ROUTES}}), use_channels() as channels:
        yield channels


@pytest.fixture
def open_as(channels):
    def open_socket(name, path="/room/tea/"):
        socket = ChannelClient().ws(path, headers={"X-Name": name})
        assert socket.accepted
        return socket

    return open_socket


@pytest.fixture
def logged(caplog, monkeypatch):
    monkeypatch.setattr(executor, "_unhandled", set())
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


def test_the_handler_runs_once_for_each_socket_with_its_own_state(open_as):
    ann, ben, cid = open_as("ann"), open_as("ben"), open_as("cid", "/room/coffee/")
    ann.send("hi")
    assert ben.receive() == "ben in tea: hi"
    ann.assertNothingReceived()
    cid.assertNothingReceived()


def test_a_view_or_a_shell_sends_events_too_in_order(open_as):
    ann = open_as("ann")
    for number in range(3):
        Group("room-tea").send_event("line.written", {"line": str(number), "by": ""})
    assert [ann.receive() for _ in range(3)] == [f"ann in tea: {number}" for number in range(3)]


def test_a_handler_may_be_async_and_may_close(open_as):
    ann = open_as("ann")
    Group("room-tea").send_event("slow.line")
    assert ann.receive() == "slow.line"
    Channel(ann.reply_channel).send({"type": "kick"})  # one socket alone
    assert ann.closed and ann.close_code == 4001


def test_a_handler_that_raises_sends_nothing_and_the_socket_stays(open_as):
    ann = open_as("ann")
    Group("room-tea").send_event("broken")
    with pytest.raises(RuntimeError):
        ann.assertNothingReceived()
    Group("room-tea").send_event("slow.line")
    assert ann.receive() == "slow.line"


def test_other_messages_run_no_handler_and_events_are_no_frames(channels, open_as, logged):
    ann = open_as("ann")
    Group("room-tea").send({"text": "frame"})
    Group("room-tea").send({"type": "slow.line", "text": "no frame"})
    assert [ann.receive(), ann.receive()] == ["frame", "slow.line"]
    ann.assertNothingReceived()
    assert logged() == []
    assert channels.assertSent(Group("room-tea"), type="slow.line")


def test_all_consumers_of_a_socket_with_streams_get_an_event(open_as):
    streams = open_as("ann", "/streams/tea/")
    Group("streams").send_event("greet", {"name": "x"})
    assert streams.receive() == "site"
    assert streams.receive_json() == {"stream": "one", "payload": {"other": "x"}}
    Group("room-tea").send_event("slow.line")  # the group of the second stream
    assert streams.receive() == "slow.line"


def test_a_function_takes_events_by_their_type(open_as, logged):
    socket = open_as("ann", "/function/")
    Group("f").send_event("chat.message", {"n": 1})
    assert socket.receive() == "chat.message 1"
    for _ in range(2):
        Group("f").send_event("other")
    socket.assertNothingReceived()
    assert logged() == [
        "No consumer of the WebSocket on '/function/' handles the event other: write a method other(self, event) in "
        "its consumer class, or send the frame itself, {'text': ...}, without a 'type'."
    ]


@pytest.mark.parametrize(
    "event",
    ["nowhere", "note", "close", "receive", "consume", "join.groups", "_private", "__init__", "a-b", 7, None],
)
def test_no_event_runs_anything_but_the_sites_own_methods(open_as, logged, event):
    ann = open_as("ann")
    for _ in range(2):
        Group("room-tea").send({"type": event})
    ann.assertNothingReceived()
    assert not ann.closed
    (told,) = logged()
    assert told.startswith(f"No consumer of Room handles the event {event}: ")
    method = names.event_handler(event)
    assert (f"write a method {method}(self, event)" if method else "name it as a method") in told


def test_a_message_to_channels_own_server_is_told_so(open_as, logged):
    ann = open_as("ann")
    Channel(ann.reply_channel).send({"type": "websocket.send", "text": "hi"})
    ann.assertNothingReceived()
    assert logged() == [
        "The message websocket.send has come to Room: leave 'type' out, and send {'text': ...}, {'accept': True} or "
        "{'close': True}."
    ]


def test_an_event_for_nobody_is_no_error(channels):
    Group("empty").send_event("chat.message", {})
    assert channels.drain() == 0


def test_a_request_that_waits_in_the_group_is_not_answered_by_an_event(channels):
    waiting = LaterAnswer(channels, "/news/")
    Group("news").add(waiting.reply_channel)
    Group("news").send_event("chat.message", {"content": b"no response"})
    assert not waiting.arrived and waiting.content == b""
    Group("news").send({"content": b"news"})
    assert waiting.receive().content == b"news"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"type": "chat.message", "content": b""}, True),
        ({"content": b""}, False),
        (
            {"type": "http.response.start", "status": 200},
            False,
        ),  # a response as ASGI has it, which is told so
        ({"type": "a", "lost": "expired"}, False),
    ],
)
def test_what_is_an_event_for_a_request(message, expected):
    assert is_event(message) is expected


@pytest.mark.parametrize("event", ["", "_a", "a b", "a-b", ".a", "1", "é!", None, 7, ["a"]])
def test_a_name_that_no_method_can_have_is_refused(channels, event):
    with pytest.raises(
        InvalidMessage, match=r"The name of an event must be that of a method, .*: write 'chat\."
    ):
        Group("a").send_event(event)


def test_a_stream_of_events_has_a_group():
    with pytest.raises(InvalidName, match=r"has no group: write event_stream\('news'\)"):
        event_stream()


def test_the_fields_of_an_event(channels):
    with pytest.raises(InvalidMessage, match=r"The fields of an event are a dict, not \['hi'\]\."):
        Group("a").send_event("chat", ["hi"])
    with pytest.raises(InvalidMessage, match="The field 'type' of an event is its name"):
        Group("a").send_event("chat", {"type": "other"})
    with pytest.raises(MessageTooLarge):
        Group("a").send_event("chat", {"text": "x" * 1_048_577})
    with channels.captureMessages() as sent:
        Group("a").send_event("chat.message", {"n": 1})
        Group("a").send_event("chat.message")
    assert [one.content for one in sent if isinstance(one, SentMessage)] == [
        {"type": "chat.message", "n": 1},
        {"type": "chat.message"},
    ]


def test_the_board_on_the_page_about_groups(db, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "groups.rst").read_text()
    (code,) = re.findall(r":caption: board/consumers.py\n\n((?:   .*\n|\n)+)", page)
    found = []
    monkeypatch.setattr("dbchannels.routing.table._decorated", found)
    exec(textwrap.dedent(code), {"__name__": "board.consumers"})
    with override_settings(DBCHANNELS={"default": {"ROUTING": found}}), use_channels():
        ann, ben = ChannelClient().ws("/board/tea/"), ChannelClient().ws("/board/tea/")
        ann.send("a line")
        assert ben.receive() == "tea: a line"
        ann.assertNothingReceived()


def test_what_an_event_may_be_called():
    assert names.event_handler("a.b_c.d") == "a_b_c_d"
    assert re.match(r"\A\w+\Z", names.event_handler("chat.message"))
