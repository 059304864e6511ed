"""From a WSGI server to the layer and back: what the interface server does, for a server with threads.

The first request of a process starts the threads of a relay, see relay.py. So each child process of a server
has its own relay, whether it was forked before or after the import.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any
from urllib.parse import quote_from_bytes

from django.core.handlers.wsgi import WSGIHandler

from dbchannels import conf, names
from dbchannels.exceptions import DBChannelsError, InvalidConfiguration, LayerUnavailable
from dbchannels.layers import make_layer
from dbchannels.protocol import MORE_CONTENT, status_reply
from dbchannels.server.http import messages
from dbchannels.server.http.exchange import Exchange, Stream
from dbchannels.server.relay import Hub, Relay
from dbchannels.wakeup import check_timeout

log = logging.getLogger("dbchannels.server")

START_AGAIN = 1.0  # seconds from a start that failed to the next one
TOO_LARGE = "The request's body is larger than %d bytes, the max_body of get_wsgi_application()."
PART = 65_536  # bytes read at once

Environ = dict[str, Any]
StartResponse = Callable[..., Any]


class ThreadHub(Hub):
    """Runs the functions in the thread that wakes it, one thread at a time; other threads wait for the replies."""

    queue = SimpleQueue

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self.wake = self._run_now

    def _run_now(self) -> None:
        with self._lock:
            self.run_all()


class Gateway:
    """A WSGI application; called by any number of threads at once."""

    def __init__(self, layer: str, *, http_timeout: float, max_body: int) -> None:
        self._settings = conf.layer_settings(layer)
        self._timeout = check_timeout("http_timeout", http_timeout)
        self._max_body = max_body
        self._started: Relay | None = None
        self._new: Relay | None = None  # until it was started
        self._failed_at = -START_AGAIN
        self._logged = False  # that it failed
        self._starting = threading.Lock()
        self._inherited: list[Relay | None] = []
        self._handler: WSGIHandler | None = None  # Django's, once a request needs it
        if not make_layer(self._settings).shared:
            raise InvalidConfiguration(
                "This layer lives in one process: dbchannels.wsgi needs one on a database."
            )
        os.register_at_fork(after_in_child=self._forget)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request through the layer; in a worker, or with --http direct, by Django's own handler."""
        if names.REQUEST_CONTEXT in environ:
            with self._starting:
                self._handler = self._handler or WSGIHandler()
            return self._handler(environ, start_response)
        request = read_request(environ)
        body = read_body(environ, request, self._max_body)
        if isinstance(body, int):
            sentence = TOO_LARGE % self._max_body if body == 413 else ""
            return answer(status_reply(body, sentence), request, start_response)
        try:
            exchange = Exchange(self._relay())
        except LayerUnavailable:
            return answer(status_reply(503), request, start_response)
        try:
            message = messages.request_message(request, exchange.reply_channel, body, exchange.flow_channel)
            head, first = messages.checked_response(exchange.request(message, self._timeout), request)
            if first.get(MORE_CONTENT):
                start_response(head.status, head.headers)
                exchange.buffer.begin(exchange.report, None)
                return Stream(exchange, first, head, self._timeout, exchange.close)
        except BaseException:
            exchange.close()
            raise
        exchange.close()
        return answer(first, request, start_response)

    # The relay of this process.

    def _relay(self) -> Relay:
        """Return the relay, started. Raises LayerUnavailable."""
        if self._started is not None:
            return self._started
        with self._starting:
            if self._started is not None:  # by another thread
                return self._started
            # Otherwise requests would wait in line, to fail one after another.
            if time.monotonic() - self._failed_at < START_AGAIN:
                raise LayerUnavailable("The layer could not be used a moment ago.")
            if self._new is None:
                self._new = Relay(make_layer(self._settings), {}, ThreadHub())
            relay, pid = self._new, os.getpid()
            try:
                relay.start()
            except DBChannelsError as error:
                self._failed_at = time.monotonic()
                if not self._logged:
                    self._logged = True
                    log.error("server-%d: Requests cannot be passed on to workers: %s", pid, error)
                raise
            if self._logged:
                self._logged = False
                log.warning("server-%d: Requests can be passed on to workers again.", pid)
            atexit.register(lambda: relay.stop() if os.getpid() == pid else None)  # not in a forked child
            self._started = relay
            return relay

    def _forget(self) -> None:
        """Drop the parent's relay in a forked child, but keep its connections: closing them would end its sessions."""
        self._inherited += [self._started, self._new]
        self._started = self._new = None
        self._starting = threading.Lock()


def read_request(environ: Environ) -> messages.Request:
    """Return a request as a WSGI server has read it (PEP 3333)."""
    root_path = environ.get("SCRIPT_NAME", "").encode("latin-1")
    path = root_path + environ.get("PATH_INFO", "").encode("latin-1")
    query_string = environ.get("QUERY_STRING", "")
    headers = [
        (key[5:].replace("_", "-").lower().encode("latin-1"), value.encode("latin-1"))
        for key, value in environ.items()
        if key.startswith("HTTP_") and key not in ("HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE")
    ]
    for key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(key):
            headers.append((key.replace("_", "-").lower().encode(), environ[key].encode("latin-1")))
    return messages.Request(
        method=environ["REQUEST_METHOD"],
        target=quote_from_bytes(path, safe="/:@!$&'()*+,;=~") + (f"?{query_string}" if query_string else ""),
        http_version="1.1" if environ.get("SERVER_PROTOCOL") == "HTTP/1.1" else "1.0",
        headers=headers,
        scheme=environ["wsgi.url_scheme"],
        client=(environ.get("REMOTE_ADDR", ""), number(environ.get("REMOTE_PORT"))),
        server=(environ["SERVER_NAME"], number(environ["SERVER_PORT"])),
        root_path=root_path.decode("utf-8", "replace"),
    )


def read_body(environ: Environ, request: messages.Request, limit: int) -> bytes | int:
    """Return a request's whole body, or the status that refuses it.

    A body without a length can only be read if the server marks its end (``wsgi.input_terminated``).
    """
    declared = environ.get("CONTENT_LENGTH") or ""
    if declared and not (declared.isascii() and declared.isdigit()):
        return 400
    if not declared and not environ.get("wsgi.input_terminated"):
        return 411 if request.header(b"transfer-encoding") else b""
    wanted = int(declared) if declared else limit + 1
    if declared and wanted > limit:
        return 413
    body = bytearray()
    try:
        while len(body) < wanted and (part := environ["wsgi.input"].read(min(PART, wanted - len(body)))):
            body += part
    except OSError:  # the client went away
        return 400
    if declared and len(body) < wanted:
        return 400
    return 413 if len(body) > limit else bytes(body)


def answer(message: dict[str, Any], request: messages.Request, start_response: StartResponse) -> list[bytes]:
    """Answer with a whole response."""
    head, message = messages.checked_response(message, request)
    start_response(head.status, head.headers)
    content = message.get("content", b"")
    return [content] if head.has_body and content else []


def number(text: str | None) -> int:
    """Return a port; 0 where the server has none, as on a Unix socket."""
    return int(text) if text and text.isdigit() else 0
