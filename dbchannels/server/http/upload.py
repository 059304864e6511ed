"""The rest of a large body, given to the worker in chunks, no faster than it asks for them."""

from __future__ import annotations

import logging
from typing import Any

import gevent

from dbchannels.protocol import OFFSET, SINCE, UNTIL, body_ends, chunk
from dbchannels.server.http.spool import NotStored, Spool
from dbchannels.server.relay import OutboxFull, Relay

log = logging.getLogger("dbchannels.server")

CHUNK = 131_072  # bytes in one message
FULL_PAUSE = 0.05  # seconds until a chunk is tried again that found the outbox full


class Upload:
    """Answers ``UNTIL`` of the worker with the chunks up to there.

    A worker that misses a chunk (its channel was full, the database crashed) asks again, with ``SINCE``.
    """

    def __init__(self, relay: Relay, channel: str, spool: Spool) -> None:
        self.channel = channel
        self._relay = relay
        self._spool = spool
        self._position = spool.size - spool.rest
        self._until = 0
        self._sender: Any = None

    def asked(self, wanted: dict[str, Any]) -> None:
        """Send what the worker wants; called in the hub."""
        since, until = wanted.get(SINCE), wanted.get(UNTIL)
        if isinstance(since, int):
            self._position = max(self._spool.size - self._spool.rest, since)
        if isinstance(until, int):
            self._until = min(until, self._spool.size)
        if not self._sender:
            self._sender = gevent.spawn(self._send_all)

    def break_off(self) -> None:
        """Tell the worker that its client went away: it waits for nothing more."""
        self.close()
        self._send(body_ends())

    def close(self) -> None:
        """Send nothing more."""
        self._until = 0

    def _send_all(self) -> None:
        try:
            self._send_wanted()
        except NotStored as error:
            log.error("The body of a request could not be read from the disk (%s).", error)
            self.break_off()

    def _send_wanted(self) -> None:
        while (position := self._position) < self._until:
            content = self._spool.read(position, CHUNK)
            if self._position != position or position >= self._until:
                continue  # meanwhile it asked for another place, or nobody wants it any more
            self._position += len(content)
            more = self._position < self._spool.size
            while not self._send({OFFSET: position, **chunk(content, more)}):
                gevent.sleep(FULL_PAUSE)

    def _send(self, chunk: dict[str, Any]) -> bool:
        try:
            self._relay.send(self._relay.make_send(self.channel, chunk))
        except OutboxFull:
            return False
        return True
