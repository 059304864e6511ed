"""Many clients in one thread, on raw sockets under epoll: as cheap as possible, so that the server is measured."""

from __future__ import annotations

import base64
import select
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from tests.harness import HOST, client_frame

READ = 65_536
AT_ONCE = 100  # handshakes under way
PING, PONG = bytes((0x89, 0)), client_frame(10, b"")
KEY = base64.b64encode(bytes(16)).decode()
UPGRADE = (
    f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
)


class Crowd:
    """Sockets by their descriptors; ``run`` passes what each of them reads to a function."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.sockets: dict[int, socket.socket] = {}
        self.pings: Counter[int] = Counter()  # by socket: the server's
        self._epoll = select.epoll()

    def open(self, number: int, path: str) -> list[int]:
        """Open so many WebSockets; return their descriptors."""
        head = f"GET {path} HTTP/1.1\r\nHost: {HOST}:{self._port}\r\n{UPGRADE}\r\n".encode()
        opened: list[int] = []
        while len(opened) < number:
            waiting = {self.connect() for _ in range(min(AT_ONCE, number - len(opened)))}
            for one in waiting:
                self.send(one, head)
            opened += waiting
            self._await_heads(waiting)
        return opened

    def connect(self) -> int:
        """Open a connection without a handshake; return its descriptor."""
        one = socket.create_connection((HOST, self._port), timeout=20)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.setblocking(False)
        self.sockets[one.fileno()] = one
        self._epoll.register(one, select.EPOLLIN)
        return one.fileno()

    def _await_heads(self, waiting: set[int]) -> None:
        waiting = set(waiting)

        def accept(one: int, data: bytes) -> None:
            if one in waiting:
                assert data.startswith(b"HTTP/1.1 101"), data
                waiting.discard(one)

        self.run(accept, until=lambda: not waiting, seconds=30)
        assert not waiting, f"{len(waiting)} handshakes have no answer."

    def send(self, one: int, data: bytes) -> None:
        """Write to a socket, which always has room for what the benchmarks send."""
        self.sockets[one].send(data)

    def run(self, read: Callable[[int, bytes], None], until: Callable[[], bool], seconds: float) -> None:
        """Call ``read`` with what comes in and answer pings, until the condition holds or the time has passed."""
        end = time.perf_counter() + seconds
        while not until() and (left := end - time.perf_counter()) > 0:
            for one, _ in self._epoll.poll(min(left, 0.05)):
                data = self.sockets[one].recv(READ)
                assert data, "The server closed a socket."
                if PING in data:  # nothing else that is sent here has these bytes
                    data = self._answer_pings(one, data)
                if data:
                    read(one, data)

    def rest(self, seconds: float = 0.5) -> None:
        """Read what is still under way, for so many seconds."""
        self.run(lambda one, data: None, until=lambda: False, seconds=seconds)

    def _answer_pings(self, one: int, data: bytes) -> bytes:
        for _ in range(data.count(PING)):
            self.send(one, PONG)
            self.pings[one] += 1
        return data.replace(PING, b"")

    def close(self) -> None:
        """Close all sockets."""
        for one in self.sockets.values():
            with suppress(OSError):
                one.close()
        self.sockets.clear()
        self._epoll.close()
