"""A message whose consumer raised ConsumeLater: when it goes to the layer again."""

from __future__ import annotations

import time

from dbchannels.backoff import Backoff

FIRST, MOST = 0.1, 5.0  # seconds
DEADLINE = (
    60.0  # seconds for which a consumer may put a message off: one that nobody takes expires after as many
)


class Postponed:
    """Of one message. It waits from ``next_delay`` until ``sent``, and word of it that comes twice counts once."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + DEADLINE
        self._delays = Backoff(FIRST, MOST)
        self.waits = False

    def next_delay(self) -> float | None:
        """Return the seconds until it goes again; None when it has been put off for too long."""
        if time.monotonic() > self._deadline:
            return None
        self.waits = True
        return self._delays.delay()

    def sent(self) -> None:
        """It is in the layer again."""
        self.waits = False
