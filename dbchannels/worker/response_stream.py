"""A response of any size, sent in chunks no faster than the interface server takes them.

The view's thread makes pieces; a writer thread sends what has piled up, so a burst of small pieces makes few
messages and a lone one goes out at once. The server reports how much its client has taken or it has stored itself, and
no more than a window is ever on the way: the database never holds a whole download.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from django.db import connections

from dbchannels.protocol import (
    BROKEN_OFF,
    CHUNK,
    ERROR,
    FULL_PAUSE,
    STALLED,
    WINDOW,
    Window,
    chunk,
)

LOOK_EVERY = 1.0  # seconds between two looks for a client that left, while it takes all that comes

Fields = dict[str, Any]


#: By the thread that streams a response: the time.monotonic() of its last progress, for the watchdog.
last_progress: dict[int, float] = {}


class ChunkWriter:
    """``send`` writes one message, and returns False when the reply channel is full.

    ``receive_flow`` returns the server's reports, ``{"taken": bytes}`` in total, taken by the client or stored;
    ``{"closed": True}`` says that nobody wants more.
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
        """Send the head and all pieces; returns early when the client goes away. Raises what the pieces raise.

        The head waits for the first piece: what raises before it has sent nothing, and is answered 500.
        """
        pieces = iter(pieces)
        first = next(filter(None, pieces), b"")
        self._deliver({**head, **chunk(b"")})
        thread = threading.Thread(target=self._write, name="chunks", daemon=True)
        thread.start()
        try:
            for piece in itertools.chain([first] if first else [], pieces):
                if not self._put(piece):
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

    def _put(self, piece: bytes) -> bool:
        """Queue a piece, and wait while a window's worth is queued; False when nobody wants more."""
        with self._changed:
            self._pieces.append(piece)
            self._size += len(piece)
            self._changed.notify_all()
            while self._size > WINDOW and self._error is None:
                self._changed.wait()
            return self._error is None

    def _write(self) -> None:
        try:
            while (content := self._next_content()) is not None:
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

    def _next_content(self) -> bytes | None:
        """Return all that has piled up; None at the end."""
        with self._changed:
            while not self._pieces and not self._ended:
                self._changed.wait()
            if not self._pieces:
                return None
            content = b"".join(self._pieces)
            self._pieces, self._size = [], 0
            self._changed.notify_all()
            return content

    def _deliver(self, fields: Fields) -> None:
        """Send one message, once there is room for it: a chunk left out would spoil the whole download."""
        waited = 0.0
        while not self._send(fields):
            self._goes_on()
            if waited > STALLED:
                raise ClientGone
            time.sleep(FULL_PAUSE)
            waited += FULL_PAUSE
        self._goes_on()

    def _goes_on(self) -> None:
        last_progress[self._thread] = time.monotonic()

    def _await_room(self) -> None:
        """Wait until less than a window is on the way. The report is asked for every 5 to 50 ms."""
        if time.monotonic() - self._looked_at > LOOK_EVERY:
            self._look()
        waited, pause = 0.0, 0.005
        while not self._window.is_open:
            self._goes_on()  # whoever waits for room does not hang: STALLED is for that
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
        for report in reports:
            if not self._window.read(report):
                raise ClientGone
        return bool(reports)


class ClientGone(Exception):
    """The client went away, or the server has said nothing for a minute."""
