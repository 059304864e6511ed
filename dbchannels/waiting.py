"""Waiting for descriptors, and for how long."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from contextlib import suppress

from dbchannels.exceptions import InvalidConfiguration

LONGEST_TIMEOUT = 86_400.0  # seconds: a day


def wait_readable(descriptors: Sequence[int], timeout: float) -> set[int]:
    """Return those descriptors that can be read, at the latest after ``timeout`` seconds.

    By poll(2), which unlike select(2) takes descriptors beyond 1,023. The end of a pipe can be read too.
    """
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(max(0.0, timeout) * 1000)}


def check_timeout(option: str, seconds: float) -> float:
    """Return a time-out of the command line; a timer takes NaN or infinity too, and fails when it is set off."""
    if not 0 <= seconds <= LONGEST_TIMEOUT:
        raise InvalidConfiguration(f"{option} takes a number of seconds from 0 to {LONGEST_TIMEOUT:.0f}.")
    return seconds


class WakeupPipe:
    """Ends another thread's wait, or that of the code that a signal handler interrupts."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)

    def ring(self) -> None:
        """End the wait that goes on, or the next one."""
        with suppress(BlockingIOError):
            os.write(self._writer, b"!")

    def wait(self, timeout: float) -> None:
        """Wait to be rung."""
        if wait_readable([self.reader], timeout):
            self.silence()

    def silence(self) -> None:
        """Take what was rung."""
        with suppress(BlockingIOError):
            os.read(self.reader, 4096)
