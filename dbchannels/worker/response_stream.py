"""A large response on its way to the interface server: in chunks no faster than the server takes them, or as a file.

The view's thread makes pieces, and a writer thread sends what has piled up: a burst of small pieces makes few messages,
and a single one goes out at once. The server reports how much its client has taken, or the server has stored. No more
than a window is ever on the way, so the database never holds a whole download.

A regular file goes as a descriptor to the server of the same process tree, which reads the file at its client's pace.
So the file does not go through the layer, and the worker is free at once.
"""

from __future__ import annotations

import itertools
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable
from io import BufferedRandom, BufferedReader, FileIO
from typing import Any
from wsgiref.util import FileWrapper

from django.db import connections

from dbchannels import names
from dbchannels.protocol import (
    BROKEN_OFF,
    CHUNK,
    ERROR,
    FROM_DESCRIPTOR,
    FULL_PAUSE,
    STALLED,
    WINDOW,
    Fields,
    Window,
    chunk,
)

LOOK_EVERY = 1.0  # seconds between two looks for a client that left, while it takes all that comes
SEND_WITHIN = 1.0  # seconds in which the server takes the descriptors before this one

#: By the thread that streams a response: the time.monotonic() of its last progress, for the watchdog.
last_progress: dict[int, float] = {}


class ClientGone(Exception):
    """The client went away, or the server has said nothing for a minute."""


class ChunkWriter:
    """``send`` writes one message, and returns False when the reply channel is full.

    ``receive_flow`` returns the server's reports, see ``protocol.Window``.
    """

    def __init__(self, send: Callable[[Fields], bool], receive_flow: Callable[[], list[Fields]]) -> None:
        self._send = send
        self._receive_flow = receive_flow
        self._thread = threading.get_ident()  # the view's
        self._changed = threading.Condition()
        self._pieces: list[bytes] = []
        self._size = 0  # bytes in _pieces
        self._ended = False  # the view has made its last piece
        self._broken = False  # ... and it raised
        self._error: BaseException | None = None  # why nothing more can be written
        self._window = Window()
        self._looked_at = time.monotonic()

    def run(self, head: Fields, pieces: Iterable[bytes]) -> None:
        """Send the head and all pieces; return early when the client goes away. Raises what the pieces raise.

        The head waits for the first piece: when that raises, nothing was sent yet, and the answer is a 500.
        """
        pieces = iter(pieces)
        first = next(filter(None, pieces), b"")
        self._deliver({**head, **chunk(b"")})
        thread = threading.Thread(target=self._write, name="chunks", daemon=True)
        thread.start()
        try:
            for piece in itertools.chain([first] if first else [], pieces):
                with self._changed:
                    self._pieces.append(piece)
                    self._size += len(piece)
                    self._changed.notify_all()
                    while self._size > WINDOW and self._error is None:
                        self._changed.wait()
                if self._error is not None:
                    break
        except BaseException:
            self._broken = True
            raise
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            thread.join()
        if self._error is not None and not isinstance(self._error, ClientGone):
            raise self._error

    # In the writer thread.

    def _write(self) -> None:
        try:
            while content := self._next_content():
                for start in range(0, len(content), CHUNK):
                    self._await_room()
                    part = content[start : start + CHUNK]
                    self._deliver(chunk(part))
                    self._window.sent += len(part)
            self._deliver({ERROR: BROKEN_OFF} if self._broken else chunk(b"", more=False))
        except Exception as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
        finally:
            connections.close_all()  # this thread's: a layer on any database uses Django's

    def _next_content(self) -> bytes:
        """Return all that has piled up; b"" at the end."""
        with self._changed:
            while not self._size and not self._ended:
                self._changed.wait()
            content = b"".join(self._pieces)
            self._pieces, self._size = [], 0
            self._changed.notify_all()
            return content

    def _deliver(self, fields: Fields) -> None:
        """Send one message, once there is room for it: a chunk left out would spoil the whole download."""
        waited = 0.0
        while not self._send(fields):
            self._note_progress()
            if waited > STALLED:
                raise ClientGone
            time.sleep(FULL_PAUSE)
            waited += FULL_PAUSE
        self._note_progress()

    def _note_progress(self) -> None:
        last_progress[self._thread] = time.monotonic()

    def _await_room(self) -> None:
        """Wait until the window is open, and look for reports every 5 to 50 ms meanwhile."""
        if time.monotonic() - self._looked_at > LOOK_EVERY:
            self._look()
        waited, pause = 0.0, 0.005
        while not self._window.is_open:
            self._note_progress()  # STALLED, not the watchdog, ends this wait
            if self._look():
                waited = 0.0
            elif waited > STALLED:
                raise ClientGone
            else:
                time.sleep(pause)
                waited, pause = waited + pause, min(0.05, pause * 2)

    def _look(self) -> bool:
        """Read the server's reports; False when there was none."""
        self._looked_at = time.monotonic()
        reports = self._receive_flow()
        if not all(map(self._window.read, reports)):
            raise ClientGone
        return bool(reports)


class FileSender:
    """Sends descriptors over a socket that the server has made and its workers have inherited."""

    def __init__(self, queue: str, descriptor: int) -> None:
        """``queue``: the server's, so that of the reply channels of its requests."""
        self._queue = queue
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        self._socket.settimeout(SEND_WITHIN)

    def send(self, reply_channel: str, head: Fields, content: object) -> Fields | None:
        """Send the file of a response; return the head that goes with it, or None when it is to be sent in chunks."""
        found = regular_file(content) if names.split(reply_channel)[0] == self._queue else None
        if found is None:
            return None
        descriptor, position, size = found
        lengths = [value for name, value in head["headers"] if name.lower() == b"content-length"]
        if len(lengths) > 1 or not all(map(bytes.isdigit, lengths)):
            return None
        length = int(lengths[0]) if lengths else size
        if not CHUNK < length <= size:
            return None
        try:
            socket.send_fds(self._socket, [reply_channel.encode()], [descriptor])
        except OSError:  # the server takes none now
            return None
        added = [] if lengths else [[b"Content-Length", str(length).encode()]]
        head = {**head, "headers": [*head["headers"], *added], **chunk(b"")}
        return {**head, FROM_DESCRIPTOR: [position, length]}


def regular_file(content: object) -> tuple[int, int, int] | None:
    """Return the descriptor, the position and the bytes left of a file that a response consists of.

    None unless these bytes are what would be read: a subclass, or gzip's file, may read something else.
    """
    if type(content) is not FileWrapper:
        return None
    try:
        file: Any = content.filelike.read.__self__  # type: ignore[attr-defined]  # also of what hands on to another's
        raw = file if type(file) is FileIO else file.raw
        if type(file) not in (FileIO, BufferedReader, BufferedRandom) or type(raw) is not FileIO:
            return None
        file.flush()
        position, status = file.tell(), os.fstat(raw.fileno())
        if not raw.readable() or not stat.S_ISREG(status.st_mode):
            return None
    except (AttributeError, OSError, ValueError):
        return None
    return raw.fileno(), position, status.st_size - position
