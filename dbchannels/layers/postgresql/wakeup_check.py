"""The check whether the notifications that wake readers arrive."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from dbchannels.layers.postgresql import sql
from dbchannels.redaction import RateLimitedLog

layer_log = logging.getLogger("dbchannels.layer")

PROBE = "probe."  # how a probe's payload begins
PROBE_EVERY = 30.0  # seconds between two probes while they arrive; at each clean-up while they do not
PROBE_WITHIN = 2.0  # seconds in which one must have arrived: NOTIFY takes 0.3 ms
WARN_ABOVE = 0.1  # of the queue of notifications; NOTIFY is skipped above a half
QUEUE_FILLS = (
    "The database's queue of notifications is %.0f %% full: a session that LISTENs sits in a transaction. End it "
    "(pg_stat_activity, state 'idle in transaction'); above 50 %% nobody is woken, and the poll finds the messages "
    "every %g s."
)


class WakeupCheck:
    """Whether notifications arrive: the process that LISTENs has another session NOTIFY it. One for each process.

    They do not arrive when a pooler gives each transaction another session, when somebody has replaced ``pg_notify``,
    or when the queue of notifications is full. The poll still finds the messages, and nobody would know why everything
    takes a second. So the log says it once, and once more when notifications arrive again.

    One thread waits, in ``PostgreSQLLink.wait``, which notes when it does: a process that is busy reads no
    notifications, which proves nothing. The heartbeat calls ``look``.
    """

    def __init__(self, poll_interval: Callable[[], float]) -> None:
        self._poll_interval = poll_interval
        self._lock = threading.Lock()
        self.listener = 0  # the generation of the session that has listened last; 0: nobody has waited here
        self.waiting_since: float | None = None  # time.monotonic(), while a thread waits
        self.waited_from = 0.0  # when the last wait that ended had begun
        #: Its payload, the listener's generation, and time.monotonic() of its sending.
        self._probe: tuple[str, int, float] | None = None
        self._looked_at = -PROBE_EVERY
        self._queue_fills = RateLimitedLog(layer_log, QUEUE_FILLS, every=60.0)
        self.arrive = True

    def heard(self, probes: Collection[str]) -> None:
        """Note that probes have arrived, perhaps those of other processes."""
        with self._lock:
            arrived = self._probe is not None and self._probe[0] in probes
            self._probe = None if arrived else self._probe
        if arrived:
            self._conclude(True)

    def look(self, query: Callable[[str, dict[str, Any]], Sequence[tuple[Any, ...]]]) -> None:
        """Judge the last probe, send the next, and warn of a queue that fills; to be called every few seconds.

        ``query`` runs a statement on another session than the listening one: through a pooler, a session's own NOTIFY
        would arrive.
        """
        now = time.monotonic()
        with self._lock:
            probe, listener, since = self._probe, self.listener, self.waiting_since
            # A wait began when the probe was already due, or has lasted for longer than a probe takes.
            overdue = probe is not None and (
                self.waited_from > probe[2] + PROBE_WITHIN
                or (since is not None and now - max(since, probe[2]) > PROBE_WITHIN)
            )
            if overdue:
                self._probe = None
        if overdue and probe is not None and probe[1] == listener:
            self._conclude(False)
        due = listener and (not self.arrive or now - self._looked_at >= PROBE_EVERY) and self._probe is None
        token = PROBE + secrets.token_hex(4)
        if due:
            self._looked_at = now
            with self._lock:  # before it is sent: it may be heard at once
                self._probe = (token, listener, now)
        ((usage, sent, _),) = query(sql.PROBE if due else sql.QUEUE_USAGE, {"wake": token})
        if due and not sent:
            with self._lock:
                self._probe = None
        if usage > WARN_ABOVE:
            self._queue_fills.count(None, usage * 100, self._poll_interval())

    def _conclude(self, arrive: bool) -> None:
        if arrive == self.arrive:
            return
        self.arrive = arrive
        if arrive:
            layer_log.warning("Wakeups arrive again.")
        else:
            layer_log.warning(
                "Wakeups do not arrive: the poll finds the messages every %g s. See that no pooler in transaction mode "
                "stands between this process and the database (OPTIONS['direct'] goes round it), and that nothing "
                "replaces pg_notify.",
                self._poll_interval(),
            )
