"""Requests that a careful server refuses: what is sent, and the status that answers it (fault 23)."""

from __future__ import annotations

LINE = b"GET / HTTP/1.1\r\n"
HOST = b"Host: 127.0.0.1\r\n"
POST = b"POST / HTTP/1.1\r\n" + HOST


def line(text: bytes) -> bytes:
    """A request with this first line."""
    return text + b"\r\n" + HOST + b"\r\n"


def header(text: bytes) -> bytes:
    """A request with this header line."""
    return LINE + HOST + text + b"\r\n\r\n"


def host(text: bytes) -> bytes:
    """A request with this in the place of the Host header's line."""
    return LINE + text + b"\r\n"


def framed(*lines: bytes, body: bytes = b"") -> bytes:
    """A POST with these lines about its body."""
    return POST + b"".join(one + b"\r\n" for one in lines) + b"\r\n" + body


def chunked(body: bytes) -> bytes:
    """A POST with this in chunks."""
    return framed(b"Transfer-Encoding: chunked", body=body)


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

#: What the head reader refuses.
HEADS: dict[str, tuple[bytes, int]] = {
    # The first line.
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "one word": (line(b"GET"), 400),
    "HTTP/0.9": (line(b"GET /"), 400),
    "four words": (line(b"GET / x HTTP/1.1"), 400),
    "two spaces": (line(b"GET  / HTTP/1.1"), 400),
    "a tab for a space": (line(b"GET\t/ HTTP/1.1"), 400),
    "a space before the method": (line(b" GET / HTTP/1.1"), 400),
    "a space at the end": (line(b"GET / HTTP/1.1 "), 400),
    "two empty lines before": (b"\r\n\r\n" + LINE + HOST + b"\r\n", 400),
    "a bare LF after the first line": (b"GET / HTTP/1.1\n" + HOST + b"\r\n", 400),
    "a bare CR in the first line": (line(b"GET /\rx HTTP/1.1"), 400),
    "NUL in the address": (line(b"GET /\0 HTTP/1.1"), 400),
    "UTF-8 in the address": (line(b"GET /\xc3\xa4 HTTP/1.1"), 400),
    "a fragment": (line(b"GET /#x HTTP/1.1"), 400),
    "no slash": (line(b"GET x HTTP/1.1"), 400),
    "a star with GET": (line(b"GET * HTTP/1.1"), 400),
    "a foreign scheme": (line(b"GET ftp://127.0.0.1/ HTTP/1.1"), 400),
    "an absolute address without a host": (line(b"GET http:/// HTTP/1.1"), 400),
    "an absolute address with a user": (line(b"GET http://a@127.0.0.1/ HTTP/1.1"), 400),
    "CONNECT": (line(b"CONNECT 127.0.0.1:80 HTTP/1.1"), 501),
    "a method in small letters": (line(b"get / HTTP/1.1"), 501),
    "a method that is too long": (line(b"A" * 33 + b" / HTTP/1.1"), 501),
    "a method that is no token": (line(b"G(T / HTTP/1.1"), 400),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/1.2": (line(b"GET / HTTP/1.2"), 505),
    "HTTP/9.9": (line(b"GET / HTTP/9.9"), 505),
    "HTTP/01.1": (line(b"GET / HTTP/01.1"), 400),
    "HTTP/1.10": (line(b"GET / HTTP/1.10"), 400),
    "http/1.1": (line(b"GET / http/1.1"), 400),
    "HTTP/+1.1": (line(b"GET / HTTP/+1.1"), 400),
    "HTTPS": (line(b"GET / HTTPS/1.1"), 400),
    "an address that is too long": (line(b"GET /" + b"a" * 8_192 + b" HTTP/1.1"), 414),
    "a first line without an end": (b"A" * 8_192, 414),
    # Headers.
    "no colon": (header(b"nonsense"), 400),
    "no name": (header(b": x"), 400),
    "a space before the colon": (header(b"Content-Length : 5"), 400),
    "a tab before the colon": (header(b"X\t: y"), 400),
    "a space in a name": (header(b"X Y: z"), 400),
    "NUL in a name": (header(b"X\0: y"), 400),
    "a name that is no ASCII": (header(b"X\xe9: y"), 400),
    "a bare CR in a value": (header(b"X: a\rContent-Length: 5"), 400),
    "a bare LF in a value": (header(b"X: a\nContent-Length: 5"), 400),
    "CR CR LF": (header(b"X: a\r"), 400),
    "NUL in a value": (header(b"X: a\0b"), 400),
    "an escape in a value": (header(b"X: \x1b[31m"), 400),
    "DEL in a value": (header(b"X: \x7f"), 400),
    "a folded line": (header(b"X: a\r\n b"), 400),
    "a line folded by a tab": (header(b"X: a\r\n\tb"), 400),
    "a folded line at the beginning": (LINE + b" " + HOST + b"\r\n", 400),
    "a bare LF at the end": (LINE + HOST + b"\n", 400),
    "too many headers": (header(b"\r\n".join(b"X: y" for _ in range(100))), 431),
    "headers that are too large": (header(b"X: " + b"y" * 32_768), 431),
    "headers that are too large together": (header(b"\r\n".join([b"X: " + b"y" * 4_090] * 8)), 431),
    # Host.
    "no Host": (host(b""), 400),
    "two Hosts": (host(HOST + HOST), 400),
    "two Hosts in HTTP/1.0": (b"GET / HTTP/1.0\r\n" + HOST + HOST + b"\r\n", 400),
    "a Host with two ports": (host(b"Host: a:80:80\r\n"), 400),
    "a Host with a user": (host(b"Host: a@b\r\n"), 400),
    "a Host with a path": (host(b"Host: a/b\r\n"), 400),
    "a Host with a space": (host(b"Host: a b\r\n"), 400),
    "a list of Hosts": (host(b"Host: a, b\r\n"), 400),
    "a Host with a port in letters": (host(b"Host: a:b\r\n"), 400),
    # What the body is.
    "two lengths": (framed(b"Content-Length: 5", b"Content-Length: 6", body=b"hello" + SMUGGLED), 400),
    "one length twice": (framed(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"), 400),
    "a list of lengths": (framed(b"Content-Length: 5, 5", body=b"hello"), 400),
    "a length with a sign": (framed(b"Content-Length: +5", body=b"hello"), 400),
    "a negative length": (framed(b"Content-Length: -5", body=b"hello"), 400),
    "a length with an underscore": (framed(b"Content-Length: 0_5", body=b"hello"), 400),
    "a hexadecimal length": (framed(b"Content-Length: 0x5", body=b"hello"), 400),
    "a length with a point": (framed(b"Content-Length: 5.0", body=b"hello"), 400),
    "no length": (framed(b"Content-Length:", body=b"hello"), 400),
    "a length in Arabic digits": (framed("Content-Length: \u0665".encode(), body=b"hello"), 400),
    "a length of twenty digits": (framed(b"Content-Length: 99999999999999999999"), 413),
    "a length and chunks": (
        framed(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED),
        400,
    ),
    "chunks and a length": (
        framed(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n" + SMUGGLED),
        400,
    ),
    "chunks in HTTP/1.0": (
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        400,
    ),
    "chunked twice": (framed(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"), 400),
    "chunked in two headers": (framed(*[b"Transfer-Encoding: chunked"] * 2, body=b"0\r\n\r\n"), 400),
    "an empty coding": (framed(b"Transfer-Encoding: ", body=b"0\r\n\r\n"), 400),
    "another coding": (framed(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 501),
    "a coding behind chunked": (framed(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"), 501),
    "identity": (framed(b"Transfer-Encoding: identity", body=b"0\r\n\r\n"), 501),
    "a coding in quotes": (framed(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"), 501),
    "xchunked": (framed(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 501),
    "a vertical tab before chunked": (framed(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"), 400),
    "another expectation": (framed(b"Expect: 200-ok", b"Content-Length: 5", body=b"hello"), 417),
}

#: What the body reader refuses; the requests' heads are good.
BODIES: dict[str, tuple[bytes, int]] = {
    "no size": (chunked(b"\r\nhello\r\n0\r\n\r\n"), 400),
    "a size in letters": (chunked(b"xyz\r\nhello\r\n0\r\n\r\n"), 400),
    "a size with 0x": (chunked(b"0x5\r\nhello\r\n0\r\n\r\n"), 400),
    "a size with a sign": (chunked(b"+5\r\nhello\r\n0\r\n\r\n"), 400),
    "a negative size": (chunked(b"-5\r\nhello\r\n0\r\n\r\n"), 400),
    "a size with an underscore": (chunked(b"0_5\r\nhello\r\n0\r\n\r\n"), 400),
    "a space before the size": (chunked(b" 5\r\nhello\r\n0\r\n\r\n"), 400),
    "a space behind the size": (chunked(b"5 \r\nhello\r\n0\r\n\r\n"), 400),
    "a size of sixteen digits": (chunked(b"0000000000000005\r\nhello\r\n0\r\n\r\n"), 400),
    "a size that overflows": (chunked(b"fffffffffffffffff\r\n"), 400),
    "a bare LF behind the size": (chunked(b"5\nhello\r\n0\r\n\r\n"), 400),
    "a bare CR behind the size": (chunked(b"5\rhello\r\n0\r\n\r\n"), 400),
    "a chunk longer than its size": (chunked(b"5\r\nhello!\r\n0\r\n\r\n"), 400),
    "a bare LF behind a chunk": (chunked(b"5\r\nhello\n0\r\n\r\n"), 400),
    "no line end behind a chunk": (chunked(b"5\r\nhello0\r\n\r\n" + SMUGGLED), 400),
    "a bare LF in an extension": (chunked(b"5;a\nb\r\nhello\r\n0\r\n\r\n"), 400),
    "a bare CR in an extension": (chunked(b"5;a\rb\r\nhello\r\n0\r\n\r\n"), 400),
    "an extension that is no token": (chunked(b"5;a b\r\nhello\r\n0\r\n\r\n"), 400),
    "an extension without a name": (chunked(b"5;\r\nhello\r\n0\r\n\r\n"), 400),
    "an open quote in an extension": (chunked(b'5;a="b\r\nhello\r\n0\r\n\r\n'), 400),
    "NUL in an extension": (chunked(b"5;a\0\r\nhello\r\n0\r\n\r\n"), 400),
    "an extension that is too long": (chunked(b"5;" + b"a" * 1_024 + b"\r\nhello\r\n0\r\n\r\n"), 400),
    "too many extensions": (
        chunked(b"".join([b"1;" + b"a" * 1_000 + b"\r\nx\r\n"] * 17) + b"0\r\n\r\n"),
        431,
    ),
    "a trailer without a colon": (chunked(b"0\r\nnonsense\r\n\r\n"), 400),
    "a trailer with a space before the colon": (chunked(b"0\r\nX : y\r\n\r\n"), 400),
    "a folded trailer": (chunked(b"0\r\nX: y\r\n z\r\n\r\n"), 400),
    "a bare LF behind a trailer": (chunked(b"0\r\nX: y\n\r\n"), 400),
    "a trailer that says how long the body is": (chunked(b"0\r\nContent-Length: 5\r\n\r\nhello"), 400),
    "a trailer that says how the body comes": (chunked(b"0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400),
    "a trailer that is too long": (chunked(b"0\r\nX: " + b"y" * 1_024 + b"\r\n\r\n"), 400),
    "too many trailers": (chunked(b"0\r\n" + (b"X: " + b"y" * 1_000 + b"\r\n") * 17 + b"\r\n"), 431),
    "a declared body that is too large": (framed(b"Content-Length: 104857601"), 413),
    "a chunk that is too large": (chunked(b"6400001\r\n"), 413),
}
