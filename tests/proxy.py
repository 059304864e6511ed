"""A proxy before a Unix socket that can fall silent: it takes what is sent, and nothing of it arrives."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

CHUNK = 65_536  # bytes


class Proxy:
    """Listens on a port of the loopback. Both ends' kernels acknowledge everything, as behind a real one."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._forwarding = threading.Event()
        self._forwarding.set()
        self._open: set[socket.socket] = {self._listening}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listening, selectors.EVENT_READ, None)
        self._forgotten: set[socket.socket] = set()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def fall_silent(self) -> None:
        """Forward nothing from now on, neither what is sent nor that somebody closes; no session begins."""
        self._forwarding.clear()

    def speak(self) -> None:
        """Forward again, first of all what came meanwhile."""
        self._forwarding.set()

    def forget(self) -> None:
        """Forward nothing of the sessions that are open, neither way and for ever; new ones are forwarded."""
        self._forgotten = self._open - {self._listening}

    def end(self) -> None:
        """Close everything."""
        self._ended = True
        self._forwarding.set()
        self._thread.join()
        for one in self._open:
            one.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select(0.1):
                self._forwarding.wait()
                if key.fileobj in self._forgotten:
                    self._selector.unregister(key.fileobj)
                elif key.data is None:
                    self._accept()
                elif key.fileobj in self._open:
                    self._forward(key.fileobj, key.data)

    def _accept(self) -> None:
        client, _ = self._listening.accept()
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._target)
        except OSError:
            client.close()
            server.close()
            return
        for one, other in ((client, server), (server, client)):
            self._open.add(one)
            self._selector.register(one, selectors.EVENT_READ, other)

    def _forward(self, one: Any, other: socket.socket) -> None:
        try:
            data = one.recv(CHUNK)
            other.sendall(data)
        except OSError:
            data = b""
        if not data:
            for end in (one, other):
                self._open.discard(end)
                with suppress(KeyError):
                    self._selector.unregister(end)
                end.close()


@contextmanager
def proxied(database: dict[str, Any]) -> Iterator[tuple[Proxy, dict[str, Any]]]:
    """Lend a proxy before a database on a Unix socket, and the entry of DATABASES that leads through it."""
    proxy = Proxy(f"{database['HOST']}/.s.PGSQL.{database['PORT']}")
    try:
        yield proxy, {**database, "HOST": "127.0.0.1", "PORT": str(proxy.port)}
    finally:
        proxy.end()
