"""One WebSocket connection: between its transport and its reply channel.

At most one of its messages is in the layer; the next goes there when the worker's reply says that the last one is
finished. That one rule keeps the frames in order whatever the number of workers, and stops reading a client that is
faster than they are.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent
from gevent.event import AsyncResult

from dbchannels.auth.sessions import session_key
from dbchannels.layers.operations import Connect, Disconnect, Send
from dbchannels.protocol import (
    AGAIN,
    DECLARED_DEAD,
    EXPIRED,
    FINISHED,
    FULL,
    INTERNAL_ERROR,
    LOST,
    SERVICE_RESTART,
    TRY_AGAIN,
    VANISHED,
    WORKER_DIED,
)
from dbchannels.server.access_log import log_websocket
from dbchannels.server.budget import MemoryBudget, Share
from dbchannels.server.config import ServerConfig, WebSocketLimits
from dbchannels.server.http.messages import Request, connect_message
from dbchannels.server.relay import OutboxFull, Relay
from dbchannels.server.reply import Reply
from dbchannels.server.websocket.deflate import Deflate
from dbchannels.server.websocket.handshake import Accepted, Denied, denied
from dbchannels.server.websocket.messages import Outgoing
from dbchannels.server.websocket.protocol import Closed, Event
from dbchannels.server.websocket.transport import Transport
from dbchannels.wakeup import Backoff

log = logging.getLogger("dbchannels.server")

INBOX = 32  # frames that wait for their turn before the socket is not read any more
ENTRY = 120  # bytes that one of them takes beside its payload
FULL_DEADLINE = 20.0  # seconds in which a full channel must take a frame
RETRY_FIRST, RETRY_MOST = 0.1, 5.0  # seconds until a message whose consumer raised ConsumeLater is sent again
RETRY_DEADLINE = (
    60.0  # seconds for which a consumer may postpone a message, as long as one waits until it expires
)


class RetrySchedule:
    """When to send a message again whose consumer raised ConsumeLater."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + RETRY_DEADLINE
        self._delays = Backoff(RETRY_FIRST, RETRY_MOST)
        self.is_waiting = False  # from `next_delay` until the message is sent

    def next_delay(self) -> float | None:
        """Return the seconds until the message is sent again; None after the deadline."""
        if time.monotonic() > self._deadline:
            return None
        self.is_waiting = True
        return self._delays.delay()


class Connection:
    """Delivers replies to the socket, and the client's frames to the layer, one at a time."""

    make_transport = Transport  # tests have one without a socket

    def __init__(
        self,
        relay: Relay,
        request: Request,
        limits: WebSocketLimits = WebSocketLimits(),  # noqa: B008
        budget: MemoryBudget | None = None,
    ) -> None:
        self.request = request
        self.opened_at = time.monotonic()
        self.decision: AsyncResult = AsyncResult()  # for who waits
        self._decided: Accepted | Denied | None = None  # by the consumer
        self._on_decided: Callable[[], None] = lambda: None
        self.reply_channel = relay.open(self)
        self._relay, self._limits = relay, limits
        # Towards the layer.
        budget = budget or MemoryBudget(ServerConfig.max_websocket_memory, limits.max_memory)
        self._share = Share(budget)
        self._inbox: list[
            tuple[bool, bytes]
        ] = []  # messages that wait for their turn: whether a text, and UTF-8
        self._last: dict[str, Any] | None = (
            None  # the fields of websocket.disconnect, while it waits for its turn
        )
        self._in_flight: Send | None = None  # what the layer has
        self._order = 0  # of what it has, or had last
        self._abandoned = False
        self._refused_at: float | None = None  # since when the channel is full
        self._retries: RetrySchedule | None = (
            None  # of the message in the layer, if its consumer postponed it
        )
        # Towards the client.
        self.deflate: Deflate | None = None  # how messages are compressed, set before `start`
        self._transport: Transport | None = None  # from `start` on
        self._early: list[Outgoing] = []  # data that came before the 101 was written
        self._unsent, self.charged = budget.unsent, 0
        self._code: int | None = None  # what websocket.disconnect will say
        self.disconnected = False  # its last message has been put in the inbox

    # The handshake.

    def connect(self) -> None:
        """Record the connection and send its connect message; without room in the outbox it is refused."""
        fields = connect_message(self.request, self.reply_channel)
        key = session_key(self.request.headers)
        record = Connect(self.reply_channel, self._relay.name, self.request.path[:2000], key)
        send = self._relay.make_send("websocket.connect", fields)
        try:
            self._relay.send(record, send)
        except OutboxFull:
            self.give_up()
            return
        if key:
            self._relay.has_sessions = True
        self._set_in_flight(send)  # not before: what was refused will not be answered

    def give_up(self) -> None:
        """Wait no longer for the connect consumer: the server stops, or the client has left."""
        if not self.decision.ready():
            self.decision.set(denied(503))

    def when_decided(self, call: Callable[[], None]) -> None:
        """Call a function when the connect consumer has decided, if the layer has its message: else now.

        It may be called again: a database that crashes forgets the message, so that nobody decides.
        """
        if self._in_flight is None or self._decided is not None:
            call()
        else:
            self._on_decided = call
            self.call_later(self._in_flight.expiry, call)

    def abandon(self) -> None:
        """Give up a connection that never opened; if its connect consumer accepts all the same, it is told."""
        self._abandoned = True
        self._take_early()
        if self._in_flight is not None:
            return
        if isinstance(self._decided, Accepted):  # it is known already that the consumer accepted
            self._disconnect(VANISHED)
        else:
            self._end()

    def _forget(self) -> None:
        """Close a connection that others have cleaned up after: its disconnect consumer runs by their doing."""
        self._on_decided()
        self._note_end(SERVICE_RESTART)
        self.disconnected = True
        self._last = None
        self._set_in_flight(None)
        self._relay.close(self.reply_channel)
        self.close(SERVICE_RESTART, "")

    def start(self, sock: Any, buffered: bytes) -> None:
        """Take over the socket, its 101 written; ``buffered`` is what was read of it already."""
        self._transport = self.make_transport(
            sock,
            self._received,
            self._gone,
            self._limits,
            self._share,
            self.deflate,
            self.request.heartbeat,
        )
        for out in self._take_early():
            self._transport.send(out)
        if self.disconnected:  # the server was declared dead since the decision
            self.close(SERVICE_RESTART, "")
        if buffered:
            self._transport.received(buffered)
        self._transport.read()

    @property
    def closed(self) -> bool:
        """Whether its socket is gone, and with it the deadlines that ``tick`` looks after."""
        return self._transport is None or self._transport.closed

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake; the client has five seconds for its half."""
        if self._transport is not None:
            self._transport.close(code, reason)
            self._drop_waiting()

    def tick(self, now: float) -> None:
        """Look after deadlines and pings; called every few seconds."""
        if self._transport is not None:
            self._transport.tick(now)
            if self._transport.closing and not self.disconnected:
                self._drop_waiting()

    # From the layer.

    def deliver(self, reply: Reply) -> None:
        """Take one reply: data, a decision on the handshake, or word of the message in the layer."""
        message = reply.message
        if LOST in message:
            self._lost(message[LOST], message.get("channel"))
            return
        out = reply.outgoing(self.reply_channel, self.request.path)
        if out is not None:
            self._take(out, message)
        elif FINISHED in message or "accept" in message:
            self._decide(denied(500))  # what the connect consumer meant is in the log
        if FINISHED in message:
            self._finished(message[FINISHED])
        elif AGAIN in message:
            self._consume_again(message[AGAIN])

    def _take(self, out: Outgoing, message: dict[str, Any]) -> None:
        if self._transport is not None:
            self._transport.send(out)
            if out.close is not None:
                self._drop_waiting()
        elif not self.disconnected:
            self._judge(out, message)

    def _judge(self, out: Outgoing, message: dict[str, Any]) -> None:
        """Before the 101: an ``accept``, or a close without data, decides at once; data waits for the decision."""
        if isinstance(self._decided, Accepted):
            self._keep(out)
        elif out.accept is False or (
            out.accept is None and out.close is not None and not (out.frame or self._early)
        ):
            self._decide(denied(message.get("status"), out.headers))
        else:
            if out.frame or out.close is not None:
                self._keep(out)
            if out.accept or message.get(FINISHED) == 0:  # the connect message's order
                self._decide(Accepted(out.subprotocol, out.headers))

    def _keep(self, out: Outgoing) -> None:
        """Keep data until the 101 is written, no more of it than may wait for a client that does not read."""
        if self._abandoned or any(one.close is not None for one in self._early):
            return
        size = sum(len(one.frame) for one in self._early)
        if len(self._early) >= self._limits.waiting_frames or size >= self._limits.waiting_bytes:
            self.drop(TRY_AGAIN)
            return
        self._early.append(out)
        if out.frame:
            self._unsent.add(self, out.frame)

    def _take_early(self) -> list[Outgoing]:
        early, self._early = self._early, []
        for out in early:
            self._unsent.remove(self, out.frame)
        return early

    def drop(self, code: int) -> None:
        """Discard what waits for the 101; the connection is closed once that is written."""
        self._take_early()
        self._early = [Outgoing(None, b"", code, "", None, [])]

    def _decide(self, decision: Accepted | Denied) -> None:
        self._decided = self._decided or decision
        if not self.decision.ready():
            self.decision.set(decision)
        self._on_decided()

    def _finished(self, order: object) -> None:
        """The message in the layer was consumed; word of another one is left alone.

        A batch that the database took just before it went away is written again, and so finished twice.
        """
        finished = self._in_flight
        if finished is None or order != self._order:
            return
        self._set_in_flight(None)
        self._refused_at = self._retries = None
        denied = self._abandoned and isinstance(self._decided, Denied)
        if denied or finished.channel == "websocket.disconnect":
            self._end()
        elif self._abandoned:
            self._disconnect(VANISHED)
        else:
            self._pump()

    def _consume_again(self, order: object) -> None:
        """The consumer of the message in the layer wants it later; none overtakes it, as no other goes there."""
        if self._in_flight is None or order != self._order:
            return
        retries = self._retries = self._retries or RetrySchedule()
        if retries.is_waiting:  # the reply came twice
            return
        if (delay := retries.next_delay()) is not None:
            self.call_later(delay, self._send_again, retries)
        elif self._in_flight.channel == "websocket.disconnect":
            self._end()
        else:
            self._lost(EXPIRED, None)

    def call_later(self, delay: float, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function in so many seconds; tests have a clock of their own."""
        gevent.spawn_later(delay, function, *arguments)

    def _send_again(self, retries: RetrySchedule) -> None:
        retries.is_waiting = False
        self._send_in_flight()

    def _lost(self, why: str, channel: str | None) -> None:
        """The message in the layer will not be consumed; without a channel it is whichever is there."""
        if why == DECLARED_DEAD and (self._abandoned or isinstance(self._decided, Accepted)):
            self._forget()
            return
        if self._in_flight is None or channel not in (None, self._in_flight.channel):
            return
        channel = self._in_flight.channel
        if channel == "websocket.connect":
            self._set_in_flight(None)
            self._decide(denied(502 if why == WORKER_DIED else 503))
            if self._abandoned:
                self._end()
        elif channel == "websocket.disconnect" and why == WORKER_DIED:
            self._end()
        elif channel == "websocket.disconnect" or why == FULL:
            self._again()
        else:
            self._fail(INTERNAL_ERROR if why == WORKER_DIED else TRY_AGAIN)

    def _again(self) -> None:
        """Send the message once more, later: the channel was full, or nobody took it before it expired."""
        now = time.monotonic()
        self._refused_at = self._refused_at or now
        last = self._in_flight is not None and self._in_flight.channel == "websocket.disconnect"
        if not last and now - self._refused_at > FULL_DEADLINE:
            self._fail(TRY_AGAIN)
        else:
            self.call_later(random.uniform(0.2, 0.6), self._send_in_flight)

    def _fail(self, code: int) -> None:
        """A frame was lost, so those behind it are not consumed either; only the disconnect is."""
        self._set_in_flight(None)
        self.close(code, "")
        self._pump()

    # From the client.

    def _received(self, event: Event) -> None:
        if isinstance(event, Closed):
            # A client's messages before its own Close are consumed: a page may send and close at once.
            if self._transport is not None and self._transport.failed:
                self._drop_waiting()
            self._disconnect(event.code, event.reason)
        elif self._in_flight is None:
            self._send_frame(event)
        else:
            data = event.encode() if isinstance(event, str) else event
            self._inbox.append((isinstance(event, str), data))
            self._share.hold(ENTRY + len(data))
            if len(self._inbox) >= INBOX and self._transport is not None:
                self._transport.pause()

    def _gone(self, code: int) -> None:
        if not self.disconnected:
            self._drop_waiting()
        self._disconnect(self._code if self._code is not None else code)

    def _send_frame(self, data: str | bytes) -> None:
        self._send("websocket.receive", {"text" if isinstance(data, str) else "bytes": data})

    def _send(self, channel: str, fields: dict[str, Any]) -> None:
        self._order += 1
        fields = {
            "reply_channel": self.reply_channel,
            "path": self.request.path,
            "order": self._order,
            **fields,
        }
        self._set_in_flight(self._relay.make_send(channel, fields))
        self._send_in_flight()

    def _set_in_flight(self, send: Send | None) -> None:
        self._share.hold(_size(send) - _size(self._in_flight))
        self._in_flight = send

    def _drop_waiting(self) -> None:
        """Once the server's side has closed or the client is lost, nothing is consumed any more but the disconnect."""
        self._share.hold(-sum(ENTRY + len(payload) for _, payload in self._inbox))
        self._inbox.clear()
        if self._transport is not None:
            self._transport.read()

    def _pump(self) -> None:
        """Send the next message when the last one is finished, and read on when few wait."""
        if self._in_flight is None:
            if self._inbox:
                is_text, data = self._inbox.pop(0)
                self._share.hold(-ENTRY - len(data))
                self._send_frame(data.decode() if is_text else data)
            elif self._last is not None:
                last, self._last = self._last, None
                self._send("websocket.disconnect", last)
        if len(self._inbox) < INBOX // 2 and self._transport is not None:
            self._transport.read()

    def _send_in_flight(self) -> None:
        if self._in_flight is None:
            return
        try:
            self._relay.send(self._in_flight)
        except OutboxFull:
            self._again()

    def _disconnect(self, code: int, reason: str = "") -> None:
        """The last message of the connection, once."""
        self._code = code
        if not self.disconnected:
            self._note_end(code)
            self.disconnected = True
            self._last = {"code": code, "reason": reason}
            self._pump()

    def _note_end(self, code: int) -> None:
        if self._transport is not None and not self.disconnected:
            log_websocket("WSDISCONNECT", self.request, code, time.monotonic() - self.opened_at)

    def _end(self) -> None:
        self._set_in_flight(None)
        self._relay.close(self.reply_channel)
        with suppress(OutboxFull):
            self._relay.send(Disconnect(self.reply_channel))


def _size(send: Send | None) -> int:
    """Return what counts as held by a connection; a connect message is bounded as every request's head is."""
    return 0 if send is None or send.channel == "websocket.connect" else sys.getsizeof(send.payload)
