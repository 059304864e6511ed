"""HTTP without sockets: requests as messages, and messages as responses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbchannels.server.http.messages import (
    Request,
    checked_content,
    connect_message,
    request_message,
    response_head,
)
from dbchannels.testing.contract.case import raises

HEADERS = [(b"host", b"example.com"), (b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"x", b"\xe9")]


def request(target="/", method="GET", version="1.1", headers=HEADERS, scheme="http", root_path=""):
    return Request(method, target, version, headers, scheme, ("1.2.3.4", 5), ("6.7.8.9", 80), root_path)


def message(target="/", body=b"", **fields):
    return request_message(request(target, **fields), "reply.s!c", body, "http.flow?c")


def response(status=200, *headers, content=b"", method="GET", **fields):
    """The head of a response."""
    return response_head({"status": status, "headers": list(headers), "content": content, **fields}, method)


def lengths(head):
    return [value for name, value in head.headers if name.lower() == "content-length"]


def refused(**fields):
    """The sentence with which a response message is refused."""
    with raises(ValueError) as raised:
        response_head({"status": 200, "headers": [], "content": b"", **fields}, "GET")
    return raised.sentence


# --- requests


def test_a_request_as_a_message():
    assert message("/a%20b?c=%20d", b"body", method="post", root_path="/r", scheme="https") == {
        "reply_channel": "reply.s!c",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "path": "/a b",
        "query_string": b"c=%20d",
        "root_path": "/r",
        "headers": [[b"host", b"example.com"], [b"cookie", b"a=1"], [b"cookie", b"b=2"], [b"x", b"\xe9"]],
        "body": b"body",
        "body_channel": None,
        "body_size": 4,
        "flow_channel": "http.flow?c",
        "client": ["1.2.3.4", 5],
        "server": ["6.7.8.9", 80],
    }


@pytest.mark.parametrize(("scheme", "given"), [("http", "ws"), ("https", "wss")])
def test_a_handshake_as_a_message(scheme, given):
    fields = connect_message(request("/x?y", scheme=scheme), "reply.s!c")
    assert (fields["scheme"], fields["order"], fields["path"]) == (given, 0, "/x")
    assert fields["query_string"] == b"y" and fields["reply_channel"] == "reply.s!c"
    assert "body" not in fields and "method" not in fields


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", b""),
        ("/?", "/", b""),
        ("/a?b?c", "/a", b"b?c"),
        ("/%C3%A9", "/é", b""),
        ("/\xc3\xa9", "/é", b""),
        ("/%F0%9F%8D%B5?%F0", "/🍵", b"%F0"),
        ("/a%2Fb", "/a/b", b""),
        ("/a+b", "/a+b", b""),
        ("/%3Fx", "/?x", b""),
        ("/%", "/%", b""),
        ("/%zz", "/%zz", b""),
        ("/%0D%0A", "/\r\n", b""),
        ("*", "*", b""),
        ("/?\xff", "/", b"\xff"),
    ],
)
def test_the_path_is_decoded_and_the_query_left_as_it_came(target, path, query):
    fields = message(target)
    assert (fields["path"], fields["query_string"]) == (path, query)


@pytest.mark.parametrize("target", ["/%00", "/\0", "/%FF", "/\xff", "/%C3", "/%ED%A0%80", "/%C0%80"])
def test_what_a_path_cannot_hold_is_replaced(target):
    path = request(target).path
    assert path.startswith("/\ufffd") and set(path[1:]) == {"\ufffd"}


@given(st.text(st.characters(max_codepoint=255)))
def test_every_path_is_text_that_every_database_takes(target):
    path = request(target).path
    assert "\0" not in path
    path.encode("utf-8")


def test_the_first_of_several_headers_is_asked_for():
    assert request().header(b"cookie") == b"a=1"
    assert request().header(b"none") is None
    assert request().host() == "example.com"
    assert request(headers=[]).host() == ""


# --- responses


def test_a_whole_response_has_its_length():
    head = response(200, [b"X-A", b"b"], content=b"12345")
    assert head.status == "200 OK" and head.has_body
    assert head.headers == [("X-A", "b"), ("Content-Length", "5")]


def test_an_empty_response_has_the_length_0():
    assert lengths(response_head({"status": 200}, "GET")) == ["0"]


@pytest.mark.parametrize("given_length", [b"3", b"7", b"+5", b"x", b""])
def test_a_length_that_is_not_the_contents_is_set_right(given_length):
    head = response(200, [b"content-length", given_length], content=b"12345")
    assert lengths(head) == ["5"]


def test_two_lengths_become_one():
    pairs = [[b"Content-Length", b"5"], [b"content-length", b"6"]]
    assert lengths(response(200, *pairs, content=b"12345")) == ["5"]
    assert lengths(response(200, *pairs, more_content=True)) == []


def test_a_response_in_chunks_keeps_the_views_length_or_has_none():
    assert lengths(response(200, more_content=True)) == []
    assert lengths(response(200, [b"Content-Length", b"99"], more_content=True)) == ["99"]


def test_a_head_says_the_length_and_has_no_body():
    head = response(200, content=b"12345", method="HEAD")
    assert lengths(head) == ["5"] and not head.has_body
    assert lengths(response(200, [b"Content-Length", b"77"], method="HEAD")) == ["77"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("more_content", [False, True])
def test_204_and_304_have_neither_body_nor_length(status, method, more_content):
    pairs = ([b"Content-Length", b"5"], [b"ETag", b'"x"'])
    head = response(status, *pairs, content=b"12345", method=method, more_content=more_content)
    assert head.headers == [("ETag", '"x"')] and not head.has_body


def test_headers_about_the_connection_are_ours_to_send():
    names = [b"Connection", b"KEEP-ALIVE", b"transfer-encoding", b"Upgrade", b"Proxy-Connection", b"TE"]
    head = response(200, *[[name, b"x"] for name in names], [b"X-Connection", b"x"])
    assert [name for name, _ in head.headers] == ["X-Connection", "Content-Length"]


def test_headers_keep_their_order_and_their_doubles():
    head = response(200, [b"Set-Cookie", b"a"], [b"X", b"\xe9\t"], [b"Set-Cookie", b"b"])
    assert head.headers[:3] == [("Set-Cookie", "a"), ("X", "\xe9\t"), ("Set-Cookie", "b")]


@pytest.mark.parametrize("bad", [b"\r", b"\n", b"\0", b"\r\nX-Forged: 1", b"\x0b", b"\x7f", b"\x1b"])
def test_a_header_cannot_begin_another_one(bad):
    assert "control character" in refused(headers=[[b"X-A", b"a" + bad + b"b"]])
    assert "cannot be sent" in refused(headers=[[b"X" + bad + b"A", b"b"]])


@pytest.mark.parametrize("name", [b"", b"X A", b"X:A", b" X", b"X ", b"X\xe9", b"(X)"])
def test_a_header_has_a_name_that_is_one(name):
    assert "cannot be sent" in refused(headers=[[name, b"b"]])


@pytest.mark.parametrize(
    "headers",
    [
        [["X", "y"]],
        [[b"X", "y"]],
        [[b"X", 5]],
        [[b"X"]],
        [[b"X", b"y", b"z"]],
        [5],
        "X: y",
        {b"X": b"y"},
        5,
        None,
    ],
)
def test_headers_are_a_list_of_pairs_of_bytes(headers):
    assert "header" in refused(headers=headers)


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("body", "write 'content': bytes"),
        ("contnet", "write 'content'"),
        ("header", "write 'headers'"),
        ("status_code", "write 'status'"),
        ("more_body", "write 'more_content'"),
    ],
)
def test_a_key_that_says_nothing_is_refused(key, told):
    assert refused(**{key: b"x"}).endswith(f"The key {key!r} of a response means nothing: {told}.")


def test_another_key_is_left_alone():
    assert response(200, number=7).status == "200 OK"


@pytest.mark.parametrize("status", [None, "200", 199, 101, 1000, 0, -1, True, 200.0, [200]])
def test_a_status_is_a_number_from_200_to_999(status):
    assert "status" in refused(status=status)


def test_a_reply_that_is_no_response_is_refused():
    with raises(ValueError):
        response_head({"text": "for a socket"}, "GET")


@pytest.mark.parametrize("content", ["text", 5, None, [b"x"]])
def test_content_is_bytes(content):
    assert "bytes" in refused(content=content)
    with raises(ValueError):
        checked_content({"content": content})


def test_a_part_with_a_key_that_says_nothing_is_refused():
    with raises(ValueError) as error:
        checked_content({"text": "an event", "more_content": True})
    assert error.sentence == "The key 'text' of a response means nothing: write 'content': bytes."


@pytest.mark.parametrize("reason", ["OK\r\nX-Forged: 1", "a\nb", "a\0b", "☕", 5, b"OK"])
def test_a_reason_cannot_begin_a_header(reason):
    assert "reason" in refused(reason=reason)


def test_the_reason_is_the_views_or_the_statuss_own():
    assert response(404).status == "404 Not Found"
    assert response(404, reason="Gone fishing").status == "404 Gone fishing"
    assert response(200, reason="").status == "200 OK"
    assert response(200, reason=None).status == "200 OK"
    assert response(799).status == "799 Unknown Status Code"
    assert response(418).status == "418 I'm a Teapot"


@given(
    st.lists(st.tuples(st.binary(), st.binary()).map(list)),
    st.integers(200, 999),
    st.one_of(st.none(), st.text()),
    st.sampled_from(["GET", "HEAD"]),
)
def test_no_response_forges_a_line(headers, status, reason, method):
    try:
        head = response(status, *headers, reason=reason, method=method)
    except ValueError:
        return
    lines = [head.status, *(f"{name}: {value}" for name, value in head.headers)]
    assert not set("\r\n\0") & set("".join(lines))
    "".join(lines).encode("latin-1")
