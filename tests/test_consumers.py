"""Consumers as classes: their routes, their methods, what they send, and frames that are wrong."""

from __future__ import annotations

import json
from datetime import date

import pytest

from dbchannels import (
    Channel,
    ConsumeLater,
    Demultiplexer,
    DenyConnection,
    Group,
    JsonWebsocketConsumer,
    WebsocketConsumer,
    consumer,
    include,
    names,
    route,
    route_class,
)
from dbchannels.checks import routes
from dbchannels.checks.routes import mismatch
from dbchannels.consumers import websocket
from dbchannels.consumers.websocket import RESERVED
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.routing.table import Routing
from dbchannels.testing.contract.case import drain
from dbchannels.worker.worker import Worker
from tests import kinds
from tests.routing.test_table import duplicates
from tests.visitors import Visitor

ROOM = r"^/(?P<room>[^/]+)/$"
layers = kinds.only("postgresql", "memory")


@pytest.fixture
def serve(work_off):
    """Run a class for what waits: ``serve(Chat, **options)``."""
    return lambda of, **options: work_off(route_class(of, path=ROOM, **options))


@pytest.fixture
def visitor(layer, new_link):
    """A client with a WebSocket."""
    one = Visitor(layer, new_link(layer))
    yield one
    one.ends()


class Chat(WebsocketConsumer):
    """The chat of the tutorial, as a class."""

    def groups(self, room):
        return [f"chat-{room}"]

    def connect(self, message, room):
        Group(f"chat-{room}").send({"text": "somebody comes"})

    def receive(self, text, room):
        Group(f"chat-{room}").send({"text": f"{room}: {text}"})

    def disconnect(self, code, room):
        Channel("out").send({"code": code, "room": room})


# Methods.


@layers
def test_each_message_has_its_method(layer, serve, visitor):
    steps = [
        lambda: visitor.opens("/tea/"),
        lambda: visitor.says("hi", "/tea/"),
        lambda: visitor.leaves("/tea/", 4001),
    ]
    for step in steps:
        step()
        serve(Chat)
    assert visitor.told() == [{"text": "somebody comes"}, {"text": "tea: hi"}]
    assert drain(layer, "out") == [{"code": 4001, "room": "tea"}]
    assert layer.group_channels("chat-tea") == []


@layers
def test_an_instance_lives_for_one_message(serve, visitor):
    class Counting(WebsocketConsumer):
        count = 0

        def receive(self, text, room):
            self.count += 1
            self.channel_session["count"] = self.channel_session.get("count", 0) + 1
            self.send(f"{self.count} {self.channel_session['count']} {self.user} {self.captures}")

    for text in "ab":
        visitor.opens("/tea/") if text == "a" else None
        visitor.says(text, "/tea/")
        serve(Counting)
    assert [one["text"] for one in visitor.told()] == [
        "1 1 AnonymousUser {'room': 'tea'}",
        "1 2 AnonymousUser {'room': 'tea'}",
    ]


@layers
def test_one_that_writes_nothing_takes_everything(layer, serve, visitor):
    visitor.opens("/tea/").says("hi", "/tea/").says(b"hi", "/tea/").leaves("/tea/")
    serve(WebsocketConsumer)
    assert visitor.told() == []


@layers
def test_what_it_can_send(serve, visitor):
    class Sending(WebsocketConsumer):
        groups = ("news",)

        def connect(self, message, room):
            self.accept("v1", [["X-A", "b"]])
            self.send("text")
            self.send(bytes=b"\0")
            self.send("")
            self.send("bye", close=4002, reason="Late.")
            self.close()
            self.close(4003, "Full.")

    visitor.opens("/tea/")
    serve(Sending)
    assert visitor.told() == [
        {"accept": True, "headers": [["X-A", "b"]], "subprotocol": "v1"},
        {"text": "text"},
        {"bytes": b"\0"},
        {"text": ""},
        {"text": "bye", "close": 4002, "reason": "Late."},
        {"close": 1000},
        {"close": 4003, "reason": "Full."},
    ]
    assert Group("news").channels() == [visitor.channel]


@pytest.mark.parametrize("code", [True, 999, 1005, 1006, 1015, 2999, 5000, "4000", None])
@kinds.only("memory")
def test_no_other_code_is_sent(layer, visitor, code):
    with pytest.raises(ValueError, match="use 1000, or 3000 to 4999"):
        WebsocketConsumer(None, {}).close(code)


@layers
def test_one_that_refuses_has_joined_nothing(layer, serve, visitor):
    class Closed(Chat):
        def connect(self, message, room):
            raise DenyConnection

    visitor.opens("/tea/")
    serve(Closed)
    assert visitor.told() == [{"accept": False, "status": 403}]
    assert layer.group_channels("chat-tea") == []


@layers
def test_a_group_that_no_name_can_be_made_for_refuses(serve, visitor, caplog, monkeypatch):
    monkeypatch.setattr(websocket._refused, "_logged_at", -1e9)
    visitor.opens("/t\N{LATIN SMALL LETTER E WITH ACUTE}/")
    serve(Chat)
    assert visitor.told() == [{"accept": False, "status": 403}]
    # A stranger has chosen the path, so the log has one line in a while.
    (told,) = [one.getMessage() for one in caplog.records]
    assert told.startswith(
        "1 WebSocket(s) were refused, as their captures make no name of a group for Chat. The name of a group contains "
    )


class Filled(WebsocketConsumer):
    groups = ["all", "room-{room}", "{kind}.{room}"]  # noqa: RUF012

    def connect(self, message, **captures):
        if message["path"] == "/no/1/":
            raise DenyConnection


@layers
@pytest.mark.parametrize(
    ("path", "groups"),
    [("/tea/7/", ["all", "room-7", "tea.7"]), ("/no/1/", []), ("/tea/", []), ("/t!a/7/", [])],
)
def test_the_captures_fill_the_names_of_groups(layer, work_off, visitor, path, groups, monkeypatch):
    monkeypatch.setattr(websocket._refused, "_logged_at", -1e9)
    visitor.opens(path)
    work_off(route_class(Filled, path=r"^/(?P<kind>[^/]+)/(?:(?P<room>\d+)/)?$"))
    joined = [name for name in ("all", "room-7", "tea.7", "room-", "room-None") if Group(name).count()]
    assert joined == groups
    assert visitor.told() == ([] if groups else [{"accept": False, "status": 403}])


def test_an_int_of_the_path_fills_a_name(layer, work_off, visitor):
    visitor.opens("/tea/007/")
    work_off(route_class(Filled, path="/<kind>/<int:room>/"))
    assert Group("tea.7").channels() == [visitor.channel]


class TextOnly(WebsocketConsumer):
    def receive(self, text, room):
        self.send(text)


class BytesOnly(WebsocketConsumer):
    def receive(self, bytes, **captures):
        self.send(bytes=bytes)


class Any(WebsocketConsumer):
    def receive(self, **given):
        self.send(str(sorted(given)))


@pytest.mark.parametrize(
    ("of", "data", "told"),
    [
        (TextOnly, "hi", {"text": "hi"}),
        (TextOnly, "", {"text": ""}),
        (TextOnly, b"hi", {"close": 1003}),
        (BytesOnly, b"hi", {"bytes": b"hi"}),
        (BytesOnly, "hi", {"close": 1003}),
        (Any, "hi", {"text": "['room', 'text']"}),
        (Any, b"", {"text": "['bytes', 'room']"}),
    ],
)
@layers
def test_a_frame_of_the_kind_that_it_does_not_name_closes_with_1003(serve, visitor, of, data, told, caplog):
    visitor.opens("/tea/").says(data, "/tea/")
    serve(of)
    assert visitor.told() == [told]
    assert caplog.records == []


@layers
def test_methods_may_be_async(layer, serve, visitor):
    class Async(Chat):
        async def connect(self, message, room):
            self.send("one")

        async def receive(self, text, room):
            await self.message.achannel_session()
            self.send(text)
            Group(f"chat-{room}").send({"text": "to all"})

    visitor.opens("/tea/")
    serve(Async)
    visitor.says("two", "/tea/")
    serve(Async)
    assert visitor.told() == [{"text": "one"}, {"text": "two"}, {"text": "to all"}]


@layers
def test_one_may_ask_for_its_message_later(layer, serve, visitor):
    class Later(WebsocketConsumer):
        def receive(self, text, room):
            self.send("never seen")
            raise ConsumeLater

    visitor.opens("/tea/").says("hi", "/tea/")
    serve(Later)
    assert visitor.told() == [{"again": 1}]


@pytest.mark.parametrize("name", sorted(RESERVED - {"self"}))
@layers
def test_a_capture_that_would_hide_an_argument_is_refused(layer, visitor, name, caplog):
    visitor.opens("/tea/")
    table = Routing([route_class(Chat, path=rf"^/(?P<{name}>\w+)/$")])
    one = Worker(layer, table)
    one._register()
    while one.run_once():
        pass
    one.link.close()
    assert visitor.told() == [{"accept": False, "status": 500}]
    assert f"captures '{name}', which is another parameter of its methods" in caplog.text


# Routes.


def consumers_of(table):
    """Return what a table has, as (channel, name, filters, atomic)."""
    return [(one.channel, one.name, dict(one.filters.key()), one.options.atomic) for one in table.routes()]


class Careful(Chat):
    options = {"atomic": True}  # noqa: RUF012


NAME = f"{__name__}.Careful"
CHANNELS = list(names.WEBSOCKET)


def test_a_class_has_a_route_for_each_channel():
    table = Routing([route_class(Careful, path=ROOM)])
    assert consumers_of(table) == [(one, NAME, {"path": ROOM}, True) for one in CHANNELS]
    table = Routing([include([route_class(Careful, atomic=False, path=r"^/b$")], path="^/a")])
    assert consumers_of(table) == [(one, NAME, {"path": "^/b$"}, False) for one in CHANNELS]
    assert [one.channel for one in Careful.as_routes(path=ROOM)] == CHANNELS


def test_as_a_decorator_it_puts_the_class_on_the_sites_table(monkeypatch):
    found = []
    monkeypatch.setattr("dbchannels.routing.table._decorated", found)
    assert route_class(path=ROOM)(Careful) is Careful
    assert consumers_of(Routing(found)) == [(one, NAME, {"path": ROOM}, True) for one in CHANNELS]


class Forgetful:
    """A class whose base has been forgotten."""


@pytest.mark.parametrize("made", [route_class, route_class(path="/x/")])
def test_a_class_without_its_base_is_one_sentence(made):
    with pytest.raises(InvalidConfiguration) as refused:
        made(Forgetful)
    assert str(refused.value) == (
        f"route_class takes a WebsocketConsumer, and {__name__}.Forgetful is not one: write class "
        "Forgetful(WebsocketConsumer)."
    )


@pytest.mark.parametrize("made", [route_class, route_class(path="/x/")])
def test_a_function_has_no_four_channels(made):
    with pytest.raises(InvalidConfiguration, match=r"write route\(channel, \.\.\.\) or @consumer"):
        made(lambda message: None)


def test_one_channel_alone_may_be_routed_to_it(monkeypatch):
    found = []
    monkeypatch.setattr("dbchannels.routing.table._decorated", found)
    assert consumer("websocket.receive", path=ROOM)(Careful) is Careful
    by_name = route("websocket.receive", NAME, path=ROOM)
    assert consumers_of(Routing(found)) == consumers_of(Routing([by_name]))
    assert consumers_of(Routing(found)) == [("websocket.receive", NAME, {"path": ROOM}, False)]


def test_a_class_that_is_routed_twice_is_found():
    table = Routing(
        [*Careful.as_routes(path=ROOM), *Careful.as_routes(path=ROOM), *Chat.as_routes(path=ROOM)]
    )
    assert [one.channel for one in duplicates(table)] == CHANNELS


# JSON.


class Adding(JsonWebsocketConsumer):
    def receive_json(self, content, **captures):
        self.send_json({"sum": sum(content["numbers"]), "day": date(2026, 1, 2)})


def answers(visitor):
    """Return what the client was told, decoded."""
    return [json.loads(one["text"]) for one in visitor.told()]


@layers
def test_json_both_ways(serve, visitor):
    visitor.opens("/tea/").says('{"numbers": [1, 2]}', "/tea/")
    serve(Adding)
    assert answers(visitor) == [{"sum": 3, "day": "2026-01-02"}]


NO_JSON = [
    "",
    "{",
    "{'a': 1}",
    "nothing",
    "\0",
    "NaN",
    '{"a": Infinity}',
    '{"a": -1e999}',
    "[" * 100_000,
    '{"a": ' + "1" * 5000 + "}",
    '"\\ud83d"',
    '{"\\udc00": 1}',
    '{"numbers": []} {}',
    b"{}",
    b"\xff",
]


@pytest.mark.parametrize("text", NO_JSON, ids=lambda text: ascii(text)[:20])
@layers
def test_a_frame_that_is_not_json_is_answered_and_the_connection_stays(serve, visitor, text, caplog):
    visitor.opens("/tea/").says(text, "/tea/")
    serve(Adding)
    (answer,) = answers(visitor)
    assert answer["error"].pop("code") == "invalid_json"
    assert answer["error"].pop("message").endswith(".") and answer == {"error": {}}
    assert caplog.records == []


@pytest.mark.parametrize(
    ("wanted", "text", "sentence"),
    [
        (dict, "[]", "Send an object, not an array."),
        (dict, "null", "Send an object, not null."),
        (dict, "7", "Send an object, not a number."),
        (list, "{}", "Send an array, not an object."),
        ((dict, list), '"a"', "Send an object or an array, not a string."),
        (str, "true", "Send a string, not true or false."),
        (object, "null", None),
        (int, "1", None),
    ],
)
@layers
def test_a_value_of_another_type_is_answered(serve, visitor, wanted, text, sentence):
    class Picky(JsonWebsocketConsumer):
        content_type = wanted

        def receive_json(self, content, room):
            self.send_json(None)

    visitor.opens("/tea/").says(text, "/tea/")
    serve(Picky)
    error = {"error": {"code": "invalid_content", "message": sentence}} if sentence else None
    assert answers(visitor) == [error]


@layers
def test_what_is_sent_is_json_in_every_language(serve, visitor):
    class Bad(JsonWebsocketConsumer):
        def receive_json(self, content, room):
            self.send_json({"number": float("nan")})

    visitor.opens("/tea/").says("{}", "/tea/")
    serve(Bad)
    assert answers(visitor) == []
    with pytest.raises(ValueError, match="JSON"):
        Bad.encode_json(float("inf"))


# Streams.


class Room(JsonWebsocketConsumer):
    def groups(self, room):
        return [f"room-{room}"]

    def connect(self, message, room):
        self.send_json("welcome")

    def receive_json(self, content, room):
        self.send_group_json(f"room-{room}", {**content, "from": room})

    def disconnect(self, code, room):
        Channel("out").send({"room": room})


class Numbers(JsonWebsocketConsumer):
    content_type = int

    async def receive_json(self, content, room):
        self.send_json(content + 1)

    def disconnect(self, code, room):
        Channel("out").send({"numbers": code})


class Site(Demultiplexer):
    consumers = {"room": Room, "numbers": Numbers}  # noqa: RUF012


@layers
def test_each_stream_has_its_consumer(layer, serve, visitor):
    visitor.opens("/tea/")
    serve(Site)
    for frame in ({"stream": "room", "payload": {"a": 1}}, {"stream": "numbers", "payload": 41, "more": 1}):
        visitor.says(json.dumps(frame), "/tea/")
        serve(Site)
    Group("room-tea").send(Room.frame("from a view", stream="room"))
    assert answers(visitor) == [
        {"stream": "room", "payload": "welcome"},
        {"stream": "room", "payload": {"a": 1, "from": "tea"}},
        {"stream": "numbers", "payload": 42},
        {"stream": "room", "payload": "from a view"},
    ]
    visitor.leaves("/tea/")
    serve(Site)
    assert drain(layer, "out") == [{"room": "tea"}, {"numbers": 1000}]


@pytest.mark.parametrize(
    ("frame", "stream", "code"),
    [
        ([], None, "invalid_content"),
        ({}, None, "invalid_frame"),
        ({"stream": "room"}, None, "invalid_frame"),
        ({"payload": {}}, None, "invalid_frame"),
        ({"stream": ["room"], "payload": {}}, None, "invalid_frame"),
        ({"stream": None, "payload": {}}, None, "invalid_frame"),
        ({"stream": "nowhere", "payload": {}}, None, "unknown_stream"),
        ({"stream": "__class__", "payload": {}}, None, "unknown_stream"),
        ({"stream": "room", "payload": []}, "room", "invalid_content"),
        ({"stream": "numbers", "payload": {}}, "numbers", "invalid_content"),
    ],
)
@layers
def test_a_frame_that_is_for_nobody_is_answered(serve, visitor, frame, stream, code, caplog):
    visitor.opens("/tea/").says(json.dumps(frame), "/tea/")
    serve(Site)
    told = [one for one in answers(visitor) if "error" in one]
    assert [(one.get("stream"), one["error"]["code"]) for one in told] == [(stream, code)]
    assert caplog.records == []


@layers
def test_a_frame_of_another_type_is_for_no_stream(serve, visitor, caplog):
    class Anything(Site):
        content_type = object

    visitor.opens("/tea/").says('["stream", "payload"]', "/tea/")
    serve(Anything)
    assert [one["error"]["code"] for one in answers(visitor) if "error" in one] == ["invalid_frame"]
    assert caplog.records == []


@layers
def test_the_disconnect_of_one_stream_that_raises_ends_no_others(layer, serve, visitor, caplog):
    ran = []

    class Broken(JsonWebsocketConsumer):
        def disconnect(self, code, room):
            ran.append("broken")
            raise ValueError("disconnect failed")

    class Leaving(JsonWebsocketConsumer):
        def disconnect(self, code, room):
            ran.append(self.stream)

    class Several(Demultiplexer):
        consumers = {"broken": Broken, "b": Leaving, "c": Leaving}  # noqa: RUF012

        def disconnect(self, code, room):
            ran.append("own")

    visitor.opens("/tea/").leaves("/tea/")
    serve(Several)
    assert ran == ["broken", "b", "c", "own"]
    assert "disconnect failed" in caplog.text


@layers
def test_when_one_stream_refuses_all_are_refused(layer, serve, visitor):
    class Closed(JsonWebsocketConsumer):
        def connect(self, message, room):
            raise DenyConnection

    class Both(Demultiplexer):
        consumers = {"room": Room, "closed": Closed}  # noqa: RUF012

    visitor.opens("/tea/")
    serve(Both)
    assert visitor.told() == [{"accept": False, "status": 403}]
    assert layer.group_channels("room-tea") == []


# What a client calls as the server does.


FORGED = {
    "reply_channel": "reply.other!x",
    "user": 1,
    "room": "other",
    "path": "/other/",
    "stream": "numbers",
}


@layers
def test_keys_of_a_frame_stand_for_nothing_else(serve, visitor):
    class Telling(JsonWebsocketConsumer):
        def receive_json(self, content, room):
            self.send_json([content, room, str(self.user), self.reply_channel.name, self.stream])

    class Streams(Demultiplexer):
        consumers = {"telling": Telling}  # noqa: RUF012

    visitor.opens("/tea/").says(json.dumps(FORGED), "/tea/")
    serve(Telling)
    visitor.says(json.dumps({**FORGED, "stream": "telling", "payload": FORGED}), "/tea/")
    serve(Streams)
    told = [FORGED, "tea", "AnonymousUser", visitor.channel]
    assert answers(visitor) == [[*told, ""], {"stream": "telling", "payload": [*told, "telling"]}]


# Whether a class fits its route.


class Whole(Demultiplexer):
    consumers = {"numbers": Numbers}  # noqa: RUF012

    def disconnect(self, code):
        pass


@pytest.mark.parametrize(
    ("of", "path", "wrong"),
    [
        (Chat, "/<room>/", {}),
        (TextOnly, "/<room>/", {}),
        (WebsocketConsumer, "/<a>/<b>/", {}),
        (
            Whole,
            "/<room>/",
            {"disconnect": "Whole.disconnect takes (self, code); write disconnect(self, code, room)"},
        ),
        (
            Whole,
            "/",
            {
                "receive": "Numbers.receive_json takes (self, content, room); write receive_json(self, content)"
            },
        ),
        (
            Chat,
            "/",
            {
                "connect": "Chat.groups takes (self, room); write groups(self)",
                "receive": "Chat.receive takes (self, ",
                "disconnect": "Chat.disconnect takes (self, code, room); write disconnect(self, code)",
            },
        ),
        (
            Chat,
            "/<code>/",
            dict.fromkeys(["connect", "receive", "event", "disconnect"], "'code' is another parameter"),
        ),
    ],
)
def test_a_route_that_its_class_does_not_fit_is_found(of, path, wrong):
    found = {
        one.channel.rpartition(".")[2]: mismatch(one.consumer, one.channel, one.filters.captures())
        for one in of.as_routes(path=path)
    }
    if of is Whole and path == "/":
        found = {"receive": found["receive"]}
    assert {kind: text for kind, text in found.items() if text}.keys() == wrong.keys()
    assert all(found[kind].startswith(text) for kind, text in wrong.items())


@pytest.mark.parametrize(
    ("groups", "path", "wrong"),
    [
        (["room-{room}"], "/<room>/", ""),
        (
            ["room-{rom}"],
            "/<room>/<x>/",
            "'room-{rom}', whose {rom} the route does not capture: write {room} or {x}",
        ),
        (["room-{room}"], "/", "the route does not capture: capture it, as in path='/<slug:room>/'"),
        (["room-{}"], "/<room>/", "has 'room-{}'. The name of a group contains '{' as character 6"),
        (["room-{0}"], "/<room>/", "The name of a group contains '{' as character 6"),
        (["a", "{room.attr}"], "/<room>/", "The name of a group contains '{' as character 1"),
        (["{room!r}"], "/<room>/", "The name of a group contains"),
        (["{room:>9}"], "/<room>/", "The name of a group contains"),
        (["tea room"], "/<room>/", "has 'tea room'. The name of a group contains ' ' as character 4"),
        ([7], "/<room>/", "has 7. The name of a group must be a str"),
    ],
)
@kinds.only("memory")
def test_the_groups_of_a_class_fit_its_route(groups, path, wrong, visitor, work_off, caplog, monkeypatch):
    monkeypatch.setattr(websocket._refused, "_logged_at", -1e9)
    of = type("Of", (WebsocketConsumer,), {"groups": groups})
    table = Routing([route_class(of, path=path)])
    errors = [one.msg for one in routes.check_classes(table)]
    assert len(errors) == bool(wrong) and wrong in "".join(errors)
    inner = type("Inner", (JsonWebsocketConsumer,), {"groups": groups})
    outer = type("Outer", (Demultiplexer,), {"consumers": {"inner": inner}})
    errors = [one.msg for one in routes.check_classes(Routing([route_class(outer, path=path)]))]
    assert len(errors) == bool(wrong) and wrong in "".join(errors)
    visitor.opens(path.replace("<room>", "tea").replace("<x>", "y"))
    work_off(route_class(of, path=path))
    unfilled = "does not capture" in wrong  # the capture may be optional
    assert visitor.told() == ([{"accept": False, "status": 403 if unfilled else 500}] if wrong else [])
    assert ("in this path" if unfilled else wrong) in caplog.text


@pytest.mark.parametrize("consumers", [["chat"], {"chat": "Chat"}, {"chat": WebsocketConsumer}])
def test_the_consumers_of_a_demultiplexer_are_classes_by_stream(consumers):
    of = type("Of", (Demultiplexer,), {"consumers": consumers})
    table = Routing([route_class(of, path="/")])
    assert "its consumers are" in next(routes.check_classes(table)).msg
    assert not list(routes.check_unrouted(table))


@pytest.mark.parametrize("parameters", ["message", "event", "message, **captures"])
def test_a_disconnect_that_takes_a_message_as_in_channels_is_found(parameters):
    of = type("Of", (WebsocketConsumer,), {"disconnect": eval(f"lambda self, {parameters}: None")})
    (error,) = routes.check_classes(Routing([route_class(of, path="/")]))
    assert error.msg.endswith("; write disconnect(self, code).")


def test_a_disconnect_may_have_a_parameter_of_such_a_name_besides():
    of = type("Of", (WebsocketConsumer,), {"disconnect": lambda self, code, message="", event=None: None})
    assert not list(routes.check_classes(Routing([route_class(of, path="/")])))


def test_a_check_says_so():
    table = Routing([route_class(Chat, path="/<code>/")])
    errors = list(routes.check_classes(table))
    assert [one.id for one in errors] == ["dbchannels.E004"]  # one mistake, though there are four routes
    assert errors[0].msg.startswith(
        f"The route of {__name__}.Chat on websocket.connect (path=/<code>/) does not fit"
    )
    assert not list(routes.check_classes(Routing([route_class(Chat, path="/<room>/")])))


def test_a_function_is_left_to_others():
    assert mismatch(print, "own", ["room"]) == ""
