"""Files that the workers of this process tree send as descriptors, each for the response to one request."""

from __future__ import annotations

import logging
import os
import socket
import time
from io import FileIO
from typing import Any

import gevent

from dbchannels.names import MAX_LENGTH
from dbchannels.server.connection_limits import TOLD_EVERY, ConnectionLimits, first_kept
from dbchannels.server.http.exchange import Exchange
from dbchannels.server.relay import Relay

log = logging.getLogger("dbchannels.server")


class SentFiles:
    """A pair of sockets, of which the workers inherit one end: nobody else can send here. Made and used in the hub."""

    def __init__(self, relay: Relay, limits: ConnectionLimits) -> None:
        self._relay, self._limits = relay, limits
        self._socket, self.sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._told_at = -TOLD_EVERY
        self._watcher: Any = gevent.get_hub().loop.io(self._socket.fileno(), 1)
        self._watcher.start(self.receive)

    def receive(self) -> None:
        """Hand what has come to the requests; a file that none waits for is closed."""
        while True:
            try:
                channel, descriptors, _, _ = socket.recv_fds(self._socket, MAX_LENGTH, 1)
            except BlockingIOError:
                return
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
                file, receiver = FileIO(descriptor), self._relay.receiver(channel.decode())
                if not self._is_free(descriptor):
                    self._tell()
                    file.close()
                elif isinstance(receiver, Exchange):
                    receiver.take_file(file)
                else:
                    file.close()

    def _is_free(self, descriptor: int) -> bool:
        """Whether a descriptor is left for each connection that may come yet: pages must not wait for downloads."""
        return descriptor + self._limits.total - self._limits.open < first_kept()

    def close(self) -> None:
        """Take no more."""
        self._watcher.stop()
        self._watcher.close()
        self._socket.close()
        self.sender.close()

    def _tell(self) -> None:
        if time.monotonic() - self._told_at > TOLD_EVERY:
            self._told_at = time.monotonic()
            log.warning(
                "Files are answered 503, because this process has too many open files: "
                "raise the limit (ulimit -n, or LimitNOFILE= in systemd)."
            )
