"""The readers of heads and bodies: what they accept and refuse. How the bytes are cut makes no difference."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dbchannels.server.http.messages import Refused
from dbchannels.server.http.parser import BodyReader, HeadLimits, HeadReader, read_field
from dbchannels.server.options import ServerConfig
from tests.server.hostile import BODIES, HEADS

LIMITS = HeadLimits()


def read(data, cuts=(), limits=LIMITS):
    """Return (head, what follows) or the answer of a refusal, (status, sentence)."""
    reader = HeadReader(limits)
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(places)]
    try:
        for number, piece in enumerate(pieces):
            head = reader.feed(piece)
            if head is not None:
                return head, reader.rest + b"".join(pieces[number + 1 :])
    except Refused as refused:
        return refused.status, str(refused)
    return None


def head_of(text, **limits):
    head, rest = read(text, limits=LIMITS._replace(**limits))
    assert rest == b""
    return head


def get(*lines, first="GET / HTTP/1.1", host="Host: example.com"):
    return "\r\n".join([first, *([host] if host else []), *lines, "", ""]).encode("latin-1")


# --- taken


def test_a_head():
    head, rest = read(get("X: a", "Cookie:\t b=c \t", "x:", first="POST /a%20b?c=d HTTP/1.1") + b"rest")
    assert (head.method, head.target, head.version) == ("POST", "/a%20b?c=d", "1.1")
    assert head.headers == [(b"host", b"example.com"), (b"x", b"a"), (b"cookie", b"b=c"), (b"x", b"")]
    assert (head.length, head.keep_alive, head.expects_continue, rest) == (0, True, False, b"rest")


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "M-SEARCH"]
)
def test_methods(method):
    assert head_of(get(first=f"{method} / HTTP/1.1")).method == method


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        ("http://other.example/a?b", "/a?b", b"other.example"),
        ("HTTPS://other.example:8000", "/", b"other.example:8000"),
        ("http://[::1]?a", "/?a", b"[::1]"),
        ("//evil.example/a", "//evil.example/a", b"example.com"),
        ("/http://other.example/", "/http://other.example/", b"example.com"),
    ],
)
def test_the_host_of_a_whole_address_counts(target, path, host):
    head = head_of(get(first=f"GET {target} HTTP/1.1"))
    assert (head.target, head.headers) == (path, [(b"host", host)])


def test_options_may_ask_about_the_server():
    assert head_of(get(first="OPTIONS * HTTP/1.1")).target == "*"


def test_one_empty_line_may_come_first():
    assert head_of(b"\r\n" + get()).target == "/"


@pytest.mark.parametrize(
    "host", ["a", "a.b-c.d_e", "a:80", "a:", "[::1]", "[::1]:8000", "1.2.3.4", "%41", ""]
)
def test_hosts(host):
    assert head_of(get(host=f"Host: {host}")).headers == [(b"host", host.encode())]


def test_http_1_0_needs_no_host():
    assert head_of(get(first="GET / HTTP/1.0", host=None)).headers == []


@pytest.mark.parametrize("value", [b"", b"a\tb", b"\x80\xff", b"a:b", b"\"'\\"])
def test_values(value):
    assert read_field(b"X-Y: " + value) == (b"x-y", value)


@pytest.mark.parametrize(
    ("lines", "length"),
    [
        ([], 0),
        (["Content-Length: 0"], 0),
        (["Content-Length: 005"], 5),
        (["Content-Length: 999999999999999999"], 999_999_999_999_999_999),
        (["Transfer-Encoding: chunked"], None),
        (["transfer-encoding: \tChunked "], None),
    ],
)
def test_lengths(lines, length):
    assert head_of(get(*lines)).length == length


@pytest.mark.parametrize(
    ("version", "lines", "kept"),
    [
        ("1.1", [], True),
        ("1.1", ["Connection: close"], False),
        ("1.1", ["Connection: Upgrade, Close"], False),
        ("1.1", ["Connection: keep-alive", "Connection: close"], False),
        ("1.1", ["Connection: closed"], True),
        ("1.0", [], False),
        ("1.0", ["Connection: Keep-Alive"], True),
        ("1.0", ["Connection: keep-alive, close"], False),
    ],
)
def test_what_is_kept_alive(version, lines, kept):
    assert head_of(get(*lines, first=f"GET / HTTP/{version}")).keep_alive == kept


@pytest.mark.parametrize(
    "lines",
    [
        ["Upgrade: websocket"],
        ["Upgrade:  WebSocket "],
        ["Upgrade: h2c, websocket"],
        ["Upgrade: WEBSOCKET,h2c"],
        ["Upgrade: h2c", "Upgrade: websocket"],
    ],
)
def test_a_request_that_asks_for_a_websocket(lines):
    assert head_of(get(*lines)).is_upgrade


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["Upgrade: h2c"],
        ["Upgrade:"],
        ["Upgrade: websockets"],
        ["Upgrade: xwebsocketx"],
        ["Upgrade: web socket"],
        ["Connection: websocket"],
    ],
)
def test_a_request_that_does_not_ask_for_a_websocket(lines):
    assert not head_of(get(*lines)).is_upgrade


@pytest.mark.parametrize(
    ("version", "lines", "expects"),
    [
        ("1.1", ["Expect: 100-Continue", "Content-Length: 1"], True),
        ("1.1", ["Expect: 100-continue", "Transfer-Encoding: chunked"], True),
        ("1.1", ["Expect: 100-continue"], False),
        ("1.0", ["Expect: 100-continue", "Content-Length: 1"], False),
        ("1.0", ["Expect: anything", "Content-Length: 1"], False),
    ],
)
def test_who_expects_a_100(version, lines, expects):
    assert head_of(get(*lines, first=f"POST / HTTP/{version}")).expects_continue == expects


# --- refused


@pytest.mark.parametrize("name", HEADS)
def test_a_hostile_head_is_refused(name):
    data, status = HEADS[name]
    answer, sentence = read(data)
    assert answer == status
    assert sentence.endswith(".") and sentence.isascii() and sentence.isprintable()


@pytest.mark.parametrize("name", HEADS)
def test_it_is_refused_byte_by_byte_too(name):
    data, _ = HEADS[name]
    assert read(data, range(len(data))) == read(data)


@pytest.mark.parametrize(
    ("data", "limit", "status"),
    [
        (get(first="GET /" + "a" * 85 + " HTTP/1.1"), {"line": 100}, 414),
        (get("X: " + "a" * 5), {"size": 30}, 431),
        (get("A: b", "C: d"), {"lines": 2}, 431),
    ],
)
def test_each_limit_is_the_last_that_is_taken(data, limit, status):
    assert read(data, limits=LIMITS._replace(**limit))[0] == status
    ((name, value),) = limit.items()
    assert head_of(data, **{name: value + 1}).version == "1.1"


def test_no_more_is_kept_than_the_limits_allow():
    reader = HeadReader(LIMITS)
    with pytest.raises(Refused):
        for _ in range(1_000):
            reader.feed(b"A" * 1_000)
    assert len(reader.rest) <= LIMITS.line + 1_000


def test_the_log_gets_the_first_line_as_far_as_it_came():
    for data, line in (
        (b"G(T / HTTP/1.1\r\n", "G(T / HTTP/1.1"),
        (get("no colon"), "GET / HTTP/1.1"),
        (b"GET / HTTP/1.1\nAuthorization: secret\n\n", "GET / HTTP/1.1"),
    ):
        reader = HeadReader(LIMITS)
        with pytest.raises(Refused):
            reader.feed(data)
        assert reader.request_line == line


# --- any bytes

WORDS = st.sampled_from(
    [
        *(
            b"GET ",
            b"POST ",
            b"/ ",
            b"/a?b ",
            b"* ",
            b"http://a/b ",
            b"HTTP/1.1",
            b"HTTP/1.0",
            b"HTTP/2.0",
            b"\r\n",
        ),
        *(
            b"\r",
            b"\n",
            b"\0",
            b" ",
            b"\t",
            b":",
            b",",
            b"Host: a\r\n",
            b"Host:",
            b"Content-Length: 5\r\n",
            b"5",
        ),
        *(
            b"Transfer-Encoding: chunked\r\n",
            b"Expect: 100-continue\r\n",
            b"Connection: close\r\n",
            b"X: y\r\n",
            b"\xe9",
        ),
    ]
)
REQUESTS = st.one_of(
    st.binary(max_size=60),
    st.lists(WORDS, max_size=14).map(b"".join),
    st.lists(WORDS, max_size=10).map(
        lambda words: b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(words) + b"\r\n\r\n"
    ),
)


@given(REQUESTS, st.lists(st.integers(0, 10_000), max_size=6))
@example(b"\r\n" + get() + b"rest", [1, 2, 3])
@example(get("X: " + "a" * 40), [5, 60])
def test_any_bytes_are_a_head_or_a_refusal_however_they_are_cut(data, cuts):
    limits = HeadLimits(line=40, size=60, lines=4)
    assert read(data, cuts, limits) == read(data, (), limits)


@given(REQUESTS)
def test_what_is_taken_is_what_every_reader_would_take(data):
    found = read(data)
    if found is None or isinstance(found[0], int):
        return
    head, rest = found
    text = data[: len(data) - len(rest)]
    assert (
        text.count(b"\n") == text.count(b"\r\n")
        and b"\r" not in text.replace(b"\r\n", b"")
        and b"\0" not in text
    )
    assert sum(name == b"host" for name, _ in head.headers) <= 1
    assert not {b"content-length", b"transfer-encoding"} <= {name for name, _ in head.headers}


# --- bodies

LIMIT = ServerConfig().max_body


def read_body(data, length=None, cuts=(), limit=LIMIT):
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
    assert read_body(b"hellorest", 5) == (b"hello", b"rest")
    assert read_body(b"hell", 5) is None
    assert read_body(b"rest", 0) == (b"", b"rest")


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
    assert read_body(data + b"rest") == (content, b"rest")
    assert read_body(data[:-1]) is None
    assert read_body(data + b"rest", cuts=range(len(data))) == (content, b"rest")


def test_a_body_as_large_as_the_limit_is_taken():
    assert read_body(b"hello", 5, limit=5) == (b"hello", b"")
    assert read_body(b"4\r\nhell\r\n1\r\no\r\n0\r\n\r\n", limit=5) == (b"hello", b"")


@pytest.mark.parametrize(("data", "length"), [(b"", 6), (b"4\r\nhell\r\n2\r\n", None), (b"6\r\n", None)])
def test_a_larger_one_is_refused_before_it_has_come(data, length):
    sentence = "The request's body is larger than this server takes, 5 bytes (--max-body)."
    assert read_body(data, length, limit=5) == (413, sentence)


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_refused(name):
    data, status = BODIES[name]
    reader = HeadReader(HeadLimits())
    head = reader.feed(data)
    answer, sentence = read_body(reader.rest, head.length)
    assert answer == status
    assert sentence.endswith(".") and sentence.isascii() and sentence.isprintable()
    assert read_body(reader.rest, head.length, range(len(reader.rest))) == (answer, sentence)


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
    assert read_body(data, length, cuts, limit=12) == read_body(data, length, (), limit=12)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(0, 1_000), max_size=6))
def test_what_was_sent_in_chunks_comes_whole(contents, cuts):
    data = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in contents) + b"0\r\n\r\nrest"
    assert read_body(data, None, cuts) == (b"".join(contents), b"rest")
