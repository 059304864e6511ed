"""The requests under way: who is waited for when the server stops, and who is told that nobody waits any longer."""

from __future__ import annotations

from collections.abc import Callable, Hashable

GiveUp = Callable[[], None]


class UnderWay:
    """Counts requests and handshakes from the end of their head to the end of their answer, each by its connection.

    What an unanswered one waits for is given up by a function of its own, which leads to a 503 and does not block;
    one whose answer has begun has none, and is cut with its connection.
    """

    def __init__(self) -> None:
        self.given_up = False  # from now on each is answered 503
        self.lingering = 0  # clients that were answered and have not heard it, because they still send
        self._waits: dict[Hashable, GiveUp | None] = {}

    def __len__(self) -> int:
        return len(self._waits)

    @property
    def is_over(self) -> bool:
        """Whether every client has its answer."""
        return not self._waits and not self.lingering

    def begin(self, connection: Hashable) -> None:
        """Count one from now on."""
        self._waits[connection] = None

    def waits(self, connection: Hashable, give_up: GiveUp | None) -> None:
        """Say how its wait is given up; None: it waits for nothing, or for its client."""
        if connection in self._waits:
            self._waits[connection] = give_up

    def end(self, connection: Hashable) -> None:
        """Count it no more."""
        self._waits.pop(connection, None)

    def give_up(self) -> None:
        """Have each that waits answered, and all that still begin."""
        self.given_up = True
        for give_up in [one for one in self._waits.values() if one is not None]:
            give_up()
