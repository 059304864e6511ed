"""Waking processes and threads, waiting for descriptors, and the pauses between attempts."""

from __future__ import annotations

import math
import os
import random
import select
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from dbchannels.exceptions import InvalidConfiguration

LONGEST_TIMEOUT = 86_400.0  # seconds: a day


class WakeupPipe(NamedTuple):
    """Both ends of a pipe that wakes one waiter: a thread, the code that a signal interrupts, or another process.

    The one process that LISTENs to the database wakes its workers through such pipes: 50 listeners would slow every
    commit to a tenth of its speed. A byte is one wakeup. The idle process that drains the pipe looks for messages,
    the others sleep on; a process that finds more messages than it takes wakes the next one.
    """

    reader: int
    writer: int

    @classmethod
    def new(cls) -> WakeupPipe:
        """Make a pipe; child processes do not inherit its descriptors unless they are passed on."""
        return cls(*os.pipe())._unblocked()

    @classmethod
    def inherited(cls, text: str) -> WakeupPipe:
        """Return the parent's pipe, from its ``str``."""
        reader, writer = text.split(",")
        return cls(int(reader), int(writer))._unblocked()

    def _unblocked(self) -> WakeupPipe:
        os.set_blocking(self.reader, False)
        os.set_blocking(self.writer, False)
        return self

    def notify(self) -> None:
        """Wake one that waits. A full pipe has 65,536 wakeups in it, and one more says nothing new."""
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self.writer, b"!")

    def drain(self) -> bool:
        """Take all wakeups; False when there was none, or another process was faster."""
        try:
            return bool(os.read(self.reader, 65_536))
        except BlockingIOError:
            return False

    def wait(self, timeout: float) -> None:
        """Wait for a wakeup, and take it."""
        if wait_readable([self.reader], timeout):
            self.drain()

    def __str__(self) -> str:
        return f"{self.reader},{self.writer}"


def wait_for_one(pipes: Sequence[WakeupPipe], other: int, timeout: float) -> None:
    """Wait until a wakeup of one of the pipes was taken, or the other descriptor can be read.

    A byte wakes every process that waits. Those that come too late for it go on waiting.
    """
    ends_at = time.monotonic() + timeout
    descriptors = [other, *(pipe.reader for pipe in pipes)]
    while readable := wait_readable(descriptors, ends_at - time.monotonic()):
        if other in readable or any(pipe.drain() for pipe in pipes if pipe.reader in readable):
            return


def wait_readable(descriptors: Sequence[int], timeout: float) -> set[int]:
    """Wait up to ``timeout`` seconds, and return the descriptors that can be read, or whose other end is closed.

    By poll(2): select(2) takes no descriptor above 1,023.
    """
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(max(0.0, timeout) * 1000)}


def check_timeout(option: str, seconds: float) -> float:
    """Return a time-out of the command line. NaN and infinity are refused: a timer would fail only when it is set."""
    if not 0 <= seconds <= LONGEST_TIMEOUT:
        raise InvalidConfiguration(f"{option} takes a number of seconds from 0 to {LONGEST_TIMEOUT:.0f}.")
    return seconds


class Backoff:
    """Delays in seconds that double from ``first`` to ``most``, each with a random jitter of half its length.

    With ``from_start`` a delay counts from the start of the attempt before it, which may have waited for a host that is
    gone.
    """

    def __init__(self, first: float = 0.05, most: float = 2.0, from_start: bool = False) -> None:
        self._first = self._next = first
        self._most, self.tries = most, 0
        self._from_start, self._started_at = (
            from_start,
            math.inf,
        )  # time.monotonic(): when the last delay was over

    def delay(self) -> float:
        """Return the next delay."""
        self.tries += 1
        delay, self._next = self._next * random.uniform(0.5, 1.5), min(self._most, self._next * 2)
        now = time.monotonic()
        if self._from_start:
            delay = max(self._first / 2, delay - max(0.0, now - self._started_at))
        self._started_at = now + delay
        return delay

    def reset(self) -> None:
        """Start from the first delay again."""
        self._next, self.tries, self._started_at = self._first, 0, math.inf
