"""The interface server: HTTP and WebSockets on one port, in one gevent process that runs no code of the site."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import gevent
from gevent import socket as gevent_socket
from gevent.pywsgi import WSGIServer

from dbchannels.exceptions import DBChannelsError
from dbchannels.interface import handshake, http
from dbchannels.interface.connections import GOING_AWAY, SERVICE_RESTART, Connection
from dbchannels.interface.exchange import Exchange, Stream, declared_length
from dbchannels.interface.http import Request
from dbchannels.interface.options import Options
from dbchannels.interface.relay import OutboxFull, Relay
from dbchannels.interface.upgrade import Handler
from dbchannels.interface.verdict import Accepted, Denied

access_log = logging.getLogger("dbchannels.access")
log = logging.getLogger("dbchannels.server")


class AddressInUse(DBChannelsError):
    """The address cannot be bound; the sentence says why and what to do."""


#: Answers a request by itself, in a native thread: (status, headers, content), or None for the site's views.
StaticFiles = Callable[[Request], "tuple[int, list[tuple[str, str]], bytes] | None"]


class Listener(WSGIServer):  # type: ignore[misc]
    """pywsgi's server with what its handler asks for. ``application`` is our own `InterfaceServer.application`."""

    handler_class = Handler

    def __init__(self, server: InterfaceServer, listening: Any, address: tuple[str, int]) -> None:
        super().__init__(listening, server.application, log=None, error_log=_OneLineLog())
        self.public_address = address
        self.check_origin = server.check_origin
        self.connect = server.connect
        self.adopt = server.adopt
        self.log_access = log_access


class _OneLineLog:
    """Where pywsgi writes what it says of bad requests."""

    def write(self, text: str) -> None:
        """Log the first line, made safe: it holds what a stranger sent."""
        line = text.strip().splitlines()[0] if text.strip() else ""
        if line:
            log.warning("%s", ascii(line)[1:-1][:300])

    def flush(self) -> None:
        """Nothing is held back."""


class InterfaceServer:
    """Binds its address at once; ``start`` needs the layer, ``stop`` drains."""

    def __init__(self, make_relay: Callable[[Callable[[], None]], Relay], options: Options) -> None:
        self.options = options
        self.static_files: StaticFiles | None = None
        self.relay = make_relay(self._declared_dead)
        self.connections: set[Connection] = set()
        self._exchanges = 0
        self._closing: int | None = None  # the close code, once the server stops
        listening = bind(options.host, options.port)
        self.address: tuple[str, int] = listening.getsockname()[:2]
        self._listener = Listener(self, listening, self.address)
        self._ticking: Any = None

    def start(self) -> None:
        """Register with the layer and accept connections. Raises LayerUnavailable."""
        self.relay.start()
        self._listener.start()
        self._ticking = gevent.spawn(self._tick)

    def stop(self, restart: bool = False) -> None:
        """Close the listening socket, finish the requests under way, close the WebSockets, let their consumers run."""
        self._listener.close()
        self._closing = SERVICE_RESTART if restart else GOING_AWAY
        deadline = time.monotonic() + self.options.drain_timeout
        for connection in list(self.connections):
            connection.close(self._closing, "")
        self._wait_until(lambda: not self._exchanges, deadline)
        self._wait_until(lambda: not self._receivers(), min(deadline, time.monotonic() + 6))
        self._listener.stop(timeout=0)
        if self._ticking is not None:
            self._ticking.kill()
        gevent.get_hub().threadpool.apply(self.relay.stop)

    def _receivers(self) -> int:
        return self.relay.waiting()

    def _wait_until(self, done: Callable[[], bool], deadline: float) -> None:
        while not done() and time.monotonic() < deadline:
            gevent.sleep(0.02)

    def _tick(self) -> None:
        while True:
            gevent.sleep(2.0)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.tick(now)
                if connection.closed:
                    self.connections.discard(connection)

    def _declared_dead(self) -> None:
        """Others cleaned up after this server while it stood still: its sockets belong to no record any more.

        What anybody waits for would come on the old queue: sockets are closed 1012, requests and handshakes get 503.
        """
        self.relay.lose_all()

    # WebSockets.

    def check_origin(self, shaken: handshake.Handshake, request: Request) -> None:
        """Raise Refused for a page of another site, and for a host that is not ours (DNS rebinding)."""
        allowed = self.options.allowed_hosts
        if not handshake.host_allowed(request.host(), allowed):
            raise handshake.Refused(
                400, "The Host is none of this site's: add it to ALLOWED_HOSTS if it is yours."
            )
        if not handshake.origin_allowed(shaken.origin, request.host(), allowed):
            log.warning("Refused a WebSocket from the origin %s.", ascii(shaken.origin)[:200])
            raise handshake.Refused(
                403, "This Origin may not connect: add its host to ALLOWED_HOSTS if it is yours."
            )

    def connect(self, request: Request) -> tuple[Connection, Accepted]:
        """Let the connect consumer decide; raises Refused with its status, or 503 when no worker answers."""
        connection = Connection(self.relay, request, self.options.websocket)
        try:
            connection.connect()
            verdict = connection.verdict.get(timeout=self.options.handshake_timeout)
        except (gevent.Timeout, OutboxFull):
            verdict = Denied(503, http.SENTENCES[503])
        if isinstance(verdict, Denied):
            connection.abandon()
            own = any(name.lower() == "retry-after" for name, _ in verdict.headers)
            retry = [("Retry-After", "5")] if verdict.status == 503 and not own else []
            raise handshake.Refused(verdict.status, verdict.sentence, [*verdict.headers, *retry])
        return connection, verdict

    def adopt(self, connection: Connection, sock: Any, buffered: bytes) -> None:
        """Take over an accepted connection's socket."""
        self.connections.add(connection)
        connection.start(sock, buffered)
        if self._closing is not None:  # it was in its handshake when the others were closed
            connection.close(self._closing, "")

    # HTTP.

    def application(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request: PEP 3333's interface, as pywsgi calls it."""
        request: Request = environ["dbchannels.request"]
        served = self._serve_static(request)
        if served is not None:
            status, headers, content = served
            start_response(f"{status} {http.reason_phrase(status)}", headers)
            return [content] if request.method != "HEAD" else []
        body, failure = self._read_body(request, environ["wsgi.input"])
        if failure:
            return self._fail(failure, request, start_response)
        return self._exchange(request, body, start_response)

    def _serve_static(self, request: Request) -> tuple[int, list[tuple[str, str]], bytes] | None:
        if self.static_files is None or request.method not in ("GET", "HEAD"):
            return None
        return self.static_files(request)

    def _read_body(self, request: Request, source: Any) -> tuple[bytes, int | None]:
        """Return the body, or the status that refuses it."""
        limit = self.options.max_body
        declared = request.header(b"content-length") or b"0"
        if declared.isdigit() and int(declared) > limit:
            return b"", 413
        try:
            body = source.read(limit + 1)
        except OSError:  # pywsgi's, for chunks that are none, and for a client that went away
            return b"", 400
        return (b"", 413) if len(body) > limit else (body, None)

    def _exchange(self, request: Request, body: bytes, start_response: Callable[..., Any]) -> Iterable[bytes]:
        exchange = Exchange(self.relay)
        self._exchanges += 1
        streaming = False
        try:
            message = http.request_message(request, exchange.reply_channel, body, exchange.flow_channel)
            first, head = self._checked(exchange.request(message, self.options.http_timeout), request)
            if not first.get("more_content"):
                return self._write_whole(first, head, start_response)
            self._start_stream(head, request, start_response)
            streaming = True
            ended = partial(self._end_exchange, exchange)
            return Stream(exchange, first, head, self.options.http_timeout, ended)
        finally:
            if not streaming:
                self._end_exchange(exchange)

    def _end_exchange(self, exchange: Exchange) -> None:
        self._exchanges -= 1
        exchange.close()

    def _fail(self, status: int, request: Request, start_response: Callable[..., Any]) -> list[bytes]:
        """Refuse a body that was not read to its end: what follows it is no request."""
        message = http.failure_message(status)
        head = http.response_head(message, request.method)
        head.headers.append(("Connection", "close"))
        return self._write_whole(message, head, start_response)

    def _checked(self, message: dict[str, Any], request: Request) -> tuple[dict[str, Any], http.Head]:
        """Return a response's first message with its head; one that cannot be sent becomes a 500."""
        try:
            return message, http.response_head(message, request.method)
        except ValueError as error:
            log.error("A response to %s could not be sent: %s", ascii(request.path)[1:-1][:200], error)
            message = http.failure_message(500)
            return message, http.response_head(message, request.method)

    def _write_whole(
        self, message: dict[str, Any], head: http.Head, start_response: Callable[..., Any]
    ) -> list[bytes]:
        start_response(head.status, head.headers)
        content = message.get("content", b"")
        return [content] if head.has_body and content else []

    def _start_stream(self, head: http.Head, request: Request, start_response: Callable[..., Any]) -> None:
        """HTTP/1.0 has no chunks: without a length the end of the connection is the response's end."""
        if request.http_version == "1.0" and declared_length(head) is None:
            head.headers.append(("Connection", "close"))
        start_response(head.status, head.headers)


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket, or raise AddressInUse."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = gevent_socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted sockets inherit it. Without, a keep-alive response waits 44 ms for the client's delayed ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise AddressInUse(
            f"{host}:{port} cannot be used ({error.strerror}): stop what listens there, or name another port."
        ) from None
    listening.listen(1024)
    return listening  # type: ignore[no-any-return]


def log_access(handler: Any, seconds: float) -> None:
    """One line for each request; what the client sent is escaped and cut."""
    line = ascii(handler.requestline or "")[1:-1][:200]
    status = handler.code or handler.status  # pywsgi answers what is no HTTP with the latter alone
    client = handler.client_address[0] if isinstance(handler.client_address, tuple) else "-"
    access_log.info('%s "%s" %s %s %.0f ms', client, line, status, handler.response_length, seconds * 1000)
