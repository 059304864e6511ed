"""Waiting for descriptors."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from contextlib import suppress


def wait_readable(descriptors: Sequence[int], timeout: float) -> set[int]:
    """Return those descriptors that can be read, at the latest after ``timeout`` seconds.

    By poll(2), which unlike select(2) takes descriptors beyond 1,023. The end of a pipe can be read too.
    """
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(max(0.0, timeout) * 1000)}


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
