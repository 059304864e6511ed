"""What a consumer is given."""

from __future__ import annotations

from io import BytesIO

import pytest
from django.core.handlers.wsgi import WSGIRequest

from dbchannels import Channel, Message
from dbchannels.exceptions import NoClient


def test_fields_are_read_by_key():
    message = Message("own", {"id": 7, "none": None})
    assert message["id"] == 7
    assert message.get("id") == 7
    assert message.get("absent") is None
    assert message.get("absent", 5) == 5
    assert message.get("none", 5) is None
    assert "id" in message
    assert "absent" not in message
    assert dict(message) == {"id": 7, "none": None}
    with pytest.raises(KeyError):
        message["absent"]


def test_channels_are_objects():
    message = Message("websocket.receive", {"reply_channel": "reply.a!b"}, layer="other")
    assert message.channel == Channel("websocket.receive", layer="other")
    assert message.reply_channel == Channel("reply.a!b", layer="other")


@pytest.mark.parametrize("content", [{}, {"reply_channel": None}])
def test_there_may_be_nobody_to_answer(content):
    assert Message("own", content).reply_channel is None


def test_the_attempt_counts_from_one_for_durable_messages():
    assert Message("http.request", {}).attempt == 0
    assert Message("own", {}, attempt=2).attempt == 2


def test_a_message_is_shown_without_its_values():
    assert repr(Message("own", {"secret": "x", "id": 7})) == "<Message on own: secret, id>"
    assert repr(Message("own", {})) == "<Message on own: empty>"


# What a client sent with its request or handshake.

HEADERS = [
    [b"host", b"h"],
    [b"x-forwarded-for", b"1.1.1.1"],
    [b"cookie", b'a=1; b="two words"'],
    [b"x-forwarded-for", b"2.2.2.2"],
    [b"x_forwarded-for", b"3.3.3.3"],
    [b"cookie", b"c=caf\xe9; d=caf\xc3\xa9; a=3"],
]


@pytest.mark.parametrize("channel", ["http.request", "websocket.connect"])
def test_headers_cookies_and_address_are_as_in_a_view(channel):
    message = Message(channel, {"headers": HEADERS, "client": ["2001:db8::7", 4711]})
    assert message.headers["HOST"] == message.headers["host"] == message.headers.get("Host") == "h"
    assert message.headers["x-forwarded-for"] == "1.1.1.1,2.2.2.2" and "X-Absent" not in message.headers
    assert list(message.headers) == ["Host", "X-Forwarded-For", "Cookie"]
    # As Django, which reads a WSGI server's environ.
    environ = {
        "HTTP_COOKIE": 'a=1; b="two words"; c=caf\xe9; d=caf\xc3\xa9; a=3',
        "REQUEST_METHOD": "GET",
        "wsgi.input": BytesIO(),
    }
    cookies = {"a": "3", "b": "two words", "c": "caf\ufffd", "d": "caf\xe9"}
    assert message.cookies == WSGIRequest(environ).COOKIES == cookies
    assert message.client_address == "2001:db8::7"
    assert message["headers"] is HEADERS
    with pytest.raises(TypeError):
        message.headers["x"] = "y"


def test_there_may_be_no_cookies_and_no_address():
    message = Message("websocket.connect", {"headers": [], "client": ["", 0]})
    assert (dict(message.headers), message.cookies, message.client_address) == ({}, {}, "")


@pytest.mark.parametrize("channel", ["websocket.receive", "websocket.event", "websocket.disconnect", "own"])
@pytest.mark.parametrize("name", ["headers", "cookies", "client_address"])
def test_a_later_message_has_none_and_nobody_can_forge_them(channel, name):
    message = Message(channel, {"headers": HEADERS, "client": ["c", 1], "text": "hi"})
    with pytest.raises(NoClient, match=r"read them in websocket\.connect, and keep what you need in"):
        getattr(message, name)


# As the keywords of the 2015 post.


def keywords(channel="websocket.receive", **content):
    """Return a message's fields as keywords."""
    return Message(channel, content).as_keywords()


def test_a_text_frame_as_keywords():
    fields = keywords(reply_channel="reply.a!b", path="/chat/", text="hi", bytes=None, order=3)
    assert fields["channel"] == "websocket.receive"
    assert fields["send_channel"] == "reply.a!b"
    assert fields["path"] == "/chat/"
    assert (fields["content"], fields["binary"]) == ("hi", False)
    assert fields["order"] == 3


@pytest.mark.parametrize("data", [b"\x00", b""])
def test_a_binary_frame_as_keywords(data):
    fields = keywords(bytes=data)
    assert (fields["content"], fields["binary"]) == (data, True)


def test_an_empty_text_frame_is_a_frame():
    fields = keywords(text="")
    assert (fields["content"], fields["binary"]) == ("", False)


def test_a_message_of_the_sites_own_as_keywords():
    fields = keywords("own", content="hi", binary=False, user=7)
    assert (fields["content"], fields["binary"], fields["user"]) == ("hi", False, 7)
    assert fields["send_channel"] is None
    assert fields["path"] is None


def test_no_payload_overwrites_what_the_server_says():
    forged = {"channel": "forged", "send_channel": "forged!x", "reply_channel": "reply.a!b", "path": "/real/"}
    fields = Message("own", forged).as_keywords()
    assert fields["channel"] == "own"
    assert fields["send_channel"] == "reply.a!b"
    assert fields["path"] == "/real/"
