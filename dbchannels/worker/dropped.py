"""What a consumer sent that found its channel full: told in one line now and then, and never in silence."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from dbchannels import names
from dbchannels.layers.operations import Send

log = logging.getLogger("dbchannels.worker")

TELL_EVERY = 60.0  # seconds


class Dropped:
    """Counts; the first one is told at once, those after it together a minute later. One thread at a time."""

    def __init__(self) -> None:
        self._count = 0  # not told of yet
        self._channel = ""  # of the first of them
        self._told_at: float | None = None

    def note(self, sends: Sequence[Send]) -> None:
        """Count these, and tell if it is time."""
        if sends:
            self._channel = self._channel or sends[0].channel
            self._count += len(sends)
        if self._count and (self._told_at is None or time.monotonic() - self._told_at >= TELL_EVERY):
            self.tell()

    def tell(self) -> None:
        """Log what was not told of yet."""
        if self._count:
            log.warning(
                "%d message(s) of consumers were dropped, the first for %s: their channel was full. Its reader is too "
                "slow, or OPTIONS['capacity'] too low.",
                self._count,
                names.split(self._channel)[0],
            )
            self._told_at = time.monotonic()
        self._count, self._channel = 0, ""
