"""Connections that have ended, until nothing of them is left in the database.

A site's transaction that is still open may have locked a connection's record (``identify``) or a membership
(``group_add``, ``group_discard``). Nobody waits for a stranger's transaction: what is locked is skipped when the
connection ends, and each sweep looks for what was left.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

MOST = (
    100_000  # reply channels; what is left of others goes when a message comes for them, or with their server
)
REMAINS = " (remains)"  # after the name of a dead server of which something was locked


class Ended:
    """Shared by the link that writes of their end and the one that sweeps."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reply_channels: set[str] = set()

    def add(self, reply_channels: Iterable[str]) -> None:
        """Note connections of which something may be left."""
        with self._lock:
            if len(self._reply_channels) < MOST:
                self._reply_channels.update(reply_channels)

    def take(self) -> set[str]:
        """Return all that were noted, and forget them."""
        with self._lock:
            taken, self._reply_channels = self._reply_channels, set()
            return taken
