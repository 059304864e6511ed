"""What a consumer has sent, added and discarded and is not yet written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dbchannels.layers.operations import Operation


class Buffer:
    """Operations in order, each with a probe once it was written inside a transaction.

    A write inside ``atomic()`` takes along what was buffered before, so that nothing overtakes. When that
    transaction, or the savepoint, is rolled back, what had been buffered outside waits again: it was not part of
    it. What was sent inside is gone with it, as it should be.
    """

    def __init__(self) -> None:
        self._operations: list[Operation] = []
        self._written: list[tuple[int, Callable[[], bool]]] = []

    def append(self, operations: Sequence[Operation]) -> None:
        """Add operations that wait for the consumer's end."""
        self._operations += operations

    def written(self, operations: Sequence[Operation], rolled_back: Callable[[], bool]) -> None:
        """Note that everything up to now was written; ``rolled_back`` will say if it was undone."""
        self._written.append((len(self._operations), rolled_back))

    def pending(self) -> list[Operation]:
        """Return the operations that are still to be written, in order."""
        done = max((count for count, rolled_back in self._written if not rolled_back()), default=0)
        return self._operations[done:]
