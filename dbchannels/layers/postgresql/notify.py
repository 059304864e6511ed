"""For whom a write's wakeups are: a NOTIFY tells the whole database, a ring one reader of this process tree.

A NOTIFY takes a lock of the whole database at commit and wakes one more process, which rings the pipe of the reader in
the end; the writer that has that pipe at hand rings it itself, after the commit. Should it die between the two, the
poll finds the message, as with a NOTIFY that is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dbchannels.layers.base import BaseLayer
    from dbchannels.wakeup import WakeupPipe


class Wakes:
    """The wakeups of one write. ``near`` has the pipes at hand, by what a wakeup for their readers says."""

    def __init__(self, layer: BaseLayer, near: Mapping[str, WakeupPipe] | None = None) -> None:
        self.near = near or {}
        self._notifies = bool(layer.wakeups)
        self._rung: set[str] = set()

    def notified(self, kinds: set[str]) -> set[str]:
        """Return for whom a NOTIFY is needed; the others are rung for."""
        if self.near and (close := kinds & self.near.keys()):
            self._rung |= close
            kinds = kinds - close
        return kinds if self._notifies else set()

    def broadcast(self) -> bool:
        """Note that somebody near may be meant; return whether the others are to be told."""
        self._rung.update(self.near)
        return self._notifies

    def ring(self) -> None:
        """Wake those that were left to us, once what was written is there for all to see."""
        for kind in self._rung:
            self.near[kind].notify()
