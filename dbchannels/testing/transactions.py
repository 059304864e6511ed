"""Commits and rollbacks of a test that is itself one transaction.

In Django's ``TestCase`` nothing is ever committed: an ``atomic()`` block of the site's code is a savepoint. Here it
counts as committed when the outermost block that Django's test case has not opened ends without a rollback.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, MutableMapping
from enum import Enum
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

_DELETED = object()  # the value of a row that a transaction has deleted


class State(Enum):
    """The state of a transaction."""

    OPEN = "open"
    KEPT = "committed"
    UNDONE = "rolled back"


class Mark:
    """The transactions in which something was written; it is kept if all of them are committed."""

    def __init__(self, blocks: list[Block]) -> None:
        self._blocks = blocks
        self._thread = threading.get_ident()

    @classmethod
    def of_caller(cls) -> Mark | None:
        """Return the mark of the calling thread's transactions, on all databases; None if it has none."""
        blocks = [Block(one) for one in connections.all(initialized_only=True) if _first(one) is not None]
        return cls(blocks) if blocks else None

    @property
    def state(self) -> State:
        """Undone if one was rolled back, open while one is open."""
        states = {block.state for block in self._blocks}
        return next(one for one in (State.UNDONE, State.OPEN, State.KEPT) if one in states)

    def is_seen(self, apart: bool) -> bool:
        """Whether the caller sees what was written: after its commit, and before that in its own transaction alone."""
        state, own = self.state, self._thread == threading.get_ident()
        return state is State.KEPT or (state is State.OPEN and own and not apart)


class Block:
    """The outermost ``atomic()`` block of the site's code on one database connection."""

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
        """The state of the block."""
        if self._final is None:
            # Only its own thread can tell a rollback from a commit that is under way.
            can_tell = self._in_test or self._thread == threading.get_ident()
            if can_tell and all(entry[1] != self._committed for entry in self._connection.run_on_commit):
                self._final = State.UNDONE
            elif self._in_test and self._savepoint is None:
                is_open = any(block is self._block for block in self._connection.atomic_blocks)
                self._final = None if is_open else State.KEPT
            elif self._in_test and self._savepoint not in self._connection.savepoint_ids:
                self._final = State.KEPT
        return self._final or State.OPEN


class Table(MutableMapping[str, Any]):
    """A table of a store with versions: what a transaction wrote is seen by its thread, and after its commit by all.

    ``is_apart()`` tells whether the table is read and written outside the caller's transactions.
    """

    def __init__(self, is_apart: Callable[[], bool]) -> None:
        self._is_apart = is_apart
        self._versions: dict[str, list[tuple[Mark | None, Any]]] = {}

    def __getitem__(self, key: str) -> Any:
        value = self._seen(key)
        if value is _DELETED:
            raise KeyError(key)
        return value

    def _seen(self, key: str) -> Any:
        apart = self._is_apart()
        for mark, value in reversed(self._versions.get(key, ())):
            if mark is None or mark.is_seen(apart):
                return value
        return _DELETED

    def __setitem__(self, key: str, value: Any) -> None:
        mark = None if self._is_apart() else Mark.of_caller()
        versions = self._versions.get(key, [])
        if self._seen(key) is _DELETED:  # a new key goes to the end, as in a dict
            self._versions.pop(key, None)
        self._versions[key] = [*versions, (mark, value)] if mark else [(None, value)]

    def __delitem__(self, key: str) -> None:
        self[key]
        self[key] = _DELETED
        if self._versions[key][-1][0] is None:
            del self._versions[key]

    def __iter__(self) -> Iterator[str]:
        return (key for key in list(self._versions) if self._seen(key) is not _DELETED)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def in_transaction() -> bool:
    """Whether the calling thread is inside ``atomic()``, not counting that of the test itself."""
    return any(_first(one) is not None for one in connections.all(initialized_only=True))


def _first(connection: BaseDatabaseWrapper) -> int | None:
    """Return the position of the outermost block that was not opened by Django's TestCase."""
    blocks: list[Any] = connection.atomic_blocks
    return next((at for at, block in enumerate(blocks) if not block._from_testcase), None)
