"""The worker: takes messages, runs one consumer for each, and writes down what they did.

An ordinary synchronous process. ``Worker.run_once`` is the whole idea; the rest says what happens when something
goes wrong. Beside the main thread there is a watch, which wakes while a consumer runs: after 50 ms it hands back
the messages that wait behind it, and it renews the worker's lease.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any

from django.conf import settings
from django.core.cache import caches
from django.urls import get_script_prefix, set_script_prefix

from dbchannels import names, signals
from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.health import LayerHealth
from dbchannels.layers.operations import Delivery
from dbchannels.models import Process
from dbchannels.redaction import RateLimitedLog
from dbchannels.routing.table import Routing
from dbchannels.wakeup import Backoff, WakeupPipe, wait_readable
from dbchannels.worker.application import ApplicationViews
from dbchannels.worker.batch import Batch, BatchSizer
from dbchannels.worker.executor import Executor
from dbchannels.worker.schedule import Timetable
from dbchannels.worker.watchdog import Watchdog

log = logging.getLogger("dbchannels.worker")

REQUESTS = "http.request"
PROTOCOL_CHANNELS = (*names.WEBSOCKET, REQUESTS, "http.disconnect")
# Seconds that protocol messages may put off a claim, after one that found nothing; of a slow one ten times its own.
CLAIM_WITHIN = 0.02
FAREWELL = 3  # tries to leave the record, in about half a second: without it the lease ends, and others sweep
OUTDATED = 5.0  # seconds that a worker with old code waits to be told to end, until it ends by itself
WRITE_AFTER = 0.002  # seconds: quick consumers' results are written together, a slower one's at once
DROPPED = (
    "%d message(s) of consumers were dropped, the last for %s: their channel was full. Its reader is too slow, or "
    "OPTIONS['capacity'] too low."
)


def never() -> bool:
    """Answer what a site outside of development does about changed code."""
    return False


class Worker:
    """Reads the channels that have consumers and match the patterns, until it is told to stop.

    ``wakeups`` come from a parent that LISTENs for this worker; without them its own link does. ``local_wakeups`` wake
    the readers of reply queues. ``replace`` ends this process when a consumer hangs; ``on_ready`` is
    called when this worker is on record; once ``is_outdated`` says so, it takes nothing any more.
    ``views`` are shared by the workers that are threads of one process.
    """

    def __init__(
        self,
        layer: BaseLayer,
        routing: Routing,
        *,
        only: Sequence[str] = (),
        exclude: Sequence[str] = (),
        name: str = "",
        wakeups: Sequence[WakeupPipe] = (),
        local_wakeups: Mapping[str, WakeupPipe] | None = None,
        replace: Callable[[], None] = lambda: os._exit(1),
        on_ready: Callable[[], Any] = lambda: None,
        is_outdated: Callable[[], bool] = never,
        views: ApplicationViews | None = None,
    ) -> None:
        self.layer = layer
        self.routing = routing
        self.name = name or new_worker_name()
        self.channels = [
            channel
            for channel in dict.fromkeys([*PROTOCOL_CHANNELS, *routing.channels()])
            if _selected(channel, only, exclude)
        ]
        if settings.DEBUG:
            layer.consumed_channels = set(routing.channels())
        self._concurrency = routing.concurrency()
        # The channel that was served longest ago comes first.
        self._protocol = [channel for channel in self.channels if names.is_protocol(channel)]
        self._durable = [channel for channel in self.channels if not names.is_protocol(channel)]
        self.link = layer.link("worker", listen=not wakeups)
        self.link.local_wakeups = local_wakeups or {}
        self._executor = Executor(layer, routing, self.link, views)
        periodic = [entry for entry in routing.timetable() if entry.channel in self.channels]
        self._timetable = Timetable(periodic, self.link)
        self._knows_all_times = not only and not exclude
        self.stopping = threading.Event()
        self.consumed = 0
        self._wakeups = wakeups
        self._wakeups_by_reader = {wakeup.reader: wakeup for wakeup in wakeups}
        self._on_ready = on_ready
        self._script_prefix = get_script_prefix()  # FORCE_SCRIPT_NAME; a thread does not inherit it
        self._is_outdated = is_outdated
        self._replace = replace
        self._wake = WakeupPipe.new()
        self._batch = Batch()
        self._sizer = BatchSizer()
        self._dropped = RateLimitedLog(log, DROPPED, None, every=60.0)
        self._writing = threading.Lock()  # a report is taken and written before another one is
        self._written_at = 0.0
        # time.monotonic() until which protocol messages go before a claim; None: for a while from the next of them on
        self._claim_by: float | None = 0.0
        self._patience = CLAIM_WITHIN  # seconds of that while
        self._renewed_at = 0.0
        self._health = LayerHealth(log, self.name)
        self._told_work = ""
        self._swept_at = time.monotonic()
        self._watchdog = Watchdog(
            self._batch,
            self._executor,
            hand_back=self._hand_back,
            keep_alive=self._keep_alive_beside,
            replace=replace,
        )

    # The life of a worker.

    def load(self) -> None:
        """Load the site's WSGI application, with its middleware; raises InvalidConfiguration."""
        if REQUESTS in self.channels:
            self._executor.views.load()

    def run(self) -> None:
        """Work until ``stop``; finish what runs, hand back the rest, and leave no record behind."""
        set_script_prefix(self._script_prefix)
        caches.all()  # they are kept in a ContextVar: made in a message's context they would be made anew in each
        self._retry(self._register)
        self._watchdog.start()
        self._on_ready()
        signals.worker_ready.send_robust(Worker, name=self.name, channels=list(self.channels))
        delays = Backoff()
        while not self.stopping.is_set():
            try:
                found = self.run_once()
                self._health.worked()
                delays.reset()
                if not found:
                    self._wait()
            except LayerUnavailable as error:
                self._health.failed(error)
                self._wake.wait(delays.delay())
        self._watchdog.stop()  # or it could put the worker on record again
        self._dropped.flush()
        self._retry(lambda: self.link.unregister(self.name), FAREWELL)
        self.link.close()

    def stop(self) -> None:
        """Take no more messages. Safe to call from a signal handler."""
        self.stopping.set()
        self._wake.notify()

    def abandon(self) -> None:
        """Give back what this worker holds, as if it had not run: its process ends now, whatever the main thread does.

        Who waits for an answer is told that there will be none. Raises LayerUnavailable.
        """
        with self._writing:
            self.link.finish(self.name, self._batch.abandon())
        self.link.unregister(self.name)

    def run_once(self) -> bool:
        """Take a batch, run one consumer for each message, write what they did. False: nothing waited."""
        self._keep_alive()
        self._timetable.send_due()
        limit = self._sizer.limit()
        deliveries = self._take(limit)
        self._batch.fill(deliveries)
        if deliveries and self._is_outdated():
            self._write(hand_back=True)
            if not self.stopping.wait(OUTDATED):  # whoever looks after the code has seen no change
                self._replace()
            return False
        if len(deliveries) == limit:
            self._wake_others()
        while not self.stopping.is_set() and (delivery := self._batch.start_next()):
            started = time.monotonic()
            self._turn(delivery)
            self._batch.finished(self._executor.execute(delivery, self.name))
            self.consumed += 1
            self._sizer.ran(time.monotonic() - started)
            if time.monotonic() - self._written_at > WRITE_AFTER and self._batch.has_waiting():
                self._write()
        if deliveries:
            self._write(hand_back=True)
        return bool(deliveries)

    def _take(self, limit: int) -> list[Delivery]:
        """Protocol messages first: somebody waits for them."""
        for wakeup in self._wakeups:
            wakeup.drain()
        taken = self.link.receive_many(self._protocol, limit, self.name) if self._protocol else []
        # Whoever woke it may have waited for what was taken: a claim goes first only when one is overdue.
        if self._durable and len(taken) < limit and not (taken and self._claim_may_wait()):
            try:
                taken += self._claim(limit - len(taken))
            except LayerUnavailable:
                if not taken:  # what was popped is nowhere else, so it runs; the next batch meets the trouble
                    raise
        return taken

    def _claim(self, limit: int) -> list[Delivery]:
        started = time.monotonic()
        claimed = self.link.claim(self._durable, limit, self.name, self._concurrency)
        claimed.sort(key=lambda delivery: self._durable.index(delivery.channel))
        ended = time.monotonic()
        self._claim_by = 0.0 if claimed else None
        self._patience = max(CLAIM_WITHIN, (ended - started) * 10)
        return claimed

    def _turn(self, delivery: Delivery) -> None:
        """Put the channel that is served now behind all others: so those that have messages have equal shares."""
        channels = self._durable if delivery.durable else self._protocol
        if channels[-1] != delivery.channel:
            channels.remove(delivery.channel)
            channels.append(delivery.channel)

    def _claim_may_wait(self) -> bool:
        """Whether nothing was there to claim a while ago. Sleep does not count: whoever sends meanwhile wakes it."""
        now = time.monotonic()
        if self._claim_by is None:
            self._claim_by = now + self._patience
        return now < self._claim_by

    def _wake_others(self) -> None:
        for wakeup in self._wakeups:
            wakeup.notify()

    def _wait(self) -> None:
        """Wait for a wakeup, for the next delayed message to be due, for the poll, or to renew the lease."""
        lease = self.layer.options["lease"]
        timeout = min(self.layer.poll_interval(), lease / 3, self._timetable.seconds_left())
        if self._durable and (due := self.link.next_due()) is not None:
            timeout = min(timeout, due)
        if not self._wakeups:
            self.link.wait(timeout, self._wake.reader)
            return
        ends_at = time.monotonic() + timeout
        # One byte wakes all that wait; those that come too late for it go on waiting.
        descriptors = [self._wake.reader, *self._wakeups_by_reader]
        while readable := wait_readable(descriptors, ends_at - time.monotonic()):
            if any(
                self._wakeups_by_reader[one].drain() for one in readable if one in self._wakeups_by_reader
            ):
                return
            if self._wake.reader in readable:
                return

    # Writing.

    def _write(self, hand_back: bool = False) -> None:
        with self._writing:
            report = self._batch.report(hand_back)
            dropped = self._retry(lambda: self.link.finish(self.name, report))
            last = names.split(dropped[-1].channel)[0] if dropped else ""
            self._dropped.count(None, last, number=len(dropped or ()))
            self._written_at = time.monotonic()
        if report.failures and dropped is not None:
            signals.send_dead(Worker, report.failures)

    def _retry(self, attempt: Callable[[], Any], tries: int = 10) -> Any:
        """Try until the layer takes it: what consumers did must not be lost while the database restarts.

        A worker that stops gives up after so many tries.
        """
        delays = Backoff()
        while True:
            try:
                result = attempt()
                self._health.worked()
                return result
            except LayerUnavailable as error:
                if self.stopping.is_set() and delays.tries > tries:
                    log.error("%s gives up on the layer while stopping (%s).", self.name, error)
                    return None
                self._health.failed(error)
                time.sleep(delays.delay())

    # What the watch does, in its thread.

    def _hand_back(self) -> None:
        self._write(hand_back=True)
        self._wake_others()

    def _keep_alive_beside(self) -> None:
        with suppress(LayerUnavailable):  # the main thread will say so
            self._keep_alive()

    # Liveness.

    def _register(self) -> None:
        self._renewed_at = time.monotonic()
        # By its queue on record servers elsewhere see that there is somebody to answer requests.
        self.link.register(self.name, Process.WORKER, REQUESTS if REQUESTS in self.channels else "")
        self._told_work = ""
        self._tell_work()

    def _tell_work(self) -> None:
        """Put on record what this worker takes and runs: servers say it when messages wait for long."""
        running, seconds = self._batch.running()
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - seconds)) if running else ""
        work = json.dumps(
            {"takes": self.channels, "runs": running.channel if running else "", "since": since}
        )
        if work != self._told_work:
            self.link.tell_work(self.name, work)
            self._told_work = work

    def _keep_alive(self) -> None:
        now = time.monotonic()
        if now - self._renewed_at > self.layer.options["lease"] / 3:
            self._renewed_at = now
            if not self.link.renew(self.name):
                self._declared_dead()
            self._tell_work()
        if not self._wakeups and now - self._swept_at > self.layer.options["lease"] / 3:
            self._swept_at = now
            self.link.clean_up()
        self._timetable.keep(drop=self._knows_all_times)

    def _declared_dead(self) -> None:
        """It was stopped for too long and others cleaned up after it: nothing it holds is its own any more."""
        log.warning(
            "This worker (%s) was declared dead while it stood still; it goes on as a new one.", self.name
        )
        self._batch.clear()
        self.name = self._health.process = new_worker_name()
        self._register()


def new_worker_name() -> str:
    """Return a name that no other worker has or had."""
    return f"worker-{os.getpid()}-{names.random_part()}"


def _selected(channel: str, only: Sequence[str], exclude: Sequence[str]) -> bool:
    wanted = not only or any(fnmatchcase(channel, pattern) for pattern in only)
    return wanted and not any(fnmatchcase(channel, pattern) for pattern in exclude)
