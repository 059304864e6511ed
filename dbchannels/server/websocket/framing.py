"""The WebSocket protocol after the handshake (RFC 6455 sections 5 to 8): bytes in, messages and bytes out.

``WebSocket`` is the server's side of one connection without its socket. ``receive`` takes the client's bytes and yields
its messages; ``take_output`` returns the control frames to write. ``FrameReader`` cuts the bytes into frames,
``PartialMessage`` collects the frames of a message and inflates them, ``Deflate`` compresses messages to clients.
Nothing here knows sockets, clocks or channels.

The sans-I/O protocol of the ``websockets`` package was measured for this place and not adopted. A frame of 20 bytes
takes it 40 % longer (one of 100 kB half as long), and an idle connection 0.9 kB more. It accepts a length that is not
in its shortest form, closes with 1009 where the RFC's 1002 is due for a length of 2**63, answers a Close within a
message by 1002, and reads the payload of a frame before it refuses reserved bits or a control frame in the header.
"""

from __future__ import annotations

import codecs
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from dbchannels.protocol import (
    INVALID_DATA,
    NO_CODE,
    NORMAL_CLOSURE,
    POLICY_VIOLATION,
    PROTOCOL_ERROR,
    TOO_LARGE,
    is_close_code,
)

CONTINUATION, TEXT, BINARY = 0x0, 0x1, 0x2
CLOSE, PING, PONG = 0x8, 0x9, 0xA
_DATA, _CONTROL = frozenset((CONTINUATION, TEXT, BINARY)), frozenset((CLOSE, PING, PONG))

RSV1 = 0x40  # on the first frame of a message: the message is compressed (RFC 7692 section 6)
MAX_CONTROL_PAYLOAD = 125  # bytes (RFC 6455 section 5.5)
MAX_PONGS = 16  # unsent: of more pings than that the latest are answered, which RFC 6455 section 5.5.3 allows
# The value of the 7-bit length: how many bytes of real length follow, and the least length that needs them.
_LONGER = {126: (2, 126), 127: (8, 65536)}

DEFLATE = "permessage-deflate"
LEAST = 128  # bytes of a message below which compression saves too little
LEVEL = 3  # of zlib: 1 MiB of JSON takes 17 ms, in which no other client is served; level 6 takes 45 and saves a sixth
WIDEST, NARROWEST = 15, 9  # bits of a window; the RFC allows 8 too, zlib does not
STEP = 65_536  # bytes that are inflated at once
DEFLATE_END = b"\x00\x00\xff\xff"  # what a sender leaves out at the end of a message (RFC 7692 section 7.2.1)
_FINAL_BLOCK = b"\x03\x00"  # an empty last block: zlib reports its end only if all before it was complete
OBJECTS = 512  # bytes of memory that a message takes besides its content while it is incomplete
_MAX_PADDING = 16  # bytes that may follow a last block: the empty block of RFC 7692 section 7.2.3.4 has one

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class ProtocolError(Exception):
    """The client broke the protocol: close with ``code`` (1002, 1007, 1008, 1009) and ``reason``, one sentence."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


def encode_frame(opcode: int, payload: bytes) -> bytes:
    """Return a whole message, or a control message, as the server sends it: one frame, unmasked."""
    first, size = 0x80 | opcode, len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return struct.pack("!BBH", first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload


def decode_frame(frame: bytes) -> tuple[int, bytes]:
    """Return (opcode, payload) of a frame that ``encode_frame`` made."""
    extra, _ = _LONGER.get(frame[1], (0, 0))
    return frame[0] & 0x0F, frame[2 + extra :]


class Deflate:
    """permessage-deflate as it was agreed on: one object for all sockets with the same parameters.

    Every message is compressed by itself: the server's response always has ``server_no_context_takeover`` and
    ``client_no_context_takeover``, as it may whatever the offer (RFC 7692 sections 7.1.1.1 and 7.1.1.2). So a socket
    keeps no window of 32 KiB or more between two messages, a broadcast is compressed once for all members, and the size
    of a message reveals nothing about another one (CRIME, BREACH).
    """

    def __init__(self, window_bits: int | None) -> None:
        """``window_bits``: the client's limit, if it set one."""
        self._window_bits = window_bits or WIDEST
        bits = f"; server_max_window_bits={window_bits}" if window_bits else ""
        self.header = f"{DEFLATE}; server_no_context_takeover; client_no_context_takeover{bits}"
        self._last = self._last_deflated = b""

    def frame(self, frame: bytes) -> bytes:
        """Return the frame of a whole message compressed, or unchanged if that is no smaller.

        A broadcast passes the same frame for each member, so the last result is remembered.
        """
        if frame is self._last:
            return self._last_deflated
        deflated = frame
        if len(frame) >= LEAST:
            opcode, payload = decode_frame(frame)
            # A window as wide as the message is enough, and cheaper to set up.
            bits = min(self._window_bits, max(NARROWEST, len(payload).bit_length()))
            deflater = zlib.compressobj(LEVEL, zlib.DEFLATED, -bits)
            content = deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)
            deflated = min(frame, encode_frame(opcode | RSV1, content[: -len(DEFLATE_END)]), key=len)
        self._last, self._last_deflated = frame, deflated
        return deflated


def cut_reason(reason: str) -> str:
    """Return as much of a close reason as fits into its frame, 123 bytes."""
    # Half a character is not UTF-8, and the client would report an error instead of the reason.
    return reason.encode("utf-8", "replace")[: MAX_CONTROL_PAYLOAD - 2].decode("utf-8", "ignore")


def encode_close(code: int, reason: str = "") -> bytes:
    """Return a Close frame; its reason is cut to 123 bytes."""
    return encode_frame(CLOSE, code.to_bytes(2, "big") + cut_reason(reason).encode("utf-8"))


def decode_close(payload: bytes) -> tuple[int, str]:
    """Return the code and reason of a Close, 1005 if it has none; raise ProtocolError if it is not valid."""
    if not payload:
        return NO_CODE, ""
    code = int.from_bytes(payload[:2], "big")
    if not is_close_code(code):  # a single byte is a number below 256, so it is refused as well
        raise ProtocolError(PROTOCOL_ERROR, "The close code is not valid.")
    try:
        return code, payload[2:].decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError(INVALID_DATA, "The reason of the close is not UTF-8.") from None


def unmask(key: bytes, payload: bytes | bytearray) -> bytes:
    """Return ``payload`` XOR the four bytes of ``key`` repeated (RFC 6455 section 5.3); masks as well."""
    # As two big integers, 1 MiB takes 8 ms. A loop over the bytes takes 150, in which no other client is served.
    size = len(payload)
    mask = (bytes(key) * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")).to_bytes(size, "little")


class Frame(NamedTuple):
    """One frame from the client, unmasked."""

    opcode: int
    fin: bool  # the last frame of its message
    payload: bytes
    compressed: bool = False  # the first frame of a compressed message


class FrameReader:
    """Cuts a client's bytes into frames, and raises ProtocolError at the first byte that cannot be right.

    After a ProtocolError the reader must not be used.
    """

    def __init__(self, max_payload: int) -> None:
        self.max_payload = max_payload  # bytes of the next data frame; may be changed between frames
        self.max_compressed = 0  # bytes of the first frame of a compressed message; 0: no compression
        self.buffer = bytearray()  # what came from the client and is not yet part of a frame
        self._in_message = False  # the last data frame had no FIN, so a continuation must follow
        self.key = b""  # of the frame whose payload is awaited; empty while a header is awaited
        # Valid while key is not empty.
        self._opcode, self._fin, self._compressed, self._length = 0, False, False, 0

    def next_frame(self) -> Frame | None:
        """Return the next frame, or None if not all of it has come."""
        # Nothing is read twice, and a bytearray cuts its front without moving the rest: bytes that trickle in one at
        # a time cost the same each, however long the frame.
        if not (self.key or self._read_header()) or len(self.buffer) < self._length:
            return None
        payload = unmask(self.key, self.buffer[: self._length])
        del self.buffer[: self._length]
        self.key = b""
        if self._opcode in _DATA:
            self._in_message = not self._fin
        return Frame(self._opcode, self._fin, payload, self._compressed)

    def _read_header(self) -> bool:
        """Take a header off the buffer if all of it has come."""
        buffer = self.buffer
        if len(buffer) < 2:
            return False
        fin, reserved, opcode, length = buffer[0] >= 0x80, buffer[0] & 0x70, buffer[0] & 0xF, buffer[1] & 0x7F
        if reserved and not (reserved == RSV1 and self.max_compressed and opcode in (TEXT, BINARY)):
            raise ProtocolError(PROTOCOL_ERROR, "A reserved bit is set, and no agreed extension uses it.")
        if opcode in _CONTROL and not fin:
            raise ProtocolError(PROTOCOL_ERROR, "A control frame cannot be fragmented.")
        if opcode not in _CONTROL and opcode not in _DATA:
            raise ProtocolError(PROTOCOL_ERROR, f"The opcode {opcode} is reserved.")
        if self._in_message and opcode in (TEXT, BINARY):
            raise ProtocolError(PROTOCOL_ERROR, "A message began before the last one had ended.")
        if not self._in_message and opcode == CONTINUATION:
            raise ProtocolError(PROTOCOL_ERROR, "There is no message to continue.")
        if buffer[1] < 0x80:
            raise ProtocolError(PROTOCOL_ERROR, "A client's frames must be masked.")
        size, least = _LONGER.get(length, (0, 0))
        if opcode in _CONTROL and size:
            raise ProtocolError(PROTOCOL_ERROR, "A control frame carries 125 bytes at most.")
        if len(buffer) < 2 + size:
            return False
        if size:
            length = int.from_bytes(buffer[2 : 2 + size], "big")
        if length >> 63:
            raise ProtocolError(PROTOCOL_ERROR, "The first bit of a 64-bit length must be 0.")
        if length < least:
            raise ProtocolError(PROTOCOL_ERROR, "The length is not in its shortest form.")
        # Before the payload comes: a header of 14 bytes may announce 8 EiB.
        if opcode in _DATA and length > (self.max_compressed if reserved else self.max_payload):
            raise ProtocolError(TOO_LARGE, "The message is too large.")
        if len(buffer) < 6 + size:
            return False
        self._opcode, self._fin, self._compressed, self._length = opcode, fin, bool(reserved), length
        self.key = bytes(buffer[2 + size : 6 + size])
        del buffer[: 6 + size]
        return True


class PartialMessage:
    """A message whose last frame has not come. UTF-8 is checked, and compressed data inflated, as the frames come.

    The content is kept as bytes: as a str, one emoji would make each letter take four bytes.
    """

    def __init__(self, opcode: int, compressed: bool, limit: int) -> None:
        """``limit``: bytes of a compressed message, inflated; the FrameReader limits other messages."""
        self.is_text = opcode == TEXT
        self._decoder = _Utf8Decoder()
        # None: the message is not compressed.
        self.inflater = zlib.decompressobj(-zlib.MAX_WBITS) if compressed else None
        self._room = limit
        self._tail = b""  # what is not yet inflated of the last frame
        self.step = STEP  # bytes that may be inflated next; may be lowered between steps
        self.content = bytearray()
        self.fragments = 0

    def __len__(self) -> int:
        """Return the bytes of memory that the message takes, which are never 0: its frames may be empty."""
        return OBJECTS + self.content.__alloc__() + len(self._tail)

    def add(self, payload: bytes, fin: bool) -> Iterator[None]:
        """Add the payload of the next frame; yield after each step of inflating.

        Raises ProtocolError, and UnicodeDecodeError for a text that is not UTF-8.
        """
        if self.inflater is None:
            self._append(payload, fin)
            return
        self._tail = payload + DEFLATE_END + _FINAL_BLOCK if fin else payload
        del payload  # freed as it is inflated
        try:
            while True:
                size = min(self.step, self._room + 1)
                # A bomb of a few kB inflates to a gigabyte: what is beyond the step stays compressed.
                content = self.inflater.decompress(self._tail, size)
                self._tail = self.inflater.unconsumed_tail
                self._room -= len(content)
                if self._room < 0:
                    raise ProtocolError(TOO_LARGE, "The message is too large.")
                self._append(content, False)
                yield
                if self.inflater.eof or len(content) < size:  # a full step may have left some inside zlib
                    break
            is_broken = fin and not self.inflater.eof
            if padding := self.inflater.unused_data:  # after the last block only an empty block is allowed
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(padding, 1)
                is_broken = len(padding) > _MAX_PADDING or content != b""
        except zlib.error:
            is_broken = True
        if is_broken:
            raise ProtocolError(INVALID_DATA, "A compressed message cannot be inflated.")
        self._append(b"", fin)

    def _append(self, data: bytes, fin: bool) -> None:
        if self.is_text:
            self._decoder.decode(data, fin)
        self.content += data


class Closed(NamedTuple):
    """The connection is over, always the last event: write the output, then close the socket.

    ``code`` is for ``websocket.disconnect``: the client's, 1005 if it gave none, or the error code with which the
    server failed the connection.
    """

    code: int
    reason: str = ""
    abrupt: bool = False  # without a Close from the client: its messages that wait are not consumed


Event = str | bytes | Closed  # a text message, a binary message, the end


class WebSocket:
    """The server's side of one accepted connection. Nothing here raises for what a client sends."""

    def __init__(
        self, max_message_size: int, max_fragments: int, max_pings: int, compression: bool = False
    ) -> None:
        self._max_message_size, self._max_fragments = max_message_size, max_fragments  # bytes inflated
        self.pings_left = (
            max_pings  # from the client, until the caller sets it anew; one more fails with 1008
        )
        # "open": data goes both ways. "closing": the server's Close is out, or in the output, and the client's is
        # awaited. "closed": Closed was returned; the output is the last to be written.
        self.state = "open"
        self.failed = False  # closed because of what the client sent, of which more may come
        self._reader = FrameReader(max_message_size)
        if compression:  # data that cannot be compressed grows, by how much depends on the client
            self._reader.max_compressed = max_message_size + max_message_size // 8 + 1024
        self.partial: PartialMessage | None = None  # between a message's first frame and its last, while open
        # The output: the payloads of at most MAX_PONGS pongs; and frames, the server's pings, the Close as the last.
        self.pongs: list[bytes] = []
        self.control: list[bytes] = []

    def receive(self, data: bytes) -> Iterator[Event | None]:
        """Take bytes of the client and yield each event that they complete; call ``take_output`` afterwards.

        Each step reads one frame or inflates one piece of a compressed one, and yields None if no event is complete.
        Exhaust the iterator before the next call.
        """
        if self.state == "closed":
            return
        self._reader.buffer += data
        del data
        try:
            while (frame := self._reader.next_frame()) is not None:
                opcode, fin, payload, compressed = frame
                del frame
                if opcode in _CONTROL:
                    yield self._receive_control(opcode, payload)
                    if self.state == "closed":  # what follows a Close is ignored (section 5.5.1)
                        break
                elif self.state != "open":
                    yield None
                elif fin and self.partial is None and not compressed:
                    yield payload.decode() if opcode == TEXT else payload
                else:
                    events = self._receive_fragment(opcode, fin, payload, compressed)
                    del payload  # a compressed one is freed as it is inflated
                    yield from events
        except ProtocolError as error:
            yield self.fail(error.code, error.reason)
        except UnicodeDecodeError:
            yield self.fail(INVALID_DATA, "A text message is not UTF-8.")

    def receive_end(self) -> None:
        """Take the end of the stream, whether a Close came before it or not."""
        self._forget("closed")

    def take_output(self) -> bytes:
        """Return the control frames to write now, and forget them."""
        pongs = [encode_frame(PONG, payload) for payload in self.pongs]
        output = b"".join(pongs + self.control)
        self.pongs, self.control = [], []
        return output

    def ping(self) -> None:
        """Put a ping in the output if the connection is open."""
        if self.state == "open":
            self.control.append(encode_frame(PING, b""))

    def close(self, code: int = NORMAL_CLOSURE, reason: str = "") -> None:
        """Begin to close if the connection is open; what the client sends until its own Close is dropped.

        A ``reason`` of more than 123 bytes is cut.
        """
        if self.state == "open":
            self.control.append(encode_close(code, reason))
            self._forget("closing")
            self._reader.max_payload = self._max_message_size

    def fail(self, code: int, reason: str) -> Closed:
        """Close at once because of what the client sent: nothing more of it is read."""
        if self.state == "open":  # a Close that was sent before must stay the last frame
            self.control.append(encode_close(code, reason))
        self.failed = True
        self._forget("closed")
        return Closed(code, reason, abrupt=True)

    @property
    def held(self) -> int:
        """Return the bytes of memory that incomplete frames and messages take; 0: there is none."""
        buffer = self._reader.buffer
        held = len(self._reader.key) + (buffer.__alloc__() if buffer else 0)
        return held if self.partial is None else held + len(self.partial)

    def _forget(self, state: str) -> None:
        self.state, self.partial = state, None
        if state == "closed":
            self._reader.buffer.clear()
            self._reader.key = b""

    def _receive_fragment(
        self, opcode: int, fin: bool, payload: bytes, compressed: bool
    ) -> Iterator[Event | None]:
        partial, size = self.partial, len(payload)
        if partial is None:
            partial = self.partial = PartialMessage(opcode, compressed, self._max_message_size)
            if compressed:
                self._reader.max_payload = self._reader.max_compressed
        partial.fragments += 1
        # 1009 and not 1008: too many parts are too big to handle, and the client's cure is the same.
        if partial.fragments > self._max_fragments:
            raise ProtocolError(TOO_LARGE, "The message has too many fragments.")
        steps = partial.add(payload, fin)
        del payload
        for _ in steps:
            yield None
            if self.partial is not partial:  # closed meanwhile
                return
        if fin:
            self.partial, self._reader.max_payload = None, self._max_message_size
            content, is_text = bytes(partial.content), partial.is_text
            del partial, steps  # whoever takes the event makes a copy of its own
            yield content.decode() if is_text else content
        else:
            self._reader.max_payload -= size
            yield None

    def _receive_control(self, opcode: int, payload: bytes) -> Closed | None:
        if opcode == CLOSE:
            code, reason = decode_close(payload)
            if self.state == "open":
                self.control.append(encode_frame(CLOSE, payload))
            self._forget("closed")
            return Closed(code, reason)
        if opcode == PING:
            self.pings_left -= 1
            if self.pings_left < 0:  # each is answered, so a flood of them is work for nothing
                raise ProtocolError(POLICY_VIOLATION, "There are too many pings.")
            self.pongs.append(payload)
            del self.pongs[:-MAX_PONGS]
        return None
