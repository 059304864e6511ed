"""Fault 26: what a client sends names no channel, group, session or user, and overwrites nothing."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbchannels import Demultiplexer, Group, JsonWebsocketConsumer, Message, codec, route, route_class
from dbchannels.layers.operations import Connect, Send
from dbchannels.routing.table import Routing
from dbchannels.server.http.messages import Request
from dbchannels.server.websocket.connection import Connection
from dbchannels.testing.contract.case import drain
from tests import kinds
from tests.profiles import examples

OURS, OTHERS = "reply.p1!ours", "reply.p1!others"
KEY = "the-key-of-a-session-of-others"
ROOM = r"^/room/(?P<room>\w+)/$"
many = examples(80)

#: What the server, a route or a demultiplexer calls something.
NAMES = [
    *(
        "reply_channel",
        "send_channel",
        "channel",
        "path",
        "order",
        "headers",
        "session",
        "session_key",
        "sessionid",
    ),
    *("user", "room", "stream", "payload", "group", "groups", "close", "accept", "finished", "again", "lost"),
    *(
        "content",
        "text",
        "bytes",
        "binary",
        "message",
        "self",
        "captures",
        "code",
        "login",
        "after",
        "server",
    ),
]
values = st.recursive(
    st.sampled_from([OTHERS, KEY, "other", "room-other", "/room/other/", 1, True, None, f"sessionid={KEY}"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=4,
)
frames = st.dictionaries(st.sampled_from(NAMES), values, max_size=8)
texts = st.one_of(frames.map(json.dumps), st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
events = st.one_of(texts, texts.map(str.encode))


def received(event, query):
    """Return the message that a server sends of a frame, on a connection whose address has this query string."""
    sent = []
    relay = SimpleNamespace(
        name="p1",
        open=lambda one: OURS,
        send=lambda *given: sent.extend(given),
        make_send=lambda channel, fields: Send(channel, codec.encode(fields), fields["reply_channel"], 60),
    )
    request = Request("GET", f"/room/tea/?{query}", "1.1", [(b"host", b"h")], "http", ("c", 1), ("s", 2))
    connection = Connection(relay, request)
    connection.connect()
    connection._finished(0)
    connection._received(event)
    assert sent[0] == Connect(OURS, "p1", "/room/tea/")
    return Message(sent[-1].channel, codec.decode(sent[-1].payload))


@pytest.fixture
def seen():
    """What the consumers below were given: (form, what each calls its room, channel, user and session)."""
    return []


@pytest.fixture
def tables(seen):
    """A table for each form of consumer."""

    def whole(message, room):
        seen.append(
            (
                room,
                message.reply_channel.name,
                message["path"],
                message.user,
                message.http_session.session_key,
            )
        )

    def post(content, send_channel, path, room, channel, **fields):
        assert channel == "websocket.receive" and fields["reply_channel"] == send_channel
        seen.append((room, send_channel, path, None, None))

    class Json(JsonWebsocketConsumer):
        content_type = object

        def groups(self, room):
            return [f"room-{room}"]

        def receive_json(self, content, **captures):
            assert captures == {"room": "tea"} == self.captures
            whole(self.message, **captures)
            Group(f"room-{captures['room']}").add(self.reply_channel)

    class Streams(Demultiplexer):
        consumers = {"other": Json, "room": Json}  # noqa: RUF012

    routes = [route("websocket.receive", whole, path=ROOM), route("websocket.receive", post, path=ROOM)]
    return [
        Routing([one]) for one in (*routes, route_class(Json, path=ROOM), route_class(Streams, path=ROOM))
    ]


@kinds.only("memory")
def test_what_a_client_sends_stands_for_nothing_else(layer, others, seen, tables):
    @many
    @given(
        event=events,
        query=st.sampled_from(["", f"sessionid={KEY}", f"reply_channel={OTHERS}&user=1&room=other"]),
    )
    def run(event, query):
        for table in tables:
            message = received(event, query)
            found, captures = table.match(message.channel.name, message.content)
            found.run(message, captures)
            message.save_sessions()

    run()
    assert {(room, channel, path) for room, channel, path, *_ in seen} == {("tea", OURS, "/room/tea/")}
    assert {str(user) for *_, user, _ in seen} == {"AnonymousUser", "None"}
    assert {key for *_, key in seen} == {None}
    assert (
        len(seen) > 1.8 * many.max_examples
    )  # of the forms that take whatever comes, and of frames that were wanted
    assert Group("room-tea").channels() == [OURS]
    assert Group("room-other").channels() == []
    written = [layer.receive(["reply.p1!"])]
    while written[-1][0] is not None:
        written.append(layer.receive(["reply.p1!"]))
    assert {channel for channel, _ in written} <= {OURS, None}  # what the consumers answered, to nobody else
    assert drain(layer, "other") == []


@pytest.fixture
def others(layer):
    """The records of the client's connection and of somebody else's, who is logged in."""
    layer.link().apply([Connect(OURS, "p1", "/room/tea/"), Connect(OTHERS, "p1", "/", KEY)])
    layer.keep(OTHERS, login="+1")
