"""Times in which the layer cannot be used: one line in the log when one begins, and one when it has ended."""

from __future__ import annotations

import logging
import threading
import time

from dbchannels.exceptions import LayerUnavailable

log = logging.getLogger("dbchannels.server")


class Outage:
    """Noted by each thread that uses the layer, under its own name; true while one of them cannot."""

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}  # by thread, since it last worked
        self._lock = threading.Lock()
        self._began_at = 0.0
        self._told = False

    def __bool__(self) -> bool:
        return bool(self._failures)

    def failed(self, error: Exception) -> None:
        """The calling thread has found that the layer cannot be used.

        Only its second failure is told of: after a restart of the database the first use of each connection fails,
        though the layer is back already. What is no LayerUnavailable is told of elsewhere, with its traceback.
        """
        name = threading.current_thread().name
        with self._lock:
            if not self._failures:
                self._began_at = time.monotonic()
            self._failures[name] = self._failures.get(name, 0) + 1
            if self._failures[name] < 2 or self._told or not isinstance(error, LayerUnavailable):
                return
            self._told = True
        log.warning("The layer cannot be used now (%s); trying again.", error)

    def worked(self) -> None:
        """The calling thread has used the layer."""
        if not self._failures:
            return
        with self._lock:
            self._failures.pop(threading.current_thread().name, None)
            if self._failures or not self._told:
                return
            self._told = False
        log.warning("The layer can be used again, after %.1f s.", time.monotonic() - self._began_at)
