"""A message of a client's while its frames come: UTF-8 is checked, and what is compressed inflated, frame by frame."""

from __future__ import annotations

import codecs
from typing import Any

from dbchannels.interface.deflate import Inflater
from dbchannels.interface.frames import TEXT, Frame, ProtocolError

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Assembly:
    """Made for a message's first frame; ``add`` that one and all others, then the message is ``whole``."""

    __slots__ = ("_decoder", "_inflater", "_parts", "fragments")

    def __init__(self, first: Frame, limit: int) -> None:
        """``limit``: bytes of the message, inflated; a plain one is held to it by who reads the frames."""
        self._decoder = _Utf8Decoder() if first.opcode == TEXT else None  # None: a binary message
        self._inflater = Inflater(limit) if first.deflated else None
        self._parts: list[Any] = []  # str if there is a decoder, else bytes
        self.fragments = 0

    def add(self, frame: Frame) -> None:
        """Take the next frame. Raises ProtocolError."""
        self.fragments += 1
        payload = (
            frame.payload if self._inflater is None else self._inflater.inflate(frame.payload, frame.fin)
        )
        if self._decoder is None:
            self._parts.append(payload)
            return
        try:
            self._parts.append(self._decoder.decode(payload, frame.fin))
        except UnicodeDecodeError:
            raise ProtocolError(1007, "A text message is not UTF-8.") from None

    def whole(self) -> str | bytes:
        """Return the message, once its last frame was added."""
        return b"".join(self._parts) if self._decoder is None else "".join(self._parts)
