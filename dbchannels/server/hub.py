"""Where replies are delivered: one function after another, whatever thread they come from.

The interface server's own hub, gevent's, is in server.py: a WSGI server that uses this one never imports gevent.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

log = logging.getLogger("dbchannels.server")


class Hub:
    """Runs the functions that other threads add, in their order."""

    queue: Callable[
        [], Any
    ]  # makes a queue to wait at in the hub; its ``get`` raises the standard library's Empty
    wake: Callable[[], None]  # runs all functions that were added, soon; from any thread

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()

    def start(self) -> None:
        """Get ready to be woken."""

    def call(self, function: Callable[[], None]) -> None:
        """Run a function soon, after all that were added before; from any thread."""
        self._calls.append(function)
        self.wake()

    def run_all(self) -> None:
        """Run all functions that were added."""
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception:
                log.exception("One reply could not be delivered and was left out.")


class ThreadHub(Hub):
    """Runs the functions in the thread that wakes it, one thread at a time; other threads wait for the replies."""

    queue = SimpleQueue

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self.wake = self._run_now

    def _run_now(self) -> None:
        with self._lock:
            self.run_all()
