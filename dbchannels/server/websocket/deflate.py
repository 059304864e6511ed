"""permessage-deflate (RFC 7692): the negotiation in a handshake, and the compression of messages to clients.

Every message is compressed by itself: the server's response always has ``server_no_context_takeover`` and
``client_no_context_takeover``, as it may whatever the offer (sections 7.1.1.1 and 7.1.1.2). So a socket keeps no window
of 32 KiB or more between two messages, a broadcast is compressed once for all members, and the size of a message
reveals nothing about another one (CRIME, BREACH). ``protocol.PartialMessage`` inflates what clients send.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache

from dbchannels.server.http.headers import TOKEN, RawHeaders, items
from dbchannels.server.http.messages import Refused
from dbchannels.server.websocket.protocol import DEFLATE_END, RSV1, decode_frame, encode_frame

NAME = "permessage-deflate"
LEAST = 128  # bytes of a message below which compression saves too little
LEVEL = 3  # of zlib: 1 MiB of JSON takes 17 ms, in which no other client is served; level 6 takes 45 and saves a sixth
_WIDEST, _NARROWEST = 15, 9  # bits of a window; the RFC allows 8 too, zlib does not

_PARAMETER = rf'[ \t]*;[ \t]*{TOKEN}(?:[ \t]*=[ \t]*(?:{TOKEN}|"{TOKEN}"))?'
_EXTENSION = re.compile(rf"({TOKEN})((?:{_PARAMETER})*)")
_BITS = re.compile(r"(?:[89]|1[0-5])\Z")

Parameters = list[tuple[str, str | None]]


class Deflate:
    """What was agreed on: one object for all sockets with the same parameters, as it keeps no state of a socket."""

    def __init__(self, window_bits: int | None) -> None:
        """``window_bits``: the client's limit, if it set one."""
        self._window_bits = window_bits or _WIDEST
        bits = f"; server_max_window_bits={window_bits}" if window_bits else ""
        self.header = f"{NAME}; server_no_context_takeover; client_no_context_takeover{bits}"
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
            bits = min(self._window_bits, max(_NARROWEST, len(payload).bit_length()))
            deflater = zlib.compressobj(LEVEL, zlib.DEFLATED, -bits)
            content = deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)
            deflated = min(frame, encode_frame(opcode | RSV1, content[: -len(DEFLATE_END)]), key=len)
        self._last, self._last_deflated = frame, deflated
        return deflated


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
        if found[1] == NAME and (agreed := _agree(parameters)) is not None:
            return agreed
    return None


def _agree(parameters: Parameters) -> Deflate | None:
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
    if len({name for name, _ in parameters}) < len(parameters) or (bits or _WIDEST) < _NARROWEST:
        return None
    return _deflate(bits)


_deflate = lru_cache(Deflate)
