"""What other threads have the hub do, one thing after another."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

log = logging.getLogger("dbchannels.server")


class Hub(Protocol):
    """Where the replies are delivered, one after another, and what is used to wait for them there."""

    def queue(self) -> Any:
        """Return a new queue with ``put`` and ``get(timeout=...)``."""

    def start(self, run: Callable[[], None]) -> None:
        """Have each ``send`` from now on followed by a call of the function."""

    def send(self) -> None:
        """Have the function called soon; from any thread."""


class Calls:
    """``add`` any number of them, then ``wake`` the hub; from any thread."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._calls: deque[Callable[[], None]] = deque()

    def start(self) -> None:
        """Run them from now on."""
        self._hub.start(self._run)

    def add(self, function: Callable[[], None]) -> None:
        """Put a function behind the others."""
        self._calls.append(function)

    def wake(self) -> None:
        """Have the hub run all that were added."""
        self._hub.send()

    def _run(self) -> None:
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception:
                log.exception("One reply could not be delivered and was left out.")
