"""A message of a client's while its frames come: UTF-8 is checked, and what is compressed inflated, step by step."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from dbchannels.protocol import INVALID_DATA
from dbchannels.server.websocket.deflate import Inflater
from dbchannels.server.websocket.frames import TEXT, ProtocolError

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Assembly:
    """Made for a message's first frame; ``add`` the payload of that one and all others, then take the ``content``.

    It is kept as bytes: as a str one emoji would make each letter of a text take four.
    """

    __slots__ = ("_decoder", "content", "fragments", "inflater")

    def __init__(self, opcode: int, deflated: bool, limit: int) -> None:
        """``limit``: bytes of the message, inflated; a plain one is held to it by who reads the frames."""
        self._decoder = _Utf8Decoder() if opcode == TEXT else None  # None: a binary message
        self.inflater = Inflater(limit) if deflated else None
        self.content = bytearray()
        self.fragments = 0

    def __len__(self) -> int:
        """Return how many bytes of memory are held."""
        return self.content.__alloc__() + (0 if self.inflater is None else len(self.inflater))

    @property
    def is_text(self) -> bool:
        """Whether the message is a text."""
        return self._decoder is not None

    def add(self, payload: bytes, fin: bool) -> Iterator[None]:
        """Take the payload of the next frame, and yield after each step. Raises ProtocolError."""
        if self.inflater is None:
            self._append(payload, fin)
        else:
            inflated = self.inflater.inflate(payload, fin)
            del payload  # it is freed as it is inflated
            for piece in inflated:
                self._append(piece, False)
                yield
            self._append(b"", fin)

    def _append(self, data: bytes, fin: bool) -> None:
        if self._decoder is not None:
            try:
                self._decoder.decode(data, fin)
            except UnicodeDecodeError:
                raise ProtocolError(INVALID_DATA, "A text message is not UTF-8.") from None
        self.content += data
