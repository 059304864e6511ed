"""How long to wait before the next try."""

from __future__ import annotations

import random


class Backoff:
    """Delays in seconds that double from ``first`` to ``most``, each with a jitter of a half up or down."""

    def __init__(self, first: float = 0.05, most: float = 2.0) -> None:
        self._first, self._most = first, most
        self._next = first
        self.tries = 0

    def delay(self) -> float:
        """Return the next delay."""
        self.tries += 1
        now, self._next = self._next, min(self._most, self._next * 2)
        return now * random.uniform(0.5, 1.5)

    def reset(self) -> None:
        """Start from the first delay again: it has worked."""
        self._next = self._first
        self.tries = 0
