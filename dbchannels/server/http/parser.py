"""Heads and bodies of requests, read strictly (RFC 9112), pure: bytes in, a RequestHead, content or Refused out.

Whatever two programs could read in two ways is refused. A proxy in front of this server may have read it in the other
way, and such differences serve to hide a request in another one's body.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from dbchannels.server.http.headers import TOKEN, RawHeaders, is_token_bytes, is_value_bytes, split_list
from dbchannels.server.http.messages import Refused

LONGEST_LENGTH = 18  # digits of a Content-Length: what 64 bits hold
LONGEST_LINE = 1_024  # bytes of a chunk's first line with its extensions, and of a trailer's line
EXTRAS = 16_384  # bytes of extensions and trailers in one body

_METHOD = re.compile(rb"[A-Z][A-Z0-9_-]{0,31}\Z")
_TARGET = re.compile(rb"[!-\"$-~]+\Z")  # visible ASCII without a fragment
_ABSOLUTE = re.compile(rb"(?i)https?://([^/?]*)([/?].*)?\Z")
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]\Z")
# RFC 3986 section 3.2.2 without user information; empty where the target has no authority (RFC 9110 section 7.2).
_HOST = re.compile(
    rb"(?:(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)(?::[0-9]{0,5})?)?\Z"
)
# RFC 9112 section 7.1.1: an extension is a name, perhaps with a value, which is a token or a quoted text.
_NAME = TOKEN.encode()
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_VALUE = rb"(?:[ \t]*=[ \t]*(?:" + _NAME + rb"|" + _QUOTED + rb"))?"
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})((?:[ \t]*;[ \t]*" + _NAME + _VALUE + rb")*)\Z")
# A trailer must not say where the body ends, or for which host the request is (RFC 9110 section 6.5.1).
_NO_TRAILERS = frozenset({b"content-length", b"transfer-encoding", b"host"})


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
    headers: RawHeaders
    length: int | None  # of the body, in bytes; None: it comes in chunks
    keep_alive: bool
    expects_continue: bool  # the client waits for a 100 before it sends the body
    is_upgrade: bool  # the client asks for a WebSocket


class HeadReader:
    """Feed it what the client sends: ``feed`` returns the head once it is whole, and ``rest`` is what follows.

    Each line is checked when it has come, so the first fault decides the response, however the bytes are cut.
    """

    def __init__(self, limits: HeadLimits) -> None:
        self._limits = limits
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer that hold no line end
        self._line: tuple[str, str, str] | None = None  # method, target, version
        self._authority: bytes | None = None  # of a target that names its host
        self._skipped = False  # the one empty line that may come first
        self._headers: list[tuple[bytes, bytes]] = []
        self._room = limits.size

    @property
    def begun(self) -> bool:
        return bool(self._buffer or self._line or self._skipped)

    @property
    def request_line(self) -> str:
        """The request line, as far as it has come, for the log."""
        if self._line is not None:
            return "{} {} HTTP/{}".format(*self._line)
        # With line ends of another kind all headers may be here, and their content belongs in no log.
        return re.split(rb"[\r\n]", self._buffer[: self._limits.line], maxsplit=1)[0].decode("latin-1")

    @property
    def rest(self) -> bytes:
        """What came behind the head."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> RequestHead | None:
        """Return the head, or None while more must come. Raises Refused, after which the connection ends."""
        self._buffer += data
        while True:
            room = self._limits.line if self._line is None else self._room
            end = self._buffer.find(b"\n", self._searched, room)
            if end < 0:
                self._searched = min(len(self._buffer), room)
                if len(self._buffer) < room:
                    return None
                if self._line is not None:
                    raise self._too_large()
                raise Refused(414, f"The address is too long: the first line may have {room} bytes.")
            if end == 0 or self._buffer[end - 1] != 13:
                raise Refused(400, "End each line of the head with CR and LF.")
            line = bytes(self._buffer[: end - 1])
            if self._line is None:
                self._read_request_line(line)  # while the line is in the buffer, for the log
            elif not line:
                del self._buffer[: end + 1]
                return self._head(*self._line)
            else:
                self._room -= end + 1
                if len(self._headers) == self._limits.lines:
                    raise self._too_large()
                self._headers.append(read_field(line))
            del self._buffer[: end + 1]
            self._searched = 0

    def _read_request_line(self, line: bytes) -> None:
        if not line:
            if self._skipped:
                raise Refused(400, "Send a request, not empty lines.")
            self._skipped = True
            return
        parts = line.split(b" ")
        if len(parts) != 3:
            raise Refused(400, "Write the method, the address and the version, with one space between them.")
        method, target, version = parts
        if not is_token_bytes(method):
            raise Refused(400, "The method is not a token.")
        if not _VERSION.match(version):
            raise Refused(400, "Write the version as HTTP/1.1.")
        if version not in (b"HTTP/1.1", b"HTTP/1.0"):
            raise Refused(505, "This server speaks HTTP/1.1 and HTTP/1.0.")
        if not _METHOD.match(method) or method == b"CONNECT":
            raise Refused(501, "This server does not know the method.")
        if not _TARGET.match(target):
            raise Refused(
                400, "Write the address in visible ASCII without a fragment, the rest percent-encoded."
            )
        if absolute := _ABSOLUTE.match(target):
            self._authority, path = absolute[1], absolute[2] or b"/"
            target = path if path.startswith(b"/") else b"/" + path
        if not target.startswith(b"/") and (target, method) != (b"*", b"OPTIONS"):
            raise Refused(400, "The address is a path that begins with a slash, or a whole http address.")
        self._line = method.decode("ascii"), target.decode("ascii"), version[5:].decode("ascii")

    def _head(self, method: str, target: str, version: str) -> RequestHead:
        fields: dict[bytes, list[bytes]] = {}
        for name, value in self._headers:
            fields.setdefault(name, []).append(value)
        hosts = fields.get(b"host", [])
        if len(hosts) > 1 or (not hosts and version == "1.1"):
            raise Refused(400, "Send one Host header.")
        if not all(map(_HOST.match, hosts)):
            raise Refused(400, "The Host header is a host name or address, and perhaps a port.")
        headers = self._headers
        if self._authority is not None:  # whatever the Host header says (RFC 9112 section 3.2.2)
            if not self._authority or not _HOST.match(self._authority):
                raise Refused(400, "The host in the address is not valid.")
            headers = [(b"host", self._authority), *(pair for pair in headers if pair[0] != b"host")]
        length = _body_length(fields, version)
        connection = _words(fields, b"connection")
        expects = _words(fields, b"expect") if version == "1.1" else []
        is_upgrade = b"websocket" in _words(fields, b"upgrade")
        if any(one != b"100-continue" for one in expects):
            raise Refused(417, "This server knows only the expectation 100-continue.")
        keep_alive = b"close" not in connection and (version == "1.1" or b"keep-alive" in connection)
        expects_continue = bool(expects) and length != 0
        return RequestHead(method, target, version, headers, length, keep_alive, expects_continue, is_upgrade)

    def _too_large(self) -> Refused:
        limits = self._limits
        return Refused(431, f"The headers may have {limits.size} bytes in {limits.lines} lines.")


def read_field(line: bytes) -> tuple[bytes, bytes]:
    """Return (name in lower case, value) of a header line or a trailer's. Raises Refused.

    A space before the colon and a folded line are refused: a program that reads them differently sees another header.
    """
    name, colon, value = line.partition(b":")
    if line[:1] in (b" ", b"\t"):
        raise Refused(400, "Do not fold header lines.")
    if not colon or not is_token_bytes(name):
        raise Refused(400, "A header line is a name, a colon and a value.")
    if not is_value_bytes(value):
        raise Refused(400, "The value of a header holds a control character.")
    return name.lower(), value.strip(b" \t")


def _words(fields: dict[bytes, list[bytes]], name: bytes) -> list[bytes]:
    return [item.lower() for item in split_list(fields[name]) if item] if name in fields else []


def _body_length(fields: dict[bytes, list[bytes]], version: str) -> int | None:
    """Return the body's length, None for chunks (RFC 9112 section 6.3). Raises Refused where it is ambiguous."""
    lengths = fields.get(b"content-length", [])
    if b"transfer-encoding" in fields:
        if lengths or version == "1.0":
            raise Refused(400, "Send either Content-Length, or Transfer-Encoding in HTTP/1.1.")
        codings = [coding.lower() for coding in split_list(fields[b"transfer-encoding"])]
        if codings.count(b"chunked") > 1 or not all(codings):
            raise Refused(400, "Send Transfer-Encoding: chunked, once.")
        if codings != [b"chunked"]:
            raise Refused(501, "This server knows only the transfer coding chunked.")
        return None
    if len(lengths) > 1 or not all(length.isdigit() for length in lengths):
        raise Refused(400, "Send one Content-Length, in digits.")
    if lengths and len(lengths[0]) > LONGEST_LENGTH:
        raise Refused(413, "The request's body is larger than this server takes (--max-body).")
    return int(lengths[0]) if lengths else 0


State = Literal["size", "content", "content end", "trailers", "whole", "ended"]


class BodyReader:
    """Feed it what the client sends: ``feed`` returns content, and ``rest`` is what follows the body's end."""

    def __init__(self, length: int | None, limit: int) -> None:
        """``length`` in bytes, None for a body in chunks. Raises Refused when it is above the limit, in bytes."""
        self._limit = self._room = limit  # bytes of content in all, and how much of that may still come
        if length is not None and length > limit:
            raise self._too_large()
        self.left = length or 0  # bytes that must still come of the body, or of the chunk
        self._state: State = "size" if length is None else "whole" if length else "ended"
        self._buffer = bytearray()
        self._extras = 0

    @property
    def ended(self) -> bool:
        return self._state == "ended"

    @property
    def rest(self) -> bytes:
        """What came behind the body."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> bytes:
        """Return the content in the data. Raises Refused, after which the connection ends."""
        self._buffer += data
        content = bytearray()
        position = 0
        while not self.ended and (used := self._step(position, content)) is not None:
            position += used
        del self._buffer[:position]
        return bytes(content)

    def _step(self, position: int, content: bytearray) -> int | None:
        """Read on at a position. Return how many bytes were read, None when more must come."""
        if self._state in ("content", "whole"):
            size = min(self.left, len(self._buffer) - position)
            content += memoryview(self._buffer)[position : position + size]
            self.left -= size
            if not self.left:
                self._state = "ended" if self._state == "whole" else "content end"
            return size or None
        if self._state == "content end":
            after = self._buffer[position : position + 2]
            if not b"\r\n".startswith(after):
                raise Refused(400, "A chunk is longer than its size says.")
            if len(after) < 2:
                return None
            self._state = "size"
            return 2
        end = self._buffer.find(b"\n", position, position + LONGEST_LINE)
        if end < 0:
            if len(self._buffer) - position >= LONGEST_LINE:
                raise Refused(400, f"A line between the chunks is longer than {LONGEST_LINE} bytes.")
            return None
        if end == position or self._buffer[end - 1] != 13:
            raise Refused(400, "End each line between the chunks with CR and LF.")
        line = bytes(self._buffer[position : end - 1])
        if self._state == "size":
            self._read_size(line)
        elif not line:
            self._state = "ended"
        else:  # a trailer is checked and dropped, as RFC 9112 section 7.1.2 allows
            self._count_extra(len(line))
            if read_field(line)[0] in _NO_TRAILERS:
                raise Refused(400, "A trailer must not say where the body ends.")
        return end + 1 - position

    def _read_size(self, line: bytes) -> None:
        found = _CHUNK.match(line)
        if found is None:
            raise Refused(400, "A chunk begins with its size in hexadecimal digits.")
        self._count_extra(len(found[2]))
        self.left = int(found[1], 16)
        self._room -= self.left
        if self._room < 0:
            raise self._too_large()
        self._state = "content" if self.left else "trailers"

    def _count_extra(self, size: int) -> None:
        self._extras += size
        if self._extras > EXTRAS:
            raise Refused(431, f"The extensions and trailers of a body may have {EXTRAS} bytes.")

    def _too_large(self) -> Refused:
        return Refused(
            413, f"The request's body is larger than this server takes, {self._limit} bytes (--max-body)."
        )
