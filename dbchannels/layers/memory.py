"""The layer in the memory of one process, for tests and ``runserver``; the shortest layer there is."""

from __future__ import annotations

import threading
import time
from collections.abc import MutableMapping, Sequence
from typing import Any

from dbchannels.conf import LayerSettings
from dbchannels.layers.operations import Delivery
from dbchannels.layers.store import StoreLayer, StoreLink
from dbchannels.protocol import HISTORY, KINDS

__all__ = ["MemoryLayer"]


class MemoryLayer(StoreLayer):
    """A layer whose messages end with the process. The methods are those of StoreLayer and BaseLayer."""

    shared = False
    wakeups = True

    def __init__(self, settings: LayerSettings) -> None:
        super().__init__(settings)
        self._condition = threading.Condition(threading.RLock())
        self._depth = 0  # of blocks under the lock
        self._writes = 0
        self._tables: dict[tuple[str, str], dict[str, Any]] = {}
        self._touched: set[tuple[str, str]] = set()  # while the lock is held

    def link(self, name: str = "", listen: bool = True) -> MemoryLink:
        return MemoryLink(self)

    def locked(self) -> MemoryLayer:  # a generator would take a third of the time of a send
        return self

    def __enter__(self) -> None:
        self._condition.acquire()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            # Empty tables are dropped: each request's body has a queue of its own.
            for key in self._touched:
                if not self._tables[key]:
                    del self._tables[key]
            self._touched.clear()
        self._condition.release()

    def table(self, kind: str, name: str = "") -> MutableMapping[str, Any]:
        self._touched.add((kind, name))
        return self._tables.setdefault((kind, name), {})

    def table_names(self, kind: str) -> list[str]:
        return [name for (one, name), table in self._tables.items() if one == kind and table]

    def changed(self) -> None:
        self._writes += 1
        self._condition.notify_all()

    def clock(self) -> float:
        return time.monotonic()

    def wait(self, timeout: float, seen: int) -> int:
        """Return the number of writes as soon as it is not ``seen``, at the latest after ``timeout`` seconds."""
        with self._condition:
            self._condition.wait_for(lambda: self._writes != seen, timeout)
            return self._writes


class MemoryLink(StoreLink):
    """A link that each write wakes."""

    layer: MemoryLayer
    _seen = 0  # of the layer's writes, when the last wait ended
    _read: frozenset[str] = frozenset()  # the queues that are read

    def receive_many(self, queues: Sequence[str], limit: int, worker: str = "") -> list[Delivery]:
        self._read = frozenset(queues)
        return super().receive_many(queues, limit, worker)

    def wait(self, timeout: float, *others: int) -> set[str]:
        before, self._seen = self._seen, self.layer.wait(timeout, self._seen)
        return set() if self._seen == before else {*KINDS, HISTORY, *self._read}
