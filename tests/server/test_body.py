"""The reader of request bodies: lengths and chunks, what it refuses, and that the cut of the bytes decides nothing."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbchannels.server.config import ServerConfig
from dbchannels.server.http.messages import Refused
from dbchannels.server.http.parser import BodyReader, HeadLimits, HeadReader
from tests.server.hostile import BODIES

LIMIT = ServerConfig().max_body


def read(data, length=None, cuts=(), limit=LIMIT):
    """Return (content, what follows), None when more must come, or a refusal's (status, sentence)."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    content = b""
    try:
        reader = BodyReader(length, limit)
        for start, end in itertools.pairwise(places):
            if reader.ended:
                return content, reader.rest + data[start:]
            content += reader.feed(data[start:end])
    except Refused as refused:
        return refused.status, str(refused)
    return (content, reader.rest) if reader.ended else None


def test_a_body_of_a_length():
    assert read(b"hellorest", 5) == (b"hello", b"rest")
    assert read(b"hell", 5) is None
    assert read(b"rest", 0) == (b"", b"rest")


@pytest.mark.parametrize(
    ("data", "content"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"005\r\nhello\r\n1\r\n!\r\n000\r\n\r\n", b"hello!"),
        (b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"01234567890123456789"),
        (b'5;a;b=c;d="e;\\"f"\r\nhello\r\n0;last\r\n\r\n', b"hello"),
        (b"5 ; a = b\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
        (b"0\r\nX: y\r\nZ:\r\n\r\n", b""),
    ],
)
def test_chunks(data, content):
    assert read(data + b"rest") == (content, b"rest")
    assert read(data[:-1]) is None
    assert read(data + b"rest", cuts=range(len(data))) == (content, b"rest")


def test_a_body_as_large_as_the_limit_is_taken():
    assert read(b"hello", 5, limit=5) == (b"hello", b"")
    assert read(b"4\r\nhell\r\n1\r\no\r\n0\r\n\r\n", limit=5) == (b"hello", b"")


@pytest.mark.parametrize(("data", "length"), [(b"", 6), (b"4\r\nhell\r\n2\r\n", None), (b"6\r\n", None)])
def test_a_larger_one_is_refused_before_it_has_come(data, length):
    sentence = "The request's body is larger than this server takes, 5 bytes (--max-body)."
    assert read(data, length, limit=5) == (413, sentence)


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_refused(name):
    data, status = BODIES[name]
    reader = HeadReader(HeadLimits())
    head = reader.feed(data)
    answer, sentence = read(reader.rest, head.length)
    assert answer == status
    assert sentence.endswith(".") and sentence.isascii() and sentence.isprintable()
    assert read(reader.rest, head.length, range(len(reader.rest))) == (answer, sentence)


PARTS = st.sampled_from(
    [
        *(
            b"0",
            b"1",
            b"5",
            b"a",
            b"\r\n",
            b"\r",
            b"\n",
            b";",
            b'"',
            b"=",
            b" ",
            b"x",
            b"hello",
            b"0\r\n\r\n",
        ),
        *(b"5\r\nhello\r\n", b"1\r\nx\r\n", b"X: y\r\n", b"5;a=b\r\n", b"\0", b"\\"),
    ]
)
STREAMS = st.one_of(st.binary(max_size=60), st.lists(PARTS, max_size=16).map(b"".join))


@given(STREAMS, st.none() | st.integers(0, 40), st.lists(st.integers(0, 1_000), max_size=6))
def test_any_bytes_are_a_body_or_a_refusal_however_they_are_cut(data, length, cuts):
    assert read(data, length, cuts, limit=12) == read(data, length, (), limit=12)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(0, 1_000), max_size=6))
def test_what_was_sent_in_chunks_comes_whole(contents, cuts):
    data = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in contents) + b"0\r\n\r\nrest"
    assert read(data, None, cuts) == (b"".join(contents), b"rest")
