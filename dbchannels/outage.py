"""Times in which the layer cannot be used: one line in the log when one begins, and one when it has ended."""

from __future__ import annotations

import logging
import threading
import time

from dbchannels.exceptions import LayerUnavailable


class Outage:
    """Noted by each thread of a process that uses the layer, under its own name; true while one of them cannot."""

    def __init__(self, log: logging.Logger, process: str) -> None:
        self._log = log
        self.process = process  # its name, for the log
        self._failures: dict[str, int] = {}  # by thread, since it last worked
        self._began_at: dict[str, float] = {}  # by thread, the first of these
        self._lock = threading.Lock()
        self._told = False
        self._first_at = 0.0

    def __bool__(self) -> bool:
        return bool(self._failures)

    def lasted(self, *threads: str) -> float:
        """Return for how many seconds one of these threads has failed; 0 while all of them work."""
        began = [at for name, at in list(self._began_at.items()) if name in threads]
        return time.monotonic() - min(began) if began else 0.0

    def failed(self, error: Exception) -> None:
        """The calling thread has found that the layer cannot be used.

        Only its second failure is told of: after a restart of the database the first use of each connection fails,
        though the layer is back already. What is no LayerUnavailable is told of elsewhere, with its traceback.
        """
        name = threading.current_thread().name
        with self._lock:
            if not self._failures:
                self._first_at = time.monotonic()
            self._failures[name] = self._failures.get(name, 0) + 1
            self._began_at.setdefault(name, time.monotonic())
            if self._failures[name] < 2 or self._told or not isinstance(error, LayerUnavailable):
                return
            self._told = True
        self._log.warning("%s: The layer cannot be used now (%s); trying again.", self.process, error)

    def worked(self) -> None:
        """The calling thread has used the layer."""
        if not self._failures:
            return
        name = threading.current_thread().name
        with self._lock:
            self._failures.pop(name, None)
            self._began_at.pop(name, None)
            if self._failures or not self._told:
                return
            self._told = False
        seconds = time.monotonic() - self._first_at
        self._log.warning("%s: The layer can be used again, after %.1f s.", self.process, seconds)
