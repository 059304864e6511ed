"""WebSocket frames as bytes, and nothing above them (RFC 6455 section 5).

What the client sends goes through a ``FrameReader``; what the server sends comes from ``encode_frame``. No
sockets, no clock, no knowledge of messages: those are in ``websocket``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from dbchannels.protocol import INVALID_DATA, NO_CODE, PROTOCOL_ERROR, TOO_LARGE, is_close_code

CONTINUATION, TEXT, BINARY = 0x0, 0x1, 0x2
CLOSE, PING, PONG = 0x8, 0x9, 0xA
_DATA, _CONTROL = frozenset((CONTINUATION, TEXT, BINARY)), frozenset((CLOSE, PING, PONG))

RSV1 = 0x40  # on the first frame of a message: it is compressed (RFC 7692 section 6)
MAX_CONTROL_PAYLOAD = 125  # bytes (RFC 6455 section 5.5)
# The value of the 7-bit length: how many bytes of real length follow, and the least length that needs them.
_LONGER = {126: (2, 126), 127: (8, 65536)}


class ProtocolError(Exception):
    """The client broke the protocol: close with ``code`` (1002, 1007, 1008, 1009) and ``reason``, one sentence."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Frame(NamedTuple):
    """One frame of the client's, unmasked."""

    opcode: int
    fin: bool  # it ends its message
    payload: bytes
    deflated: bool = False  # it begins a message that is compressed


def encode_frame(opcode: int, payload: bytes, fin: bool = True) -> bytes:
    """Return a frame as a server sends it: unmasked, with the shortest form of the length."""
    first, size = fin << 7 | opcode, len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return struct.pack("!BBH", first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload


def decode_frame(frame: bytes) -> tuple[int, bytes]:
    """Return (opcode, payload) of a frame that ``encode_frame`` has made, of one that ends its message."""
    extra, _ = _LONGER.get(frame[1], (0, 0))
    return frame[0] & 0x0F, frame[2 + extra :]


def cut_reason(reason: str) -> str:
    """Return as much of a close's reason as its frame holds, 123 bytes."""
    # Cut on a border of characters: half of one is not UTF-8, and the client would report an error instead.
    return reason.encode("utf-8", "replace")[: MAX_CONTROL_PAYLOAD - 2].decode("utf-8", "ignore")


def encode_close(code: int, reason: str = "") -> bytes:
    """Return a Close frame; a reason of more than 123 bytes is cut."""
    return encode_frame(CLOSE, code.to_bytes(2, "big") + cut_reason(reason).encode("utf-8"))


def decode_close(payload: bytes) -> tuple[int, str]:
    """Return code and reason of a Close, 1005 if it has none; raise ProtocolError if it is not valid."""
    if not payload:
        return NO_CODE, ""
    code = int.from_bytes(payload[:2], "big")
    if not is_close_code(code):  # one byte is half a code, and as a number below 256 refused here too
        raise ProtocolError(PROTOCOL_ERROR, "The close code is not valid.")
    try:
        return code, payload[2:].decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError(INVALID_DATA, "The reason of the close is not UTF-8.") from None


def unmask(key: bytes, payload: bytes | bytearray) -> bytes:
    """Return ``payload`` XOR the four bytes of ``key`` repeated (RFC 6455 section 5.3); masks as well."""
    # As two big integers: 1 MiB takes 8 ms. A loop over its bytes takes 150, in which nobody else is served.
    size = len(payload)
    mask = (bytes(key) * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")).to_bytes(size, "little")


class FrameReader:
    """Cuts a client's bytes into frames, and raises ProtocolError at the first byte that cannot be right.

    After a ProtocolError the reader is of no more use.
    """

    __slots__ = (
        "_buffer",
        "_deflated",
        "_fin",
        "_key",
        "_length",
        "_opcode",
        "_unfinished",
        "max_deflated",
        "max_payload",
    )

    def __init__(self, max_payload: int) -> None:
        self.max_payload = max_payload  # bytes of the next data frame; may be changed between frames
        self.max_deflated = 0  # bytes of the first frame of a compressed message; 0: none was agreed on
        self._buffer = bytearray()  # what came and is not yet part of a frame
        self._unfinished = False  # a data frame without FIN came, so continuations must follow
        self._key = b""  # of the frame whose payload is awaited; empty while a header is awaited
        # Valid while _key is not empty.
        self._opcode, self._fin, self._deflated, self._length = 0, False, False, 0

    def __len__(self) -> int:
        """Return how many bytes of memory are held by what came and is not yet part of a frame."""
        return self._buffer.__alloc__() if self._buffer else 0

    def clear(self) -> None:
        """Forget them: nothing will be read any more."""
        self._buffer.clear()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Add ``data`` and return an iterator over the frames that it completes.

        Each step reads one frame only, so a ``max_payload`` changed between two steps holds for the next.
        """
        self._buffer += data
        return self._frames()

    def _frames(self) -> Iterator[Frame]:
        # Nothing is read twice, and a bytearray cuts its front without moving the rest: bytes that trickle
        # in one at a time cost the same each, however long the frame.
        while (self._key or self._read_header()) and len(self._buffer) >= self._length:
            yield self._take_frame()

    def _read_header(self) -> bool:
        """Take a header off the buffer if it is there; refuse it at the first byte that cannot be right."""
        buffer = self._buffer
        if len(buffer) < 2:
            return False
        opcode, fin, length = buffer[0] & 0x0F, buffer[0] >= 0x80, buffer[1] & 0x7F
        deflated = bool(buffer[0] & RSV1)
        self._check_start(buffer[0], opcode, fin)
        if buffer[1] < 0x80:
            raise ProtocolError(PROTOCOL_ERROR, "A client's frames must be masked.")
        size, least = _LONGER.get(length, (0, 0))
        if opcode in _CONTROL and size:
            raise ProtocolError(PROTOCOL_ERROR, "A control frame carries 125 bytes at most.")
        if len(buffer) < 2 + size:
            return False
        if size:
            length = int.from_bytes(buffer[2 : 2 + size], "big")
        self._check_length(opcode, length, least, self.max_deflated if deflated else self.max_payload)
        if len(buffer) < 6 + size:
            return False
        self._opcode, self._fin, self._deflated, self._length = opcode, fin, deflated, length
        self._key = bytes(buffer[2 + size : 6 + size])
        del buffer[: 6 + size]
        return True

    def _check_start(self, first: int, opcode: int, fin: bool) -> None:
        reserved = first & 0x70
        if reserved and not (reserved == RSV1 and self.max_deflated and opcode in (TEXT, BINARY)):
            raise ProtocolError(
                PROTOCOL_ERROR, "A reserved bit is set, and no extension was agreed on that asks for it."
            )
        if opcode in _CONTROL:
            if not fin:
                raise ProtocolError(PROTOCOL_ERROR, "A control frame cannot be fragmented.")
        elif opcode not in _DATA:
            raise ProtocolError(PROTOCOL_ERROR, f"The opcode {opcode} is reserved.")
        elif self._unfinished and opcode != CONTINUATION:
            raise ProtocolError(PROTOCOL_ERROR, "A message began before the last one had ended.")
        elif not self._unfinished and opcode == CONTINUATION:
            raise ProtocolError(PROTOCOL_ERROR, "There is no message to continue.")

    def _check_length(self, opcode: int, length: int, least: int, most: int) -> None:
        if length >> 63:
            raise ProtocolError(PROTOCOL_ERROR, "The first bit of a 64-bit length must be 0.")
        if length < least:
            raise ProtocolError(PROTOCOL_ERROR, "The length is not in its shortest form.")
        # Here and not once it came: a header of 14 bytes may announce 8 EiB.
        if opcode in _DATA and length > most:
            raise ProtocolError(TOO_LARGE, "The message is too large.")

    def _take_frame(self) -> Frame:
        payload = unmask(self._key, self._buffer[: self._length])
        del self._buffer[: self._length]
        self._key = b""
        if self._opcode in _DATA:
            self._unfinished = not self._fin
        return Frame(self._opcode, self._fin, payload, self._deflated)
