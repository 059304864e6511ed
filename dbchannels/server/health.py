"""Two answers for whoever looks after this process: ``/healthz``, it lives; ``/readyz``, requests may come.

They have a port of their own, so that no client reaches them, and are answered from what the hub knows: nothing here
waits for the database or for a worker. Whoever connects and asks nothing holds a descriptor for a few seconds, and is
the first to go when others come.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent
from gevent.server import StreamServer

from dbchannels.server.http.parser import HeadLimits, HeadReader
from dbchannels.server.listeners import Bind, SocketRights, listen
from dbchannels.server.websocket.handshake import Refused, refuse_response

MOST = 32  # connections at once
DEADLINE = 5.0  # seconds for a question and its answer
LIMITS = HeadLimits(line=1_024, size=8_192)
_HEADERS = [("Cache-Control", "no-store")]


def probe(path: str, why_not_ready: str) -> tuple[int, str]:
    """Return (status, sentence) for a path."""
    if path == "/healthz":
        return 200, "This process lives."
    if path != "/readyz":
        return 404, "Ask for /healthz or /readyz."
    if why_not_ready:
        return 503, f"Not ready: {why_not_ready}."
    return 200, "Ready."


class Probes:
    """Binds its address at once, and answers from ``start`` to the end of the process."""

    def __init__(self, bind: Bind, why_not_ready: Callable[[], str]) -> None:
        self._why_not_ready = why_not_ready
        self._listening = listen(bind, SocketRights())
        self.bind = self._listening.bind
        self._server = StreamServer(self._listening.socket, self._serve)
        self._open: dict[Any, None] = {}  # the greenlet of each connection, the oldest first

    def start(self) -> None:
        """Answer from now on."""
        self._server.start()

    def stop(self) -> None:
        """Answer no more."""
        self._server.close()
        self._listening.remove()

    def _serve(self, sock: Any, address: Any) -> None:
        """Answer one question; the socket is closed behind it, since a process that should be gone would answer on."""
        greenlet = gevent.getcurrent()
        self._open[greenlet] = None
        if len(self._open) > MOST:
            oldest = next(iter(self._open))
            del self._open[oldest]  # now: others come before it has ended
            oldest.kill(block=False)
        try:
            with gevent.Timeout(DEADLINE, False), suppress(OSError):
                sock.sendall(self._answer(sock))
        finally:
            self._open.pop(greenlet, None)

    def _answer(self, sock: Any) -> bytes:
        reader = HeadReader(LIMITS)
        try:
            while not (head := reader.feed(data := sock.recv(LIMITS.size))):
                if not data:
                    return b""
        except Refused as refused:
            return refuse_response(refused.status, str(refused), refused.headers)
        if head.method not in ("GET", "HEAD"):
            return refuse_response(405, "Ask with GET.", [("Allow", "GET, HEAD")])
        answer = refuse_response(*probe(head.target.partition("?")[0], self._why_not_ready()), _HEADERS)
        return answer if head.method == "GET" else answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
