"""What becomes of a send when a transaction ends, in a test that is itself one transaction.

In Django's ``TestCase`` nothing ever commits: an ``atomic()`` block of the site's code is a savepoint. It counts as
committed here as soon as the outermost block that the test did not open itself has ended well.
"""

from __future__ import annotations

import threading
from enum import Enum
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper


class State(Enum):
    """How a transaction stands."""

    OPEN = "open"
    KEPT = "committed"
    UNDONE = "rolled back"


class Mark:
    """The transactions in which something was written: it is kept when all are committed."""

    def __init__(self, blocks: list[Block]) -> None:
        self._blocks = blocks
        self._thread = threading.get_ident()

    @classmethod
    def of_caller(cls) -> Mark | None:
        """Return the mark of the calling thread's transactions, on whatever database; None when it has none."""
        blocks = [Block(one) for one in connections.all(initialized_only=True) if _first(one) is not None]
        return cls(blocks) if blocks else None

    @property
    def state(self) -> State:
        """Undone when one was rolled back; open while one is open."""
        states = {block.state for block in self._blocks}
        return next(one for one in (State.UNDONE, State.OPEN, State.KEPT) if one in states)

    def is_seen(self) -> bool:
        """Whether the caller sees what was written: it is committed, or in the caller's own transaction."""
        state = self.state
        return state is State.KEPT or (state is State.OPEN and self._thread == threading.get_ident())


class Block:
    """The outermost ``atomic()`` block of the site's code on one connection."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        position = _first(connection)
        assert position is not None
        self._connection: Any = connection
        self._block = connection.atomic_blocks[position]
        self._in_test = position > 0  # the test is one transaction, so this is a savepoint
        self._savepoint = connection.savepoint_ids[position - 1] if self._in_test else None
        self._thread = threading.get_ident()
        self._final: State | None = None
        # Django forgets it when the innermost savepoint, or what is around it, is rolled back.
        connection.on_commit(self._committed)

    def _committed(self) -> None:
        self._final = State.KEPT

    @property
    def state(self) -> State:
        """How it stands."""
        if self._final is None and self._is_forgotten():
            self._final = State.UNDONE
        elif self._final is None and self._in_test and not self._is_open():
            self._final = State.KEPT
        return self._final or State.OPEN

    def _is_forgotten(self) -> bool:
        """Whether it was rolled back; only its own thread can tell that from a commit that is just being noted."""
        can_tell = self._in_test or self._thread == threading.get_ident()
        return can_tell and all(entry[1] != self._committed for entry in self._connection.run_on_commit)

    def _is_open(self) -> bool:
        if self._savepoint is not None:
            return self._savepoint in self._connection.savepoint_ids
        return any(block is self._block for block in self._connection.atomic_blocks)


class Cell:
    """A value, and what open transactions have made of it."""

    def __init__(self, value: Any = None) -> None:
        self._versions: list[tuple[Mark | None, Any]] = [(None, value)]

    def set(self, value: Any, mark: Mark | None) -> None:
        """Write it in the transactions of the mark; None: in none."""
        self._versions.append((mark, value))

    def get(self) -> Any:
        """Return the value as the caller sees it."""
        return next(value for mark, value in reversed(self._versions) if mark is None or mark.is_seen())


def in_transaction() -> bool:
    """Whether the calling thread is inside ``atomic()``, that of the test itself left aside."""
    return any(_first(one) is not None for one in connections.all(initialized_only=True))


def _first(connection: BaseDatabaseWrapper) -> int | None:
    """Return the position of the outermost block that was not opened by Django's TestCase."""
    blocks: list[Any] = connection.atomic_blocks
    return next((at for at, block in enumerate(blocks) if not block._from_testcase), None)
