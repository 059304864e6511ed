"""The handler of gevent-websocket, taught to ask first: the only module that imports that package.

Its class has no hooks, so four methods are overridden: the handshake is checked strictly, the connect consumer
decides before the 101, and the open socket goes to a Connection instead of an application of its own.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Any

import gevent
from geventwebsocket.handler import WebSocketHandler

from dbchannels.interface import handshake
from dbchannels.interface.http import RawHeaders, Request

log = logging.getLogger("dbchannels.server")


class Handler(WebSocketHandler):  # type: ignore[misc]
    """Reads one request after another from a socket; ``self.server`` is an interface.server.Listener."""

    request: Request | None = None  # None: it could not be read
    body_length = 0  # bytes of the response without its head

    def read_whole_request(self) -> Request:
        """Return what pywsgi has read as a Request."""
        headers: RawHeaders = [
            (name.lower().encode("latin-1"), value.strip().encode("latin-1"))
            for name, value in self.headers.items()
        ]
        version = self.request_version.partition("/")[2]
        client = self.client_address if isinstance(self.client_address, tuple) else ("", 0)
        host, port = self.server.public_address
        made = Request(self.command, self.path, version, headers, "http", client[:2], (host, port))
        return self.server.read_request(made)  # type: ignore[no-any-return]

    def get_environ(self) -> dict[str, Any]:
        """Read every body by its length: to ``Connection: Upgrade``, h2c's too, the base gives the bare socket."""
        environ: dict[str, Any] = super().get_environ()
        environ["wsgi.input"] = self.wsgi_input
        return environ

    def upgrade_websocket(self) -> Any:
        """Answer a handshake; None, and no status, leaves the request to the WSGI application."""
        request = self.request = self.environ["dbchannels.request"] = self.read_whole_request()
        if not handshake.is_upgrade(request.headers):
            return None
        self.close_connection = True
        self.connection_upgraded = True
        try:
            self._check_and_connect(request)
        except handshake.Refused as refused:
            self._answer(
                refused.status, handshake.refuse_response(refused.status, refused.sentence, refused.headers)
            )
        return []

    def _check_and_connect(self, request: Request) -> None:
        shaken = handshake.read_handshake(request.method, request.http_version, request.headers)
        self.server.check_origin(shaken, request)
        connection, accepted = self.server.connect(request)
        try:
            head = handshake.accept_response(shaken, accepted.subprotocol, accepted.headers)
        except ValueError as error:
            connection.abandon()
            log.error("The connect consumer of %s accepted badly: %s", request.path, error)
            raise handshake.Refused(500, "The site's code raised an error, which is in the log.") from None
        self._answer(101, head)
        self.websocket = connection

    def _answer(self, status: int, data: bytes) -> None:
        self.code, self.headers_sent = status, True
        self.status = self._orig_status = str(status)
        self.response_length = len(data)
        self.body_length = len(data.partition(b"\r\n\r\n")[2])
        try:
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
        buffered = self._read_ahead()
        # The duplicate is a plain socket: watchers read and write it in the hub, where nothing may block.
        plain = socket.socket(fileno=os.dup(self.socket.fileno()))
        plain.setblocking(False)
        connection, self.websocket = self.websocket, None
        self.socket.close()
        self.socket = None
        self.server.adopt(connection, plain, buffered)

    def _read_ahead(self) -> bytes:
        """Return frames that came right behind the handshake and lie in the reader's buffer."""
        self.socket.setblocking(False)
        try:
            return bytes(self.rfile.peek(0) or b"")
        except (BlockingIOError, OSError):
            return b""

    def write(self, data: bytes) -> None:
        """Count what is written of the body."""
        super().write(data)
        self.body_length += len(data)

    def finalize_headers(self) -> None:
        """The base class would end the chunks of a response to HEAD, though it has none: its end is the head's."""
        super().finalize_headers()
        if self.command == "HEAD":
            self.response_use_chunked = False
        if self.server.is_draining() and not self.close_connection:
            self.close_connection = True
            self.response_headers.append((b"Connection", b"close"))

    def _prepare_response(self) -> None:
        """The base class would look for its own WebSocket here."""

    def handle_one_response(self) -> None:
        """Give others a turn before the next request of this connection, which may be here already."""
        self.websocket, self.body_length = None, 0
        super().handle_one_response()
        gevent.sleep(0)

    def log_request(self) -> None:
        """One line in the log for each request."""
        self.server.log_access(self, (self.time_finish or time.time()) - self.time_start)
        self.request = None
