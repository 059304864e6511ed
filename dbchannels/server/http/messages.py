"""HTTP, pure: the request as a message, and reply messages as a response (no sockets, no gevent).

The messages are those of the public HTTP channel format; see docs/messages.rst.
"""

from __future__ import annotations

import difflib
import logging
import re
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from dbchannels import other_libraries
from dbchannels.exceptions import safe_repr
from dbchannels.protocol import MORE_CONTENT, reason_phrase, status_reply
from dbchannels.server.http.headers import (
    Headers,
    RawHeaders,
    is_token_bytes,
    is_value,
    is_value_bytes,
    validate,
)

log = logging.getLogger("dbchannels.server")

# The server's own, not the view's (RFC 9110, section 7.6.1).
_HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"proxy-connection", b"te"}

#: Of the first message of a response.
RESPONSE_KEYS = frozenset({"status", "reason", "headers", "content", MORE_CONTENT})

_FRAMING = re.compile(r"(?i)content-length|transfer-encoding")


class Refused(Exception):
    """The request is refused: respond with ``status``, ``sentence`` and ``headers``; a 503 says when to try again."""

    def __init__(self, status: int, sentence: str, headers: Headers = ()) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, list(headers)
        if status == 503 and not any(name.lower() == "retry-after" for name, _ in self.headers):
            self.headers.append(("Retry-After", "5"))


def refuse_response(status: int, sentence: str, headers: Headers = (), method: str = "GET") -> bytes:
    """Return a whole response that ends the connection. Raise ValueError, with one sentence, for an invalid header."""
    body = sentence.encode("utf-8", "replace") + b"\n"
    own = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    extra = validate(headers, _FRAMING)
    head = encode_head(f"{status} {reason_phrase(status)}", [*own, ("Connection", "close"), *extra])
    return head if method == "HEAD" else head + body


def encode_head(status: str, headers: Headers) -> bytes:
    """Return the head of a response, with the empty line; ``status`` is its number and words."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("latin-1")


class Request(NamedTuple):
    """What the server read of one request."""

    method: str
    target: str  # as it came, in latin-1: "/a%20b?c=d"
    http_version: str  # "1.0" or "1.1"
    headers: RawHeaders
    scheme: str
    client: tuple[str, int]
    server: tuple[str, int]
    root_path: str = ""
    heartbeat: int = 0  # seconds between two heartbeats that a WebSocket's client asks for; 0: none
    resume: str | None = (
        None  # the last id of a WebSocket's client, "" for none yet; None: it asks for no ids
    )

    @property
    def path_bytes(self) -> bytes:
        return unquote_to_bytes(self.target.partition("?")[0].encode("latin-1"))

    @property
    def path(self) -> str:
        """The decoded path. What is not UTF-8 becomes U+FFFD, and so does NUL, which PostgreSQL's text refuses."""
        return self.path_bytes.decode("utf-8", "replace").replace("\0", "\ufffd")

    @property
    def query_string(self) -> bytes:
        """What follows the question mark, undecoded."""
        return self.target.partition("?")[2].encode("latin-1")

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def host(self) -> str:
        """Return the Host header's text."""
        return (self.header(b"host") or b"").decode("latin-1")


def request_message(
    request: Request,
    reply_channel: str,
    body: bytes,
    flow_channel: str,
    body_channel: str | None = None,
    body_size: int | None = None,
) -> dict[str, Any]:
    """Return the ``http.request`` message. The rest of a body of ``body_size`` bytes comes on ``body_channel``."""
    return {
        **_common(request, reply_channel),
        "http_version": request.http_version,
        "method": request.method.upper(),
        "body": body,
        "body_channel": body_channel,
        "body_size": len(body) if body_size is None else body_size,
        "flow_channel": flow_channel,
    }


def connect_message(request: Request, reply_channel: str) -> dict[str, Any]:
    scheme = "wss" if request.scheme == "https" else "ws"
    return {**_common(request, reply_channel), "scheme": scheme, "order": 0}


def _common(request: Request, reply_channel: str) -> dict[str, Any]:
    path = request.path
    return {
        "reply_channel": reply_channel,
        "scheme": request.scheme,
        "path": path,
        **({"path_bytes": request.path_bytes} if "\ufffd" in path else {}),  # the text has lost some of them
        "query_string": request.query_string,
        "root_path": request.root_path,
        "headers": [list(pair) for pair in request.headers],
        "client": list(request.client),
        "server": list(request.server),
    }


class ResponseHead(NamedTuple):
    """The start of a response."""

    status: str  # "200 OK"
    headers: list[tuple[str, str]]
    has_body: bool  # False for HEAD, 204 and 304: what follows is not written

    @property
    def length(self) -> int | None:
        """The Content-Length, if there is one."""
        for name, value in self.headers:
            if name.lower() == "content-length" and value.isdecimal():
                return int(value)
        return None


def checked_response(message: dict[str, Any], request: Request) -> tuple[ResponseHead, dict[str, Any]]:
    """Return the head of a response and its first message: a 500 in place of a response that cannot be sent."""
    try:
        return response_head(message, request.method), message
    except ValueError as error:
        log.error("A response to %s could not be sent: %s", request.path, error)
        message = status_reply(500)
        return response_head(message, request.method), message


def response_head(message: dict[str, Any], method: str) -> ResponseHead:
    """Return the head of a response from its first message. Raise ValueError, with one sentence, for an invalid one.

    A whole response gets the Content-Length of its content, whatever the view said: a client would take what is
    beyond it, or the next response for what is missing. A response to HEAD has no content, so the view's length counts.
    """
    _check_keys(message)
    status, reason = message.get("status"), message.get("reason")
    if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 999:
        raise ValueError(f"The status of a response is a number from 200 to 999, not {status!r:.40}.")
    if reason is not None and (not isinstance(reason, str) or not is_value(reason)):
        raise ValueError(f"The reason {reason!a:.60} cannot be sent: it is one line of latin-1 text.")
    headers = message.get("headers", [])
    if not isinstance(headers, (list, tuple)):
        raise ValueError(f"The headers of a response are a list, not {type(headers).__name__}.")
    for pair in headers:
        if not isinstance(pair, (list, tuple)) or [type(part) for part in pair] != [bytes, bytes]:
            raise ValueError(f"A header of a response is a pair of bytes, not {pair!a:.60}.")
        if not is_token_bytes(pair[0]) or not is_value_bytes(pair[1]):
            raise ValueError(f"The header {pair[0]!r:.60} cannot be sent: it holds a control character.")
    headers = [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP]
    content, whole, bodiless = checked_content(message), not message.get(MORE_CONTENT), status in (204, 304)
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    if bodiless or whole or len(lengths) > 1:
        headers = [pair for pair in headers if pair[0].lower() != b"content-length"]
    if whole and not bodiless:
        of_view = lengths and method == "HEAD" and not content
        headers.append((b"Content-Length", lengths[0] if of_view else str(len(content)).encode()))
    text = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    return ResponseHead(
        f"{status} {reason or reason_phrase(status)}", text, has_body=method != "HEAD" and not bodiless
    )


def _check_keys(message: dict[str, Any]) -> None:
    for key in message.keys() - RESPONSE_KEYS:
        near = difflib.get_close_matches(key, RESPONSE_KEYS, n=1, cutoff=0.75)
        if told := other_libraries.advice("response", key) or (f"write {near[0]!r}" if near else ""):
            raise ValueError(f"The key {safe_repr(key)} of a response means nothing: {told}.")


def checked_content(message: dict[str, Any]) -> bytes:
    """Return the content of a response message. Raise ValueError, with one sentence, when it is not bytes."""
    _check_keys(message)
    content = message.get("content", b"")
    if not isinstance(content, bytes):
        raise ValueError(
            f"The content of a response is bytes, not {type(content).__name__}: encode it first."
        )
    return content
