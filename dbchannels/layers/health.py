"""Whether the layer can be used: the errors that mean it cannot, the wait for it, and the log lines."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.db import DatabaseError, InterfaceError, InternalError, OperationalError

from dbchannels.exceptions import LayerUnavailable
from dbchannels.wakeup import Backoff

if TYPE_CHECKING:
    from dbchannels.layers.base import BaseLayer

READ_ONLY = "25006"  # the SQLSTATE of a statement that would write
UNREGISTER_TRIES = 3  # in about half a second; if all fail, the lease ends and other processes clean up

log = logging.getLogger("dbchannels.layer")

# A refused connection has no SQLSTATE, neither with psycopg2 nor with psycopg 3, so only its text says why it was
# refused. The texts of PostgreSQL, PgBouncer, SQLite and MySQL; one in another language counts as one that may pass.
_FINAL = re.compile(
    r"does not exist|authentication failed|no password supplied|no pg_hba\.conf entry|permission denied"
    r"|not permitted to log in|no such database|no such user|bouncer config error|unable to open database file"
    r"|Access denied|Unknown database"
)


def may_pass(error: BaseException) -> bool:
    """Whether a database that refuses a connection may accept one later: it is unreachable, or is starting up."""
    return not _FINAL.search(str(error))


def await_layer(layer: BaseLayer, seconds: float) -> None:
    """Check a layer, and wait up to ``seconds`` for its database. Raises DBChannelsError."""
    started, delays, waited = time.monotonic(), Backoff(0.1, 2.0), False
    while True:
        try:
            layer.check()
        except LayerUnavailable as error:
            left = seconds - (time.monotonic() - started)
            if not error.may_pass or left <= 0:
                raise
            if not waited:
                log.warning("%s Waiting for it for up to %g s.", error, seconds)
                waited = True
            time.sleep(min(left, delays.delay()))
        else:
            break
    if waited:
        log.warning("The database can be used, after %.1f s.", time.monotonic() - started)


def is_unavailable(error: BaseException) -> bool:
    """Whether one of Django's errors means that the database cannot be used, rather than that a statement is wrong.

    When a server closes in the middle of a statement, psycopg2 raises a bare DatabaseError. Django's own, for a missing
    row at a save, has no cause. A standby refuses to write; it may be promoted.
    """
    if type(error) is DatabaseError:
        return error.__cause__ is not None
    if isinstance(error, InternalError):  # pgcode is psycopg2's, sqlstate psycopg 3's
        cause = error.__cause__
        return READ_ONLY in (getattr(cause, "pgcode", None), getattr(cause, "sqlstate", None))
    return isinstance(error, (InterfaceError, OperationalError))


class LayerHealth:
    """Whether the threads of a process can use the layer; each reports under its own name.

    The log has one line when an outage begins, and one when it has ended. ``exhausted`` is the error of an outage that
    has lasted for ``patience`` seconds: then the process ends.
    """

    def __init__(self, log: logging.Logger, process: str, patience: float = math.inf) -> None:
        self._log = log
        self.process = process  # its name, for the log
        self._patience = patience
        self.exhausted: Exception | None = None
        #: By thread that cannot use the layer: its failures, and the time of the first. Mostly empty.
        self.failing: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()
        self._logged = self._gave_up = False
        self._first_at = 0.0
        self.outages = 0  # that were logged

    def lasted(self, *threads: str) -> float:
        """Return for how many seconds one of these threads has failed; 0 while all of them work."""
        began = [at for name, (_, at) in list(self.failing.items()) if name in threads]
        return time.monotonic() - min(began) if began else 0.0

    def failed(self, error: Exception) -> None:
        """Note that the calling thread cannot use the layer.

        Only its second failure is logged: after a restart of the database the first use of each connection fails,
        although the layer can be used again. An error other than LayerUnavailable is logged elsewhere.
        """
        name, now = threading.current_thread().name, time.monotonic()
        with self._lock:
            if not self.failing:
                self._first_at = now
            count, began_at = self.failing.get(name, (0, now))
            self.failing[name] = count + 1, began_at
            if now - began_at >= self._patience:
                self.exhausted = error
            if not count or self._logged or not isinstance(error, LayerUnavailable):
                return
            self._logged = True
            self.outages += 1
        self._log.warning("%s: The layer cannot be used now (%s); trying again.", self.process, error)

    def retry(self, attempt: Callable[[], Any], stopping: threading.Event, tries: int = 10) -> Any:
        """Call ``attempt`` until the layer can be used; None: it failed so often, and the process is to end."""
        delays: Backoff | None = None
        while True:
            try:
                result = attempt()
                if self.failing:
                    self.worked()
                return result
            except LayerUnavailable as error:
                delays = delays or Backoff(from_start=True)
                if self.exhausted or (stopping.is_set() and delays.tries > tries):
                    # Once: each thread gives up on each thing that it still tries.
                    if not self._gave_up:
                        self._log.error("%s gives up on the layer while stopping (%s).", self.process, error)
                    self._gave_up = True
                    return None
                self.failed(error)
                time.sleep(delays.delay())

    def worked(self) -> None:
        """Note that the calling thread has used the layer; call it while some thread is ``failing``."""
        with self._lock:
            self.failing.pop(threading.current_thread().name, None)
            if self.failing or not self._logged:
                return
            self._logged = False
        seconds = time.monotonic() - self._first_at
        self._log.warning("%s: The layer can be used again, after %.1f s.", self.process, seconds)
