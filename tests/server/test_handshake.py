"""The handshake: what is refused, which pages may connect, what is answered (RFC 6455 section 4.2)."""

from __future__ import annotations

import base64

import pytest
from django.middleware.csrf import CsrfViewMiddleware
from django.test import RequestFactory
from hypothesis import given
from hypothesis import strategies as st

from dbchannels.server.http.messages import Refused, refuse_response
from dbchannels.server.websocket.handshake import (
    Handshake,
    Origins,
    accept_response,
    host_allowed,
    origin_allowed,
    read_handshake,
    take_parameters,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # the sample of RFC 6455 section 1.3
PROPER = [
    (b"host", b"example.com"),
    (b"upgrade", b"websocket"),
    (b"connection", b"Upgrade"),
    (b"sec-websocket-key", KEY.encode()),
    (b"sec-websocket-version", b"13"),
]


def request(*extra, without=(), **changed):
    """The headers of a proper handshake, some changed (``sec_websocket_key=b"x"``), left out or added."""
    changed = {name.replace("_", "-").encode(): value for name, value in changed.items()}
    kept = [(name, changed.get(name, value)) for name, value in PROPER if name not in without]
    return [*kept, *extra]


def answer(data):
    """Split an answer into status line, headers and body, with nothing but CRLF between lines."""
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.count(b"\n") == head.count(b"\r") == head.count(b"\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    return status, [tuple(line.split(": ", 1)) for line in lines], body


def assert_refused(status, word, headers, method="GET", version="1.1"):
    with pytest.raises(Refused, match=word) as caught:
        read_handshake(method, version, headers)
    assert caught.value.status == status
    assert caught.value.sentence == str(caught.value)
    line, answered, body = answer(refuse_response(status, caught.value.sentence, caught.value.headers))
    assert line.startswith(f"HTTP/1.1 {status} ")
    assert set(caught.value.headers) <= set(answered)
    assert body.decode() == caught.value.sentence + "\n"
    return caught.value


# --- reading


def test_a_proper_handshake_is_read():
    headers = request((b"origin", b"https://example.com"), (b"sec-websocket-protocol", b"chat, superchat"))
    assert read_handshake("GET", "1.1", headers) == Handshake(
        KEY, ["chat", "superchat"], "https://example.com"
    )


def test_a_handshake_without_extras_is_read():
    assert read_handshake("GET", "1.1", request()) == Handshake(KEY, [], None)


@pytest.mark.parametrize(
    "connection", [b"Upgrade", b"upgrade", b"keep-alive, Upgrade", b"UPGRADE ,close", b",, upgrade"]
)
def test_the_connection_header_is_a_list_of_tokens(connection):
    assert read_handshake("GET", "1.1", request(connection=connection)).key == KEY


@pytest.mark.parametrize("key", [KEY, base64.b64encode(bytes(16)).decode(), "AQIDBAUGBwgJCgsMDQ4PEC=="])
def test_a_key_of_16_bytes_is_read(key):
    # The last is the sample of RFC 6455 section 4.1, which leaves a bit set that means nothing.
    assert read_handshake("GET", "1.1", request(sec_websocket_key=key.encode())).key == key


def test_a_content_length_of_nothing_is_no_body():
    assert read_handshake("GET", "1.1", request((b"content-length", b"0"))).key == KEY


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        ([b"chat"], ["chat"]),
        ([b"chat,superchat"], ["chat", "superchat"]),
        ([b" chat ,\tsuperchat "], ["chat", "superchat"]),
        ([b"b, a", b"c"], ["b", "a", "c"]),
        ([b"Chat, chat"], ["Chat", "chat"]),
        ([b"v1.chat!#$%&'*+-^_`|~"], ["v1.chat!#$%&'*+-^_`|~"]),
        ([b"a,,b", b""], ["a", "b"]),
    ],
)
def test_subprotocols_are_read_in_the_clients_order(values, expected):
    headers = request(*((b"sec-websocket-protocol", value) for value in values))
    assert read_handshake("GET", "1.1", headers).subprotocols == expected


# --- refusing


@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS", "CONNECT", "get"])
def test_another_method_than_get_is_refused(method):
    refused = assert_refused(405, "with GET", request(), method)
    assert refused.headers == [("Allow", "GET")]


@pytest.mark.parametrize("version", ["1.0", "0.9", "2"])
def test_another_http_version_is_refused(version):
    assert_refused(400, "HTTP/1.1", request(), version=version)


@pytest.mark.parametrize(
    "connection", [b"xupgradex", b"keep-alive", b"", b"upgrade-insecure", b"up grade", b"close;upgrade"]
)
def test_a_connection_header_without_upgrade_is_refused(connection):
    assert_refused(400, "Connection: Upgrade", request(connection=connection))


def test_a_missing_connection_header_is_refused():
    assert_refused(400, "Connection: Upgrade", request(without=[b"connection"]))


@pytest.mark.parametrize(
    "header",
    [
        (b"content-length", b"5"),
        (b"content-length", b"-1"),
        (b"content-length", b"zero"),
        (b"content-length", b""),
        (b"transfer-encoding", b"chunked"),
        (b"transfer-encoding", b"identity"),
        (b"transfer-encoding", b""),
    ],
)
def test_a_body_is_refused(header):
    assert_refused(400, "without a body", request(header))
    assert_refused(400, "without a body", request((b"content-length", b"0"), header))


@pytest.mark.parametrize("version", [b"0", b"7", b"8", b"12", b"14", b"013", b"13, 8", b"", b"x"])
def test_another_version_is_refused_with_ours(version):
    refused = assert_refused(426, "version 13", request(sec_websocket_version=version))
    assert ("Sec-WebSocket-Version", "13") in refused.headers
    assert ("Upgrade", "websocket") in refused.headers


def test_a_missing_version_is_refused_with_ours():
    refused = assert_refused(426, "version 13", request(without=[b"sec-websocket-version"]))
    assert ("Sec-WebSocket-Version", "13") in refused.headers


@pytest.mark.parametrize("second", [b"13", b"8"])
def test_a_second_version_is_refused(second):
    assert_refused(400, "one Sec-WebSocket-Version", request((b"sec-websocket-version", second)))


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"x",
        b"not base64 at all !!!!==",
        base64.b64encode(bytes(15)),
        base64.b64encode(bytes(17)),
        base64.b64encode(bytes(18)),
        KEY.encode()[:-2],
        KEY.encode()[:-1],
        KEY.encode() + b"=",
        KEY.encode() + b"\n",
        b"dGhlIHNhbXBsZSBub25j-_==",
        b"dGhlIHNhbXBsZSBub25jZ\xe9==",
    ],
)
def test_a_key_that_is_not_16_bytes_is_refused(key):
    assert_refused(400, "Sec-WebSocket-Key", request(sec_websocket_key=key))


def test_a_missing_or_second_key_is_refused():
    assert_refused(400, "one Sec-WebSocket-Key", request(without=[b"sec-websocket-key"]))
    assert_refused(400, "one Sec-WebSocket-Key", request((b"sec-websocket-key", KEY.encode())))


@pytest.mark.parametrize("value", [b"a b", b"chat, (x)", b'"chat"', b"a;q=1", b"caf\xe9", b"a/b", b"a\x00"])
def test_a_subprotocol_that_is_no_token_is_refused(value):
    assert_refused(400, "not a token", request((b"sec-websocket-protocol", value)))


def test_a_subprotocol_offered_twice_is_refused():
    assert_refused(400, "once", request((b"sec-websocket-protocol", b"a, b, a")))
    twice = [(b"sec-websocket-protocol", b"a")] * 2
    assert_refused(400, "once", request(*twice))


@pytest.mark.parametrize("second", [b"https://example.com", b"https://evil.com", b""])
def test_a_second_origin_is_refused(second):
    assert_refused(400, "one Origin", request((b"origin", b"https://example.com"), (b"origin", second)))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([name for name, _ in PROPER] + [b"origin", b"sec-websocket-protocol"]),
            st.one_of(st.binary(max_size=30), st.sampled_from([value for _, value in PROPER])),
        ),
        max_size=8,
    )
)
def test_any_headers_are_read_or_refused(headers):
    def status():
        try:
            read_handshake("GET", "1.1", headers)
        except Refused as refused:
            return refused.status
        return 101

    assert status() in (101, 400, 426)


# --- origins


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "example.com"),  # no browser
        ("http://example.com", "example.com"),
        ("https://example.com", "example.com"),  # TLS ends at a proxy
        ("https://EXAMPLE.com", "Example.COM"),
        ("HTTPS://example.com", "example.com"),
        ("http://example.com:80", "example.com"),
        ("https://example.com:443", "example.com"),
        ("https://example.com", "example.com:443"),
        ("http://example.com", "example.com:80"),
        ("http://example.com:8000", "example.com:8000"),
        ("http://example.com.", "example.com"),
        ("http://example.com", "example.com."),
        ("http://localhost:8000", "localhost:8000"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("http://[::1]", "[::1]:80"),
        ("https://[2001:DB8::1]", "[2001:db8::1]"),
        ("https://xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_a_page_of_the_site_itself_may_connect(origin, host):
    assert origin_allowed(origin, host, "", Origins())
    assert origin_allowed(
        origin, host, "https" if (origin or "https").lower().startswith("https") else "http", Origins()
    )


REFUSED_ORIGINS = [
    ("null", "example.com"),
    ("", "example.com"),
    ("https://evil.com", "example.com"),
    ("http://example.com:8001", "example.com:8000"),
    ("http://example.com:8000", "example.com"),
    ("https://example.com", "example.com:80"),
    ("http://example.com", "example.com:443"),
    ("https://example.com.evil.com", "example.com"),
    ("https://evilexample.com", "example.com"),
    ("https://sub.example.com", "example.com"),
    ("https://example.com", "sub.example.com"),
    ("ftp://example.com", "example.com"),
    ("ws://example.com", "example.com"),
    ("file://", "example.com"),
    ("file://example.com", "example.com"),
    ("chrome-extension://example.com", "example.com"),
    ("example.com", "example.com"),
    ("//example.com", "example.com"),
    ("https://", ""),
    ("https://example.com/", "example.com"),
    ("https://example.com/path", "example.com"),
    ("https://example.com?x", "example.com"),
    ("https://example.com#x", "example.com"),
    ("https://user@example.com", "example.com"),
    ("https://example.com@evil.com", "example.com"),
    ("https://example.com:443@evil.com", "example.com"),
    ("https://evil.com\\@example.com", "example.com"),
    ("https://example.com:x", "example.com"),
    ("https://example.com:-1", "example.com"),
    ("https://example.com:999999", "example.com"),
    ("https://example.com https://evil.com", "example.com"),
    ("https://example.com, https://evil.com", "example.com"),
    ("https://example.com\n", "example.com"),
    (" https://example.com", "example.com"),
    ("https://example.com\x00.evil.com", "example.com"),
    ("https://exämple.com", "exämple.com"),
    ("http\u017f://example.com", "example.com"),
    ("https://::1", "::1"),
    ("https://[::1", "[::1"),
    ("https://example.com", "example.com/x"),
    ("https://example.com", "user@example.com"),
    ("https://example.com", ""),
]


@pytest.mark.parametrize(("origin", "host"), REFUSED_ORIGINS, ids=ascii)
def test_another_page_may_not_connect(origin, host):
    for scheme in ("", "http", "https"):
        assert not origin_allowed(origin, host, scheme, Origins())


@pytest.mark.parametrize("host", ["example.com", "example.com:443", "example.com:80"])
def test_a_page_of_another_scheme_may_not_connect_where_the_scheme_is_known(host):
    assert not origin_allowed("http://example.com", host, "https", Origins())
    assert not origin_allowed("https://example.com", host, "http", Origins())
    assert not origin_allowed("https://example.com:80", "example.com", "http", Origins())


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://good.com", ["https://good.com"]),
        ("http://good.com:8000", ["https://other.com", "http://good.com:8000"]),
        ("https://a.good.com", ["https://*.good.com"]),
        ("https://good.com", ["https://*.good.com"]),
        ("https://b.a.good.com", ["https://*.good.com"]),
        ("https://a.good.com:8443", ["https://*.good.com:8443"]),
        ("capacitor://localhost", ["capacitor://localhost"]),
    ],
)
def test_a_page_of_a_trusted_origin_may_connect_as_django_accepts_its_forms(origin, allowed, settings):
    assert not origin_allowed(origin, "example.com", "https", Origins())
    assert origin_allowed(origin, "example.com", "https", Origins(tuple(allowed)))
    assert verified_by_django(origin, allowed, settings)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://good.com.evil.com", ["https://good.com", "https://*.good.com"]),
        ("https://evilgood.com", ["https://good.com", "https://*.good.com"]),
        ("https://a.good.com", ["https://good.com"]),
        ("http://good.com", ["https://good.com", "https://*.good.com"]),
        ("https://good.com:8443", ["https://good.com", "https://*.good.com"]),
        ("https://good.com", ["https://good.com:443"]),
        ("https://com", ["https://*.good.com"]),
        ("null", ["https://good.com"]),
        ("", ["https://good.com"]),
    ],
)
def test_a_page_that_only_resembles_a_trusted_one_may_not_connect(origin, allowed, settings):
    assert not origin_allowed(origin, "example.com", "https", Origins(tuple(allowed)))
    assert not verified_by_django(origin, allowed, settings)


def verified_by_django(origin, allowed, settings):
    """Return what Django's own middleware says of a form's Origin."""
    settings.CSRF_TRUSTED_ORIGINS, settings.ALLOWED_HOSTS = allowed, ["example.com"]
    request = RequestFactory().post("/", secure=True, headers={"Host": "example.com", "Origin": origin})
    return CsrfViewMiddleware(lambda request: None)._origin_verified(request)


@pytest.mark.parametrize(
    "origin", ["http://localhost:5173", "https://a.localhost", "http://127.0.0.1:1", "http://[::1]"]
)
def test_a_page_of_this_machine_may_connect_from_any_port_with_debug(origin):
    assert not origin_allowed(origin, "localhost:8000", "", Origins())
    assert origin_allowed(origin, "localhost:8000", "", Origins(loopback=True))


@pytest.mark.parametrize(
    "origin", ["http://localhost.evil.com", "http://evillocalhost", "http://127.0.0.1.evil.com", "null"]
)
def test_no_other_page_may_with_debug(origin):
    assert not origin_allowed(origin, "localhost:8000", "", Origins(loopback=True))


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("good.com", True),
        ("good.com:8000", True),
        ("GOOD.com.", True),
        ("a.sub.com", True),
        ("[::1]:8000", True),
        ("evil.com", False),
        ("good.com.evil.com", False),
        ("good.com:8000.evil.com", False),
        ("good.com/x", False),
        ("", False),
    ],
)
def test_a_host_header_is_checked_as_django_does(host, allowed):
    assert host_allowed(host, ["good.com", ".sub.com", "[::1]"]) is allowed


# --- answering


def test_the_answer_has_the_sample_key_of_the_rfc():
    status, headers, body = answer(accept_response(Handshake(KEY, [], None)))
    assert status == "HTTP/1.1 101 Switching Protocols"
    assert headers == [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    ]
    assert body == b""


def test_the_answer_names_the_chosen_subprotocol_and_other_headers():
    response = accept_response(
        Handshake(KEY, ["chat", "superchat"], None), "superchat", [("Set-Cookie", "a=é"), ("X-A", "\t")]
    )
    assert answer(response)[1][3:] == [
        ("Sec-WebSocket-Protocol", "superchat"),
        ("Set-Cookie", "a=é"),
        ("X-A", "\t"),
    ]


@pytest.mark.parametrize("subprotocol", ["cha", "chats", "Chat", "", "a", "chat\r\nX: y", "chat, superchat"])
def test_a_subprotocol_that_was_not_offered_cannot_be_chosen(subprotocol):
    with pytest.raises(ValueError, match="offered no subprotocol"):
        accept_response(Handshake(KEY, ["chat", "superchat"], None), subprotocol)


INJECTIONS = [
    ("X-A", "1\r\nX-B: 2"),
    ("X-A", "1\nX-B: 2"),
    ("X-A", "1\r"),
    ("X-A", "1\x00"),
    ("X-A", "\x7f"),
    ("X-A", "€"),
    ("X-A", "\ud800"),
    ("X-A", 1),
    ("X-A", b"1"),
    ("X-A\r\nX-B", "1"),
    ("X-A:", "1"),
    ("X A", "1"),
    ("X-A\n", "1"),
    ("", "1"),
    ("é", "1"),
    (b"X-A", "1"),
]


@pytest.mark.parametrize("header", INJECTIONS, ids=ascii)
def test_a_header_cannot_begin_another(header):
    with pytest.raises(ValueError, match="header") as caught:
        accept_response(Handshake(KEY, [], None), None, [("X-Good", "1"), header])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="header"):
        refuse_response(403, "No.", [header])


@pytest.mark.parametrize(
    "name",
    [
        "Upgrade",
        "connection",
        "CONNECTION",
        "Sec-WebSocket-Accept",
        "sec-websocket-protocol",
        "Sec-WebSocket-Extensions",
        "Sec-WebSocket-Whatever",
        "Content-Length",
        "Transfer-Encoding",
    ],
)
def test_the_headers_of_the_handshake_are_not_the_consumers(name):
    with pytest.raises(ValueError, match=name):
        accept_response(Handshake(KEY, [], None), None, [(name, "x")])


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding"])
def test_the_length_of_a_refusal_is_not_the_callers(name):
    with pytest.raises(ValueError, match=name):
        refuse_response(403, "No.", [(name, "0")])


names = st.one_of(st.sampled_from(["X-A", "Set-Cookie", "Vary"]), st.text(max_size=4))
lines = st.one_of(st.text("a: \r\n\x00\t\xe9", max_size=6), st.text(max_size=6))


@given(st.lists(st.tuples(names, lines), min_size=1, max_size=3))
def test_any_headers_are_one_line_each_or_refused(headers):
    try:
        response = accept_response(Handshake(KEY, [], None), None, headers)
    except ValueError:
        return
    assert answer(response)[1][3:] == headers
    assert response.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("status", "phrase"),
    [
        (400, "Bad Request"),
        (401, "Unauthorized"),
        (403, "Forbidden"),
        (404, "Not Found"),
        (405, "Method Not Allowed"),
        (426, "Upgrade Required"),
        (500, "Internal Server Error"),
        (503, "Service Unavailable"),
    ],
)
def test_a_refusal_is_a_whole_answer(status, phrase):
    line, headers, body = answer(refuse_response(status, "Überall zu.", [("Retry-After", "5")]))
    assert line == f"HTTP/1.1 {status} {phrase}"
    assert body.decode() == "Überall zu.\n"
    assert headers == [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", "13"),
        ("Connection", "close"),
        ("Retry-After", "5"),
    ]


# --- heartbeats


@pytest.mark.parametrize(
    ("target", "rest", "seconds"),
    [
        ("/a/?dbchannels-heartbeat=15", "/a/", 15),
        ("/a/?dbchannels-heartbeat=1", "/a/", 5),
        ("/a/?x=1&dbchannels-heartbeat=30&y", "/a/?x=1&y", 30),
        ("/a/?dbchannels-heartbeat=0", "/a/", 0),
        ("/a/?dbchannels-heartbeat", "/a/", 0),
        ("/a/?dbchannels-heartbeat=-1", "/a/", 0),
        ("/a/?dbchannels-heartbeat=1e9", "/a/", 0),
        ("/a/?dbchannels-heartbeat=00000000005", "/a/", 0),
        ("/a/?dbchannels-heartbeat=7&dbchannels-heartbeat=9", "/a/", 9),
        ("/a/?xdbchannels-heartbeat=7", "/a/?xdbchannels-heartbeat=7", 0),
        ("/dbchannels-heartbeat=7", "/dbchannels-heartbeat=7", 0),
        ("/a/?x=?&y=%20+", "/a/?x=?&y=%20+", 0),
    ],
)
def test_a_client_may_ask_for_heartbeats(target, rest, seconds):
    assert take_parameters(target) == (rest, seconds, None)
