"""The interface server: HTTP and WebSockets on one port, in one gevent process that runs no code of the site."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gevent
from gevent.pywsgi import WSGIServer
from gevent.queue import SimpleQueue

from dbchannels.layers.base import BaseLayer
from dbchannels.measures import Counted
from dbchannels.protocol import GOING_AWAY, SENTENCES, SERVICE_RESTART
from dbchannels.redaction import escaped
from dbchannels.server.access_log import log_websocket
from dbchannels.server.budget import SLICE, MemoryBudget
from dbchannels.server.connection_limits import (
    FRAMES_TOGETHER,
    ConnectionLimits,
    FairQueue,
    address_of,
    connections_that_fit,
    first_kept,
    reject,
)
from dbchannels.server.health import HealthServer
from dbchannels.server.http import messages
from dbchannels.server.http.dispatch import Requests
from dbchannels.server.http.handler import Handler
from dbchannels.server.http.messages import Request
from dbchannels.server.http.reader import RequestReader
from dbchannels.server.listeners import (
    AddressInUse,
    Inherited,
    Listener,
    SocketPermissions,
    listen,
    listen_all,
)
from dbchannels.server.metrics import Metrics
from dbchannels.server.options import ServerConfig
from dbchannels.server.proxy_headers import forwarded_scheme
from dbchannels.server.relay import Hub, Relay
from dbchannels.server.websocket import handshake
from dbchannels.server.websocket.connection import Connection
from dbchannels.server.websocket.handshake import Accepted, Denied
from dbchannels.wakeup import WakeupPipe

log = logging.getLogger("dbchannels.server")


# Seconds: five for clients to answer a close, two until the server notices, and one for the last disconnect consumers.
LAST_DISCONNECTS = 8.0
LAST_WRITES = 1.5  # seconds beyond --graceful-timeout for what is left to be written
LAST_ANSWERS = 1.0  # seconds in which clients that waited until the end must take their 503
LAST_REQUEST = 5.0  # seconds that an idle connection has for one more request, once another server accepts
DRAIN_STEP = 0.1  # seconds between two batches of WebSockets that are closed then


class GeventHub(Hub):
    """The hub of the thread that makes it; greenlets wait there."""

    queue = SimpleQueue

    def __init__(self) -> None:
        super().__init__()
        self._watcher: Any = gevent.get_hub().loop.async_()
        self.wake = self._watcher.send

    def start(self) -> None:
        # Replies may come as fast as they are delivered.
        self._watcher.start(self.run_all, SLICE)


class SiteServer(WSGIServer):  # type: ignore[misc]
    """pywsgi's server at one address of an `InterfaceServer`."""

    def __init__(self, interface: InterfaceServer, listener: Listener) -> None:
        super().__init__(listener.socket, log=None, error_log=None)
        self.interface = interface
        self.connection_limits = interface.connection_limits
        self.public_address = ("localhost", 80) if listener.address.path else listener.address[:2]

    def do_handle(self, sock: Any, address: Any) -> None:
        """Take a connection, in the hub; reject one too many at once, without a greenlet."""
        answer = self.connection_limits.admit(address_of(address), sock.fileno())
        if answer is None:
            super().do_handle(sock, address)
        else:
            reject(sock, answer)

    def release(self, address: str, client: str | None) -> None:
        """Stop counting a WebSocket; ``client`` is the address of its client behind a proxy."""
        self.connection_limits.release(address)
        if client is not None:
            self.connection_limits.leave(client)

    def handle(self, sock: Any, address: Any) -> None:
        """Serve a connection until it ends, or becomes a WebSocket."""
        handler = Handler(sock, address, self)
        self.interface.readers.add(handler.reader)
        try:
            handler.handle()
        finally:
            self.interface.readers.discard(handler.reader)
            if not handler.handed_over:
                self.connection_limits.release(address_of(address))


class Measured:
    """What the metrics show of a server, see ``metrics.Source``."""

    def __init__(self, server: InterfaceServer, websockets: MemoryBudget) -> None:
        self._server, self._websockets = server, websockets
        self.counts, self.outages = server.relay.counts, lambda: server.relay.health.outages
        self.site = lambda: server.relay.housekeeper.site
        self.counted = lambda: server.counted()

    def state(self) -> dict[str, float]:
        """Return the numbers of the moment."""
        limits = self._server.connection_limits
        return {
            "websockets": len(self._server.connections),
            "connections": limits.open,
            "connections_limit": limits.total,
            "workers_ready": len(self._server.relay.own_workers()),
        }

    def budgets(self) -> dict[str, tuple[int, int]]:
        """Return the bytes that are used, and the limit, by the budget's name."""
        options, requests = self._server.options, self._server.requests
        body_memory, body_disk = requests.bodies.used()
        response_memory, response_disk = requests.responses.used()
        unsent = self._websockets.unsent
        return {
            "websocket received": (self._websockets.used, self._websockets.total),
            "websocket unsent": (unsent.used, unsent.total),
            "request memory": (body_memory, options.max_body_memory),
            "request disk": (body_disk, options.max_spool),
            "response memory": (response_memory, options.max_body_memory),
            "response disk": (response_disk, options.max_response_spool),
        }


class InterfaceServer:
    """Listens at its addresses at once; ``start`` needs the layer, ``stop`` lets requests and consumers finish."""

    def __init__(
        self,
        layer: BaseLayer,
        wakeups: dict[str, WakeupPipe],
        options: ServerConfig,
        inherited: Inherited = Inherited(),  # noqa: B008
    ) -> None:
        self.options = options
        self.relay = Relay(layer, wakeups, GeventHub())
        is_proxy = options.proxies.believes if options.proxies else None
        turns = partial(FairQueue, options.max_waiting_per_address, is_proxy)
        # A worker is kept free for WebSockets, so these need not wait for requests.
        self.requests, self._handshakes = Requests(self.relay, options, turns()), turns()
        self.connection_limits = ConnectionLimits(options.max_connections, options.max_per_address, is_proxy)
        memory, of_one = options.max_websocket_memory, options.websocket.max_memory
        self._budget = MemoryBudget(memory, of_one, turns(FRAMES_TOGETHER))
        self.hub_time = self._budget.hub_time
        self.connections: set[Connection] = set()
        self._closing: int | None = None  # the close code, once the server stops
        #: Returns what the workers of this process tree have counted, see ``metrics.Source``.
        self.counted: Callable[[], tuple[Counted, Sequence[bytes]]] = lambda: (({}, {}), ())
        self.readers: set[RequestReader] = set()  # of all connections that are not WebSockets
        probe = inherited.probe
        if options.health_address and not (probe and probe.is_at(options.health_address)):
            probe = listen(options.health_address, SocketPermissions())
        self._health: HealthServer | None = None
        if probe:
            self.relay.housekeeper.watches_site = True
            self._health = HealthServer(probe, self.why_not_ready, Metrics(Measured(self, self._budget)))
        self.health_address = probe.address if probe else None
        try:
            self._sockets = listen_all(options.addresses, options.socket_permissions, inherited.site)
        except AddressInUse:
            if self._health:
                self._health.stop()
            raise
        self.addresses = [one.address for one in self._sockets]
        self._listeners = [SiteServer(self, one) for one in self._sockets]
        self._ticking: Any = None
        self.has_worker: Callable[[], bool] | None = None  # None: this server does not watch the workers

    def why_not_ready(self) -> str:
        """Return why no request should be sent here now; "" if requests may be sent."""
        if self._closing is not None:
            return "stopping"
        if not self.relay.is_reachable():
            return "the layer cannot be used"
        return "" if self.has_worker is None or self.has_worker() else "no worker is ready"

    @property
    def listeners(self) -> Inherited:
        """Return what this server listens at, for another one that takes over."""
        return Inherited(tuple(self._sockets), self._health.listener if self._health else None)

    def start(self, accept: bool = True) -> None:
        """Register with the layer and accept connections. Raises LayerUnavailable.

        With ``accept`` False no connection is accepted before a call of ``accept``.
        """
        self.connection_limits.total = connections_that_fit(self.options.max_connections)
        self.connection_limits.kept_from = first_kept()
        self.relay.start()
        self._ticking = gevent.spawn(self._tick)
        if accept:
            self.accept()

    def accept(self) -> None:
        """Accept connections, and answer probes."""
        if self._health:
            self._health.start()
        for listener in self._listeners:
            listener.start()

    def hand_over(self) -> None:
        """Accept nothing more and answer no probe: another server has the listeners."""
        self.close_listeners()
        if self._health:
            self._health.stop()

    def drain(self, is_hurried: Callable[[], bool]) -> None:
        """Finish what is here while another server accepts; then, or once ``is_hurried``, the server is to be stopped.

        Requests have ``drain_timeout``. Idle connections are closed when no request comes for a while. The WebSockets
        and the streams of events end one by one during ``drain_websockets``, so that their clients do not come back
        all at once.
        """
        started, in_flight = time.monotonic(), self.requests.in_flight
        requests_until = started + self.options.drain_timeout
        while not is_hurried():
            now = time.monotonic()
            if now > started + LAST_REQUEST:
                for reader in list(self.readers):
                    reader.close_if_idle()
            still_open = [
                partial(one.close, SERVICE_RESTART, "") for one in self.connections if not one.closing
            ]
            still_open += [partial(in_flight.end_stream, one) for one in in_flight.streams]
            if not still_open and (not self.readers or now > requests_until):
                return
            left = max(DRAIN_STEP, started + self.options.drain_websockets - now)
            number = int(
                len(still_open) * DRAIN_STEP / left + random.random()
            )  # 0.3 sockets are one in 3 of 10 steps
            for close in random.sample(still_open, min(number, len(still_open))):
                close()
            gevent.sleep(DRAIN_STEP)

    def stop(self, restart: bool = False) -> None:
        """Stop listening, finish the requests in flight, end WebSockets and streams, and let their consumers run.

        After ``graceful_timeout``, requests that are not answered get 503, and responses that have begun are cut.
        """
        self.close_listeners()
        self._closing = SERVICE_RESTART if restart else GOING_AWAY
        deadline = time.monotonic() + self.options.graceful_timeout
        for connection in list(self.connections):
            connection.close(self._closing, "")
        in_flight = self.requests.in_flight
        in_flight.end_streams()
        self._wait_until(lambda: in_flight.is_over, deadline)
        if not in_flight.is_over:
            in_flight.give_up()
            self._wait_until(lambda: in_flight.is_over, time.monotonic() + LAST_ANSWERS)
        self._wait_until(lambda: not self.relay.waiting(), min(deadline, time.monotonic() + LAST_DISCONNECTS))
        if self._ticking is not None:
            self._ticking.kill()
        gevent.get_hub().threadpool.apply(
            self.relay.stop, (max(1.0, deadline + LAST_WRITES - time.monotonic()),)
        )
        if self._health:
            self._health.stop()
        if self.requests.files is not None:
            self.requests.files.close()

    def close_listeners(self) -> None:
        """Accept no more connections, and remove the files of Unix sockets."""
        for listener in self._listeners:
            listener.close()
        # Once: a file that is there later may be that of the server that follows this one.
        sockets, self._sockets = self._sockets, []
        for one in sockets:
            one.remove()

    def _wait_until(self, done: Callable[[], bool], deadline: float) -> None:
        while not done() and time.monotonic() < deadline:
            gevent.sleep(0.02)

    def _tick(self) -> None:
        while True:
            gevent.sleep(2.0)
            now = time.monotonic()
            ends_at = now + SLICE
            for connection in list(self.connections):
                connection.tick(now)
                if connection.closed:
                    self.connections.discard(connection)
                if time.monotonic() > ends_at:  # closing a crowd must not hold up the others
                    gevent.sleep(0.001)
                    ends_at = time.monotonic() + SLICE

    @property
    def address(self) -> tuple[str, int]:
        """The first host and port at which the server listens."""
        return next((one[:2] for one in self.addresses if not one.path), ("localhost", 80))

    # WebSockets.

    def check_origin(self, shaken: handshake.Handshake, request: Request) -> None:
        """Raise Refused for a page of another site, and for a host that is not the site's (DNS rebinding)."""
        allowed = self.options.allowed_hosts
        if not handshake.host_allowed(request.host(), allowed):
            raise messages.Refused(
                400, "This Host is not one of the site's: add it to ALLOWED_HOSTS if it is yours."
            )
        # X-Forwarded-Proto is there only if a proxy is believed. Without one, TLS may end unnoticed.
        scheme = forwarded_scheme(request.headers) if self.options.proxies is not None else ""
        if not handshake.origin_allowed(shaken.origin, request.host(), scheme, self.options.origins):
            log.warning(
                "Refused a WebSocket from a page of %s, which is not part of the site at %s%s. If it is yours, add it "
                "to CSRF_TRUSTED_ORIGINS, or let the proxy in front pass on the Host and the scheme (--proxy-headers).",
                escaped(shaken.origin or "", 200),
                f"{scheme}://" if scheme else "",
                request.host(),
            )
            raise messages.Refused(
                403, "This Origin may not connect: add it to CSRF_TRUSTED_ORIGINS if it is yours."
            )

    def connect(self, request: Request, reader: RequestReader) -> tuple[Connection, Accepted]:
        """Let the connect consumer decide. Raises Refused with its status, or with 503 when no worker answers."""
        log_websocket("WSCONNECT", request, "-", 0.0)
        if self.requests.in_flight.given_up or self.relay.refuses:
            raise messages.Refused(503, SENTENCES[503])
        connection = Connection(self.relay, request, self.options.websocket, self._budget)
        self.requests.in_flight[reader] = connection.give_up
        reader.watch(connection.give_up)
        reader.need_client()
        turn = self._handshakes.enter(request.client[0], connection.connect)
        try:
            decision = connection.decision.get(timeout=self.options.handshake_timeout)
        except gevent.Timeout:
            decision = Denied(503, SENTENCES[503])
        finally:
            # Only now, so that a flood of clients that leave at once has no more turns than others.
            connection.when_decided(turn.leave)
            reader.unwatch()
            self.requests.in_flight[reader] = None
        if isinstance(decision, Denied):
            connection.abandon()
            raise messages.Refused(decision.status, decision.sentence, decision.headers)
        return connection, decision

    def adopt(self, connection: Connection, sock: Any, buffered: bytes) -> None:
        """Take over an accepted connection's socket."""
        self.connections.add(connection)
        connection.start(sock, buffered)
        if self._closing is not None:  # its handshake was under way when the others were closed
            connection.close(self._closing, "")
