"""What consumers send to a WebSocket, read as frames, closes and answers to the handshake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbchannels.server.websocket.messages import Outgoing, outgoing, oversight

NOTHING = Outgoing(accept=None, frame=b"", close=None, reason="", subprotocol=None, headers=[])


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"finished": 1}, NOTHING),
        ({"text": None, "bytes": None, "close": None, "unknown": 1}, NOTHING),
        ({"accept": True}, NOTHING._replace(accept=True)),
        ({"accept": False}, NOTHING._replace(accept=False)),
        ({"text": "hi"}, NOTHING._replace(frame=b"\x81\x02hi")),
        ({"text": "é"}, NOTHING._replace(frame=b"\x81\x02\xc3\xa9")),
        ({"text": ""}, NOTHING._replace(frame=b"\x81\x00")),
        ({"bytes": b"\x00\xff"}, NOTHING._replace(frame=b"\x82\x02\x00\xff")),
        ({"bytes": b""}, NOTHING._replace(frame=b"\x82\x00")),
        ({"text": "hi", "bytes": None}, NOTHING._replace(frame=b"\x81\x02hi")),
        ({"text": "hi", "bytes": b"hi"}, NOTHING),
        ({"text": "", "bytes": b"", "close": True}, NOTHING._replace(close=1000)),
        ({"content": "hi"}, NOTHING._replace(frame=b"\x81\x02hi")),
        ({"content": "hi", "binary": False}, NOTHING._replace(frame=b"\x81\x02hi")),
        ({"content": b"hi", "binary": False}, NOTHING._replace(frame=b"\x81\x02hi")),
        ({"content": b"\xff", "binary": True}, NOTHING._replace(frame=b"\x82\x01\xff")),
        ({"content": "é", "binary": True}, NOTHING._replace(frame=b"\x82\x02\xc3\xa9")),
        ({"content": ""}, NOTHING._replace(frame=b"\x81\x00")),
        ({"content": None, "binary": False}, NOTHING),
        ({"content": "a", "text": "b"}, NOTHING),
        ({"close": True}, NOTHING._replace(close=1000)),
        ({"close": False}, NOTHING),
        ({"close": 4401}, NOTHING._replace(close=4401)),
        ({"text": "bye", "close": 1013}, NOTHING._replace(frame=b"\x81\x03bye", close=1013)),
        ({"accept": True, "subprotocol": "chat"}, NOTHING._replace(accept=True, subprotocol="chat")),
        (
            {"headers": [[b"x-a", b"\xe9"], ("X-B", "2")]},
            NOTHING._replace(headers=[("x-a", "é"), ("X-B", "2")]),
        ),
    ],
)
def test_a_reply_as_a_frame(message, expected):
    assert outgoing(message) == expected


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ({"txet": "hi"}, "'txet'.*write 'text'"),
        ({"txt": "hi", "finished": 3}, "'txt'.*write 'text'"),
        ({"number": 3, "again": 3}, "'number'.*write 'text', 'bytes' or 'close'"),
        ({}, "write 'text', 'bytes' or 'close'"),
        ({"text": b"hi"}, "'text' is of type bytes"),
        ({"text": 7}, "'text' is of type int"),
        ({"text": "half \ud800"}, "not UTF-8"),
        ({"bytes": "hi"}, "'bytes' is of type str"),
        ({"content": 7}, "'content' is of type int"),
        ({"content": ["hi"], "binary": True}, "'content' is of type list"),
        ({"content": b"\xff"}, "not UTF-8"),
        ({"content": "hi", "binary": 1}, "'binary' is of type int"),
        ({"accept": 1}, "'accept' is of type int"),
        ({"accept": "yes"}, "'accept' is of type str"),
        ({"close": 0}, "closed with 0"),
        ({"close": 1}, "closed with 1"),
        ({"close": 1005}, "closed with 1005"),
        ({"close": 5000}, "closed with 5000"),
        ({"close": "1000"}, "closed with '1000'"),
        ({"close": 1000.0}, "closed with 1000.0"),
        ({"subprotocol": ["chat"]}, "'subprotocol' is of type list"),
        ({"headers": {"x-a": "1"}}, "'headers' is of type dict"),
        ({"headers": ["x-a"]}, "list of"),
        ({"status": 200, "reason": "OK", "headers": [], "content": b"hi"}, "the response to a request"),
        ({"headers": [["x-a"]]}, "list of"),
        ({"headers": [["x-a", 1]]}, "list of"),
        ({"headers": [["x-a", None]]}, "list of"),
    ],
)
def test_a_reply_that_makes_no_sense_says_so_in_one_sentence(message, word):
    with pytest.raises(ValueError, match=word) as caught:
        outgoing(message)
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"text": "a", "bytes": b"b", "finished": 1}, "'text' and 'bytes', so neither was sent"),
        ({"text": "a", "content": "b"}, "'text' and 'content', so neither was sent"),
        ({"text": "a", "clsoe": True}, "'clsoe' means nothing here: write 'close'"),
        ({"text": None, "finished": 1}, "sends nothing, accepts nothing and closes nothing"),
        ({"close": False}, "sends nothing, accepts nothing and closes nothing"),
        ({"subprotocol": "chat"}, "sends nothing, accepts nothing and closes nothing"),
        ({"binary": True}, "sends nothing, accepts nothing and closes nothing"),
    ],
)
def test_a_likely_mistake_is_reported(message, sentence):
    assert sentence in oversight(message)


@pytest.mark.parametrize(
    "message",
    [
        {"finished": 1},
        {"again": 1},
        {"text": "", "finished": 1},
        {"content": "a", "binary": False},
        {"accept": True, "subprotocol": "chat", "headers": []},
        {"accept": False, "status": 404},
        {"close": True},
        {"text": "a", "id": 7},
    ],
)
def test_a_correct_reply_has_no_mistake(message):
    outgoing(message)
    assert oversight(message) == ""


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.one_of(st.text(max_size=2), st.lists(st.text(max_size=2), max_size=3)), max_size=2),
)
keys = st.sampled_from(
    ["accept", "text", "bytes", "close", "subprotocol", "headers", "content", "binary", "other"]
)


@given(st.dictionaries(keys, values))
def test_any_reply_is_read_or_refused_with_a_sentence(message):
    def result():
        try:
            return outgoing(message).frame[:1]
        except ValueError as error:
            return str(error)[-1]

    assert result() in (b"", b"\x81", b"\x82", ".")


@pytest.mark.parametrize(
    "message", [{"type": "a"}, {"type": 7, "text": "hi", "close": True}, {"type": "", "accept": 1}]
)
def test_an_event_is_no_frame_whatever_it_has(message):
    assert outgoing(message) == Outgoing() and oversight(message) == ""
