"""The worker: takes messages, runs one consumer for each, and writes what they did.

It is an ordinary synchronous process, and ``Worker.run_once`` is the whole idea; the rest is for when something goes
wrong. A watchdog runs beside the main thread: when a consumer has run for 50 ms, it hands back the messages that wait
behind it, and it renews the worker's lease.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from django.conf import settings
from django.core.cache import caches
from django.urls import get_script_prefix, set_script_prefix

from dbchannels import conf, names, signals
from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.health import UNREGISTER_TRIES, LayerHealth
from dbchannels.layers.operations import BatchResult, Delivery
from dbchannels.layers.tasks import report_ended
from dbchannels.models import Process
from dbchannels.redaction import RateLimitedLog
from dbchannels.routing.table import Routing
from dbchannels.wakeup import Backoff, WakeupPipe, wait_for_one
from dbchannels.worker.batch import Batch
from dbchannels.worker.executor import Executor
from dbchannels.worker.limits import Limits
from dbchannels.worker.sampler import Report, Sampler
from dbchannels.worker.schedule import Timetable
from dbchannels.worker.views import ApplicationViews
from dbchannels.worker.watchdog import Watchdog

log = logging.getLogger("dbchannels.worker")

REQUESTS = "http.request"
PROTOCOL_CHANNELS = (*names.WEBSOCKET, REQUESTS, "http.disconnect")
# Seconds for which protocol messages may delay a claim, after one that found nothing; ten times as long as a slow one.
CLAIM_WITHIN = 0.02
OUTDATED = (
    5.0  # seconds that a worker with old code waits for its parent to end it, before it ends on its own
)
WRITE_AFTER = 0.002  # seconds: quick consumers' results are written together, a slower one's at once
DROPPED = (
    "%d message(s) of consumers were dropped, the last for %s: their channel was full. Its reader is too slow, or "
    "OPTIONS['capacity'] too low."
)


@dataclass(frozen=True)
class ProcessContext:
    """What ties workers to the process in which they are threads."""

    #: They come from a parent that LISTENs for its workers; without them the worker's own link listens.
    wakeups: Sequence[WakeupPipe] = ()
    #: They wake the readers of reply queues, by the name of the queue.
    local_wakeups: Mapping[str, WakeupPipe] = field(default_factory=dict)
    #: Ends the process when a consumer hangs.
    replace: Callable[[], None] = lambda: os._exit(1)
    #: Is called when a worker is on record.
    on_ready: Callable[[], Any] = lambda: None
    #: Whether the code has changed: then the worker takes no more messages.
    is_outdated: Callable[[], bool] | None = None
    #: Where the process leaves what its workers have counted.
    report: Report | None = None


class Worker:
    """Reads the channels that have consumers and match the patterns, until ``stop`` is called.

    * ``views`` are shared by workers that are threads of one process.
    * ``limits`` say after how much work another process takes this one's place: then ``wants_successor`` is set.
    * With ``burst`` it ends when nothing is left to do.
    * ``patience`` is how many seconds an outage may last until ``run`` raises LayerUnavailable.
    """

    consumed = 0  # messages
    #: Whether another process is to do this one's work when ``run`` has returned.
    wants_successor = False
    _written_at = _renewed_at = 0.0  # time.monotonic()
    # time.monotonic() until which protocol messages go before a claim; None: it is set when the next of them come.
    _claim_by: float | None = 0.0
    _patience = CLAIM_WITHIN
    _work_on_record = ""

    def __init__(
        self,
        layer: BaseLayer,
        routing: Routing,
        *,
        only: Sequence[str] = (),
        exclude: Sequence[str] = (),
        name: str = "",
        process: ProcessContext = ProcessContext(),
        views: ApplicationViews | None = None,
        limits: Limits | None = None,
        burst: bool = False,
        patience: float = math.inf,
    ) -> None:
        self.layer, self.routing, self.name = layer, routing, name or new_worker_name()
        self.channels, self._site = selected_channels(routing, only, exclude), conf.site_mark()
        if settings.DEBUG:
            layer.consumed_channels = {*PROTOCOL_CHANNELS, *routing.channels()}
        # The channel that was served longest ago comes first.
        self._protocol = [channel for channel in self.channels if names.is_protocol(channel)]
        self._durable = [channel for channel in self.channels if not names.is_protocol(channel)]
        self.link = layer.link("worker", listen=not process.wakeups)
        self.link.local_wakeups = process.local_wakeups
        entries = [entry for entry in routing.timetable() if entry.channel in self.channels]
        self._timetable = Timetable(entries, self.link)
        self._concurrency, self._has_all_entries = routing.concurrency(), not only and not exclude
        self._executor = Executor(layer, routing, self.link, views)
        self._batch, self._health = Batch(), LayerHealth(log, self.name, patience)
        self.measures = self._batch.measures
        self._sampler = Sampler(self.link, self.measures)
        watched = self._batch, self._executor, self._hand_back, self._look_after
        self._watchdog = Watchdog(*watched, process.replace, self._cancelled_by)
        self._process, self._wakeups, self._wake = process, process.wakeups, WakeupPipe.new()
        self._dropped = RateLimitedLog(log, DROPPED, None, every=60.0)
        self._script_prefix = get_script_prefix()  # FORCE_SCRIPT_NAME; a thread does not inherit it
        self.stopping, self._limits = threading.Event(), limits
        self._writing = threading.Lock()  # a result is taken and written before another one is
        # A burst may end before a clean-up would be due, and no other process may be there for it.
        self._cleaned_at = 0.0 if burst else time.monotonic()
        self._burst_until = time.monotonic() + 2 * layer.options["lease"] if burst else math.inf

    # The life of a worker.

    def load(self) -> None:
        """Load the site's WSGI application, with its middleware; raises InvalidConfiguration."""
        if REQUESTS in self.channels:
            self._executor.views.load()

    def run(self) -> None:
        """Work until ``stop`` is called; finish what runs, hand back the rest, and leave no record behind. Raises
        LayerUnavailable if an outage has lasted too long.
        """
        set_script_prefix(self._script_prefix)
        caches.all()  # kept in a ContextVar: made in the context of a message, they would be made anew for each
        self._health.retry(self._register, self.stopping)
        self._watchdog.start()
        self._process.on_ready()
        ready = signals.worker_ready.send_robust
        self._executor.call_between(ready, Worker, name=self.name, channels=list(self.channels))
        delays = Backoff(from_start=True)
        while not self.stopping.is_set() and not self._health.exhausted:
            try:
                found = self.run_once()
                if delays.tries:
                    self._health.worked()
                    delays.reset()
                if found:
                    continue
                # A burst stays while what a dead worker had claimed may come back soon.
                if time.monotonic() > self._burst_until or (
                    self._burst_until < math.inf and not self.link.awaits_claims(self._durable)
                ):
                    break
                self._wait()
            except LayerUnavailable as error:
                self._health.failed(error)
                self._renewed_at = 0.0  # begin with a write: a database may answer, and take none
                self._wake.wait(delays.delay())
        self._watchdog.stop()  # or it could put the worker on record again
        self._dropped.flush()
        with suppress(LayerUnavailable):
            self._sampler.finish(self.name)
        if self._process.report is not None:
            self._process.report.write()
        self._health.retry(partial(self.link.unregister, self.name), self.stopping, UNREGISTER_TRIES)
        self.link.close()
        if self._health.exhausted:
            raise self._health.exhausted

    def stop(self) -> None:
        """Take no more messages. Safe to call from a signal handler."""
        self.stopping.set()
        self._wake.notify()

    def why_not_ready(self) -> str:
        """Return why this worker takes no messages; "" if it takes them. Safe to call from any thread."""
        if self.stopping.is_set():
            return "stopping"
        if not self._work_on_record:
            return "the worker is starting"
        overdue = time.monotonic() - self._renewed_at > self.layer.options["lease"]
        return "the layer cannot be used" if overdue or self._health.failing else ""

    def abandon(self) -> None:
        """Give back what this worker holds, as if it had not run: its process ends now, even if a consumer runs.

        Clients that wait for an answer get an error. Raises LayerUnavailable.
        """
        with self._writing:
            self.link.finish(self.name, self._batch.abandon())
        self.link.unregister(self.name)

    def run_once(self) -> bool:
        """Take a batch, run one consumer for each message, write what they did. False: nothing waited."""
        self._keep_alive()
        if time.monotonic() >= self._timetable.send_at:
            self._timetable.send_due()
        deliveries = self._take()
        if not deliveries:
            return False
        self._batch.fill(deliveries)
        if self._process.is_outdated is not None and self._process.is_outdated():
            self._write(hand_back=True)
            if not self.stopping.wait(OUTDATED):  # the parent has not seen the change
                self._process.replace()
            return False
        if len(deliveries) == self._batch.sizer.limit:
            self._wake_others()
        while not self.stopping.is_set() and (delivery := self._batch.start_next()):
            channels = self._durable if delivery.channel in self._durable else self._protocol
            if channels[-1] != delivery.channel:  # the others go first now, so that all have equal shares
                channels.remove(delivery.channel)
                channels.append(delivery.channel)
            self._batch.finished(self._executor.execute(delivery, self.name))
            self.consumed += 1
            if (
                self._limits
                and not self.stopping.is_set()
                and (reached := self._limits.reached(self.consumed))
            ):
                log.info("Worker %s %s, so another one takes its place.", self.name, reached)
                self.wants_successor = True
                self.stop()
            if time.monotonic() - self._written_at > WRITE_AFTER and self._batch.waiting:
                self._write()
        self._write(hand_back=True)
        return True

    def _take(self) -> list[Delivery]:
        """Take protocol messages first, because clients wait for them; then claim durable ones."""
        for wakeup in self._wakeups:
            wakeup.drain()
        limit = self._batch.sizer.limit
        taken = self.link.receive_many(self._protocol, limit, self.name) if self._protocol else []
        if not self._durable or len(taken) == limit:
            return taken
        started_at = time.monotonic()
        if taken:
            # A sender would have ended the worker's sleep: only from its first message on a claim may be overdue.
            if self._claim_by is None:
                self._claim_by = started_at + self._patience
            if started_at < self._claim_by:
                return taken
        try:
            claimed = self.link.claim(self._durable, limit - len(taken), self.name, self._concurrency)
        except LayerUnavailable:
            if not taken:  # else what was taken is nowhere else, and runs; the next batch meets the failure
                raise
            return taken
        self._claim_by = 0.0 if claimed else None
        self._patience = max(CLAIM_WITHIN, (time.monotonic() - started_at) * 10)
        if len(claimed) > 1:
            claimed.sort(key=lambda delivery: self._durable.index(delivery.channel))
        return taken + claimed

    def _wake_others(self) -> None:
        for wakeup in self._wakeups:
            wakeup.notify()

    def _wait(self) -> None:
        """Wait for a wakeup, for the next delayed message to be due, for the poll, or to renew the lease."""
        until_sends = max(0.0, self._timetable.send_at - time.monotonic())
        timeout = min(self.layer.poll_interval(), self.layer.options["lease"] / 3, until_sends)
        if self._durable and (due := self.link.next_due()) is not None:
            timeout = min(timeout, due)
        if self._wakeups:
            wait_for_one(self._wakeups, self._wake.reader, timeout)
        else:
            self.link.wait(timeout, self._wake.reader)

    # Writing.

    def _write(self, hand_back: bool = False) -> None:
        with self._writing:
            result = self._batch.report(hand_back)
            dropped = self._health.retry(partial(self.link.finish, self.name, result), self.stopping)
            if dropped:
                self._dropped.count(None, names.split(dropped[-1].channel)[0], number=len(dropped))
            self._written_at = time.monotonic()
        dead = any(one.retry_in is None for one in result.failures)
        if dropped is not None and (dead or any(one.is_task for one in result.acknowledged)):
            self._executor.call_between(_send_ended, result)

    # What the watchdog calls, in its thread.

    def _hand_back(self) -> None:
        self._write(hand_back=True)
        self._wake_others()

    def _look_after(self) -> None:
        try:
            self._keep_alive()
        except LayerUnavailable:  # the main thread logs it
            # Try again soon: half a lease after a crash of the database, servers look for what nobody has on record.
            self._renewed_at -= self.layer.options["lease"] / 4

    def _cancelled_by(self, delivery: Delivery) -> str:
        return self.link.cancelled_by(self.name, delivery)

    # Liveness.

    def _keep_alive(self) -> None:
        now, every = time.monotonic(), self.layer.options["lease"] / 3
        if now - self._renewed_at > every:
            self._renewed_at = now
            self.measures.count("renewals")
            if not self.link.renew(self.name):
                log.warning(
                    "This worker (%s) was declared dead while it stood still; it goes on as a new one.",
                    self.name,
                )
                self._batch.clear()  # others have cleaned up: the messages are not its own any more
                self.name = self._health.process = new_worker_name()
                self._register()
            elif self.link.emptied(self.name):
                self._write()  # and so put on record again what runs, or its clients are told that it is lost
            self._record_work()
            self._dropped.count(number=0)
            self._executor.tidy()  # a consumer's thread may have ended after its message
        if not self._wakeups and now - self._cleaned_at > every:
            self._cleaned_at = now
            try:
                self.link.clean_up()
            finally:
                self._executor.tidy()  # the check of the wakeups uses Django's connection
        self.measures.events["outages"] = self._health.outages
        report = self._process.report
        if report is not None and now >= report.due_at:
            report.write()
        if now >= self._sampler.due_at:
            self._sampler.look(self.name)
        if now >= self._timetable.keep_at:
            self._timetable.keep(drop=self._has_all_entries)

    def _register(self) -> None:
        self._renewed_at = time.monotonic()
        # The queue on record shows servers elsewhere that a worker answers requests.
        self.link.register(self.name, Process.WORKER, REQUESTS if REQUESTS in self.channels else "")
        self.link.emptied(self.name)
        self._work_on_record = ""
        self._record_work()

    def _record_work(self) -> None:
        """Put on record what this worker takes and runs: servers log it when messages wait for long.

        ``id`` is that of a durable message; the time-outs are its consumer's, in seconds, 0 for none.
        """
        running, seconds = self._batch.running()
        soft, hard = self._executor.timeouts() if running else (0.0, 0.0)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - seconds)) if running else ""
        runs = running.channel if running else ""
        work = json.dumps(
            {
                "takes": self.channels,
                "site": self._site,
                "runs": runs,
                "since": since,
                "id": running.id if running else None,
                "soft_timeout": soft,
                "hard_timeout": hard,
            }
        )
        if work != self._work_on_record:
            self.link.record_work(self.name, work)
            self._work_on_record = work


def selected_channels(routing: Routing, only: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Return the channels of a site that match a pattern of ``only``, if there is any, and none of ``exclude``."""
    channels = dict.fromkeys([*PROTOCOL_CHANNELS, *routing.channels()])
    return [
        channel
        for channel in channels
        if (not only or any(fnmatchcase(channel, pattern) for pattern in only))
        and not any(fnmatchcase(channel, pattern) for pattern in exclude)
    ]


def _send_ended(result: BatchResult) -> None:
    """Send the signals of messages that were stored as dead letters, and of tasks that have ended."""
    signals.send_dead(Worker, result.failures)
    report_ended(result)


def new_worker_name() -> str:
    """Return a name that no other worker has or had."""
    return f"worker-{os.getpid()}-{names.random_part()}"
