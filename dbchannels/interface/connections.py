"""One WebSocket connection: between its socket and its reply channel.

It has no greenlet. A watcher reads the socket; writing is done at once, without blocking, by whoever has a
frame, and a second watcher goes on when the socket is full. At most one of the connection's messages is in the
layer; the next goes there when the worker's reply says that the last one is finished. That one rule keeps the
frames in order whatever the number of workers, and stops reading a client that is faster than they are.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from contextlib import suppress
from http import HTTPStatus
from typing import Any, NamedTuple

import gevent
from gevent.event import AsyncResult

from dbchannels.interface.http import Request, connect_message
from dbchannels.interface.relay import DECLARED_DEAD, OutboxFull, Relay, Reply
from dbchannels.interface.websocket import Binary, Closed, Outgoing, Pong, Text, WebSocket, incoming
from dbchannels.layers.operations import Connect, Disconnect

log = logging.getLogger("dbchannels.server")

READ = 65_536  # bytes read at once
INBOX = 32  # frames that wait for their turn before the socket is not read any more
WAITING_FRAMES, WAITING_BYTES = 64, 1_048_576  # what may wait for a slow reader
SEND_DEADLINE = 20.0  # seconds in which a full socket must take something
CLOSE_DEADLINE = 5.0  # seconds for the client's half of the closing handshake
PING_INTERVAL = 20.0  # seconds, with jitter
SILENCE = 60.0  # seconds without a byte from the client, pongs included: it is gone
FULL_DEADLINE = 20.0  # seconds in which a full channel must take a frame

GOING_AWAY, INTERNAL_ERROR, SERVICE_RESTART, TRY_AGAIN = 1001, 1011, 1012, 1013


class Accepted(NamedTuple):
    """The verdict of the connect consumer: write the 101."""

    subprotocol: str | None
    headers: list[tuple[str, str]]


class Denied(NamedTuple):
    """The verdict of the connect consumer, or why there is none: answer with this status."""

    status: int
    sentence: str


class Connection:
    """Delivers replies to the socket, and the client's frames to the layer, one at a time."""

    def __init__(self, relay: Relay, request: Request) -> None:
        self.request = request
        self.opened_at = time.monotonic()
        self.verdict: AsyncResult = AsyncResult()
        self.reply_channel = relay.open(self)
        self._relay = relay
        self._protocol = WebSocket()
        # Towards the layer.
        self._inbox: deque[tuple[str, dict[str, Any]]] = deque()  # (channel, fields) that wait for their turn
        self._in_flight: tuple[str, dict[str, Any]] | None = None  # what the layer has
        self._order = 0
        self._abandoned = False
        self._refused_at: float | None = None  # since when the channel is full
        # Towards the client. Valid from `start` on.
        self._socket: Any = None
        self._reader: Any = None
        self._writer: Any = None
        self._frames: deque[bytes | memoryview] = deque()  # what the socket has not taken
        self._waiting = 0  # bytes in _frames
        self._early: list[Outgoing] = []  # data that came before the 101 was written
        self._blocked_at: float | None = None
        self._heard_at = self._pinged_at = time.monotonic()
        self._closing_at: float | None = None
        self._code: int | None = None  # what websocket.disconnect will say
        self.disconnected = False  # its last message has been put in the inbox

    # The handshake.

    def connect(self) -> None:
        """Record the connection and send its connect message. Raises OutboxFull."""
        fields = connect_message(self.request, self.reply_channel)
        record = Connect(self.reply_channel, self._relay.name, self.request.path[:2000])
        self._relay.send(record, self._relay.make_send("websocket.connect", fields))
        self._in_flight = ("websocket.connect", fields)  # not before: what was refused will not be answered

    def abandon(self) -> None:
        """Give up a connection that never opened; if its connect consumer accepts all the same, it is told."""
        self._abandoned = True
        if self._in_flight is not None:
            return
        if isinstance(self.verdict.value, Accepted):  # it is known already that the consumer accepted
            self._disconnect(1006)
        else:
            self._end()

    def _forget(self) -> None:
        """Close a connection that others have cleaned up after: its disconnect consumer runs by their doing."""
        self.disconnected = True
        self._in_flight = None
        self._inbox.clear()
        self._relay.close(self.reply_channel)
        self.close(SERVICE_RESTART, "")

    def start(self, sock: Any, buffered: bytes) -> None:
        """Take over the socket, its 101 written; ``buffered`` is what was read of it already."""
        self._socket = sock
        loop = gevent.get_hub().loop
        self._reader = loop.io(sock.fileno(), 1)
        self._writer = loop.io(sock.fileno(), 2)
        for out in self._early:
            self._write_out(out)
        self._early = []
        if self.disconnected:  # the server was declared dead since the verdict
            self.close(SERVICE_RESTART, "")
        if buffered:
            self._received(buffered)
        if self._socket is not None and len(self._inbox) < INBOX and not self._reader.active:
            self._reader.start(self._readable)

    @property
    def closed(self) -> bool:
        """Whether its socket is gone, and with it the deadlines that ``tick`` looks after."""
        return self._socket is None

    # From the layer.

    def deliver(self, reply: Reply) -> None:
        """Take one reply: data, a verdict on the handshake, or word of the message in the layer."""
        message = reply.message
        if "lost" in message:
            self._lost(message["lost"], message.get("channel"))
            return
        try:
            out = reply.outgoing
        except ValueError as error:
            log.warning("A message for %s was left out: %s", self.reply_channel, error)
            out = None
        if out is not None:
            self._take(out, message)
        if "finished" in message:
            self._finished(message["finished"])

    def _take(self, out: Outgoing, message: dict[str, Any]) -> None:
        if self._socket is not None:
            self._write_out(out)
        elif not self.disconnected:
            self._judge(out, message)

    def _judge(self, out: Outgoing, message: dict[str, Any]) -> None:
        """Before the 101: an ``accept``, or a close without data, decides at once; data waits for the verdict."""
        if self.verdict.ready() and not isinstance(self.verdict.value, Denied):
            self._early.append(out)
        elif out.accept is False or (
            out.accept is None and out.close is not None and not (out.frame or self._early)
        ):
            self._decide(_denied(message.get("status")))
        else:
            if out.frame or out.close is not None:
                self._early.append(out)
            if out.accept or "finished" in message:
                self._decide(Accepted(out.subprotocol, out.headers))

    def _decide(self, verdict: Accepted | Denied) -> None:
        if not self.verdict.ready():
            self.verdict.set(verdict)

    def _finished(self, order: object) -> None:
        """The message in the layer was consumed; word of another one is left alone.

        A batch that the database took just before it went away is written again, and so finished twice.
        """
        if self._in_flight is None or self._in_flight[1]["order"] != order:
            return
        finished, self._in_flight, self._refused_at = self._in_flight, None, None
        denied = self._abandoned and isinstance(self.verdict.value, Denied)
        if denied or finished[0] == "websocket.disconnect":
            self._end()
        elif self._abandoned:
            self._disconnect(1006)
        else:
            self._pump()

    def _lost(self, why: str, channel: str | None) -> None:
        """The message in the layer will not be consumed; without a channel it is whichever is there."""
        if why == DECLARED_DEAD and (self._abandoned or isinstance(self.verdict.value, Accepted)):
            self._forget()
            return
        if self._in_flight is None or channel not in (None, self._in_flight[0]):
            return
        channel = self._in_flight[0]
        if channel == "websocket.connect":
            self._in_flight = None
            self._decide(_denied(502 if why == "worker died" else 503))
            if self._abandoned:
                self._end()
        elif channel == "websocket.disconnect" and why == "worker died":
            self._end()
        elif channel == "websocket.disconnect" or why == "full":
            self._again()
        else:
            self._fail(INTERNAL_ERROR if why == "worker died" else TRY_AGAIN)

    def _again(self) -> None:
        """Send the message once more, later: the channel was full, or nobody took it before it expired."""
        now = time.monotonic()
        self._refused_at = self._refused_at or now
        last = self._in_flight is not None and self._in_flight[0] == "websocket.disconnect"
        if not last and now - self._refused_at > FULL_DEADLINE:
            self._fail(TRY_AGAIN)
        else:
            gevent.spawn_later(random.uniform(0.2, 0.6), self._send_in_flight)

    def _fail(self, code: int) -> None:
        """A frame was lost, so those behind it are not consumed either; only the disconnect is."""
        self._in_flight = None
        self._inbox = deque(one for one in self._inbox if one[0] == "websocket.disconnect")
        self.close(code, "")
        self._pump()

    # From the client.

    def _readable(self) -> None:
        try:
            data = self._socket.recv(READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._received(data)
        else:
            self._handle(self._protocol.receive_end())
            self._drop()

    def _received(self, data: bytes) -> None:
        self._heard_at = time.monotonic()
        self._handle(self._protocol.receive(data))
        self._flush_protocol()
        if len(self._inbox) >= INBOX and self._socket is not None:
            self._reader.stop()

    def _handle(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, (Text, Binary)):
                self._queue("websocket.receive", incoming(event))
            elif isinstance(event, Closed):
                self._disconnect(event.code)
            elif isinstance(event, Pong):
                continue

    def _queue(self, channel: str, fields: dict[str, Any]) -> None:
        self._order += 1
        fields = {
            "reply_channel": self.reply_channel,
            "path": self.request.path,
            "order": self._order,
            **fields,
        }
        self._inbox.append((channel, fields))
        self._pump()

    def _pump(self) -> None:
        """Send the next message when the last one is finished, and read on when few wait."""
        if self._in_flight is None and self._inbox:
            self._in_flight = self._inbox.popleft()
            self._send_in_flight()
        if len(self._inbox) < INBOX // 2 and self._socket is not None and not self._reader.active:
            self._reader.start(self._readable)

    def _send_in_flight(self) -> None:
        if self._in_flight is None:
            return
        try:
            self._relay.send(self._relay.make_send(*self._in_flight))
        except OutboxFull:
            self._again()

    def _disconnect(self, code: int) -> None:
        """The last message of the connection, once."""
        self._code = code
        if not self.disconnected:
            self.disconnected = True
            self._queue("websocket.disconnect", {"code": code})

    def _end(self) -> None:
        self._in_flight = None
        self._relay.close(self.reply_channel)
        with suppress(OutboxFull):
            self._relay.send(Disconnect(self.reply_channel))

    # To the client.

    def _write_out(self, out: Outgoing) -> None:
        if out.frame and self._protocol.state == "open":
            self._write(out.frame)
        if out.close is not None:
            self.close(out.close, "")

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake; the client has five seconds for its half."""
        if self._socket is None or self._closing_at is not None:
            return
        self._closing_at = time.monotonic()
        self._protocol.close(code, reason)
        self._flush_protocol()

    def _flush_protocol(self) -> None:
        output = self._protocol.take_output()
        if output:
            self._write(output)
        if self._protocol.state == "closed" and not self._frames:
            self._drop()

    def _write(self, data: bytes) -> None:
        if self._socket is None:
            return
        if not self._frames:
            data = self._send_now(data)
        if data and self._socket is not None:
            self._wait_for_room(data)

    def _send_now(self, data: bytes | memoryview) -> Any:
        """Write without blocking; return what the socket did not take."""
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            return data
        except OSError:
            self._drop()
            return b""
        return memoryview(data)[sent:] if sent < len(data) else b""

    def _wait_for_room(self, data: bytes | memoryview) -> None:
        if not self._frames:
            self._blocked_at = time.monotonic()
            self._writer.start(self._writable)
        self._frames.append(data)
        self._waiting += len(data)
        if len(self._frames) > WAITING_FRAMES or self._waiting > WAITING_BYTES:
            self._drop(TRY_AGAIN)

    def _writable(self) -> None:
        while self._frames:
            data = self._frames.popleft()
            rest = self._send_now(data)
            if self._socket is None:
                return
            self._waiting -= len(data) - len(rest)
            if len(rest) < len(data):
                self._blocked_at = time.monotonic()
            if rest:
                self._frames.appendleft(rest)
                return
        self._blocked_at = None
        self._writer.stop()
        self._flush_protocol()

    def _drop(self, code: int = 1006) -> None:
        """Close the socket, whatever its state."""
        sock, self._socket = self._socket, None
        if sock is None:
            return
        for watcher in (self._reader, self._writer):
            watcher.stop()
            watcher.close()
        sock.close()
        self._frames.clear()
        self._disconnect(self._code if self._code is not None else code)

    # Time.

    def tick(self, now: float) -> None:
        """Look after deadlines and pings; called every few seconds."""
        if self._socket is None:
            return
        if self._blocked_at is not None and now - self._blocked_at > SEND_DEADLINE:
            self._drop(TRY_AGAIN)
        elif self._closing_at is not None:
            if now - self._closing_at > CLOSE_DEADLINE:
                self._drop(self._code or 1006)
        elif now - self._heard_at > SILENCE and self._reader.active:
            self._drop()
        elif now - self._pinged_at > PING_INTERVAL:
            self._pinged_at = now + random.uniform(-2, 2)
            self._protocol.ping()
            self._flush_protocol()


def _denied(status: object) -> Denied:
    """Return a refusal. A consumer may name any error's status; for whatever else it names, it is 403."""
    if not isinstance(status, int) or not 400 <= status <= 599 or status not in set(HTTPStatus):
        status = 403
    return Denied(status, _DENIED.get(status, _DENIED[403]))


_DENIED = {
    403: "The site refused this connection.",
    404: "There is no WebSocket at this address.",
    500: "The site's code raised an error, which is in the log.",
    502: "The worker that held this request died.",
    503: "No worker could take this connection in time: try again soon.",
}
