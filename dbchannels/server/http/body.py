"""The body of a request, read strictly (RFC 9112 sections 6 and 7), pure: bytes in, content or Refused out."""

from __future__ import annotations

import re
from typing import Literal

from dbchannels.server.http.headers import TOKEN
from dbchannels.server.http.messages import Refused
from dbchannels.server.http.parser import read_field

LONGEST_LINE = 1_024  # bytes of a chunk's first line, extensions included, and of a trailer's line
EXTRAS = 16_384  # bytes of extensions and trailers in one body

# RFC 9112 section 7.1.1: extensions are names with or without a value, a token or a quoted text.
_NAME = TOKEN.encode()
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_CHUNK = re.compile(
    rb"([0-9A-Fa-f]{1,15})((?:[ \t]*;[ \t]*"
    + _NAME
    + rb"(?:[ \t]*=[ \t]*(?:"
    + _NAME
    + rb"|"
    + _QUOTED
    + rb"))?)*)\Z"
)
# No trailer may say where the body ends, or what it is for (RFC 9110 section 6.5.1).
_NO_TRAILERS = frozenset({b"content-length", b"transfer-encoding", b"host"})

State = Literal["size", "content", "content end", "trailers", "whole", "ended"]


def too_large(limit: int) -> Refused:
    """Return the answer to a body above the limit, in bytes."""
    return Refused(413, f"The request's body is larger than this server takes, {limit} bytes (--max-body).")


class BodyReader:
    """Give it what the client sends; ``feed`` returns content, and ``rest`` is what follows the body's end."""

    def __init__(self, length: int | None, limit: int) -> None:
        """``length`` in bytes, None for a body in chunks; raises Refused when it is above the limit, in bytes."""
        if length is not None and length > limit:
            raise too_large(limit)
        self._left = length or 0  # bytes of the body, or of the chunk
        self._state: State = "size" if length is None else "whole" if length else "ended"
        self._limit, self._room = limit, limit  # bytes of content in all, and what may still come
        self._buffer = bytearray()
        self._extras = 0

    @property
    def ended(self) -> bool:
        """Whether the body is whole."""
        return self._state == "ended"

    @property
    def rest(self) -> bytes:
        """What came behind the body."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> bytes:
        """Return the content in what came. Raises Refused with the answer; the connection is over then."""
        self._buffer += data
        content = bytearray()
        position = 0
        while not self.ended and (used := self._step(position, content)) is not None:
            position += used
        del self._buffer[:position]
        return bytes(content)

    def _step(self, position: int, content: bytearray) -> int | None:
        """Take what can be taken at a position; return how many bytes it was, None when more must come."""
        if self._state in ("content", "whole"):
            return self._take_content(position, content)
        if self._state == "content end":
            return self._take_content_end(position)
        end = self._buffer.find(b"\n", position, position + LONGEST_LINE)
        if end < 0:
            if len(self._buffer) - position >= LONGEST_LINE:
                raise Refused(400, f"A line between the chunks is longer than {LONGEST_LINE} bytes.")
            return None
        if end == position or self._buffer[end - 1] != 13:
            raise Refused(400, "End each line between the chunks with CR and LF.")
        line = bytes(self._buffer[position : end - 1])
        if self._state == "size":
            self._take_size(line)
        else:
            self._take_trailer(line)
        return end + 1 - position

    def _take_content(self, position: int, content: bytearray) -> int | None:
        size = min(self._left, len(self._buffer) - position)
        if not size:
            return None
        content += memoryview(self._buffer)[position : position + size]
        self._left -= size
        if not self._left:
            self._state = "ended" if self._state == "whole" else "content end"
        return size

    def _take_content_end(self, position: int) -> int | None:
        end = self._buffer[position : position + 2]
        if not b"\r\n".startswith(end):
            raise Refused(400, "A chunk is longer than it says.")
        if len(end) < 2:
            return None
        self._state = "size"
        return 2

    def _take_size(self, line: bytes) -> None:
        found = _CHUNK.match(line)
        if found is None:
            raise Refused(400, "A chunk begins with its size in hexadecimal digits.")
        size = int(found[1], 16)
        self._count_extra(len(found[2]))
        self._room -= size
        if self._room < 0:
            raise too_large(self._limit)
        self._left = size
        self._state = "content" if size else "trailers"

    def _take_trailer(self, line: bytes) -> None:
        """Trailers are checked and dropped, as RFC 9112 section 7.1.2 allows."""
        if not line:
            self._state = "ended"
            return
        self._count_extra(len(line))
        if read_field(line)[0] in _NO_TRAILERS:
            raise Refused(400, "A trailer may not say where the body ends.")

    def _count_extra(self, size: int) -> None:
        self._extras += size
        if self._extras > EXTRAS:
            raise Refused(431, f"The extensions and trailers of a body may have {EXTRAS} bytes.")
