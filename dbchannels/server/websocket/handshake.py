"""The WebSocket handshake (RFC 6455 section 4.2), from the client's request to the server's response.

``read_handshake`` refuses an invalid handshake, ``origin_allowed`` one from a page of another site. Then the connect
consumer decides, Accepted or Denied, and ``accept_response`` returns the 101.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

from django.utils.http import is_same_domain

from dbchannels.protocol import SENTENCES
from dbchannels.server.http.headers import (
    HOST,
    TOKEN,
    Headers,
    RawHeaders,
    is_token,
    items,
    match_host,
    validate,
    values,
    words,
)
from dbchannels.server.http.messages import Refused, encode_head, refuse_response
from dbchannels.server.websocket.framing import DEFLATE, NARROWEST, WIDEST, Deflate

log = logging.getLogger("dbchannels.server")

# The query parameters that dbchannels.js adds.
PARAMETERS = "dbchannels-"
HEARTBEAT, RESUME = "dbchannels-heartbeat", "dbchannels-resume"
LEAST_HEARTBEAT = 5  # seconds

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
# Exactly 16 bytes. The last four bits may have any value: the RFC's own sample key sets one of them.
_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==\Z")
_HANDSHAKE = re.compile(r"(?i)upgrade|connection|sec-websocket-.*|content-length|transfer-encoding")
_ORIGIN = re.compile(rf"(https?)://{HOST}\Z", re.IGNORECASE | re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_PARAMETER = rf'[ \t]*;[ \t]*{TOKEN}(?:[ \t]*=[ \t]*(?:{TOKEN}|"{TOKEN}"))?'
_EXTENSION = re.compile(rf"({TOKEN})((?:{_PARAMETER})*)")
_BITS = re.compile(r"(?:[89]|1[0-5])\Z")
_LOOPBACK = re.compile(r"(?:[a-z0-9._-]*\.)?localhost\Z|127(?:\.[0-9]{1,3}){3}\Z|\[::1\]\Z")


class Handshake(NamedTuple):
    """What a valid handshake says: the key, the offered subprotocols in their order, and the Origin header."""

    key: str
    subprotocols: list[str]
    origin: str | None  # None: the client is not a browser


def read_handshake(method: str, http_version: str, headers: RawHeaders) -> Handshake:
    """Check a request that asks for a WebSocket against RFC 6455 section 4.2.1; raise Refused with the response."""
    if method != "GET":
        raise Refused(405, "Open a WebSocket with GET.", [("Allow", "GET")])
    if http_version != "1.1":
        raise Refused(400, "Open a WebSocket with HTTP/1.1.")
    if b"upgrade" not in words(headers, b"connection"):
        raise Refused(400, "Send the header Connection: Upgrade.")
    # The server would read a body as frames that nobody sent.
    lengths = values(headers, b"content-length")
    if any(length != b"0" for length in lengths) or values(headers, b"transfer-encoding"):
        raise Refused(400, "Open a WebSocket without a body.")
    versions = values(headers, b"sec-websocket-version")
    if len(versions) > 1:
        raise Refused(400, "Send one Sec-WebSocket-Version header.")
    if versions != [b"13"]:
        # A 426 names the protocol to upgrade to (RFC 9110 section 15.5.22) and lists it in Connection (7.8).
        upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket")]
        raise Refused(426, "Use version 13 of WebSocket.", [("Sec-WebSocket-Version", "13"), *upgrade])
    keys = values(headers, b"sec-websocket-key")
    if len(keys) != 1 or not _KEY.match(keys[0]):
        raise Refused(400, "Send one Sec-WebSocket-Key header: 16 bytes in base64.")
    subprotocols = [name.decode("latin-1") for name in items(headers, b"sec-websocket-protocol")]
    if not all(map(is_token, subprotocols)):
        raise Refused(400, "A name in Sec-WebSocket-Protocol is not a token.")
    if len(set(subprotocols)) < len(subprotocols):
        raise Refused(400, "Name each subprotocol once in Sec-WebSocket-Protocol.")
    origins = values(headers, b"origin")
    if len(origins) > 1:
        raise Refused(400, "Send one Origin header.")
    origin = origins[0].decode("latin-1") if origins else None
    return Handshake(keys[0].decode("ascii"), subprotocols, origin)


def take_parameters(target: str) -> tuple[str, int, str | None]:
    """Return a request's target without our parameters, the seconds between two heartbeats, and the last id.

    0 seconds: the client wants no heartbeats. Whatever it asks for, LEAST_HEARTBEAT is the shortest interval. No last
    id: the client wants no ids; "": it has none yet.
    """
    path, _, query = target.partition("?")
    seconds, last_id, others = 0, None, []
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if name == RESUME:
            last_id = value
        elif name != HEARTBEAT:
            others.append(part)
        elif value.isascii() and value.isdigit() and len(value) <= 4 and value.strip("0"):
            seconds = max(LEAST_HEARTBEAT, int(value))
    return "?".join(filter(None, (path, "&".join(others)))), seconds, last_id


class Origins(NamedTuple):
    """The origins whose pages may open WebSockets, besides the request's own host."""

    trusted: tuple[str, ...] = ()  # as in CSRF_TRUSTED_ORIGINS: https://example.com, https://*.example.com
    loopback: bool = False  # pages of this machine, on any port


def origin_allowed(origin: str | None, host: str, scheme: str, origins: Origins) -> bool:
    """Whether a page from ``origin`` may open a WebSocket to ``host`` (RFC 6455 section 10.2).

    Browsers send cookies with requests from any site, so without this check any page could act as its visitor. The
    rule is that of Django's CsrfViewMiddleware: the site's own pages (same scheme, host and port), trusted origins and
    clients that are not browsers are allowed. ``scheme`` is the request's, or "" if it is unknown, as behind a proxy
    that ends TLS without saying so. Check ``host`` with ``host_allowed``: a foreign name that points to this server's
    address is its own origin too.
    """
    if origin is None or origin in origins.trusted:
        return True
    match = _ORIGIN.match(origin)
    if not match:  # "null" as well: any sandboxed frame can have that origin
        return False
    theirs = match[1].lower()
    default = _DEFAULT_PORTS[theirs]
    ours, page = match_host(host), (_plain_host(match[2]), int(match[3] or default))
    # If the request's scheme is unknown, a Host without a port has the default port of the origin's scheme.
    if ours and scheme in ("", theirs) and (_plain_host(ours[1]), int(ours[2] or default)) == page:
        return True
    if origins.loopback and _LOOPBACK.match(page[0]):
        return True
    netloc = origin.partition("://")[2].lower()
    patterns = [one.partition("://") for one in origins.trusted if "*" in one]
    return any(theirs == one and is_same_domain(netloc, pattern.lstrip("*")) for one, _, pattern in patterns)


def host_allowed(host: str, allowed_hosts: Iterable[str]) -> bool:
    """Whether a Host header, with or without a port, matches ``allowed_hosts``, with the rules of ALLOWED_HOSTS.

    ``example.com`` matches that host, ``.example.com`` the domain and its subdomains, ``*`` everything.
    """
    match = match_host(host)
    if match is None:
        return False
    name = _plain_host(match[1])
    return any(entry == "*" or is_same_domain(name, entry) for entry in allowed_hosts)


def _plain_host(host: str) -> str:
    return host.lower().removesuffix(".")


def accept_response(
    handshake: Handshake, subprotocol: str | None = None, headers: Headers = (), extensions: str = ""
) -> bytes:
    """Return the 101 response; raise ValueError, with a sentence to log, for a value that it must not carry."""
    digest = hashlib.sha1(handshake.key.encode("ascii") + _GUID, usedforsecurity=False).digest()
    accept = base64.b64encode(digest).decode("ascii")
    own = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)]
    if subprotocol is not None:
        if subprotocol not in handshake.subprotocols:
            raise ValueError(f"The client offered no subprotocol {subprotocol!a:.60}: choose one it did.")
        own.append(("Sec-WebSocket-Protocol", subprotocol))
    if extensions:
        own.append(("Sec-WebSocket-Extensions", extensions))
    return encode_head("101 Switching Protocols", [*own, *validate(headers, _HANDSHAKE)])


class Accepted(NamedTuple):
    """The connect consumer accepted: write the 101."""

    subprotocol: str | None
    headers: list[tuple[str, str]]


class Denied(NamedTuple):
    """The connect consumer refused, or did not decide: respond with this status."""

    status: int
    sentence: str
    headers: list[tuple[str, str]] = []  # noqa: RUF012  (of a NamedTuple, and never changed)


def denied(status: object, headers: Sequence[tuple[str, str]] = ()) -> Denied:
    """Return a refusal with a status from 300 to 599 that a consumer named, or 403 in place of any other value.

    Invalid headers are the consumer's mistake: they are logged, and the status becomes 500.
    """
    if not isinstance(status, int) or not 300 <= status <= 599 or status not in set(HTTPStatus):
        status = 403
    try:
        refuse_response(status, "", headers)
    except ValueError as error:
        log.error("A connect consumer's refusal cannot be sent as it is: %s", error)
        return Denied(500, SENTENCES[500])
    return Denied(status, SENTENCES.get(status, SENTENCES[403]), list(headers))


def negotiate(headers: RawHeaders) -> Deflate | None:
    """Return the first offer of permessage-deflate that can be met (RFC 7692 section 5.1), or None.

    Raises Refused, with a 400, for a Sec-WebSocket-Extensions header that is not a list of extensions.
    """
    # A quoted value is a token too (RFC 6455 section 9.1), so it contains no comma.
    for item in filter(None, items(headers, b"sec-websocket-extensions")):
        found = _EXTENSION.fullmatch(item.decode("latin-1"))
        if found is None:
            raise Refused(400, "The Sec-WebSocket-Extensions header is not a list of extensions.")
        pairs = [part.partition("=") for part in found[2].split(";")[1:]]
        parameters = [(name.strip(" \t"), value.strip(' \t"') or None) for name, _, value in pairs]
        if found[1] == DEFLATE and (agreed := _agree(parameters)) is not None:
            return agreed
    return None


def _agree(parameters: list[tuple[str, str | None]]) -> Deflate | None:
    """Return what to agree on, or None for an offer that must be declined (RFC 7692 section 7)."""
    bits = None
    for name, value in parameters:
        has_bits = value is not None and _BITS.match(value) is not None
        if name == "server_max_window_bits" and has_bits:
            bits = int(value or 0)
        elif name == "client_max_window_bits" and (value is None or has_bits):
            continue  # the server reads messages with the widest window, whatever the client's
        elif name not in ("server_no_context_takeover", "client_no_context_takeover") or value is not None:
            return None
    if len({name for name, _ in parameters}) < len(parameters) or (bits or WIDEST) < NARROWEST:
        return None
    return _deflate(bits)


_deflate = lru_cache(Deflate)
