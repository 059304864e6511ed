"""Where a channel's messages go, worked out once: most sends are to few channels, and it takes 5 us of 70."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dbchannels import names
from dbchannels.protocol import DURABLE

if TYPE_CHECKING:
    from dbchannels.layers.base import BaseLayer

MOST = 4096  # channels that are remembered


class Destination(NamedTuple):
    """What a send to a channel goes by."""

    queue: str
    recipient: str  # the reader's own part of a process-specific channel
    protocol: bool  # else durable
    limited: bool  # by a capacity
    wake: str  # what a wakeup for its readers says


class Destinations:
    """Of one layer; shared by all threads, which only ever add what any of them would."""

    def __init__(self, layer: BaseLayer) -> None:
        self._layer = layer
        self._known: dict[str, Destination] = {}

    def of(self, channel: str) -> Destination:
        """Return where the messages of a channel go."""
        found = self._known.get(channel)
        if found is None:
            if len(self._known) >= MOST:
                self._known = {}
            queue, recipient = names.split(channel)
            protocol = names.is_protocol(queue)
            limited = self._layer.capacity(queue) is not None
            found = Destination(queue, recipient, protocol, limited, woken(queue) if protocol else DURABLE)
            self._known[channel] = found
        return found


def woken(queue: str) -> str:
    """Return what a wakeup for a protocol queue says: itself, ``h`` for ``http.*`` or ``w`` for ``websocket.*``."""
    return queue if queue[-1:] == "!" or "?" in queue else queue[:1]
