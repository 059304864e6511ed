"""The handler of gevent-websocket, taught to ask first: the only module that imports that package.

Its class has no hooks, so methods are overridden: requests are read and handshakes checked strictly, the connect
consumer decides before the 101, and the open socket goes to a Connection instead of an application of its own.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import gevent
from gevent.pywsgi import format_date_time
from geventwebsocket.handler import WebSocketHandler

from dbchannels.server.connection_limits import CountedSocket, address_of
from dbchannels.server.http import messages
from dbchannels.server.http.messages import Request
from dbchannels.server.http.parser import RequestHead
from dbchannels.server.http.reader import ClientDisconnected, RequestReader
from dbchannels.server.websocket import handshake
from dbchannels.server.websocket.deflate import negotiate

log = logging.getLogger("dbchannels.server")

PIECE = 65_536  # bytes of a response that the client must take within the write timeout
CLIENT_LEFT = 499  # in the log, for a request whose client did not wait for the answer; nginx's number


@lru_cache(2)
def date_at(second: int) -> bytes:
    """Return what a Date header says; made once a second."""
    return format_date_time(second)  # type: ignore[no-any-return]


class Handler(WebSocketHandler):  # type: ignore[misc]
    """Reads one request after another from a socket; ``self.server`` is an interface.server.Listener.

    pywsgi writes the responses. RequestReader reads the requests, because pywsgi accepts malformed ones.
    """

    def __init__(self, sock: Any, address: Any, server: Any) -> None:
        self.inlet = RequestReader(sock, server.options, server.turns)
        self.handed_over = False  # the socket is a WebSocket's
        self.wsgi_input = self  # whose _discard pywsgi calls after each answer
        self._requests = 0
        self._unread = False  # there is a body, and not all of it was read
        self._client: str | None = None  # the address behind a proxy, while it counts
        super().__init__(sock, address, server, rfile=self.inlet)

    def handle_one_request(self) -> Any:
        """Return True to go on; None ends the connection."""
        self.code, self.response_length = None, 0
        try:
            head = self.inlet.read_head()
        except messages.Refused as refused:
            self._refuse_head(refused)
            return None
        except OSError:
            return None
        if head is None:
            return None
        self._take_head(head)
        self.server.in_flight.begin(self.inlet)
        try:
            self.handle_one_response()
        finally:
            self.server.in_flight.end(self.inlet)
            self._leave()
        if self._unread:
            self._linger()
        gevent.sleep(0)  # others have a turn before this connection's next request, which may be here already
        return None if self.close_connection or self._unread else True

    def _enter(self, request: Request) -> bytes | None:
        """Count a client that came through a proxy; or return the answer for one too many."""
        address = request.client[0]
        if address == address_of(self.client_address):
            return None
        answer: bytes | None = self.server.connection_limits.enter(address)
        if answer is None:
            self._client = address
        return answer

    def _leave(self) -> None:
        address, self._client = self._client, None
        if address is not None:
            self.server.connection_limits.leave(address)

    def _linger(self) -> None:
        if self.socket is not None:
            self.server.in_flight.lingering += 1
            self.inlet.linger()
            self.server.in_flight.lingering -= 1

    def _take_head(self, head: RequestHead) -> None:
        self._heartbeat = 0
        if handshake.HEARTBEAT in head.target and handshake.is_upgrade(head.headers):
            target, self._heartbeat = handshake.take_heartbeat(head.target)
            head = head._replace(target=target)
        self.head, self.requestline = head, head.line
        self.command, self.path, self.request_version = head.method, head.target, f"HTTP/{head.version}"
        self._requests, self._unread = self._requests + 1, head.length != 0
        used_up = self._requests == self.server.options.max_requests
        self.close_connection = not head.keep_alive or used_up or self.server.closed
        self.application = self.server.application
        self.environ = {
            "dbchannels.inlet": self.inlet,
            "dbchannels.length": head.length,
            "dbchannels.read_body": self._read_body,
        }

    def _read_body(self, take: Callable[[bytes], None]) -> None:
        self.inlet.read_body(self.head, take)
        self._unread = False

    def _refuse_head(self, refused: messages.Refused) -> None:
        """Answer what is no request, and end the connection: nobody knows where the next one would begin."""
        assert self.inlet.reader is not None
        self.requestline = self.inlet.reader.request_line
        self.time_finish = time.time()
        self._answer(
            refused.status, messages.refuse_response(refused.status, refused.sentence, refused.headers)
        )
        self.log_request()
        self._linger()

    def _discard(self) -> None:
        """pywsgi would read what is left of a body, however much it is. A body that was refused ends the connection."""

    _joined: bytearray | None = None  # what is held back until all of it is there
    request: Request | None = None  # None: it could not be read
    body_length = 0  # bytes of the response without its head

    def read_whole_request(self) -> Request:
        """Return what was read as a Request."""
        head = self.head
        client = self.client_address if isinstance(self.client_address, tuple) else ("", 0)
        host, port = self.server.public_address
        made = Request(head.method, head.target, head.version, head.headers, "http", client[:2], (host, port))
        return self.server.read_request(made._replace(heartbeat=self._heartbeat))  # type: ignore[no-any-return]

    def upgrade_websocket(self) -> Any:
        """Answer a handshake; None, and no status, leaves the request to the WSGI application."""
        request = self.request = self.environ["dbchannels.request"] = self.read_whole_request()
        if too_many := self._enter(request):
            self.close_connection = True
            self._answer(429, too_many)
            return []
        if not handshake.is_upgrade(request.headers):
            return None
        self.close_connection = True
        self.connection_upgraded = True
        try:
            self._check_and_connect(request)
        except messages.Refused as refused:
            self._answer(
                refused.status, messages.refuse_response(refused.status, refused.sentence, refused.headers)
            )
        return []

    def _check_and_connect(self, request: Request) -> None:
        shaken = handshake.read_handshake(request.method, request.http_version, request.headers)
        self.server.check_origin(shaken, request)
        deflate = negotiate(request.headers) if self.server.options.ws_compression else None
        connection, accepted = self.server.connect(request, self.inlet)
        try:
            extensions = "" if deflate is None else deflate.header
            head = handshake.accept_response(shaken, accepted.subprotocol, accepted.headers, extensions)
        except ValueError as error:
            connection.abandon()
            log.error("The connect consumer of %s accepted badly: %s", request.path, error)
            raise messages.Refused(500, "The site's code raised an error, which is in the log.") from None
        connection.deflate = deflate
        self._answer(101, head)
        self.websocket = connection

    def _answer(self, status: int, data: bytes) -> None:
        self.code, self.headers_sent = status, True
        self.status = self._orig_status = str(status)
        self.response_length = len(data)
        self.body_length = len(data.partition(b"\r\n\r\n")[2])
        try:
            self.socket.settimeout(self.server.options.write_timeout)
            self.socket.sendall(data)
        except OSError:
            self.response_length = self.body_length = 0

    def run_application(self) -> None:
        """As the base's, for the order of its steps; what is answered already is not answered again."""
        self.upgrade_websocket()
        if self.websocket is not None:
            self.run_websocket()
        elif not self.headers_sent:
            # The base class would look for an upgrade again: what is left is plain pywsgi's.
            super(WebSocketHandler, self).run_application()

    def run_websocket(self) -> None:
        """Hand the socket over. pywsgi must not touch it again, so it gets none to close."""
        self.time_finish = time.time()
        self.log_request()  # now: the socket may be closed, and that be logged, before pywsgi would
        buffered = self.inlet.take_ahead()
        released = partial(self.server.release, address_of(self.client_address), self._client)
        self._client = None
        # The duplicate is a plain socket: watchers read and write it in the hub, where nothing may block.
        plain = CountedSocket(os.dup(self.socket.fileno()), released)
        self.handed_over = True
        plain.setblocking(False)
        connection, self.websocket = self.websocket, None
        self.socket.close()
        self.socket = None
        self.server.adopt(connection, plain, buffered)

    def write(self, data: bytes) -> None:
        """Count what is written of the body."""
        super().write(data)
        self.body_length += len(data)

    def _write_with_headers(self, data: bytes) -> None:
        """Head and short body go out together: the base class makes two system calls and two packets of them."""
        self._joined = bytearray() if len(data) < PIECE else None
        super()._write_with_headers(data)
        joined, self._joined = self._joined, None
        if joined:
            self._sendall(joined)

    def finalize_headers(self) -> None:
        """The base class would end the chunks of a response to HEAD, though it has none: its end is the head's."""
        if self.provided_date is None:
            self.provided_date = date_at(int(time.time()))
            self.response_headers.append((b"Date", self.provided_date))
        super().finalize_headers()
        named = any(name.lower() == b"connection" for name, _ in self.response_headers)
        if self.close_connection and not named:
            self.response_headers.append((b"Connection", b"close"))
        if self.command == "HEAD":
            self.response_use_chunked = False
        if self.server.is_draining() and not self.close_connection:
            self.close_connection = True
            self.response_headers.append((b"Connection", b"close"))

    def _prepare_response(self) -> None:
        """The base class would look for its own WebSocket here."""

    def handle_one_response(self) -> None:
        """As the base's, with nothing left of the request before."""
        self.websocket, self.body_length = None, 0
        super().handle_one_response()

    def _sendall(self, data: bytes | bytearray) -> None:
        """Write piece by piece, so that a slow client has its time for each; one that is too slow has left."""
        if self._joined is not None:
            self._joined += data
            return
        view = memoryview(data)
        try:
            self.socket.settimeout(self.server.options.write_timeout)
            for start in range(0, len(view), PIECE):
                piece = view[start : start + PIECE]
                sent = self.socket.send(
                    piece
                )  # nearly always all of it, and without sendall's look at the buffer
                if sent < len(piece):
                    self.socket.sendall(piece[sent:])
        except OSError:
            raise ClientDisconnected from None
        self.response_length += len(data)

    def log_request(self) -> None:
        """One line in the log for each request."""
        if self.handed_over:
            return
        self.code = self.code or CLIENT_LEFT
        self.server.log_access(self, (self.time_finish or time.time()) - self.time_start)
        self.request = None
