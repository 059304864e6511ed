"""gevent's hub, as the relay needs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from gevent.queue import SimpleQueue


class GeventHub:
    """Delivers in the hub of the thread that makes it, where greenlets wait."""

    def __init__(self) -> None:
        self._watcher: Any = gevent.get_hub().loop.async_()

    def queue(self) -> Any:
        """Return a queue for greenlets; its ``get`` raises the standard library's Empty."""
        return SimpleQueue()

    def start(self, run: Callable[[], None]) -> None:
        """Run the function at each wakeup."""
        self._watcher.start(run)

    def send(self) -> None:
        """Wake the hub."""
        self._watcher.send()
