"""A pipe that wakes one of several idle processes.

The process that LISTENs to the database rings, and its children wait. A byte is one ring: whoever of the idle
takes it, looks for messages; the others sleep on. So a message wakes one worker, not all of them, and one NOTIFY
listener serves a whole process tree (50 of them slow every commit to a tenth).
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple


class Doorbell(NamedTuple):
    """Both ends of the pipe, as descriptors; who finds more messages than it takes rings for the next."""

    reader: int
    writer: int

    @classmethod
    def new(cls) -> Doorbell:
        """Make one; its descriptors are not inherited unless they are passed on."""
        reader, writer = os.pipe()
        return cls(reader, writer)._unblocked()

    @classmethod
    def inherited(cls, text: str) -> Doorbell:
        """Make one of what ``str`` gave in the parent."""
        reader, writer = text.split(",")
        return cls(int(reader), int(writer))._unblocked()

    def _unblocked(self) -> Doorbell:
        os.set_blocking(self.reader, False)
        os.set_blocking(self.writer, False)
        return self

    def ring(self) -> None:
        """Wake one that waits. A full pipe has 65,536 rings waiting: one more says nothing new."""
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self.writer, b"!")

    def silence(self) -> bool:
        """Take all rings: whoever does so looks for messages next. False: there were none, or somebody was faster."""
        try:
            return bool(os.read(self.reader, 65_536))
        except BlockingIOError:
            return False

    def __str__(self) -> str:
        return f"{self.reader},{self.writer}"
