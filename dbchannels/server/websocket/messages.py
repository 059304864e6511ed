"""What consumers send to a WebSocket: a reply message read as a frame, a close, or an answer to the handshake.

The messages are those of the public WebSocket channel format; see docs/messages.rst.
"""

from __future__ import annotations

import difflib
import logging
from typing import Any, NamedTuple

from dbchannels import other_libraries
from dbchannels.exceptions import safe_repr
from dbchannels.protocol import AGAIN, EVENT, FINISHED, NORMAL_CLOSURE, is_close_code
from dbchannels.redaction import RateLimitedLog
from dbchannels.server.websocket.framing import BINARY, TEXT, encode_frame

#: The keys of a reply. ``content`` with ``binary`` is the same as ``text`` or ``bytes``.
KEYS = frozenset(
    {"accept", "text", "bytes", "content", "binary", "close", "reason", "subprotocol", "headers", "status"}
)
#: The keys that a worker adds to a reply, or sends alone.
WORKERS_KEYS = frozenset({FINISHED, AGAIN})

log = logging.getLogger("dbchannels.server")
dropped_events = RateLimitedLog(
    log, "%d event(s) were dropped, as handlers take longer than events come. The last was %s on %s.", None
)
refused_late = RateLimitedLog(
    log,
    "%d message(s) refused a WebSocket that is open, which does nothing: write 'close'. The last was on %s.",
    None,
)


class Outgoing(NamedTuple):
    """What a reply asks for; ``accept``, ``subprotocol`` and ``headers`` concern the handshake alone."""

    accept: bool | None = None  # None: data accepts, and a close without data refuses
    frame: bytes = b""  # b"": no data; an empty message is a frame of 2 bytes
    close: int | None = None  # the code to close with after the frame; None: stay open
    reason: str = ""  # of the close
    subprotocol: str | None = None
    headers: list[tuple[str, str]] = []  # noqa: RUF012  (of a NamedTuple, and never changed)


def outgoing(message: dict[str, Any]) -> Outgoing:
    """Read a message that a consumer sent to a connection.

    Keys: ``accept`` bool, ``text`` str, ``bytes`` bytes, ``close`` True (1000) or a code, ``reason`` str,
    ``subprotocol`` str, ``headers`` list of pairs; or, in place of text and bytes, ``content`` str or bytes with
    ``binary`` bool. Data under more than one key, and unknown keys beside known ones, are ignored: see ``oversight``.
    An event asks for nothing here. Raises ValueError, with one sentence to log, for an invalid value, and for a message
    that has unknown keys only.
    """
    if EVENT in message:
        return Outgoing()
    if KEYS.isdisjoint(message) and (not message or not message.keys() <= WORKERS_KEYS):
        own = sorted(message.keys() - WORKERS_KEYS)
        advice = next(filter(None, map(_advice, own)), "write 'text', 'bytes' or 'close'")
        raise ValueError(f"It has no key that a WebSocket knows ({safe_repr(own)}): {advice}.")
    if "status" in message and "content" in message and message.get("accept") is None:
        raise ValueError("It is the response to a request, but a WebSocket takes frames: send {'text': ...}.")
    close = message.get("close")
    if close is True:
        close = NORMAL_CLOSURE
    elif close is False:
        close = None
    elif close is not None and not (isinstance(close, int) and is_close_code(close)):
        raise ValueError(f"A WebSocket cannot be closed with {close!a:.40}: use 1000, or 3000 to 4999.")
    headers = _typed(message, "headers", (list, tuple), "a list of [name, value] pairs") or ()
    try:
        pairs = [(_text(name), _text(value)) for name, value in headers]
    except (TypeError, ValueError):
        raise ValueError("The reply's 'headers' is a list of [name, value] pairs of str or bytes.") from None
    return Outgoing(
        _typed(message, "accept", bool, "True or False"),
        _data_frame(message),
        close,
        _typed(message, "reason", str, "a str") or "",
        _typed(message, "subprotocol", str, "a str that the client offered"),
        pairs,
    )


def oversight(message: dict[str, Any]) -> str:
    """Return a sentence on what ``outgoing`` ignored of a message though it was meant; "" for nothing."""
    if EVENT in message:
        return ""
    given = _data_keys(message)
    if len(given) > 1:
        return f"It has {' and '.join(map(repr, given))}, so neither was sent: send a message for each."
    for key in sorted(message.keys() - KEYS - WORKERS_KEYS):
        if advice := _advice(key):
            return f"The key {safe_repr(key)} means nothing here: {advice}."
    if message.get("reason") and not message.get("close"):
        return "It has a 'reason' without a 'close': give both."
    has_effect = given or message.get("accept") is not None or message.get("close")
    if not has_effect and message.keys() - WORKERS_KEYS:
        return "It sends nothing, accepts nothing and closes nothing: write a 'text', 'bytes', 'accept' or 'close'."
    return ""


def _advice(key: str) -> str:
    near = difflib.get_close_matches(key, sorted(KEYS), n=1, cutoff=0.75)
    return other_libraries.advice("reply", key) or (f"write {near[0]!r}" if near else "")


def _data_keys(message: dict[str, Any]) -> list[str]:
    return [key for key in ("text", "bytes", "content") if message.get(key) is not None]


def _data_frame(message: dict[str, Any]) -> bytes:
    given = _data_keys(message)
    if len(given) != 1:
        return b""
    if given[0] == "bytes":
        return encode_frame(BINARY, _typed(message, "bytes", bytes, "bytes, or put a str under 'text'"))
    if given[0] == "text":
        return encode_frame(TEXT, _utf8(_typed(message, "text", str, "a str, or put bytes under 'bytes'")))
    content = _typed(message, "content", (str, bytes), "a str or bytes")
    if not _typed(message, "binary", bool, "True or False"):
        return encode_frame(TEXT, _utf8(content))
    return encode_frame(BINARY, content if isinstance(content, bytes) else _utf8(content))


def _utf8(text: str | bytes) -> bytes:
    try:
        if isinstance(text, str):
            return text.encode("utf-8")
        text.decode("utf-8")
    except UnicodeError:
        raise ValueError("The text of the reply is not UTF-8: send it as bytes, or binary=True.") from None
    return text


def _typed(message: dict[str, Any], key: str, kind: type | tuple[type, ...], wanted: str) -> Any:
    value = message.get(key)
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"The reply's {key!r} is of type {type(value).__name__}: make it {wanted}.")
    return value


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else str(value, "latin-1")
