"""Serves a connection: reads requests, writes responses, hands over WebSockets. Only this imports gevent-websocket.

Of pywsgi's handler, the base of gevent-websocket's, this one uses the loop over a connection's requests and the closing
of the socket. It reads and answers requests itself: pywsgi accepts malformed requests, and gevent-websocket's handshake
cannot wait for a consumer's decision.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any

import gevent
from gevent.pywsgi import format_date_time
from geventwebsocket.handler import WebSocketHandler

from dbchannels.protocol import SENTENCES
from dbchannels.server.access_log import log_request
from dbchannels.server.connection_limits import CountedSocket, address_of
from dbchannels.server.http.dispatch import StaticFile
from dbchannels.server.http.exchange import Stream
from dbchannels.server.http.messages import Refused, Request, ResponseHead, encode_head, refuse_response
from dbchannels.server.http.parser import RequestHead
from dbchannels.server.http.reader import ClientDisconnected, RequestReader
from dbchannels.server.proxy_headers import forwarded
from dbchannels.server.websocket import handshake

log = logging.getLogger("dbchannels.server")

PIECE = 65_536  # bytes of a response that the client must take within the write timeout
OUTSIDE = "This server's site is not at this path: see its --root-path."
CLIENT_LEFT = 499  # logged for a request whose client did not wait for the response, as nginx does


@lru_cache(2)
def date_at(second: int) -> str:
    """Return the value of a Date header; it changes once a second."""
    return format_date_time(second).decode("ascii")  # type: ignore[no-any-return]


class Handler(WebSocketHandler):  # type: ignore[misc]
    """Serves the requests of one connection, one after another.

    ``server`` is a `SiteServer`, one of the listeners of an `InterfaceServer`.
    """

    socket: Any

    def __init__(self, sock: Any, address: Any, server: Any) -> None:
        self.interface = server.interface
        self.reader = RequestReader(sock, self.interface.options, self.interface.hub_time)
        self.handed_over = False  # the socket belongs to a WebSocket now
        self._address = address_of(address)
        self._requests = 0
        self._client: str | None = None  # the address behind a proxy, while it counts
        super().__init__(sock, address, server, rfile=self.reader)

    def handle_one_request(self) -> bool | None:
        """Serve the next request. Return True when another may follow, None at the connection's end."""
        self._request: Request | None = None
        self._status, self._body_size = CLIENT_LEFT, 0  # for the log
        self._is_upgrade = False
        try:
            head = self.reader.read_head()
        except Refused as refused:
            # Where a malformed request ends is unknown, so nothing can follow it.
            self._started = time.monotonic()
            self._write_refusal(refused, "")
            self._log(self.reader.request_line)
            self._linger()
            return None
        except OSError:
            return None
        if head is None:
            return None
        self._started = time.monotonic()
        self._requests += 1
        used_up = self._requests == self.interface.options.max_requests
        self.close_connection = not head.keep_alive or used_up or self.server.closed
        request, self._is_upgrade = self._read_request(head), head.is_upgrade
        self._request = request
        try:
            self._serve(request, head.is_upgrade)
        finally:
            if not self.handed_over:
                self._log()
            if self._client is not None:
                self.interface.connection_limits.leave(self._client)
                self._client = None
            self.interface.requests.in_flight.pop(self.reader, None)
        if self.reader.unread:
            self._linger()
        gevent.sleep(0)  # let others run before this connection's next request, which may have come already
        return None if self.close_connection or self.reader.unread else True

    def _serve(self, request: Request, is_upgrade: bool) -> None:
        try:
            address = request.client[0]
            if address != self._address:  # a proxy's client counts by its own address
                if too_many := self.interface.connection_limits.enter(address):
                    self.close_connection = True
                    self._write_at_once(429, too_many)
                    return
                self._client = address
            root = request.root_path
            if root and not f"{request.path}/".startswith(f"{root}/"):
                raise Refused(404, OUTSIDE)
            self.interface.requests.in_flight[self.reader] = None
            if is_upgrade:
                self._upgrade(request)
            else:
                self._write_response(*self.interface.requests.respond(request, self.reader))
        except Refused as refused:
            self._write_refusal(refused, request.method)
        except ConnectionError:  # the client has left, or the response broke off
            self.close_connection = True
        except Exception:
            log.exception("A request could not be answered.")
            self._write_refusal(Refused(500, SENTENCES[500]), request.method)

    def _read_request(self, head: RequestHead) -> Request:
        options, target, heartbeat, last_id = self.interface.options, head.target, 0, None
        if head.is_upgrade and handshake.PARAMETERS in target:
            target, heartbeat, last_id = handshake.take_parameters(target)
        request = Request(
            head.method,
            target,
            head.version,
            head.headers,
            "http",
            self.client_address[:2] if isinstance(self.client_address, tuple) else ("", 0),
            self.server.public_address,
            options.root_path,
            heartbeat,
            last_id,
        )
        return forwarded(request, options.proxies) if options.proxies is not None else request

    # WebSockets.

    def _upgrade(self, request: Request) -> None:
        """Let the connect consumer decide, and hand the socket over. Raises Refused."""
        interface = self.interface
        self.close_connection = True
        shaken = handshake.read_handshake(request.method, request.http_version, request.headers)
        interface.check_origin(shaken, request)
        deflate = handshake.negotiate(request.headers) if interface.options.ws_compression else None
        connection, accepted = interface.connect(request, self.reader)
        try:
            extensions = "" if deflate is None else deflate.header
            head = handshake.accept_response(shaken, accepted.subprotocol, accepted.headers, extensions)
        except ValueError as error:
            connection.abandon()
            log.error(
                "The connect consumer of %s accepted with a reply that cannot be sent: %s",
                request.path,
                error,
            )
            raise Refused(500, SENTENCES[500]) from None
        connection.deflate = deflate
        self._write_at_once(101, head)
        self._log()  # before the WebSocket can end, which is logged too
        released = partial(self.server.release, self._address, self._client)
        self._client = None
        # A plain socket: watchers read and write it in the hub, where nothing may block.
        plain = CountedSocket(os.dup(self.socket.fileno()), released)
        plain.setblocking(False)
        self.handed_over = True
        self.socket.close()
        self.socket = None  # so that pywsgi does not touch it
        interface.adopt(connection, plain, self.reader.take_ahead())

    # Responses.

    def _write_response(self, head: ResponseHead, chunks: list[bytes] | StaticFile | Stream) -> None:
        """Write a response, its head together with a short first chunk."""
        self._status = int(head.status[:3])
        version = self._request.http_version if self._request else "1.1"
        given = {name.lower() for name, _ in head.headers}
        headers = list(head.headers)
        if "date" not in given:
            headers.append(("Date", date_at(int(time.time()))))
        in_chunks = False
        if "content-length" not in given and self._status not in (204, 304):
            if version == "1.1":
                headers.append(("Transfer-Encoding", "chunked"))
                in_chunks = head.has_body
            elif head.has_body:  # only the end of the connection ends the response
                self.close_connection = True
        self.close_connection = self.close_connection or self.server.closed
        if self.close_connection:
            headers.append(("Connection", "close"))
        elif version == "1.0":
            headers.append(("Connection", "keep-alive"))
        first = encode_head(head.status, headers)
        try:
            for chunk in chunks:
                if chunk:
                    before, behind = (b"%x\r\n" % len(chunk), b"\r\n") if in_chunks else (b"", b"")
                    if len(chunk) < PIECE:
                        self._send(first + before + chunk + behind)
                    else:  # without a copy: other clients may be sent the same chunk
                        for part in filter(None, (first + before, chunk, behind)):
                            self._send(part)
                    first = b""
                    self._body_size += len(chunk)
            self._send(first + b"0\r\n\r\n" if in_chunks else first)
        finally:
            if not isinstance(chunks, list):
                chunks.close()

    def _write_refusal(self, refused: Refused, method: str) -> None:
        """Refuse a request, unless its response has begun; the connection ends."""
        self.close_connection = True
        if self._status == CLIENT_LEFT:
            headers = [*refused.headers, ("Date", date_at(int(time.time())))]
            self._write_at_once(
                refused.status, refuse_response(refused.status, refused.sentence, headers, method)
            )

    def _write_at_once(self, status: int, data: bytes) -> None:
        self._status = status
        with suppress(ClientDisconnected):
            self._send(data)
            self._body_size = len(data.partition(b"\r\n\r\n")[2])

    def _send(self, data: bytes) -> None:
        """Send piece by piece: a slow client has its time for each. Raises ClientDisconnected."""
        view = memoryview(data)
        try:
            self.socket.settimeout(self.interface.options.write_timeout)
            for start in range(0, len(view), PIECE):
                piece = view[start : start + PIECE]
                # Nearly always all of it, without sendall's look at the buffer.
                sent = self.socket.send(piece)
                if sent < len(piece):
                    self.socket.sendall(piece[sent:])
        except OSError:
            raise ClientDisconnected from None

    def _linger(self) -> None:
        self.interface.requests.in_flight.lingering += 1
        self.reader.linger()
        self.interface.requests.in_flight.lingering -= 1

    def _log(self, line: str = "") -> None:
        counts = self.interface.relay.counts
        (counts.handshakes if self._is_upgrade else counts.requests)[self._status] += 1
        seconds = time.monotonic() - self._started
        log_request(self._address, line, self._status, self._body_size, seconds, self._request)
