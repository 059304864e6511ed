"""Names of Channels and of Celery: each is told what it is called here, and none is one that works."""

from __future__ import annotations

import importlib
import re
from functools import partial

import pytest
from django.core.management import CommandError, load_command_class
from django.http import HttpResponse

from dbchannels import (
    Channel,
    Group,
    InvalidMessage,
    JsonWebsocketConsumer,
    Message,
    NoClient,
    WebsocketConsumer,
    consumer,
    other_libraries,
    route,
)
from dbchannels.checks.routes import FIELDS
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.layers import channel_layers
from dbchannels.layers.base import BaseLayer
from dbchannels.routing import table
from dbchannels.routing.table import OPTIONS, Routing, load_routes
from dbchannels.server.websocket.messages import KEYS
from dbchannels.testing import ChannelClient, ChannelTestCase
from dbchannels.worker.worker import Worker

MESSAGE = Message(
    "websocket.receive", {"reply_channel": "reply.web!a", "path": "/", "text": "hi", "order": 1}
)
THINGS = {
    "consumer": WebsocketConsumer(MESSAGE, {}),
    "message": MESSAGE,
    "channel": Channel("own"),
    "group": Group("room"),
    "test": ChannelTestCase(),
}


def named(place):
    """Return a place's names, with what is said of each."""
    return other_libraries.NAMES[place].items()


@pytest.mark.parametrize("place", THINGS)
def test_an_attribute_is_told_its_name_here(place):
    for name, told in named(place):
        with pytest.raises(AttributeError, match=re.escape(f"has no attribute {name!r}: {told}.")):
            getattr(THINGS[place], name)


@pytest.mark.parametrize("place", THINGS)
def test_another_attribute_is_not_there_as_always(place):
    with pytest.raises(AttributeError, match=r"has no attribute 'quite_other'$"):
        THINGS[place].quite_other  # noqa: B018
    assert not hasattr(THINGS[place], "quite_other")


def test_an_attribute_of_a_tests_client_is_told_its_name_here():
    with pytest.raises(AttributeError, match=r"write socket = self\.client\.ws\(path\)"):
        ChannelClient().send_and_consume  # noqa: B018


def test_an_attribute_of_a_layer_is_told_its_name_here(layer):
    for name, told in named("layer"):
        assert not hasattr(BaseLayer, name)
        with pytest.raises(AttributeError, match=re.escape(told)):
            getattr(channel_layers["default"], name)


def test_a_property_that_raises_is_left_to_say_why():
    with pytest.raises(NoClient):
        Message("own", {}).user  # noqa: B018
    with pytest.raises(NoClient):
        WebsocketConsumer(Message("own", {}), {}).user  # noqa: B018


def test_no_name_of_the_table_is_one_of_ours():
    for name in other_libraries.NAMES["class"]:
        assert not hasattr(JsonWebsocketConsumer, name)
    assert OPTIONS.isdisjoint(other_libraries.NAMES["option"])
    assert KEYS.isdisjoint(other_libraries.NAMES["reply"])
    for command in ("runchannels", "runworker"):
        load_command_class("dbchannels", command).create_parser("manage.py", command)


def test_each_sentence_is_one_clause():
    for names in other_libraries.NAMES.values():
        for name, told in names.items():
            assert not told.endswith(".") and "\n" not in told and told[0].islower(), name


@pytest.mark.parametrize("module", ["", ".auth", ".routing", ".layers", ".consumers", ".testing"])
def test_an_import_is_told_its_name_here(module):
    where = importlib.import_module(f"dbchannels{module}")
    for name, told in named("import"):
        if name in getattr(where, "__all__", ()):
            continue  # as ChannelTestCase, which others import from elsewhere
        with pytest.raises(ImportError, match=re.escape(f"dbchannels{module} has no {name!r}: {told}.")):
            getattr(where, name)
    assert not hasattr(where, "quite_other")


def test_an_import_from_the_module_that_has_it_in_channels_is_told_where_it_is():
    with pytest.raises(
        ImportError, match=r"dbchannels\.routing has no 'route': write from dbchannels import route"
    ):
        from dbchannels.routing import route  # noqa: F401


@pytest.mark.parametrize("keyword", ["countdown", "eta", "queue"])
def test_a_keyword_of_a_channel_is_told_its_name_here(keyword):
    with pytest.raises(TypeError, match=rf"Channel.__init__\(\) takes no '{keyword}': "):
        Channel("own", **{keyword: 5})
    with pytest.raises(TypeError, match="unexpected keyword argument 'quite_other'"):
        Channel("own", quite_other=5)


def test_an_option_that_is_given_to_send_is_told_where_it_belongs():
    for kind in (Channel, Group):
        with pytest.raises(
            InvalidMessage,
            match=rf"takes no 'immediately': write {kind.__name__}\(name, immediately=\.\.\.\)",
        ):
            kind("own").send({"text": "hi"}, immediately=True)
    with pytest.raises(InvalidMessage, match=r"takes no 'history': write Group\(name, history=\.\.\.\)"):
        Group("own").send(text="hi", history=100)
    with pytest.raises(InvalidMessage, match=r"takes no 'delay'.*put a field of that name into a dict"):
        Channel("own").send(order=7, delay=60)


@pytest.mark.parametrize("keyword", ["text_data", "bytes_data", "content"])
def test_a_keyword_of_a_consumers_send_is_told_its_name_here(keyword):
    with pytest.raises(
        TypeError, match=rf"takes no '{keyword}': {other_libraries.NAMES['parameter'][keyword][:10]}"
    ):
        THINGS["consumer"].send(**{keyword: "hi"})


def test_an_option_of_a_route_is_told_its_name_here():
    for name, told in named("option"):
        with pytest.raises(InvalidConfiguration, match=re.escape(f"takes no {name!r}: {told}.")):
            route("own", print, **{name: 5})
        for put in (
            partial(route, "own", print),
            partial(table.include, []),
        ):  # as a filter it would match nothing
            with pytest.raises(
                InvalidConfiguration,
                match=re.escape(f"takes no {name!r}: {told}; write filters={{{name!r}: ...}} for a field"),
            ):
                put(**{name: "5"})
        assert route("own", print, filters={name: "5"}).filters.captures() == []
    with pytest.raises(InvalidConfiguration, match="takes no quite_other=5: there is no such option"):
        route("own", print, quite_other=5)


def test_a_field_of_a_message_is_no_option(layer):
    Channel("own").send(history="of its orders")
    known = {name for fields in FIELDS.values() for name in fields}
    for name in {*known, "currency", "entries", "kind", "room"}:
        assert list(route("own", print, **{name: "x"}).filters.patterns) == [name]


def test_a_consumer_says_that_it_is_no_task(monkeypatch):
    monkeypatch.setattr(table, "_decorated", [])

    @consumer("invoices")
    def make_invoice(message):
        """A consumer."""

    for name in ("delay", "apply_async"):
        with pytest.raises(
            AttributeError, match=r"a consumer, not a task: write Channel\('invoices'\)\.send"
        ):
            getattr(make_invoice, name)(7)


@pytest.mark.parametrize(
    ("command", "given", "told"),
    [
        ("runworker", ["--only-channels=own"], "for --only-channels, write --only"),
        (
            "runworker",
            ["-c", "4"],
            "for -c, start more workers, as with runchannels --workers N",
        ),
        ("runworker", ["-Q", "own"], "for -Q, write --only"),
        ("runworker", ["own", "other"], "unrecognized arguments: own other; write --only own"),
        ("runserver", ["--noworker"], "for --noworker, run runchannels --workers 0"),
        ("runchannels", ["-p", "80"], "for -p, write the address, as 8000 or 0.0.0.0:8000"),
    ],
)
def test_an_option_of_a_command_is_told_its_name_here(command, given, told):
    parser = load_command_class("dbchannels", command).create_parser("manage.py", command)
    parser.called_from_command_line = False
    with pytest.raises(CommandError, match=f"{re.escape(told)}$"):
        parser.parse_args(given)
    with pytest.raises(CommandError, match=r"unrecognized arguments: --quite-other$"):
        parser.parse_args(["--quite-other"])


# What is no route.

NOTHING_NAMED_ROUTES = [route("own", print)]
channel_routing = NOTHING_NAMED_ROUTES


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (("own", print), r"write route\('own', \.\.\.\)"),
        ([route("own", print)], r"write its items one by one, or put a \* in front of it"),
        ("chat.routing", r"write include\('chat.routing'\)"),
        (WebsocketConsumer, r"write route_class\(\.\.\.\) around it"),
        (print, r"write route\(channel, \.\.\.\) around it"),
        (7, r"write route\(\.\.\.\), route_class\(\.\.\.\) or include\(\.\.\.\)"),
        (None, r"write route\(\.\.\.\), route_class\(\.\.\.\) or include\(\.\.\.\)"),
    ],
)
@pytest.mark.parametrize("put", [Routing, table.include], ids=["routing", "include"])
def test_what_is_no_route_is_told_what_to_write(put, entry, told):
    with pytest.raises(InvalidConfiguration, match=f"which is not a route: {told}\\.$"):
        put([entry])


def test_a_class_is_no_application():
    for name in ("as_asgi", "as_view", "as_route"):
        with pytest.raises(AttributeError, match=r"write route_class\(WebsocketConsumer, path=\.\.\.\)\.$"):
            getattr(WebsocketConsumer, name)


def test_the_path_of_a_view_is_no_route():
    from django.urls import include, path

    for entry in (path("chat/", print), path("chat/", include([]))):
        with pytest.raises(
            InvalidConfiguration, match=r'write route\("websocket.connect", consumer, path=\.\.\.\)'
        ):
            Routing([entry])


def test_a_module_with_the_list_of_channels_is_told_what_to_call_it():
    with pytest.raises(InvalidConfiguration, match="no list called 'routes': call the list routes"):
        load_routes(__name__)


# What a consumer does and returns.


def yields(message):
    yield message


async def streams(message):
    yield message


@pytest.mark.parametrize(
    ("channel", "consume", "told"),
    [
        ("own", yields, "yields is a generator, so calling it ran nothing: take the yield out"),
        ("own", streams, "streams is a generator, so calling it ran nothing: take the yield out"),
        ("own", lambda message: yields(message), "yields is a generator"),
        (
            "websocket.connect",
            lambda message: False,
            "returned False, which does not refuse the connection: raise DenyConnection()",
        ),
        ("http.request", lambda message: HttpResponse(), "returned a response, which is not sent"),
        ("http.request", lambda message: "hi", "returned 'hi', which is not sent"),
        ("websocket.receive", lambda message: {"text": "hi"}, "returned a dict, which is not sent"),
        (
            "websocket.receive",
            lambda message: HttpResponse(),
            "returned a response, which no WebSocket takes",
        ),
    ],
)
def test_what_would_mean_nothing_fails(layer, caplog, channel, consume, told):
    content = {} if channel == "own" else {"reply_channel": "reply.web!a", "path": "/", "order": 0}
    layer.send(channel, content)
    worker = Worker(
        layer,
        Routing([route(channel, consume, retries=0)] if channel == "own" else [route(channel, consume)]),
    )
    worker._register()
    worker.run_once()
    worker.link.close()
    assert told in caplog.text
    assert len(layer.dead_letter_ids(["own"])) == (channel == "own")


def test_what_a_consumer_returns_is_otherwise_its_own_affair(layer, caplog):
    layer.send("own", {})
    worker = Worker(layer, Routing([route("own", lambda message: False)]))
    worker._register()
    worker.run_once()
    worker.link.close()
    assert caplog.text == "" and layer.dead_letter_ids(["own"]) == []


class Refuses(WebsocketConsumer):
    def connect(self, message):
        return False


def test_the_same_of_a_class():
    run = Refuses.as_consumer()
    connect = Message("websocket.connect", {"reply_channel": "reply.web!a", "path": "/", "order": 0})
    assert run(connect) is False


def test_a_refused_handshake_says_which_paths_there_are(layer, caplog, settings):
    settings.DEBUG = True
    layer.send("websocket.connect", {"reply_channel": "reply.web!a", "path": "/chat/tea", "order": 0})
    paths = ("/cat/", "chat/<slug:room>/", "/news/", r"^/c/(?P<thing>\w+)/$", "/x")
    routes = [route("websocket.connect", print, path=path) for path in paths]
    worker = Worker(layer, Routing(routes))
    worker._register()
    worker.run_once()
    worker.link.close()
    assert (
        "No route takes a WebSocket on '/chat/tea': the nearest are /chat/<slug:room>/, /cat/, "
        in caplog.text
    )


def test_with_debug_the_log_says_once_which_channel_has_no_consumer(layer, caplog, settings):
    unread = ("invoces", "invoces", "quite.other", "quite.others", "websocket.send")
    for settings.DEBUG, told in ((False, 0), (True, 4)):
        worker = Worker(layer, Routing([route("invoices", print)]))
        for channel in (*unread, "invoices", "websocket.receive", "reply.web!a"):
            Channel(channel).send({})
        worker.link.close()
        assert len(caplog.messages) == told
    assert caplog.messages == [
        "A message was sent to invoces, which has no consumer, so it waits forever: write 'invoices'.",
        "A message was sent to quite.other, which has no consumer, so it waits forever: write "
        "@consumer('quite.other') above one.",
        "A message was sent to quite.others, which has no consumer, so it waits forever: write "
        "@consumer('quite.others') above one.",
        "A message was sent to websocket.send, which has no consumer, so it is dropped: send it to "
        "message.reply_channel, or to a channel of your own.",
    ]
