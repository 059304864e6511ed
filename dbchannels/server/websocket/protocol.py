"""A WebSocket after its handshake: bytes in, events and bytes out (RFC 6455 sections 5 to 8).

``WebSocket`` is the server's side of one connection, without its socket: what the client sent goes in by ``receive``,
which takes one frame after another apart, and what must be written comes out by ``take_output``. ``outgoing`` and
``incoming`` translate between frames and messages on channels, and alone know what ``content`` with ``binary`` means.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from dbchannels import foreign
from dbchannels.exceptions import safe_repr
from dbchannels.protocol import (
    AGAIN,
    FINISHED,
    INVALID_DATA,
    NORMAL_CLOSURE,
    POLICY_VIOLATION,
    TOO_LARGE,
    VANISHED,
    is_close_code,
)
from dbchannels.server.config import WebSocketLimits
from dbchannels.server.websocket import frames
from dbchannels.server.websocket.assembly import Assembly
from dbchannels.server.websocket.deflate import Deflate, Inflater
from dbchannels.server.websocket.frames import BINARY, TEXT, ProtocolError, encode_frame

#: Of a message to a connection.
KEYS = frozenset(
    {"accept", "text", "bytes", "content", "binary", "close", "reason", "subprotocol", "headers", "status"}
)
#: What a worker puts into such a message, or sends alone.
WORKERS_KEYS = frozenset({FINISHED, AGAIN})
MAX_PONGS = 16  # unsent: of more pings than that the latest are answered, which RFC 6455 section 5.5.3 allows


# Dataclasses and no tuples: as tuples a Ping and a Pong with the same payload would be equal.
@dataclass(frozen=True, slots=True)
class Text:
    """The client sent a text message."""

    text: str


@dataclass(frozen=True, slots=True)
class Binary:
    """The client sent a binary message."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    """The client sent a ping; its pong is in the output already."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """The client answered a ping, or sent a pong unasked."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection is over, always the last event: write the output, then close the socket.

    ``code`` is for ``websocket.disconnect``: the client's, 1005 when it gave none, 1006 when it vanished, or
    the error code with which we failed the connection.
    """

    code: int
    reason: str = ""


Event = Text | Binary | Ping | Pong | Closed


class WebSocket:
    """The server's side of one accepted connection. Nothing here raises for what a client sends."""

    __slots__ = (
        "_control",
        "_message",
        "_pongs",
        "_reader",
        "deflate",
        "failed",
        "max_fragments",
        "max_message_size",
        "pings_left",
        "state",
    )

    def __init__(
        self,
        max_message_size: int = WebSocketLimits().max_size,
        max_fragments: int = WebSocketLimits().max_fragments,
        max_pings: int = WebSocketLimits().max_pings,
        deflate: Deflate | None = None,
    ) -> None:
        self.max_message_size, self.max_fragments = (
            max_message_size,
            max_fragments,
        )  # bytes are those inflated
        self.pings_left = max_pings  # of the client, until somebody sets it anew; one more fails with 1008
        self.deflate = deflate  # None: messages are not compressed
        # "open": data goes both ways. "closing": our Close is out, or in the output, and the client's is
        # awaited. "closed": Closed was returned; whatever is in the output is the last to be written.
        self.state = "open"
        self.failed = False  # closed for what the client has sent, of which more may be under way
        self._reader = frames.FrameReader(max_message_size)
        if deflate is not None:  # what cannot be compressed becomes larger, by how much depends on the client
            self._reader.max_deflated = max_message_size + max_message_size // 8 + 1024
        self._message: Assembly | None = None  # set from a message's first frame until its last, while open
        self._pongs: list[bytes] = []  # payloads to answer pings with, at most MAX_PONGS
        self._control: list[bytes] = []  # frames: our pings, and the Close as the last

    def receive(self, data: bytes) -> Iterator[Event | None]:
        """Take what was read from the socket, and yield what it completes; ``take_output`` afterwards.

        Each frame, and each step in which a compressed one is inflated, is done when it is asked for; None is one that
        completed nothing. Ask for all of them before there is more ``data``.
        """
        if self.state == "closed":
            return
        try:
            for frame in self._reader.feed(data):
                if frame.opcode in self._CONTROL:
                    yield self._CONTROL[frame.opcode](self, frame.payload)
                elif self.state == "open":
                    steps = self._receive_data(*frame)
                    del frame  # a compressed one is freed as it is inflated
                    yield from steps
                else:
                    yield None
                if self.state == "closed":  # what follows a Close is ignored (section 5.5.1)
                    break
        except ProtocolError as error:
            yield self.fail(error.code, error.reason)

    def receive_end(self) -> list[Event]:
        """Take the end of the stream: the client vanished, unless the connection was closed before."""
        if self.state == "closed":
            return []
        self._forget("closed")
        return [Closed(VANISHED)]

    def take_output(self) -> bytes:
        """Return the control frames to write now, and forget them."""
        if not (self._pongs or self._control):
            return b""
        pongs = [encode_frame(frames.PONG, payload) for payload in self._pongs]
        output = b"".join(pongs + self._control)
        self._pongs, self._control = [], []
        return output

    def ping(self, payload: bytes = b"") -> None:
        """Put a ping in the output, if the connection is open; ValueError for more than 125 bytes."""
        if len(payload) > frames.MAX_CONTROL_PAYLOAD:
            raise ValueError("A ping carries 125 bytes at most: send a shorter one.")
        if self.state == "open":
            self._control.append(encode_frame(frames.PING, payload))

    def close(self, code: int = NORMAL_CLOSURE, reason: str = "") -> None:
        """Begin to close, if the connection is open; what the client sends until its own Close is dropped.

        A ``reason`` of more than 123 bytes is cut. Raises ValueError for a code that may not be sent.
        """
        frame = frames.encode_close(_checked_code(code), reason)
        if self.state == "open":
            self._control.append(frame)
            self._forget("closing")
            self._reader.max_payload = self.max_message_size

    def fail(self, code: int, reason: str) -> Closed:
        """Close for what the client has sent, at once: nothing more of it is looked at."""
        # Once our own Close is out, a second one would be a frame after the last.
        if self.state == "open":
            self._control.append(frames.encode_close(code, reason))
        self.failed = True
        self._forget("closed")
        return Closed(code, reason)

    @property
    def held(self) -> int:
        """Return how many bytes of the client's are kept until the message that they belong to is complete."""
        return len(self._reader) + (0 if self._message is None else len(self._message))

    @property
    def inflater(self) -> Inflater | None:
        """What inflates the message under way; None for one that is not compressed."""
        return None if self._message is None else self._message.inflater

    def _forget(self, state: str) -> None:
        self.state, self._message = state, None
        if state == "closed":
            self._reader.clear()

    def _receive_data(
        self, opcode: int, fin: bool, payload: bytes, deflated: bool
    ) -> Iterator[Text | Binary | None]:
        message, size = self._message, len(payload)
        if message is None:
            if fin and not deflated:
                yield Text(_decoded(payload)) if opcode == TEXT else Binary(payload)
                return
            message = self._message = Assembly(opcode, deflated, self.max_message_size)
            if deflated:
                self._reader.max_payload = self._reader.max_deflated
        message.fragments += 1
        # 1009 and not 1008: too many parts is too big to handle, and the client's cure is the same.
        if message.fragments > self.max_fragments:
            raise ProtocolError(TOO_LARGE, "The message has too many fragments.")
        steps = message.add(payload, fin)
        del payload
        for _ in steps:
            yield None
            if self._message is not message:  # closed meanwhile
                return
        if fin:
            self._message, self._reader.max_payload = None, self.max_message_size
            content, is_text = bytes(message.content), message.is_text
            del message  # whoever takes the event makes a copy of its own
            yield Text(_decoded(content)) if is_text else Binary(content)
        else:
            self._reader.max_payload -= size
            yield None

    def _receive_ping(self, payload: bytes) -> Ping:
        self.pings_left -= 1
        if self.pings_left < 0:  # each is answered, so a flood of them is work for nothing
            raise ProtocolError(POLICY_VIOLATION, "There are too many pings.")
        self._pongs.append(payload)
        del self._pongs[:-MAX_PONGS]
        return Ping(payload)

    def _receive_pong(self, payload: bytes) -> Pong:
        return Pong(payload)

    def _receive_close(self, payload: bytes) -> Closed:
        code, reason = frames.decode_close(payload)
        if self.state == "open":
            self._control.append(encode_frame(frames.CLOSE, payload))
        self._forget("closed")
        return Closed(code, reason)

    _CONTROL: ClassVar[dict[int, Any]] = {
        frames.CLOSE: _receive_close,
        frames.PING: _receive_ping,
        frames.PONG: _receive_pong,
    }


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError(INVALID_DATA, "A text message is not UTF-8.") from None


def encode_text(text: str) -> bytes:
    """Return a text message as one frame: a broadcast encodes it once and writes it to each socket."""
    return encode_frame(TEXT, text.encode("utf-8"))


def encode_binary(data: bytes) -> bytes:
    """Return a binary message as one frame."""
    return encode_frame(BINARY, data)


class Outgoing(NamedTuple):
    """What a reply asks for; ``accept``, ``subprotocol`` and ``headers`` concern the handshake alone."""

    accept: bool | None  # None: not said, so data accepts and a bare close refuses
    frame: bytes  # b"": no data; an empty message is a frame of 2 bytes
    close: int | None  # the code to close with after the frame; None: stay open
    reason: str  # beside the code
    subprotocol: str | None
    headers: list[tuple[str, str]]


def incoming(event: Text | Binary) -> dict[str, Any]:
    """Return the payload's keys of a ``websocket.receive`` message."""
    return {"text": event.text} if isinstance(event, Text) else {"bytes": event.data}


def outgoing(message: dict[str, Any]) -> Outgoing:
    """Read a message that a consumer sent to a connection; unknown keys beside known ones are left alone.

    Keys: ``accept`` bool, ``text`` str, ``bytes`` bytes, ``close`` True (1000) or a code, ``reason`` str,
    ``subprotocol`` str, ``headers`` list of pairs; or, in place of text and bytes, ``content`` str or bytes with
    ``binary`` bool. Data under more than one key is left out, see ``oversight``. Raises ValueError, with one sentence
    to log, for anything of another kind, and for a message that has unknown keys alone.
    """
    if KEYS.isdisjoint(message) and (not message or not message.keys() <= WORKERS_KEYS):
        own = sorted(message.keys() - WORKERS_KEYS)
        told = next(filter(None, map(_advice, own)), "write 'text', 'bytes' or 'close'")
        raise ValueError(f"It has no key that says anything here ({safe_repr(own)}): {told}.")
    if "status" in message and "content" in message and message.get("accept") is None:
        raise ValueError("It is the response to a request, and a WebSocket takes frames: send {'text': ...}.")
    return Outgoing(
        _typed(message, "accept", bool, "True or False"),
        _data_frame(message),
        _close_code(message.get("close")),
        _typed(message, "reason", str, "a str") or "",
        _typed(message, "subprotocol", str, "a str that the client offered"),
        _pairs(_typed(message, "headers", (list, tuple), "a list of [name, value] pairs") or ()),
    )


def oversight(message: dict[str, Any]) -> str:
    """Return a sentence on what of a readable message is left out though it was meant; "" for nothing."""
    given = [key for key in ("text", "bytes", "content") if message.get(key) is not None]
    if len(given) > 1:
        return f"It has {' and '.join(map(repr, given))}, so neither was sent: send a message for each."
    for key in sorted(message.keys() - KEYS - WORKERS_KEYS):
        if told := _advice(key):
            return f"The key {safe_repr(key)} says nothing here: {told}."
    if message.get("reason") and not message.get("close"):
        return "Its 'reason' is that of a close, and there is none: give 'close' too."
    says = given or message.get("accept") is not None or message.get("close")
    if not says and message.keys() - WORKERS_KEYS:
        return "It sends nothing, accepts nothing and closes nothing: write a 'text', 'bytes', 'accept' or 'close'."
    return ""


def _advice(key: str) -> str:
    near = difflib.get_close_matches(key, sorted(KEYS), n=1, cutoff=0.75)
    return foreign.advice("reply", key) or (f"write {near[0]!r}" if near else "")


def _data_frame(message: dict[str, Any]) -> bytes:
    given = [key for key in ("text", "bytes", "content") if message.get(key) is not None]
    if len(given) != 1:  # none, or no way to tell which is meant
        return b""
    if given[0] == "bytes":
        return encode_binary(_typed(message, "bytes", bytes, "bytes, or put a str under 'text'"))
    if given[0] == "text":
        return encode_frame(TEXT, _utf8(_typed(message, "text", str, "a str, or put bytes under 'bytes'")))
    content = _typed(message, "content", (str, bytes), "a str or bytes")
    if not _typed(message, "binary", bool, "True or False"):
        return encode_frame(TEXT, _utf8(content))
    return encode_binary(content if isinstance(content, bytes) else _utf8(content))


def _utf8(text: str | bytes) -> bytes:
    try:
        if isinstance(text, str):
            return text.encode("utf-8")
        text.decode("utf-8")
    except UnicodeError:
        raise ValueError("The text of the reply is not UTF-8: send it as bytes, or binary=True.") from None
    return text


def _close_code(close: object) -> int | None:
    if close is None or close is False:
        return None
    return NORMAL_CLOSURE if close is True else _checked_code(close)


def _checked_code(code: object) -> int:
    if not isinstance(code, int) or not is_close_code(code):
        raise ValueError(f"A WebSocket cannot be closed with {code!a:.40}: use 1000, or 3000 to 4999.")
    return code


def _typed(message: dict[str, Any], key: str, kind: type | tuple[type, ...], wanted: str) -> Any:
    value = message.get(key)
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"The reply's {key!r} is of type {type(value).__name__}: make it {wanted}.")
    return value


def _pairs(headers: list[Any] | tuple[Any, ...]) -> list[tuple[str, str]]:
    try:
        return [(_latin1(name), _latin1(value)) for name, value in headers]
    except (TypeError, ValueError):
        raise ValueError("The reply's 'headers' is a list of [name, value] pairs of str or bytes.") from None


def _latin1(value: str | bytes) -> str:
    return value if isinstance(value, str) else str(value, "latin-1")
