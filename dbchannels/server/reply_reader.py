"""Takes a server's replies out of the layer, and is the one thread of its process tree that LISTENs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence

from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.health import LayerHealth
from dbchannels.layers.link import Link
from dbchannels.layers.operations import Delivery
from dbchannels.wakeup import Backoff, WakeupPipe

log = logging.getLogger("dbchannels.server")

BATCH = 500  # rows in one statement
REACHABLE = 1.0  # seconds that an answer of the layer may take before it counts as gone


class ReplyReader:
    """Runs in a thread of its own until ``stop``.

        ``queue`` gives the name of the queue that is read; ``deliver`` is given what was on it. ``wakeups`` wake
    the workers of this process tree, by the kind of their messages.
    """

    def __init__(
        self,
        layer: BaseLayer,
        queue: Callable[[], str],
        wakeups: Mapping[str, WakeupPipe],
        deliver: Callable[[Sequence[Delivery]], None],
        health: LayerHealth,
    ) -> None:
        self._layer = layer
        self._queue = queue
        self._wakeups = wakeups
        self._deliver = deliver
        self._health = health
        self._stopping = threading.Event()
        self._wake = WakeupPipe.new()  # ends the wait
        self._read_at = 0.0  # when the layer last gave what waited
        #: Notified by workers of this process tree that have written replies, in place of a NOTIFY.
        self.reply_wakeup = WakeupPipe.new()

    def stop(self) -> None:
        """End ``run``; from any thread."""
        self._stopping.set()
        self._wake.notify()

    def is_reachable(self) -> bool:
        """Whether the layer has answered when it was last looked at, or should have been."""
        return time.monotonic() - self._read_at < 2 * self._layer.poll_interval() + REACHABLE

    def run(self) -> None:
        """Read, wait, and read again."""
        link = self._layer.link("receiver")
        delays, failing, deaf = Backoff(), False, False
        while not self._stopping.is_set():
            try:
                self._read_all(link)
                self._read_at = time.monotonic()
                self._health.worked()
                delays.reset()  # it answers: should only the wait fail, the session was ended, not the database
                if deaf:  # what was told in between was told to nobody: the workers look by themselves
                    self._notify(self._wakeups)
                    deaf = False
                self._wait(link)
                failing = False
            except Exception as error:
                deaf = True
                self._health.failed(error)
                if not isinstance(error, LayerUnavailable) and not failing:
                    log.exception("The replies could not be read; trying again.")
                    failing = True
                self._stopping.wait(delays.delay())
        link.close()

    def _read_all(self, link: Link) -> None:
        more = True
        while more:
            deliveries = link.receive_many([self._queue()], BATCH)
            if deliveries:
                self._deliver(deliveries)
            more = len(deliveries) == BATCH

    def _wait(self, link: Link) -> None:
        """Wait until something may have come for us; wake the workers when it is for them."""
        deadline = time.monotonic() + self._layer.poll_interval()
        while not self._stopping.is_set() and (left := deadline - time.monotonic()) > 0:
            kinds = link.wait(left, self._wake.reader, self.reply_wakeup.reader)
            self._notify(kinds)
            if self.reply_wakeup.drain() or self._queue() in kinds:
                return

    def _notify(self, kinds: Container[str]) -> None:
        for kind, wakeup in self._wakeups.items():
            if kind in kinds:
                wakeup.notify()
