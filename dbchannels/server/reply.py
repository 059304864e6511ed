"""A message that came on a reply channel, and who waits for it."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from dbchannels import codec
from dbchannels.exceptions import UnreadableMessage
from dbchannels.layers.operations import Delivery
from dbchannels.protocol import WORKER_DIED, lost
from dbchannels.server.websocket.messages import Outgoing, outgoing, oversight

log = logging.getLogger("dbchannels.server")


class Reply:
    """One message for one or many receivers; a WebSocket's frame is made once for all of them."""

    def __init__(self, message: dict[str, Any]) -> None:
        self.message = message
        self._outgoing: Outgoing | None = None
        self._is_read = False

    def outgoing(self, reply_channel: str, path: str) -> Outgoing | None:
        """Return the message as a WebSocket's server understands it; None when it cannot.

        Of what is wrong with it the log gets one line, however many receivers there are: it names the first of them.
        """
        if not self._is_read:
            self._is_read = True
            try:
                self._outgoing = outgoing(self.message)
            except ValueError as error:
                log.warning("A message for %s on %s was left out: %s", reply_channel, path, error)
            else:
                if sentence := oversight(self.message):
                    log.warning(
                        "A message for %s on %s was not understood: %s", reply_channel, path, sentence
                    )
        return self._outgoing


class Receiver(Protocol):
    """Who waits for replies: a WebSocket or an HTTP request. Called in the hub, so it must not block."""

    def deliver(self, reply: Reply) -> None:
        """Take one message."""


def read_reply(delivery: Delivery) -> Reply:
    """Return what was received; of a row that is no message only that it is lost, and with it the answer it held."""
    try:
        message = codec.decode(delivery.payload)
    except UnreadableMessage as error:
        log.error("A reply could not be read and was left out: %s", error)
        message = lost(WORKER_DIED)
    return Reply(message)
