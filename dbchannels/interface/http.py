"""HTTP, pure: the request as a message, and reply messages as a response (no sockets, no gevent).

The messages are those of the public HTTP channel format; see docs/messages.rst.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

RawHeaders = list[tuple[bytes, bytes]]

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_UNSAFE_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# The connection is ours, not the view's (RFC 9110, section 7.6.1).
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"proxy-connection", b"te"}
)

SENTENCES = {
    413: "The request's body is larger than this server takes.",
    500: "The site could not answer: its code raised an error, which is in the log.",
    502: "The worker that held this request died; it was not tried again.",
    503: "No worker could take this request in time: try again soon.",
}


class Request(NamedTuple):
    """What the server read of one request."""

    method: str
    target: str  # as it came, in latin-1: "/a%20b?c=d"
    http_version: str  # "1.0" or "1.1"
    headers: RawHeaders  # names in lower case, order and duplicates kept
    scheme: str
    client: tuple[str, int]
    server: tuple[str, int]
    root_path: str = ""

    @property
    def path(self) -> str:
        """The decoded path; what is no UTF-8 becomes U+FFFD, and NUL too, which PostgreSQL's text refuses."""
        raw = self.target.partition("?")[0].encode("latin-1")
        return unquote_to_bytes(raw).decode("utf-8", "replace").replace("\0", "\ufffd")

    @property
    def query_string(self) -> bytes:
        """What follows the question mark, undecoded."""
        return self.target.partition("?")[2].encode("latin-1")

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header."""
        return next((value for key, value in self.headers if key == name), None)

    def host(self) -> str:
        """Return the Host header's text."""
        return (self.header(b"host") or b"").decode("latin-1")


def request_message(request: Request, reply_channel: str, body: bytes, flow_channel: str) -> dict[str, Any]:
    """Return the ``http.request`` message."""
    return {
        **_common(request, reply_channel),
        "http_version": request.http_version,
        "method": request.method.upper(),
        "body": body,
        "body_channel": None,
        "flow_channel": flow_channel,
    }


def connect_message(request: Request, reply_channel: str) -> dict[str, Any]:
    """Return the ``websocket.connect`` message."""
    scheme = "wss" if request.scheme == "https" else "ws"
    return {**_common(request, reply_channel), "scheme": scheme, "order": 0}


def _common(request: Request, reply_channel: str) -> dict[str, Any]:
    return {
        "reply_channel": reply_channel,
        "scheme": request.scheme,
        "path": request.path,
        "query_string": request.query_string,
        "root_path": request.root_path,
        "headers": [list(pair) for pair in request.headers],
        "client": list(request.client),
        "server": list(request.server),
    }


class Head(NamedTuple):
    """The start of a response."""

    status: str  # "200 OK"
    headers: list[tuple[str, str]]
    has_body: bool  # False for HEAD, 204 and 304: what follows is not written


def response_head(message: dict[str, Any], method: str) -> Head:
    """Return the head of a response from its first message; ValueError, one sentence, for a bad one.

    A response that is whole gets its Content-Length when the view gave none.
    """
    status = message.get("status")
    if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 999:
        raise ValueError(f"The status of a response is a number from 200 to 999, not {status!r:.40}.")
    headers = [
        pair for pair in map(_checked, message.get("headers", [])) if pair[0].lower() not in _HOP_BY_HOP
    ]
    has_body = method != "HEAD" and status not in (204, 304)
    names = {name.lower() for name, _ in headers}
    if status == 204 or (status == 304 and method != "HEAD"):
        headers = [pair for pair in headers if pair[0].lower() != b"content-length"]
    elif b"content-length" not in names and not message.get("more_content") and status != 304:
        headers.append((b"Content-Length", str(len(message.get("content", b""))).encode()))
    text = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    return Head(f"{status} {message.get('reason') or reason_phrase(status)}", text, has_body)


def _checked(pair: Sequence[bytes]) -> tuple[bytes, bytes]:
    name, value = bytes(pair[0]), bytes(pair[1])
    if not _NAME.match(name) or _UNSAFE_VALUE.search(value):
        raise ValueError(f"The header {name!r:.60} cannot be sent: it holds a control character.")
    return name, value


def reason_phrase(status: int) -> str:
    """Return the words of a status (RFC 9110, section 15)."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown Status Code"


def failure_status(message: dict[str, Any]) -> int | None:
    """Return the status to answer with when a reply says that no response will come, or None."""
    if "error" in message:
        return 500
    if "lost" in message:
        return 502 if message["lost"] == "worker died" else 503
    return None


def failure_message(status: int, sentence: str = "") -> dict[str, Any]:
    """Return a response message with one sentence in plain text."""
    headers: Iterable[tuple[bytes, bytes]] = [
        (b"Content-Type", b"text/plain; charset=utf-8"),
        *([(b"Retry-After", b"5")] if status == 503 else []),
    ]
    text = sentence or SENTENCES.get(status, reason_phrase(status) + ".")
    return {"status": status, "headers": [list(pair) for pair in headers], "content": f"{text}\n".encode()}
