"""The layer of a test: in memory, part of Django's transactions, with a clock of its own and a record of all sends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, TypeVar

from dbchannels.conf import LayerSettings
from dbchannels.layers.operations import Operation, Send, SendGroup
from dbchannels.layers.store import StoreLayer, StoreLink
from dbchannels.layers.store.rows import Row, rows
from dbchannels.testing import transactions
from dbchannels.testing.sent import Record, SentMessage
from dbchannels.testing.transactions import Mark, State, Table

Method = TypeVar("Method", bound=Callable[..., Any])


class RecordingLayer(StoreLayer):
    """A layer in memory whose clock stands still until ``advance``. The methods are those of BaseLayer."""

    shared = False
    transactional = True
    wakeups = True

    def __init__(self, settings: LayerSettings, records: list[Record]) -> None:
        super().__init__(settings)
        self.records = records
        self._now = 0.0
        self._lock = threading.RLock()
        self._is_apart = False  # while the lock is held
        self._tables: dict[tuple[str, str], MutableMapping[str, Any]] = {}

    def link(self, name: str = "", listen: bool = True) -> RecordingLink:
        return RecordingLink(self)

    def describe(self) -> str:
        return "the layer of a test, in memory"

    # Time.

    def clock(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds

    # Transactions: of any database, but for the one that the test itself is.

    def in_transaction(self) -> bool:
        return transactions.in_transaction()

    def rollback_probe(self) -> Callable[[], bool]:
        mark = Mark.of_caller()
        return lambda: mark is not None and mark.state is State.UNDONE

    def _submit(self, operations: Sequence[Operation], immediately: bool = False) -> None:
        self._write_or_buffer(operations, immediately)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Read and write outside the caller's transactions, as if on another connection."""
        with self._lock:
            before, self._is_apart = self._is_apart, True
            try:
                yield
            finally:
                self._is_apart = before

    # The store.

    def locked(self) -> AbstractContextManager[Any]:
        return self._lock

    def table(self, kind: str, name: str = "") -> MutableMapping[str, Any]:
        if (kind, name) not in self._tables:
            # Numbers are given once, as by a sequence: a rollback does not take them back.
            self._tables[kind, name] = {} if kind == "numbers" else Table(lambda: self._is_apart)
        return self._tables[kind, name]

    def table_names(self, kind: str) -> list[str]:
        return [name for (one, name), table in self._tables.items() if one == kind and table]

    def write(self, operations: Sequence[Operation], drop: bool = False) -> list[Send]:
        with self._lock:
            refused = super().write(operations, drop)
            mark = None if self._is_apart else Mark.of_caller()
            for operation in operations:
                if isinstance(operation, (Send, SendGroup)) and (
                    message := SentMessage.of(operation, self.alias)
                ):
                    self.records.append(Record(message, mark))
            return refused

    def write_unrecorded(self, operations: Sequence[Operation]) -> None:
        """Write what the interface server sends."""
        with self.apart():
            super().write(operations, drop=True)

    # What waits, for ``drain``.

    def waiting(self, delayed: bool = False) -> list[str]:
        """Return the channels with messages that are due, or, with ``delayed``, any; the oldest message comes first."""
        now = self.clock()
        return list(dict.fromkeys(row.queue for row in self._visible() if delayed or row.due <= now))

    def next_due(self) -> float | None:
        """Return in how many seconds the next delayed message is due; None if there is none."""
        now = self.clock()
        return min((row.due - now for row in self._visible() if row.due > now), default=None)

    def _visible(self) -> list[Row]:
        """Return the messages that readers see, the oldest first."""
        with self.apart():
            found = [row for queue in self.table_names("waiting") for row in rows(self._unexpired(queue))]
        return sorted(found, key=lambda row: row.id)


def _apart(method: Method) -> Method:
    @wraps(method)
    def call(link: RecordingLink, *arguments: Any) -> Any:
        with link.layer.apart():
            return method(link, *arguments)

    return call  # type: ignore[return-value]


class RecordingLink(StoreLink):
    """A link that reads and writes outside the caller's transactions."""

    layer: RecordingLayer

    receive_many = _apart(StoreLink.receive_many)
    claim = _apart(StoreLink.claim)
    apply = _apart(StoreLink.apply)
    finish = _apart(StoreLink.finish)
    register = _apart(StoreLink.register)
    move_time = _apart(StoreLink.move_time)
    read_history = _apart(StoreLink.read_history)
    missed = _apart(StoreLink.missed)
