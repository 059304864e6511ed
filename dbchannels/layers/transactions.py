"""How sends take part in transactions: the buffer of a consumer, rollbacks, and commits on other databases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from django.db import connections, transaction

from dbchannels.layers.operations import Operation


class Buffer:
    """What a consumer has sent, added and discarded and is not yet written, in order.

    A write inside ``atomic()`` takes along what was buffered before it, so that nothing overtakes. If that transaction
    or savepoint is rolled back, what had been buffered outside it is pending again; what was sent inside is gone.
    """

    def __init__(self) -> None:
        self._operations: list[Operation] = []
        self._written: list[tuple[int, Callable[[], bool]]] = []

    def append(self, operations: Sequence[Operation]) -> None:
        """Add operations."""
        self._operations += operations

    def written(self, rolled_back: Callable[[], bool]) -> None:
        """Note that everything so far was written in a transaction; ``rolled_back()`` tells whether it was undone."""
        self._written.append((len(self._operations), rolled_back))

    def pending(self) -> list[Operation]:
        """Return the operations that are still to be written."""
        done = max((count for count, rolled_back in self._written if not rolled_back()), default=0)
        return self._operations[done:]


def rollback_probe(database: str) -> Callable[[], bool]:
    """Return a function that tells whether the innermost transaction or savepoint was rolled back since.

    Django keeps what is given to ``on_commit`` until the commit runs it, and drops it at a rollback.
    """
    connection = connections[database]
    committed: list[bool] = []

    def commit() -> None:
        committed.append(True)

    transaction.on_commit(commit, using=database)
    return lambda: not committed and all(entry[1] is not commit for entry in connection.run_on_commit)


def after_commit(aliases: Sequence[str], write: Callable[[], None]) -> None:
    """Call ``write`` once, when the last of these transactions has committed; never, if one is rolled back.

    Writes keep their order, because Django runs hooks in the order in which they were registered. What ``write`` raises
    leaves the ``atomic()`` block, as from any ``on_commit``: the transaction is committed by then.
    """
    left = set(aliases)

    def committed(alias: str) -> None:
        left.discard(alias)
        if not left:
            write()

    for alias in aliases:
        transaction.on_commit(partial(committed, alias), using=alias)
