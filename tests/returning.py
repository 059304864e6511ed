"""Clients that leave and come back with their last id: over a WebSocket, and by server-sent events."""

from __future__ import annotations

import socket
from collections.abc import Callable

from tests.harness import HOST, Socket, connect


class ReturningSocket:
    """A WebSocket that asks for ids; ``heard`` has the texts, of all its connections."""

    def __init__(
        self, port: Callable[[], int], path: str, dial: Callable[[int], socket.socket] = connect
    ) -> None:
        self._port, self._path, self._dial = port, path, dial
        self.heard: list[str] = []
        self.gaps = 0
        self.last_id = ""
        self._next_id = ""  # of the message that comes next
        self._socket: Socket | None = None

    def connect(self) -> bool:
        """Open a connection; return whether it was accepted. Raises OSError and AssertionError when it breaks."""
        port = self._port()
        path = f"{self._path}?dbchannels-resume={self.last_id}"
        self._socket = Socket(port, path, {}, self._dial(port)).handshake()
        self._next_id = ""
        return self._socket.status == 101

    def cut(self) -> None:
        """Lose the connection, and what has come and was not read."""
        if self._socket is not None:
            self._socket.raw.close()
            self._socket = None

    def hear(self, timeout: float = 60.0) -> bool:
        """Take one frame; return whether the connection is open. Raises TimeoutError."""
        assert self._socket is not None
        frame = self._socket.receive(timeout)
        if frame is None:
            return False
        assert isinstance(frame, str)
        word, _, position = frame[1:].partition(" ") if frame.startswith("\0") else ("", "", "")
        if word == "id":
            self._next_id = position
        elif word in ("start", "gap"):
            self.last_id = position
            self.gaps += word == "gap"
        else:
            self.heard.append(frame)
            assert self._next_id, f"{frame!r} has no id."
            self.last_id, self._next_id = self._next_id, ""
        return True


class ReturningEvents(ReturningSocket):
    """The same, as a browser's EventSource does it."""

    _raw: socket.socket | None = None
    _data = b""

    def connect(self) -> bool:
        self.cut()
        self._raw = self._dial(self._port())
        self._raw.settimeout(60)
        header = f"Last-Event-ID: {self.last_id}\r\n" if self.last_id else ""
        self._raw.sendall(f"GET {self._path} HTTP/1.1\r\nHost: {HOST}\r\n{header}\r\n".encode())
        self._data = b""
        while b"\r\n\r\n" not in self._data:
            self._more()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        return head.startswith(b"HTTP/1.1 200 ")

    def cut(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.close()

    def _more(self) -> None:
        assert self._raw is not None
        data = self._raw.recv(65_536)
        if not data:
            raise ConnectionResetError("The server closed the stream.")
        self._data += data

    def hear(self, timeout: float = 60.0) -> bool:
        assert self._raw is not None
        self._raw.settimeout(timeout)
        while b"\n\n" not in self._data:
            self._more()
        block, _, self._data = self._data.partition(b"\n\n")
        fields = [
            line.partition(": ")[::2] for line in block.decode().replace("\r", "").split("\n") if ": " in line
        ]
        given = dict(fields)
        self.last_id = given.get("id", self.last_id)
        if given.get("event") == "gap":
            self.gaps += 1
        elif "data" in given:
            assert "id" in given, f"{block!r} has no id."
            self.heard.append(given["data"])
        return True
