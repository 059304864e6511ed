"""The head of a request, read strictly (RFC 9112 sections 2 to 7), pure: bytes in, a RequestHead or Refused out.

Whatever two programs could read in two ways is refused: what stands in front of this server may have read it in the
other one, and a request hidden in another's body is how such differences are used.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from dbchannels.server.http.headers import (
    TOKEN,
    RawHeaders,
    is_token_bytes,
    is_value_bytes,
    items,
    values,
    words,
)
from dbchannels.server.http.messages import Refused

LONGEST_LENGTH = 18  # digits of a Content-Length: what 64 bits hold

_METHOD = re.compile(rb"[A-Z][A-Z0-9_-]{0,31}\Z")
_TARGET = re.compile(rb"[!-\"$-~]+\Z")  # visible, ASCII, no fragment
_ABSOLUTE = re.compile(rb"(?i)https?://([^/?]*)([/?].*)?\Z")
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]\Z")
# RFC 3986 section 3.2.2 without user information; empty where the target has no authority (RFC 9110 section 7.2).
_HOST = re.compile(
    rb"(?:(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)(?::[0-9]{0,5})?)?\Z"
)


class HeadLimits(NamedTuple):
    """What a head may take; sizes in bytes with the line ends."""

    line: int = 8_192  # of the request line: method, address, version
    size: int = 32_768  # of all header lines together
    lines: int = 100  # header lines


class RequestHead(NamedTuple):
    """A request as its client sent it."""

    method: str
    target: str  # "/path?query" or "*", in latin-1
    version: str  # "1.0" or "1.1"
    headers: RawHeaders  # names in lower case, order and duplicates kept
    length: int | None  # of the body, in bytes; None: it comes in chunks
    keep_alive: bool
    expects_continue: bool  # the client waits for a 100 before it sends the body


class HeadReader:
    """Give it what the client sends; ``feed`` returns the head once it is whole, and ``rest`` is what follows it.

    Each line is judged when it has come, so however the bytes are cut, the first fault decides the answer.
    """

    def __init__(self, limits: HeadLimits) -> None:
        self._limits = limits
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer that hold no line end
        self._line: tuple[str, str, str] | None = None  # method, target, version
        self._authority: bytes | None = None  # of a target that names its host
        self._skipped = False  # the one empty line that may come first
        self._headers: list[tuple[bytes, bytes]] = []
        self._left = limits.size

    @property
    def begun(self) -> bool:
        """Whether anything has come."""
        return bool(self._buffer or self._line or self._skipped)

    @property
    def request_line(self) -> str:
        """What there is of it, for the log."""
        if self._line is not None:
            return "{} {} HTTP/{}".format(*self._line)
        # With line ends of another kind all headers may be here, and what they hold is for no log.
        return re.split(rb"[\r\n]", self._buffer[: self._limits.line], maxsplit=1)[0].decode("latin-1")

    @property
    def rest(self) -> bytes:
        """What came behind the head."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> RequestHead | None:
        """Return the head, or None while more must come. Raises Refused with the answer; the connection is over."""
        self._buffer += data
        while (line := self._take_line()) is not None:
            if self._line is None:
                self._take_request_line(line)
            elif line:
                self._take_header(line)
            else:
                return self._head(*self._line)
        return None

    def _take_line(self) -> bytes | None:
        """Return the next line without its end. It leaves the buffer once it was judged, so the log can show it."""
        in_headers = self._line is not None
        room = self._left if in_headers else self._limits.line
        end = self._buffer.find(b"\n", self._searched, room)
        if end < 0:
            self._searched = min(len(self._buffer), room)
            if len(self._buffer) >= room:
                raise _too_large(self._limits) if in_headers else _too_long(self._limits)
            return None
        if end == 0 or self._buffer[end - 1] != 13:
            raise Refused(400, "End each line of the head with CR and LF.")
        line = bytes(self._buffer[: end - 1])
        if not in_headers and line:
            self._check_request_line(line)
        del self._buffer[: end + 1]
        self._searched = 0
        if in_headers:
            self._left -= end + 1
        return line

    def _check_request_line(self, line: bytes) -> None:
        parts = line.split(b" ")
        if len(parts) != 3:
            raise Refused(
                400, "The first line is the method, the address and the version, with one space between."
            )
        method, target, version = parts
        if not is_token_bytes(method):
            raise Refused(400, "The method is no token.")
        if not _VERSION.match(version):
            raise Refused(400, "The version is written HTTP/1.1.")
        if version not in (b"HTTP/1.1", b"HTTP/1.0"):
            raise Refused(505, "This server speaks HTTP/1.1 and HTTP/1.0.")
        if not _METHOD.match(method) or method == b"CONNECT":
            raise Refused(501, "This server does not know the method.")
        if not _TARGET.match(target):
            raise Refused(
                400, "The address is visible ASCII without a fragment: encode the rest by percent signs."
            )

    def _take_request_line(self, line: bytes) -> None:
        if not line:
            if self._skipped:
                raise Refused(400, "Send a request, not empty lines.")
            self._skipped = True
            return
        method, target, version = line.split(b" ")
        absolute = _ABSOLUTE.match(target)
        if absolute:
            self._authority = absolute[1]
            path = absolute[2] or b"/"
            target = path if path.startswith(b"/") else b"/" + path
        if not target.startswith(b"/") and (target, method) != (b"*", b"OPTIONS"):
            raise Refused(400, "The address is a path that begins with a slash, or a whole http address.")
        self._line = method.decode("ascii"), target.decode("ascii"), version[5:].decode("ascii")

    def _take_header(self, line: bytes) -> None:
        if len(self._headers) == self._limits.lines:
            raise _too_large(self._limits)
        self._headers.append(read_field(line))

    def _head(self, method: str, target: str, version: str) -> RequestHead:
        headers = self._with_host(version)
        length = _length(headers, version)
        connection = words(headers, b"connection")
        wanted = b"keep-alive" in connection or version == "1.1"
        expects = words(headers, b"expect") if version == "1.1" else []
        if any(one != b"100-continue" for one in expects):
            raise Refused(417, "This server knows the expectation 100-continue alone.")
        keep_alive = wanted and b"close" not in connection
        return RequestHead(
            method, target, version, headers, length, keep_alive, bool(expects) and length != 0
        )

    def _with_host(self, version: str) -> RawHeaders:
        """RFC 9112 section 3.2.2: the host of a whole address counts, whatever the Host header says."""
        hosts = values(self._headers, b"host")
        if len(hosts) > 1 or (not hosts and version == "1.1"):
            raise Refused(400, "Send one Host header.")
        if not all(_HOST.match(host) for host in hosts):
            raise Refused(400, "The Host header is a host name or address, and perhaps a port.")
        if self._authority is None:
            return self._headers
        if not self._authority or not _HOST.match(self._authority):
            raise Refused(400, "The address names no proper host.")
        others = [pair for pair in self._headers if pair[0] != b"host"]
        return [(b"host", self._authority), *others]


def read_field(line: bytes) -> tuple[bytes, bytes]:
    """Return (name in lower case, value) of a header line or a trailer's; raises Refused.

    A space before the colon and a folded line are refused: what reads them differently sees another header.
    """
    name, colon, value = line.partition(b":")
    if line[:1] in (b" ", b"\t"):
        raise Refused(400, "Do not fold header lines.")
    if not colon or not is_token_bytes(name):
        raise Refused(400, "A header line is a name, a colon and a value.")
    if not is_value_bytes(value):
        raise Refused(400, "A header's value holds a control character.")
    return name.lower(), value.strip(b" \t")


def _length(headers: RawHeaders, version: str) -> int | None:
    """Return the body's length, None for chunks (RFC 9112 section 6.3); raises Refused where it is not plain."""
    lengths, codings = values(headers, b"content-length"), values(headers, b"transfer-encoding")
    if codings:
        if lengths or version == "1.0":
            raise Refused(400, "Send Content-Length, or Transfer-Encoding in HTTP/1.1, and not both.")
        _check_codings([coding.lower() for coding in items(headers, b"transfer-encoding")])
        return None
    if len(lengths) > 1 or not all(length.isdigit() for length in lengths):
        raise Refused(400, "Send one Content-Length, in digits.")
    if lengths and len(lengths[0]) > LONGEST_LENGTH:
        raise Refused(413, "The request's body is larger than this server takes (--max-body).")
    return int(lengths[0]) if lengths else 0


def _check_codings(codings: list[bytes]) -> None:
    if codings.count(b"chunked") > 1 or not all(codings):
        raise Refused(400, "Send Transfer-Encoding: chunked, once.")
    if codings != [b"chunked"]:
        raise Refused(501, "This server knows the transfer coding chunked alone.")


def _too_long(limits: HeadLimits) -> Refused:
    return Refused(414, f"The address is too long: the first line may have {limits.line} bytes.")


def _too_large(limits: HeadLimits) -> Refused:
    return Refused(431, f"The headers are too large: {limits.size} bytes in {limits.lines} lines are taken.")


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
