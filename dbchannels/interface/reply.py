"""A message that came on a reply channel, and who waits for it."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from dbchannels import codec
from dbchannels.interface.websocket import Outgoing, outgoing
from dbchannels.layers.operations import Delivery

log = logging.getLogger("dbchannels.server")


class Reply:
    """One message for one or many receivers; a WebSocket's frame is made once for all of them."""

    def __init__(self, message: dict[str, Any]) -> None:
        self.message = message
        self._outgoing: Outgoing | None = None

    @property
    def outgoing(self) -> Outgoing:
        """The message as a WebSocket's server understands it; ValueError, one sentence, when it cannot."""
        if self._outgoing is None:
            self._outgoing = outgoing(self.message)
        return self._outgoing


class Receiver(Protocol):
    """Who waits for replies: a WebSocket or an HTTP request. Called in the hub, so it must not block."""

    def deliver(self, reply: Reply) -> None:
        """Take one message."""


def read_reply(delivery: Delivery) -> Reply:
    """Return what was received; of a row that is no message only that it is lost, and with it the answer it held."""
    try:
        message = codec.decode(delivery.payload)
        if not isinstance(message, dict):
            raise ValueError("it is no dict")
    except Exception as error:
        log.error("A reply could not be read and was left out: %s", ascii(str(error))[1:-1][:200])
        message = {"lost": "worker died"}
    return Reply(message)
