"""``Channel`` and ``Group``, on a layer in memory."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.template import engines
from django.template.response import SimpleTemplateResponse

from dbchannels import Channel, Group, InvalidMessage, InvalidName, channel_layers, conf, event_stream
from dbchannels.layers import make_layer
from dbchannels.layers.operations import Connect
from dbchannels.testing.contract.case import raises


@pytest.fixture
def layer():
    """The site's layer: one in memory."""
    backend = conf.SHORT_BACKENDS["memory"]
    channel_layers["default"] = make_layer(
        conf.LayerSettings("default", backend, "default", None, conf.OPTIONS)
    )
    yield channel_layers["default"]
    channel_layers.clear()


def test_a_dict_and_keywords_send_the_same(layer):
    Channel("own").send({"content": "hi", "binary": False})
    Channel("own").send(content="hi", binary=False)
    assert layer.receive(["own"]) == layer.receive(["own"]) == ("own", {"content": "hi", "binary": False})


def test_any_field_can_be_a_keyword(layer):
    Channel("own").send(message=1, self=2, fields=3)
    assert layer.receive(["own"])[1] == {"message": 1, "self": 2, "fields": 3}


def test_an_empty_message_is_a_message(layer):
    Channel("own").send()
    Channel("own").send({})
    assert layer.receive(["own"]) == layer.receive(["own"]) == ("own", {})


def test_a_dict_with_keywords_is_refused(layer):
    for target in (Channel("own"), Group("group")):
        with raises(InvalidMessage) as refused:
            target.send({"id": 7}, text="hi")
        assert "not both" in refused.sentence
    assert layer.receive(["own"]) == (None, None)


def test_a_delay_belongs_to_the_channel(layer):
    for delay in (3600, 3600.0, timedelta(hours=1)):
        Channel("own", delay=delay).send({"id": 7})
    assert layer.receive(["own"]) == (None, None)
    assert layer.channel_statistics("own")["messages_pending"] == 3
    with raises(InvalidMessage):
        Channel("http.request", delay=1).send({})


@pytest.mark.parametrize(
    "delay",
    [
        float("nan"),
        float("inf"),
        -1,
        -0.001,
        1e300,
        10**400,
        315_360_000.1,
        timedelta(seconds=-1),
        timedelta(days=3651),
        timedelta.max,
        "5",
        None,
    ],
    ids=repr,
)
def test_a_delay_is_from_nothing_to_ten_years(layer, delay):
    """The database refuses others only when a worker writes what its whole batch has sent."""
    for channel in ("own", "http.request"):
        with raises(InvalidMessage) as refused:
            Channel(channel, delay=delay).send({"id": 7})
        assert "A delay must " in refused.sentence
    with layer.buffered() as buffer, raises(InvalidMessage):
        Channel("own", delay=delay).send({"id": 7})
    assert buffer.pending() == []
    assert layer.channel_statistics("own")["messages_pending"] == 0


@pytest.mark.parametrize("delay", [315_360_000, timedelta(days=3650), 0.001, 0, -0.0, False, timedelta(0)])
def test_the_shortest_delay_and_the_longest_are_good(layer, delay):
    Channel("own", delay=delay).send({"id": 7})
    assert layer.channel_statistics("own")["messages_pending"] == 1


def test_immediately_does_not_wait_for_the_consumers_end(layer):
    with layer.buffered():
        Channel("own").send({"id": 1})
        Channel("own", immediately=True).send({"id": 2})
        assert layer.receive(["own"])[1] == {"id": 2}
        assert layer.receive(["own"]) == (None, None)


def test_a_group_can_be_told_before_the_consumers_end(layer):
    layer.group_add("watching", "reply.a!b")
    with layer.buffered() as buffer:
        Group("watching").send({"id": 1})
        Group("watching", immediately=True).send({"id": 2})
        Group("watching", immediately=True).add("reply.a!c")
        assert Group("watching").channels() == ["reply.a!b", "reply.a!c"]
        Group("watching", immediately=True).discard("reply.a!c")
        assert Group("watching").channels() == ["reply.a!b"]
        assert layer.receive(["reply.a!"]) == ("reply.a!b", {"id": 2})
        assert layer.receive(["reply.a!"]) == (None, None)
        assert len(buffer.pending()) == 1


def test_a_group_is_sent_to_add_by_add(layer):
    Group("room").add(Channel("reply.a!b"))
    Group("room").add("reply.a!c")
    Group("room").add("reply.a!c")
    Group("room").discard(Channel("reply.a!b"))
    Group("room").discard("stranger")
    assert Group("room").channels() == ["reply.a!c"]
    Group("room").send({"text": "hi"})
    Group("room").send(text="hi")
    assert [layer.receive(["reply.a!"]) for _ in range(3)] == [("reply.a!c", {"text": "hi"})] * 2 + [
        (None, None)
    ]


@pytest.mark.parametrize("nothing", [None, 7, b"own", ""])
def test_nothing_is_no_member(layer, nothing):
    """``Group.add(message.reply_channel)`` where the message has none must not make a member called "None"."""
    for call in (Group("room").add, Group("room").discard):
        with raises(InvalidName):
            call(nothing)
    assert Group("room").channels() == []


def test_names_are_checked_at_once():
    for make in (Channel, Group):
        with raises(InvalidName):
            make("two words")
    with raises(InvalidName):
        Group("reply.a!b")


def test_channels_are_equal_by_name_and_layer():
    assert Channel("own") == Channel("own", delay=5)
    assert Channel("own") != Channel("own", layer="other")
    assert Channel("own") != "own"
    assert len({Channel("own"), Channel("own"), Channel("other")}) == 2


def test_they_show_their_names():
    assert (str(Channel("own")), repr(Channel("own"))) == ("own", "Channel('own')")
    assert (str(Group("room")), repr(Group("room"))) == ("room", "Group('room')")


class Someone:
    """A user as Django has them."""

    def __init__(self, pk):
        self.pk = pk


def test_the_users_of_a_group_are_those_whom_consumers_named(layer):
    named = {"a": Someone(7), "b": 7, "c": "7", "d": Someone(UUID(int=1)), "e": Someone(None), "f": None}
    layer.link().apply([Connect(f"reply.who!{local}", "server", "/") for local in named])
    for local, user in named.items():
        Channel(f"reply.who!{local}").identify(user)
        Group("room").add(f"reply.who!{local}")
    assert Group("room").users() == ["00000000-0000-0000-0000-000000000001", "7"]


# Responses of Django's.


def test_a_request_is_answered_with_a_response(layer):
    response = JsonResponse({"paid": True}, status=402, headers={"X-A": "caf\xe9"})
    response.set_cookie("a", "1", httponly=True)
    Channel("reply.s1!c1").send(response)
    Group("waiting").add("reply.s1!c2")
    Group("waiting").send(response)
    expected = {
        "status": 402,
        "reason": "Payment Required",
        "headers": [
            [b"X-A", b"caf\xe9"],
            [b"Content-Type", b"application/json"],
            [b"Set-Cookie", b"a=1; HttpOnly; Path=/"],
        ],
        "content": b'{"paid": true}',
    }
    assert [layer.receive(["reply.s1!"]) for _ in range(2)] == [
        ("reply.s1!c1", expected),
        ("reply.s1!c2", expected),
    ]


def test_a_template_s_response_is_rendered(layer):
    template = engines["django"].from_string("{{ one }}")
    Channel("reply.s1!c1").send(SimpleTemplateResponse(template, {"one": "<"}))
    assert layer.receive(["reply.s1!"])[1]["content"] == b"&lt;"


@pytest.mark.parametrize(
    ("channel", "response", "sentence"),
    [
        (
            "own",
            HttpResponse(),
            "A response can be sent to the reply channel of a request only, not to own: send a dict.",
        ),
        (
            "reply.s1!c1",
            StreamingHttpResponse([b"a"]),
            "A streaming response cannot be sent as one message: send its head",
        ),
        (
            "reply.s1!c1",
            event_stream("news"),
            "A stream of events cannot be sent: return it from a view, and send to its groups.",
        ),
    ],
)
def test_a_response_that_cannot_be_sent_is_refused(layer, channel, response, sentence):
    with raises(InvalidMessage) as error:
        Channel(channel).send(response)
    assert error.sentence.startswith(sentence)
