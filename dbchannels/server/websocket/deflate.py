"""permessage-deflate (RFC 7692), pure: what is agreed on in a handshake, and messages deflated and inflated.

Every message is compressed by itself: the server's answer always says ``server_no_context_takeover`` and
``client_no_context_takeover``, which it may whatever was offered (sections 7.1.1.1 and 7.1.1.2). So a socket keeps no
window of 32 KiB and more between two messages, the frame of a broadcast is made once for all its members, and the
size of one message tells nothing of another one (CRIME, BREACH).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache

from dbchannels.protocol import INVALID_DATA, TOO_LARGE
from dbchannels.server.http.headers import TOKEN
from dbchannels.server.http.messages import Refused
from dbchannels.server.websocket.frames import RSV1, ProtocolError, decode_frame, encode_frame

NAME = "permessage-deflate"
STEP = 65_536  # bytes that are inflated at once
LEAST = 128  # bytes of a message below which little is to be won
LEVEL = 3  # of zlib: 1 MiB of JSON takes 17 ms, in which nobody else is served; at 6 it takes 45, for a sixth less
_MEMORY = 8  # of zlib
_WIDEST, _NARROWEST = 15, 9  # bits of a window; zlib makes none of 8, which the RFC knows
_END = b"\x00\x00\xff\xff"  # what a sender leaves out at the end of a message (section 7.2.1)
_FINAL = b"\x03\x00"  # an empty last block: at its end zlib says whether all before it was whole
_PADDING = 16  # bytes that may follow a last block: the empty one that section 7.2.3.4 asks for has one

_PARAMETER = rf'[ \t]*;[ \t]*{TOKEN}(?:[ \t]*=[ \t]*(?:{TOKEN}|"{TOKEN}"))?'
_EXTENSION = re.compile(rf"[ \t]*({TOKEN})((?:{_PARAMETER})*)[ \t]*\Z")
_BITS = re.compile(r"(?:[89]|1[0-5])\Z")

Parameters = list[tuple[str, str | None]]


class Deflate:
    """What was agreed on, the same object for all sockets of the same parameters: it keeps nothing of any of them."""

    def __init__(self, window_bits: int, named: bool) -> None:
        self._window_bits = window_bits
        bits = f"; server_max_window_bits={window_bits}" if named else ""
        self.header = f"{NAME}; server_no_context_takeover; client_no_context_takeover{bits}"
        self._last = self._last_deflated = b""

    def frame(self, frame: bytes) -> bytes:
        """Return a whole message's frame compressed, or as it is when that is no smaller.

        A broadcast gives the same frame to one member after another, so the last one is remembered.
        """
        if frame is not self._last:
            self._last, self._last_deflated = frame, self._deflated(frame)
        return self._last_deflated

    def _deflated(self, frame: bytes) -> bytes:
        if len(frame) < LEAST:
            return frame
        opcode, payload = decode_frame(frame)
        # A window as wide as the message is enough, and costs less to make.
        bits = min(self._window_bits, max(_NARROWEST, len(payload).bit_length()))
        deflater = zlib.compressobj(LEVEL, zlib.DEFLATED, -bits, _MEMORY)
        content = deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)
        deflated = encode_frame(opcode | RSV1, content[: -len(_END)])
        return deflated if len(deflated) < len(frame) else frame


class Inflater:
    """Inflates one message of a client's, step by step, and never more than a byte beyond the limit."""

    __slots__ = ("_padding", "_room", "_stream", "_tail", "step")

    def __init__(self, limit: int) -> None:
        self._stream = zlib.decompressobj(-_WIDEST)
        self._room = limit  # bytes
        self._padding = b""  # what came behind a last block
        self._tail = b""  # of the frame under way, what is not inflated yet
        self.step = STEP  # bytes that may be inflated next; whoever counts them may lower it

    def __len__(self) -> int:
        """Return how many bytes wait to be inflated."""
        return len(self._tail)

    def inflate(self, data: bytes, ends: bool) -> Iterator[bytes]:
        """Yield what one frame brings, at most ``step`` bytes at a time; ``ends``: it is the message's last.

        Raises ProtocolError (1007, 1009).
        """
        data = data + _END + _FINAL if ends else data
        if self._stream.eof:
            self._check_padding(data)
            return
        self._tail = data
        del data  # what was inflated is not kept
        while not self._stream.eof:
            most = min(self.step, self._room + 1)
            try:
                # A bomb of a few kB inflates to a gigabyte: what is beyond the step stays where it is.
                content = self._stream.decompress(self._tail, most)
            except zlib.error:
                raise _broken() from None
            self._tail = self._stream.unconsumed_tail
            self._room -= len(content)
            if self._room < 0:
                raise ProtocolError(TOO_LARGE, "The message is too large.")
            yield content
            if len(content) < most:  # a step that was filled may have left some inside of zlib
                break
        if self._stream.unused_data:
            self._check_padding(self._stream.unused_data)
        elif ends and not self._stream.eof:
            raise _broken()

    def _check_padding(self, data: bytes) -> None:
        """A sender may end its message by a last block, and then has nothing more to say but an empty one."""
        self._padding += data
        if len(self._padding) > _PADDING:
            raise _broken()
        try:
            rest = zlib.decompressobj(-_WIDEST).decompress(self._padding, 1)
        except zlib.error:
            rest = b"?"
        if rest:
            raise _broken()


def _broken() -> ProtocolError:
    return ProtocolError(INVALID_DATA, "A compressed message cannot be inflated.")


def negotiate(headers: Iterable[tuple[bytes, bytes]]) -> Deflate | None:
    """Return what is agreed on: the first offer of permessage-deflate that can be met (RFC 7692 section 5.1).

    None: there is no such offer. Raises Refused, with a 400, for a Sec-WebSocket-Extensions header that is no list
    of extensions.
    """
    for name, parameters in _offers(headers):
        if name == NAME and (agreed := _agree(parameters)) is not None:
            return agreed
    return None


def _offers(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[str, Parameters]]:
    for name, value in headers:
        if name == b"sec-websocket-extensions":
            # A value in quotes is a token too (RFC 6455 section 9.1), so no comma is inside of one.
            for text in value.decode("latin-1").split(","):
                if text.strip(" \t"):
                    yield _offer(text)


def _offer(text: str) -> tuple[str, Parameters]:
    found = _EXTENSION.match(text)
    if found is None:
        raise Refused(400, "The Sec-WebSocket-Extensions header is no list of extensions.")
    parameters = [part.partition("=") for part in found[2].split(";")[1:]]
    return found[1], [(name.strip(" \t"), value.strip(' \t"') or None) for name, _, value in parameters]


def _agree(parameters: Parameters) -> Deflate | None:
    """Return what to agree on, or None for an offer that must be declined (RFC 7692 section 7)."""
    bits = None
    for name, value in parameters:
        has_bits = value is not None and _BITS.match(value) is not None
        if name == "server_max_window_bits" and has_bits:
            bits = int(value or 0)
        elif name == "client_max_window_bits" and (value is None or has_bits):
            continue  # whatever the client's window, ours is wide enough to read it
        elif name not in ("server_no_context_takeover", "client_no_context_takeover") or value is not None:
            return None
    if len({name for name, _ in parameters}) < len(parameters) or (bits or _WIDEST) < _NARROWEST:
        return None
    return _deflate(bits or _WIDEST, bits is not None)


@lru_cache
def _deflate(window_bits: int, named: bool) -> Deflate:
    return Deflate(window_bits, named)
