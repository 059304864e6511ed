"""The interface server of a test: its connections and handshakes, without sockets, threads or waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

from dbchannels import names
from dbchannels.layers.operations import Disconnect, Operation
from dbchannels.measures import ServerCounts
from dbchannels.models import Process
from dbchannels.protocol import TOO_LARGE, is_close_code
from dbchannels.server.budget import Share
from dbchannels.server.history import HistoryReader
from dbchannels.server.http.messages import Refused, Request
from dbchannels.server.options import LaunchConfig, ServerConfig, WebSocketLimits
from dbchannels.server.relay import Receiver, Relay, Reply
from dbchannels.server.server import InterfaceServer
from dbchannels.server.websocket import handshake
from dbchannels.server.websocket.connection import Connection
from dbchannels.server.websocket.framing import TEXT, Closed, Event, cut_reason, decode_frame
from dbchannels.server.websocket.handshake import Accepted, Denied
from dbchannels.server.websocket.messages import Outgoing
from dbchannels.testing.layer import RecordingLayer


class Transport:
    """The two ends of one open WebSocket, in place of a socket: what the server wrote waits for the client."""

    def __init__(
        self,
        sock: None,
        on_event: Callable[[Event], None],
        limits: WebSocketLimits,
        share: Share,
        deflate: None = None,
        heartbeat: int = 0,
    ) -> None:
        self.arrived: list[str | bytes] = []
        self.close_code: int | None = None  # that the client sees; None: it is open
        self.close_reason = ""
        self._on_event, self._limits = on_event, limits

    # The server's end, as in server.websocket.transport.

    @property
    def closed(self) -> bool:
        """Whether the WebSocket is closed."""
        return self.close_code is not None

    closing = closed
    paused = False  # the client goes no faster than its consumers

    def read(self) -> None:
        """Nothing to do: events come by calls."""

    def send(self, out: Outgoing, before: bytes = b"") -> None:
        """Write what a reply asks for."""
        for frame in filter(None, () if self.closed else (before, out.frame)):
            opcode, payload = decode_frame(frame)
            self.arrived.append(payload.decode() if opcode == TEXT else payload)
        if out.close is not None:
            self.close(out.close, out.reason)

    def when_drained(self, call: Callable[[], None]) -> None:
        """Call the function at once: the client takes everything."""
        call()

    def close(self, code: int, reason: str) -> None:
        """Close it; the client answers immediately."""
        if not self.closed:
            self.close_code, self.close_reason = code, cut_reason(reason)
            self._on_event(Closed(code, reason))

    # The client's end.

    def give(self, data: str | bytes) -> None:
        """Send a message to the server."""
        size = len(data.encode() if isinstance(data, str) else data)
        if size > self._limits.max_size:
            self.close_code = TOO_LARGE
            self._on_event(Closed(TOO_LARGE, abrupt=True))
        else:
            self._on_event(data)

    def leave(self, code: int, reason: str) -> None:
        """Close it from the client's side; with a code that cannot be sent, such as 1006, the client vanishes."""
        if self.closed:
            return
        self.close_code, self.close_reason = code, cut_reason(reason)
        has_close = is_close_code(code)
        self._on_event(Closed(code, self.close_reason) if has_close else Closed(code, abrupt=True))


class TestedConnection(Connection):
    """A connection of the interface server's, on the transport of a test."""

    make_transport = Transport  # type: ignore[assignment]

    def call_later(self, delay: float, function: Callable[..., None], *arguments: Any) -> None:
        """Call the function when so many seconds have passed for the test."""
        server: Any = self._relay
        server.call_later(delay, partial(function, *arguments))

    @property
    def transport(self) -> Transport:
        """The transport, once the connection was started."""
        return self._transport  # type: ignore[return-value]


class Server:
    """Does for a test what the interface server does."""

    def __init__(self, layer: RecordingLayer) -> None:
        self.layer = layer
        self.name = f"server-{names.random_part()}"
        self.queue = f"reply.{names.random_part()}!"
        self._link = layer.link()
        self._link.register(self.name, Process.SERVER, self.queue)
        self._receivers: dict[str, Receiver] = {}
        self.history = HistoryReader(self._receivers, lambda call: call(), self._deliver, lambda: None)
        self.history.begin(self._link.history_position())
        self.counts, self.housekeeper = ServerCounts(), SimpleNamespace(has_sessions=False)
        # What is to be called, and when by the clock.
        self._calls: list[tuple[float, Callable[[], None]]] = []

    # What a connection asks of a relay.

    open: Any = Relay.open
    close: Any = Relay.close
    make_send: Any = Relay.make_send

    def send(self, *operations: Operation) -> None:
        """Write at once."""
        self.layer.write_unrecorded(operations)

    def disconnect(self, reply_channel: str) -> None:
        """Have a connection leave all groups."""
        self.send(Disconnect(reply_channel))

    def call_later(self, delay: float, call: Callable[[], None]) -> None:
        """Call the function in the first ``deliver`` after so many seconds."""
        self._calls.append((self.layer.clock() + delay, call))

    def next_due(self) -> float | None:
        """Return in how many seconds the next function is to be called; None for none."""
        return min((due - self.layer.clock() for due, _ in self._calls), default=None)

    def deliver(self) -> None:
        """Call what is due, and deliver all waiting replies."""
        due = [call for at, call in self._calls if at <= self.layer.clock()]
        self._calls = [one for one in self._calls if one[0] > self.layer.clock()]
        for call in due:
            call()
        while deliveries := self._link.receive_many([self.queue], 100):
            for delivery in deliveries:
                self._deliver(delivery.payload, 0, [self.queue + local for local in delivery.recipients])
        while self.history.read(self._link, self.queue, 0.0) or self.history.behind:
            pass

    def _deliver(self, payload: bytes, position: int, reply_channels: Sequence[str]) -> None:
        reply = Reply.read(payload, position)
        for reply_channel in reply_channels:
            if receiver := self._receivers.get(reply_channel):
                receiver.deliver(reply)

    # Handshakes.

    check_origin: Any = InterfaceServer.check_origin

    @property
    def options(self) -> ServerConfig:
        """The options that check_origin reads."""
        return LaunchConfig.from_options({}).server

    def connect(self, request: Request, run: Callable[[], None]) -> tuple[TestedConnection, Accepted]:
        """Make a handshake; ``run`` runs the connect consumer.

        Raises Refused, ValueError if the consumer accepts with what cannot be sent, and whatever ``run`` raises.
        """
        shaken = handshake.read_handshake(request.method, request.http_version, request.headers)
        self.check_origin(shaken, request)
        connection = TestedConnection(self, request)  # type: ignore[arg-type]
        connection.connect()
        try:
            run()
            decision: Any = connection.decision.value
            if isinstance(decision, Denied):
                raise Refused(decision.status, decision.sentence, decision.headers)
            handshake.accept_response(shaken, decision.subprotocol, decision.headers)
        except BaseException:
            connection.abandon()
            raise
        connection.start(None, b"")
        return connection, decision
