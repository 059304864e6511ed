"""The health checks of this process: ``/healthz`` says that it lives, ``/readyz`` that it takes requests.

They have a port of their own, so that no client reaches them, and are answered from what the hub knows, without a wait
for the database or a worker. ``/metrics`` is there too, see ``metrics``. A connection that sends nothing, or reads
nothing, is closed after a few seconds, and is the first to be closed when there are many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import gevent
from gevent.server import StreamServer

from dbchannels.server.http.messages import Refused, encode_head, refuse_response
from dbchannels.server.http.parser import HeadLimits, HeadReader
from dbchannels.server.listeners import Listener
from dbchannels.server.metrics import Metrics

MOST = 32  # connections at once
ACCEPTED = 4  # in one turn of the hub's loop: those that they replace are closed in a later one
DEADLINE = (
    5.0  # seconds for a request, and for its response; not for the time that it takes to make the metrics
)
LIMITS = HeadLimits(line=1_024, size=8_192)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def check_health(path: str, why_not_ready: str) -> tuple[int, str]:
    """Return (status, sentence) for a path."""
    if path == "/healthz":
        return 200, "This process is alive."
    if path != "/readyz":
        return 404, "Ask for /healthz, /readyz or /metrics."
    if why_not_ready:
        return 503, f"Not ready: {why_not_ready}."
    return 200, "Ready."


class HealthServer:
    """Answers at a listener, from ``start`` to ``stop``."""

    def __init__(self, listener: Listener, why_not_ready: Callable[[], str], metrics: Metrics) -> None:
        self._why_not_ready, self._metrics = why_not_ready, metrics
        self._text: Any = None  # the greenlet that makes the metrics' text, or has made it
        self.listener = listener
        self._server = StreamServer(listener.socket, self._serve)
        self._server.max_accept = ACCEPTED
        self._open: dict[Any, None] = {}  # the greenlet of each connection, the oldest first
        self.start = self._server.start

    def stop(self) -> None:
        """Stop answering, and remove the file of a Unix socket."""
        self._server.close()
        self.listener.remove()

    def _serve(self, sock: Any, address: Any) -> None:
        """Answer one request. The socket is closed after it, or a process that should be gone would go on answering."""
        greenlet = gevent.getcurrent()
        self._open[greenlet] = None
        if len(self._open) > MOST:
            oldest = next(iter(self._open))
            del self._open[oldest]  # now: others come before it has ended
            oldest.kill(block=False)
        try:
            with suppress(OSError):
                answer = self._answer(sock)
                with gevent.Timeout(DEADLINE, False):
                    for part in answer:
                        sock.sendall(part)
                        gevent.sleep(0)  # the kernel may take many megabytes at once
        finally:
            self._open.pop(greenlet, None)

    def _answer(self, sock: Any) -> tuple[bytes, ...]:
        """Return the parts of the answer. Slow clients share those of the metrics."""
        reader, head = HeadReader(LIMITS), None
        try:
            with gevent.Timeout(DEADLINE, False):
                while not head:
                    head = reader.feed(data := sock.recv(LIMITS.size))
                    if not data:
                        return ()
        except Refused as refused:
            return (refuse_response(refused.status, str(refused), refused.headers),)
        if head is None:
            return ()
        if head.method not in ("GET", "HEAD"):
            return (refuse_response(405, "Ask with GET.", [("Allow", "GET, HEAD")]),)
        path = head.target.partition("?")[0]
        if path == "/metrics":
            if self._text is None or self._text.ready():
                self._text = gevent.spawn(self._metrics.text)  # one for all that wait
            body: Sequence[bytes] = self._text.get()
            headers = [("Content-Type", CONTENT_TYPE), ("Content-Length", str(sum(map(len, body))))]
            headers += [("Cache-Control", "no-store"), ("Connection", "close")]
            head_of_answer = encode_head("200 OK", headers)
        else:
            status, sentence = check_health(path, self._why_not_ready())
            whole = refuse_response(status, sentence, [("Cache-Control", "no-store")])
            end = whole.index(b"\r\n\r\n") + 4
            head_of_answer, body = whole[:end], (whole[end:],)
        return (head_of_answer, *body) if head.method == "GET" else (head_of_answer,)
