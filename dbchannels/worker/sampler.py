"""Where a worker leaves what it has measured: in the database, and in a file for its parent.

The database gets samples, every ten seconds of the layer's clock. At each moment the first worker of the site also
counts what waits. What a worker measured since its last sample is lost when it is killed, and written later when the
database is away.
"""

from __future__ import annotations

import random
import threading
import time

from dbchannels import measures, samples
from dbchannels.layers.link import Link
from dbchannels.measures import Counts
from dbchannels.samples import PERIOD
from dbchannels.worker.batch import Measures

SPREAD = 0.5  # seconds over which the workers write, so that they do not meet
LEAST_PAUSE = (
    200  # times as long as a count takes until the next: a count of many rows takes 0.5 % of the time
)
AGAIN = 1.0  # seconds until the next try after an outage


class Sampler:
    """One for each worker. ``link`` and ``measures`` are the worker's."""

    def __init__(self, link: Link, measures: Measures) -> None:
        self._link, self._measures = link, measures
        self._lock = threading.Lock()
        #: time.monotonic() from which on ``look`` has something to do.
        self.due_at = self._looked_at = time.monotonic()
        self._moment = 0  # of the last sample
        self._written: Counts = {}  # the counters at that sample
        #: Moment, worker and text of a sample that may not be in the database, and the counters then.
        self._pending: tuple[int, str, str, Counts] | None = None

    def look(self, worker: str) -> None:
        """Write a sample, unless another thread does. Raises LayerUnavailable."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self.due_at = time.monotonic() + AGAIN
            now = self._link.clock()
            moment = int(now // PERIOD * PERIOD)
            self.due_at = time.monotonic() + moment + PERIOD - now + random.uniform(0, SPREAD)
            self._write(worker, moment)
            if self._link.write_sample(moment, "", ""):
                self._count_site(moment)
        finally:
            self._lock.release()

    def finish(self, worker: str) -> None:
        """Write what is left, at the end of a worker. Raises LayerUnavailable."""
        with self._lock:
            self._write(worker, int(self._link.clock() // PERIOD * PERIOD) + PERIOD)

    def _write(self, worker: str, moment: int) -> None:
        self._write_pending()  # with its own moment: the database may have it
        if moment == self._moment:
            return
        counts, now = self._measures.copy(), time.monotonic()
        grown = measures.since(counts, self._written)
        if grown:
            text = samples.sample(moment, grown, now - self._looked_at)
            self._pending = moment, worker, text, counts
        self._moment, self._looked_at = moment, now
        self._write_pending()

    def _write_pending(self) -> None:
        if self._pending is not None:
            moment, worker, text, counts = self._pending
            self._link.write_sample(moment, worker, text)
            self._written, self._pending = counts, None

    def _count_site(self, moment: int) -> None:
        last = samples.read_sample("", self._link.newest_sample(), ())
        if last is not None and moment - last["t"] < LEAST_PAUSE * last.get("took", 0):
            return
        started_at = time.monotonic()
        gauges = self._link.gauges()
        took = time.monotonic() - started_at
        self._link.complete_sample(moment, samples.site_sample(moment, took, gauges))


class Report:
    """Where a process leaves what all its workers, which are threads of it, have counted since its start."""

    EVERY = 1.0  # seconds at least from one time to the next

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._measures, self._last = descriptor, list[Measures](), b""
        self._lock = threading.Lock()
        self.due_at = 0.0  # time.monotonic() from which on it is to be written again

    def add(self, measures: Measures) -> None:
        """Add the counters of a worker."""
        self._measures.append(measures)

    def write(self) -> None:
        """Write the counters."""
        with self._lock:
            self.due_at = time.monotonic() + self.EVERY
            counts, events = measures.total((one.copy(), one.events.copy()) for one in self._measures)
            data = measures.report(counts, events)
            if data != self._last and len(data) <= measures.LONGEST_REPORT:
                measures.write_report(self._descriptor, data)
                self._last = data
