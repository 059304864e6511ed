"""An end to the wait for an answer that never comes.

A network that falls silent is noticed by the kernel (``session._KEEPALIVE``). But behind a proxy or a pooler that has
stopped, the next kernel goes on to acknowledge what is sent, and libpq, which knows a deadline for connecting alone,
would wait for ever (https://www.postgresql.org/docs/current/libpq-connect.html). So a thread looks after all
statements under way, and shuts the socket of one that has had no answer in time: libpq sees the session's end.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

ANSWER_WITHIN = 10.0  # seconds; the slowest statement of the layer's own takes a few


class Deadline:
    """Of one connection's statements: ``with deadline:`` around each. It costs a statement half a microsecond."""

    def __init__(self, connection: Any) -> None:
        # A descriptor of its own: by the time it is needed the connection's number may belong to another file.
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self._ends_at = 0.0  # time.monotonic(); 0: no statement is under way
        self.overdue = False  # the socket was shut

    def __enter__(self) -> None:
        self._ends_at = time.monotonic() + ANSWER_WITHIN

    def __exit__(self, *_: object) -> None:
        self._ends_at = 0.0

    def look(self, now: float) -> None:
        """Shut the socket when the answer is overdue."""
        if 0 < self._ends_at < now:
            self.overdue = True
            with suppress(OSError):  # the other end has closed it just now
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Forget the connection."""
        _watch.drop(self)
        self._socket.close()


class _Watch:
    """The thread, started with the first deadline."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deadlines: set[Deadline] = set()
        self._thread: threading.Thread | None = None

    def add(self, deadline: Deadline) -> None:
        with self._lock:
            self._deadlines.add(deadline)
            if self._thread is None or not self._thread.is_alive():  # a fork has no thread but its own
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()

    def drop(self, deadline: Deadline) -> None:
        with self._lock:
            self._deadlines.discard(deadline)

    def _run(self) -> None:
        while True:
            time.sleep(ANSWER_WITHIN / 10)
            now = time.monotonic()
            with self._lock:
                for deadline in self._deadlines:
                    deadline.look(now)


_watch = _Watch()


def watched(connection: Any) -> Deadline:
    """Return the deadline of a new connection's statements; ``close`` it with the connection."""
    deadline = Deadline(connection)
    _watch.add(deadline)
    return deadline
