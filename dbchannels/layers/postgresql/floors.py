"""Where in a queue a reader begins to look.

What was taken from a queue leaves its entries in the index until a vacuum clears them away, and while anybody's
transaction is open none can: each pop would go through all of them, to the oldest that still waits. So a reader begins
above what it took a second ago, once a look at the whole takes long. That is a hint and no cursor: ids are given at
INSERT and seen at COMMIT, so a sender whose transaction lasts longer stays below it. Every second or so a reader looks
at the whole queue again, and for what it finds there it forgets the hint. With 50,000 dead rows and a transaction that
keeps them a look takes 0.3 ms by the hint and 7 without.

A claim has none. It goes by priority first, so an id is no place to begin at, and would spare the look in the table
alone: 2.3 ms in place of 6. And what is handed back, tried again or was delayed has an old id: it would come late.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence

COSTLY = 0.002  # seconds: as long as a look at the whole takes less, there is no other
LAG = 1.0  # seconds that a sender's transaction may last and be found at once
WHOLE_EVERY = 1.0  # seconds, at least, between two looks at the whole ...
SHARE = 20  # ... which take one part in so many of the time, however much lies dead there
STEP = 0.05  # seconds between two ids that are remembered


class Floors:
    """Of one reader; an id at or below a queue's floor is not looked for."""

    def __init__(self) -> None:
        self._floors: dict[str, int] = {}
        self._taken: dict[
            str, deque[tuple[float, int]]
        ] = {}  # by queue: when, and the highest id taken until then
        self._whole_at = 0.0  # time.monotonic() of the next look at the whole
        self._whole = True  # the look under way is one
        self._took = 0.0  # seconds, the last of them
        self._began_at = 0.0
        self._generation = 0

    def begin(self, queues: Sequence[str], generation: int) -> list[int]:
        """Return each queue's floor for a look that begins now; 0: all of it.

        With another ``generation`` of the session nothing is known: a crash of the database starts ids at 1 again.
        """
        if generation != self._generation:
            self._generation, self._whole_at = generation, 0.0
            self._floors.clear()
            self._taken.clear()
        self._began_at = now = time.monotonic()
        self._whole = self._took < COSTLY or now >= self._whole_at
        floors = [self._floor(queue, now) for queue in queues]
        return [0] * len(floors) if self._whole else floors

    def _floor(self, queue: str, now: float) -> int:
        taken = self._taken.get(queue)
        while taken and taken[0][0] <= now - LAG:
            self._floors[queue] = taken.popleft()[1]
        return self._floors.get(queue, 0)

    def learn(self, found: Iterable[tuple[str, int]]) -> None:
        """Note what the look has taken, as (queue, id) in the order of the ids."""
        now = time.monotonic()
        if self._whole:
            self._took = now - self._began_at
            self._whole_at = now + max(WHOLE_EVERY, self._took * SHARE)
        highest: dict[str, int] = {}
        for queue, number in found:
            highest[queue] = number
            if number <= self._floors.get(
                queue, 0
            ):  # it was committed late, and others may have been with it
                self._floors.pop(queue)
                self._taken.pop(queue, None)
        for queue, number in highest.items():
            taken = self._taken.setdefault(queue, deque())
            if not taken or now - taken[-1][0] > STEP:
                taken.append((now, number))
