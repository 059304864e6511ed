"""What has to happen while a consumer runs, in a thread beside the worker's main thread.

After 50 ms the messages that wait behind the consumer go to another worker, the results of those before it are
written, and the lease is renewed. After the soft time-out the log shows where the consumer stands. After the hard one
its message has failed, and the process is replaced: a thread of Python's cannot be ended, a process can. The same
happens when somebody has cancelled the message, but then it is a dead letter at once.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from django.db import connections

from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.operations import Delivery
from dbchannels.redaction import Lines
from dbchannels.worker.batch import Batch
from dbchannels.worker.executor import Executor, coroutines, dead
from dbchannels.worker.response_stream import last_progress
from dbchannels.worker.stacks import format_stack

log = logging.getLogger("dbchannels.worker")

HAND_BACK_AFTER = 0.05  # seconds that one consumer may run before those behind it go to another worker
WRITE_WITHIN = 5.0  # seconds that the failure of a hung consumer may take to be written
ASK_EVERY = 1.0  # seconds between two looks whether the message of a durable channel was cancelled
LONGEST_STACK = 15_360  # characters, of its end: a dead letter has 16 KiB for this and the sentence before it


class Watchdog:
    """Looks at the batch every 25 ms. ``replace`` ends this process, so that another one takes its place."""

    def __init__(
        self,
        batch: Batch,
        executor: Executor,
        hand_back: Callable[[], None],
        keep_alive: Callable[[], None],
        replace: Callable[[], None],
        cancelled_by: Callable[[Delivery], str] = lambda delivery: "",
    ) -> None:
        self._batch, self._executor, self._cancelled_by = batch, executor, cancelled_by
        self._hand_back, self._keep_alive, self._replace = hand_back, keep_alive, replace
        self._logged: Delivery | None = None  # whose stack was logged
        self._asked_at = 0.0  # time.monotonic(), whether the message that runs was cancelled
        self._watched = threading.main_thread().ident or 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Watch the calling thread from now on."""
        self._watched = threading.get_ident()
        self._thread.start()

    def stop(self) -> None:
        """Return when the thread has ended."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.wait(HAND_BACK_AFTER / 2):
                if self._batch.running()[1] < HAND_BACK_AFTER:
                    continue
                if self._batch.holds_up():
                    self._hand_back()
                self._keep_alive()
                soft, hard = self._executor.timeouts()
                delivery, seconds = self._batch.running()
                if delivery is None:
                    continue
                if by := self._look(delivery, seconds):
                    self._cancel(delivery, by, seconds)
                    continue
                # A response that makes progress does not hang.
                seconds = min(seconds, time.monotonic() - last_progress.get(self._watched, 0.0))
                if hard and seconds > hard:
                    self._time_out(delivery, hard)
                elif soft and seconds > soft and self._logged is not delivery:
                    self._logged = delivery
                    log.warning(
                        "The consumer of a message on %s has run for %g s (soft_timeout) and stands here:\n    %s",
                        delivery.channel,
                        soft,
                        Lines(self._stack()),
                    )
        finally:
            connections.close_all()  # this thread's: a layer on any database uses Django's

    def _look(self, delivery: Delivery, seconds: float) -> str:
        """Return who has cancelled a message that has run for so long; asks once a second."""
        now = time.monotonic()
        if not delivery.durable or seconds < ASK_EVERY or now - self._asked_at < ASK_EVERY:
            return ""
        self._asked_at = now
        with suppress(LayerUnavailable):  # the main thread logs it
            return self._cancelled_by(delivery)
        return ""

    def _time_out(self, delivery: Delivery, hard: float) -> None:
        text = (
            f"This consumer had not ended after {hard:g} s (hard_timeout), so its worker was replaced. It stood here:\n"
            f"{self._stack()}"
        )
        if self._batch.time_out(
            delivery, self._executor.failed(delivery, text)
        ):  # else it has ended just now
            log.error("The consumer of a message on %s hangs. %s", delivery.channel, Lines(text))
            self._end()

    def _cancel(self, delivery: Delivery, by: str, seconds: float) -> None:
        text = (
            f"{by} cancelled this message after its consumer had run for {seconds:.0f} s, so its worker was replaced. "
            f"The consumer stood here:\n{self._stack()}"
        )
        if self._batch.time_out(delivery, dead(delivery, text)):
            log.warning("The consumer of a message on %s is ended. %s", delivery.channel, Lines(text))
            self._end()

    def _end(self) -> None:
        """Write the result that stands in place of the consumer's, and replace this process."""
        # The consumer may hold the very locks that the report waits for: the process ends in any case.
        timer = threading.Timer(WRITE_WITHIN, os._exit, [1])
        timer.daemon = True
        timer.start()
        self._hand_back()
        self._replace()
        timer.cancel()  # where `replace` returns, as in tests

    def _stack(self) -> str:
        """Return the stack of the consumer, from the site's first line on if it has one; of a long one its end."""
        if (frame := sys._current_frames().get(self._watched)) is None:
            return "(nowhere)"
        awaited: list[tuple[FrameType, int]] = []
        coroutine: Any = coroutines.get(self._watched)
        # The frames of a coroutine and of what it awaits are on no thread's stack while they wait.
        while (waiting := getattr(coroutine, "cr_frame", None)) is not None:
            awaited.append((waiting, waiting.f_lineno))
            coroutine = coroutine.cr_await
        frames = traceback.StackSummary.extract(iter(awaited)) or traceback.extract_stack(frame)
        return format_stack(frames)[-LONGEST_STACK:]
