"""Messages that were in the layer when a crash of the database, or a failover, emptied the UNLOGGED tables."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from dbchannels.layers.link import Link
from dbchannels.layers.operations import Send
from dbchannels.protocol import EXPIRED, WORKER_DIED

if TYPE_CHECKING:
    from dbchannels.server.relay import Receiver

log = logging.getLogger("dbchannels.server")

LOG = "The database has lost the messages of %d client(s) in a crash or a failover; each is answered with an error."
LAST_REPLIES = (
    0.5  # seconds in which the reader takes replies that were written just before a look at the tables
)


class Emptied:
    """Finds the clients that would wait in vain: their messages neither wait nor are in flight.

    A message may be in the hands of a worker, which puts it on record again when it renews its lease. So the look at
    the tables comes after that. ``lose`` is the relay's.
    """

    def __init__(self, receivers: Mapping[str, Receiver], lose: Callable[[str, str, str], None]) -> None:
        self._receivers, self._lose = receivers, lose
        self._waiting: dict[
            str, Send
        ] = {}  # by reply channel: what was in the layer when the tables were empty
        self._look_at = 0.0  # time.monotonic()

    def look(self, link: Link, name: str) -> None:
        """Answer the clients of lost messages; called by the housekeeper. ``name`` is the server's."""
        now = time.monotonic()
        if link.emptied(name):
            self._look_at = now + link.layer.options["lease"] / 2  # workers renew their leases after a third
            self._waiting = self._in_layer()
        if not self._waiting or now < self._look_at:
            return
        waiting, self._waiting = self._waiting, {}
        unfinished = link.unfinished(list(waiting))
        time.sleep(LAST_REPLIES)
        current = self._in_layer()
        lost = [
            (one, send) for one, send in waiting.items() if current.get(one) is send and one not in unfinished
        ]
        if lost:
            log.warning(LOG, len(lost))
        for one, send in lost:
            # A disconnect message is sent again.
            self._lose(one, EXPIRED if send.channel == "websocket.disconnect" else WORKER_DIED, send.channel)

    def _in_layer(self) -> dict[str, Send]:
        receivers = list(self._receivers.items())  # at once: the hub changes it
        return {one: send for one, receiver in receivers if (send := receiver.in_layer)}
