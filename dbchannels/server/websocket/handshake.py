"""The WebSocket handshake (RFC 6455 section 4.2): what is refused, who may connect, what is answered.

``read_handshake`` refuses what is no proper handshake, ``origin_allowed`` what another site's page began;
then the consumer decides, and ``accept_response`` or ``refuse_response`` has the bytes to write.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import NamedTuple

from django.utils.http import is_same_domain

RawHeaders = Sequence[tuple[bytes, bytes]]  # names in lower case, order and duplicates kept
Headers = Iterable[tuple[str, str]]

HEARTBEAT = "dbchannels-heartbeat"  # of the query; dbchannels.js adds it
LEAST_HEARTBEAT = 5  # seconds

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_TOKEN = re.compile(r"\A[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110 section 5.6.2
# 16 bytes and nothing else. The last four bits may be any: in the RFC's own sample key one of them is set.
_KEY = re.compile(r"\A[A-Za-z0-9+/]{22}==\Z")
# Control characters would begin another header or answer (a tab is harmless); the rest is not latin-1.
_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]")
_FRAMING = re.compile(r"(?i)(content-length|transfer-encoding)\Z")
_HANDSHAKE = re.compile(r"(?i)(upgrade|connection|sec-websocket-.*|content-length|transfer-encoding)\Z")
# No userinfo, no path, no query: what a browser sends has none, so what has one is a trick.
_AUTHORITY = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{0,5}))?\Z"
_ORIGIN = re.compile(r"\A(https?)://" + _AUTHORITY, re.IGNORECASE | re.ASCII)
_HOST = re.compile(r"\A" + _AUTHORITY)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LOOPBACK = re.compile(r"(?:[a-z0-9._-]*\.)?localhost\Z|127(?:\.[0-9]{1,3}){3}\Z|\[::1\]\Z")


class Refused(Exception):
    """The request is no proper handshake: answer it with ``status``, ``sentence`` and ``headers``."""

    def __init__(self, status: int, sentence: str, headers: Headers = ()) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, list(headers)


class Handshake(NamedTuple):
    """A proper handshake: the client's key, the subprotocols in its order, and its Origin header."""

    key: str
    subprotocols: list[str]
    origin: str | None  # None: no browser


def is_upgrade(headers: RawHeaders) -> bool:
    """Whether the client asks for a WebSocket; if so, ``read_handshake`` says whether it asks properly."""
    return "websocket" in map(str.lower, _list(headers, b"upgrade"))


def read_handshake(method: str, http_version: str, headers: RawHeaders) -> Handshake:
    """Check a request against RFC 6455 section 4.2.1; raise Refused with the answer to give."""
    _check_request(method, http_version, headers)
    _check_version(headers)
    key = _key(headers)
    subprotocols = _subprotocols(headers)
    origins = _values(headers, b"origin")
    if len(origins) > 1:
        raise Refused(400, "Send one Origin header.")
    return Handshake(key, subprotocols, origins[0] if origins else None)


def take_heartbeat(target: str) -> tuple[str, int]:
    """Return a request's target without the parameter that asks for heartbeats, and the seconds between two of them.

    0: none are asked for. A client decides on the number, so no socket has more than one in LEAST_HEARTBEAT seconds.
    """
    path, _, query = target.partition("?")
    seconds, others = 0, []
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if name != HEARTBEAT:
            others.append(part)
        elif value.isascii() and value.isdigit() and len(value) <= 4 and value.strip("0"):
            seconds = max(LEAST_HEARTBEAT, int(value))
    return "?".join(filter(None, (path, "&".join(others)))), seconds


def _check_request(method: str, http_version: str, headers: RawHeaders) -> None:
    if method != "GET":
        raise Refused(405, "Open a WebSocket with GET.", [("Allow", "GET")])
    if http_version != "1.1":
        raise Refused(400, "Open a WebSocket with HTTP/1.1.")
    if not is_upgrade(headers):
        raise Refused(400, "Send the header Upgrade: websocket.")
    if "upgrade" not in map(str.lower, _list(headers, b"connection")):
        raise Refused(400, "Send the header Connection: Upgrade.")
    # A body would be read as frames that nobody sent.
    lengths = _values(headers, b"content-length")
    if any(length != "0" for length in lengths) or _values(headers, b"transfer-encoding"):
        raise Refused(400, "Open a WebSocket without a body.")


def _check_version(headers: RawHeaders) -> None:
    versions = _values(headers, b"sec-websocket-version")
    if len(versions) > 1:
        raise Refused(400, "Send one Sec-WebSocket-Version header.")
    if versions != ["13"]:
        # RFC 9110 section 15.5.22: a 426 names what to upgrade to, and section 7.8: Connection says so.
        upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket")]
        raise Refused(426, "Use version 13 of WebSocket.", [("Sec-WebSocket-Version", "13"), *upgrade])


def _key(headers: RawHeaders) -> str:
    keys = _values(headers, b"sec-websocket-key")
    if len(keys) != 1 or not _KEY.match(keys[0]):
        raise Refused(400, "Send one Sec-WebSocket-Key header: 16 bytes in base64.")
    return keys[0]


def _subprotocols(headers: RawHeaders) -> list[str]:
    offered = _list(headers, b"sec-websocket-protocol")
    if not all(_TOKEN.match(name) for name in offered):
        raise Refused(400, "A name in Sec-WebSocket-Protocol is not a token.")
    if len(set(offered)) < len(offered):
        raise Refused(400, "Name each subprotocol once in Sec-WebSocket-Protocol.")
    return offered


def _values(headers: RawHeaders, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip(" \t") for key, value in headers if key == name]


def _list(headers: RawHeaders, name: bytes) -> list[str]:
    """Return the items of a header that is a list; empty ones do not count (RFC 9110 section 5.6.1)."""
    items = (item.strip(" \t") for value in _values(headers, name) for item in value.split(","))
    return [item for item in items if item]


class Origins(NamedTuple):
    """Whose pages may open WebSockets here, beside the pages of the request's own host."""

    trusted: tuple[str, ...] = ()  # as in CSRF_TRUSTED_ORIGINS: https://example.com, https://*.example.com
    loopback: bool = False  # pages of this machine, on any port


def origin_allowed(origin: str | None, host: str, scheme: str, origins: Origins) -> bool:
    """Whether a page from ``origin`` may connect to the server it calls ``host`` (RFC 6455 section 10.2).

    Browsers send cookies along from whatever site: without this, any page could act as its visitor. The rule is that
    of Django's CsrfViewMiddleware: allowed are the site's own pages (same scheme, host and port) and trusted origins,
    and clients that are no browser. ``scheme`` is that of the request, "" where nobody knows it: TLS may end at a
    proxy that does not tell. Check ``host`` itself with ``host_allowed``: a stranger's name that was pointed at this
    server's address is its own origin too.
    """
    if origin is None or origin in origins.trusted:
        return True
    match = _ORIGIN.match(origin)
    if not match:  # "null" too: any sandboxed frame can have that one
        return False
    theirs = match[1].lower()
    default = _DEFAULT_PORTS[theirs]
    ours, page = _HOST.match(host), (_plain_host(match[2]), int(match[3] or default))
    # Without the request's scheme, a Host without a port means the origin's.
    if ours and scheme in ("", theirs) and (_plain_host(ours[1]), int(ours[2] or default)) == page:
        return True
    if origins.loopback and _LOOPBACK.match(page[0]):
        return True
    netloc = origin.partition("://")[2].lower()
    patterns = [one.partition("://") for one in origins.trusted if "*" in one]
    return any(theirs == one and is_same_domain(netloc, pattern.lstrip("*")) for one, _, pattern in patterns)


def host_allowed(host: str, allowed_hosts: Iterable[str]) -> bool:
    """Whether a Host header, port or none, is one of ``allowed_hosts``, read as Django reads ALLOWED_HOSTS.

    ``example.com`` is that host, ``.example.com`` the domain with all below it, ``*`` everything.
    """
    match = _HOST.match(host)
    return match is not None and any(_matches(_plain_host(match[1]), entry) for entry in allowed_hosts)


def _matches(host: str, entry: str) -> bool:
    entry = entry.lower()
    # With its dot, so that evilgood.com does not end in .good.com.
    below = entry.startswith(".") and (host == entry[1:] or host.endswith(entry))
    return entry == "*" or host == entry or below


def _plain_host(host: str) -> str:
    return host.lower().removesuffix(".")


def accept_response(
    handshake: Handshake, subprotocol: str | None = None, headers: Headers = (), extensions: str = ""
) -> bytes:
    """Return the head of the 101; ValueError, with one sentence to log, for what it may not carry."""
    digest = hashlib.sha1(handshake.key.encode("ascii") + _GUID, usedforsecurity=False).digest()
    accept = base64.b64encode(digest).decode("ascii")
    own = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)]
    if subprotocol is not None:
        if subprotocol not in handshake.subprotocols:
            raise ValueError(f"The client offered no subprotocol {subprotocol!a:.60}: choose one it did.")
        own.append(("Sec-WebSocket-Protocol", subprotocol))
    if extensions:
        own.append(("Sec-WebSocket-Extensions", extensions))
    return _head(101, own, _checked(headers, _HANDSHAKE))


def refuse_response(status: int, sentence: str, headers: Headers = ()) -> bytes:
    """Return a whole answer in place of the 101, after which the connection ends; ValueError as above."""
    body = sentence.encode("utf-8", "replace") + b"\n"
    own = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    return _head(status, [*own, ("Connection", "close")], _checked(headers, _FRAMING)) + body


def _head(status: int, own: Headers, extra: Headers) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in (*own, *extra))
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{lines}\r\n".encode("latin-1")


def _checked(headers: Headers, reserved: re.Pattern[str]) -> Headers:
    """Return the headers; refuse one that could end itself or the head, and what is the server's to say."""
    headers = list(headers)
    for name, value in headers:
        if not isinstance(name, str) or not _TOKEN.match(name):
            raise ValueError(f"A header cannot be called {name!a:.60}: use letters, digits and hyphens.")
        if reserved.match(name):
            raise ValueError(f"The header {name} is the server's own to send: leave it out.")
        if not isinstance(value, str) or _UNSAFE.search(value):
            raise ValueError(f"The header {name} is not one line of latin-1 text: encode its value first.")
    return headers
