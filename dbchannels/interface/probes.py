"""Two answers for whoever looks after this process: ``/healthz``, it lives; ``/readyz``, requests may come.

They have a port of their own, so that no client reaches them, and are answered from what the hub knows: nothing here
waits for the database or for a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gevent.pywsgi import WSGIServer

from dbchannels.interface.binding import Bind, SocketRights, listen


def probe(path: str, why_not_ready: str) -> tuple[str, str]:
    """Return (status, sentence) for a path."""
    if path == "/healthz":
        return "200 OK", "This process lives."
    if path != "/readyz":
        return "404 Not Found", "Ask for /healthz or /readyz."
    if why_not_ready:
        return "503 Service Unavailable", f"Not ready: {why_not_ready}."
    return "200 OK", "Ready."


class Probes:
    """Binds its address at once, and answers from ``start`` to the end of the process."""

    def __init__(self, bind: Bind, why_not_ready: Callable[[], str]) -> None:
        self._why_not_ready = why_not_ready
        self._listening = listen(bind, SocketRights())
        self.bind = self._listening.bind
        self._server = WSGIServer(self._listening.socket, self._answer, log=None, error_log=None)

    def start(self) -> None:
        """Answer from now on."""
        self._server.start()

    def stop(self) -> None:
        """Answer no more."""
        self._server.close()
        self._listening.remove()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status, sentence = probe(environ["PATH_INFO"], self._why_not_ready())
        content = f"{sentence}\n".encode()
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(content)))]
        # Each time a new connection: one that is kept would be answered by a process that should be gone.
        start_response(status, [*headers, ("Cache-Control", "no-store"), ("Connection", "close")])
        return [content] if environ["REQUEST_METHOD"] != "HEAD" else []
