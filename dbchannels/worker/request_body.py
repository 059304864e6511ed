"""The body of a large request, as a view reads it: the rest comes in chunks that are asked for as they are read.

The interface server keeps the whole body and sends no more than a window at once, so neither the database nor the
worker holds an upload. A chunk that does not come is asked for again: it may be lost with a channel that was full, or
with a database that crashed.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from typing import IO, Any

from dbchannels import codec
from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.link import Link
from dbchannels.layers.operations import Send
from dbchannels.message import Message
from dbchannels.protocol import BODY, CHUNK, CLOSED, OFFSET, SINCE, STALLED, UNTIL, WINDOW, Fields

ASK_AGAIN = 1.0  # seconds without a chunk until it is asked for again


class BodyRest(io.RawIOBase):
    """The body as a stream: its first part, then chunks. Reading raises OSError when no more will come.

    ``receive`` returns the chunks that wait on the body's channel, ``ask`` sends a request for more to the server.
    """

    def __init__(
        self, first: bytes, size: int, receive: Callable[[], list[Fields]], ask: Callable[[Fields], None]
    ) -> None:
        self._ready = memoryview(first)
        self._size = size  # bytes of the whole body
        self._received = self._asked_for = len(first)
        self._receive, self._ask = receive, ask
        self._chunks: list[Fields] = []
        self._fetched: IO[bytes] | None = None
        self._error: OSError | None = None  # after what was fetched

    def readable(self) -> bool:
        """The stream can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as one chunk goes; return how many bytes it was, 0 at the end."""
        if not self._ready and self._fetched is not None:
            self._ready = memoryview(self._fetched.read(CHUNK))
            if not self._ready and self._error is not None:
                raise self._error
        elif not self._ready and self._received < self._size:
            self._ready = memoryview(self._next_content())
        taken = self._ready[: len(buffer)]
        buffer[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)

    def fetch(self) -> None:
        """Take all of the rest now. If it breaks off, the reader has the error when it comes to that place."""
        self._fetched = tempfile.SpooledTemporaryFile(WINDOW)  # noqa: SIM115  (`close` closes it)
        try:
            while self._received < self._size:
                self._fetched.write(self._next_content())
        except OSError as error:
            self._error = error
        self._fetched.seek(0)

    def close(self) -> None:
        """Delete what was fetched."""
        if self._fetched is not None:
            self._fetched.close()
        super().close()

    def _next_content(self) -> bytes:
        if self._asked_for - self._received < WINDOW // 2:
            self._ask_for_more()
        heard_at = asked_at = time.monotonic()
        pause = 0.001
        while (content := self._take_chunk()) is None:
            now = time.monotonic()
            if now - heard_at > STALLED:
                raise OSError("The rest of the request's body does not come: the server that has it is gone.")
            if now - asked_at > ASK_AGAIN:
                asked_at = now
                self._ask_for_more(since=self._received)
            time.sleep(pause)
            pause = min(0.05, pause * 1.5)
        self._received += len(content)
        return content

    def _ask_for_more(self, since: int | None = None) -> None:
        until = min(self._size, self._received + WINDOW)
        if until > self._asked_for or since is not None:
            self._asked_for = max(until, self._asked_for)
            again = {} if since is None else {SINCE: since}
            try:
                self._ask({BODY: {UNTIL: self._asked_for, **again}})
            except LayerUnavailable:
                return  # it is asked for again

    def _take_chunk(self) -> bytes | None:
        """Return the content that comes next; a chunk that came before, or comes too early, is left out."""
        if not self._chunks:
            try:
                self._chunks = self._receive()[::-1]
            except LayerUnavailable:
                return None
        while self._chunks:
            chunk = self._chunks.pop()
            if chunk.get(CLOSED):
                raise OSError("The client went away before the request's body was read.")
            content = chunk.get("content")
            if chunk.get(OFFSET) == self._received and isinstance(content, bytes) and content:
                return content
        return None


def open_body(message: Message, link: Link, expiry: float) -> IO[bytes]:
    """Return the body of an ``http.request`` message as a stream of bytes; ``expiry`` is of what it sends, in seconds.

    A link that shares its connection with the site's transactions could not read while one is open, and on SQLite
    the server could not write: there the whole body is fetched before the view runs.
    """
    first, channel = message.get("body", b""), message.get("body_channel")
    if not channel or message.reply_channel is None:
        return io.BytesIO(first)
    reply_channel = message.reply_channel.name

    def ask(fields: Fields) -> None:
        link.apply([Send(reply_channel, codec.encode_trusted(fields), "", expiry)])

    def receive() -> list[Fields]:
        return [codec.decode(one.payload) for one in link.receive_many([channel], 100)]

    rest = BodyRest(first, message["body_size"], receive, ask)
    if not link.apart:
        rest.fetch()
    return io.BufferedReader(rest, CHUNK)
