"""One WebSocket connection, between its transport and its reply channel.

At most one of its messages is in the layer. The next one is sent when a worker's reply says that the last one is
finished. So frames are consumed in order, however many workers there are, and a client that sends faster than they
work is not read.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import AsyncResult

from dbchannels import codec
from dbchannels.auth.sessions import session_key
from dbchannels.layers.operations import Connect, Send
from dbchannels.layers.relay import OutboxFull
from dbchannels.protocol import (
    AGAIN,
    DECLARED_DEAD,
    EVENT,
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
from dbchannels.server.access_log import log_fields, log_websocket
from dbchannels.server.budget import MemoryBudget, Share
from dbchannels.server.connection_limits import FrameTurn
from dbchannels.server.history import Resume
from dbchannels.server.http.messages import Request, connect_message
from dbchannels.server.options import ServerConfig, WebSocketLimits
from dbchannels.server.relay import Relay, Reply
from dbchannels.server.websocket.framing import Closed, Deflate, Event
from dbchannels.server.websocket.handshake import Accepted, Denied, denied
from dbchannels.server.websocket.messages import WORKERS_KEYS, Outgoing, dropped_events, refused_late
from dbchannels.server.websocket.transport import GAP, START, Transport, id_before, position_frame
from dbchannels.wakeup import Backoff

INBOX = 32  # messages that may wait here; then the socket is not read
EVENTS = 100  # events that may wait beside them; later ones are dropped
ENTRY = 120  # bytes of memory that each of them takes besides its payload
FULL_DEADLINE = 20.0  # seconds in which a full channel must take a message
RETRY_FIRST, RETRY_MOST = 0.1, 5.0  # seconds until a message whose consumer raised ConsumeLater is sent again
RETRY_DEADLINE = 60.0  # seconds for which a consumer may postpone a message: the default expiry

Waiting = tuple[bool, bytes] | Reply  # whether a text, and the payload; or an event


class Connection:
    """Sends the client's messages to the layer, one at a time, and replies to the client."""

    make_transport = Transport  # tests replace it by one without a socket

    def __init__(
        self,
        relay: Relay,
        request: Request,
        limits: WebSocketLimits = WebSocketLimits(),  # noqa: B008
        budget: MemoryBudget | None = None,
    ) -> None:
        self.request, self._path = request, request.path  # decoded once, and not for each message
        self.opened_at = time.monotonic()
        self.decision: AsyncResult = AsyncResult()  # Accepted or Denied, for the greenlet that waits
        self._decided: Accepted | Denied | None = None  # by the consumer
        self._on_decided: Callable[[], None] = lambda: None
        self.reply_channel = relay.open(self)
        self._relay, self._limits = relay, limits
        # Towards the layer.
        budget = budget or MemoryBudget(ServerConfig.max_websocket_memory, limits.max_memory)
        self._share = Share(budget, request.client[0])
        self._inbox: list[Waiting] = []
        self._events = 0  # how many of them are events
        self._last: dict[str, Any] | None = None  # the fields of websocket.disconnect while it waits
        self._in_flight: Send | None = None  # the message in the layer, or a frame that waits for its turn
        self._turn = FrameTurn(budget.turns, request.client[0])
        self._in_flight_size = 0  # bytes of it that count against the share
        self._order = 0  # of the last message that was sent to the layer
        self._abandoned = False
        self._refused_at: float | None = None  # since when the channel has been full
        self._retries: Backoff | None = None  # if the consumer has postponed the message in the layer
        self._retry_until = 0.0  # time.monotonic()
        self._is_postponed = False  # until it is sent again
        # Towards the client.
        self.deflate: Deflate | None = None  # how messages are compressed; set before `start`
        self._transport: Transport | None = None  # from `start` on
        self._early: list[Outgoing] = []  # data that came before the 101 was written
        self.resume = None if request.resume is None else Resume(request.resume, relay.history.position)
        self._unsent, self.charged = budget.unsent, 0
        self.disconnected = False  # no more messages come from the client

    # The handshake.

    def connect(self) -> None:
        """Record the connection and send its connect message; give up if the outbox is full."""
        key = session_key(self.request.headers)
        record = Connect(self.reply_channel, self._relay.name, self._path[:2000], key)
        send = self._relay.make_send("websocket.connect", connect_message(self.request, self.reply_channel))
        try:
            self._relay.send(record, send)
        except OutboxFull:
            self.give_up()
            return
        if key:
            self._relay.housekeeper.has_sessions = True
        self._set_in_flight(send)  # not before: a message that was not sent gets no reply

    def give_up(self) -> None:
        """Stop waiting for the connect consumer: the server stops, or the client has left."""
        if not self.decision.ready():
            self.decision.set(denied(503))

    def when_decided(self, call: Callable[[], None]) -> None:
        """Call a function when the connect consumer has decided; at once if no connect message is in the layer.

        The function is also called when the message expires, as a database that crashes may lose it.
        """
        if self._in_flight is None or self._decided is not None:
            call()
        else:
            self._on_decided = call
            self.call_later(self._in_flight.expiry, call)

    def abandon(self) -> None:
        """Give up a connection that never opened. If its connect consumer accepts it later, it is disconnected."""
        self._abandoned = True
        self._take_early()
        self._drop_waiting()
        if self._in_flight is not None:
            return
        if isinstance(self._decided, Accepted):
            self._disconnect(VANISHED)
        else:
            self._end()

    def start(self, sock: Any, buffered: bytes) -> None:
        """Take over the socket after its 101; ``buffered`` was already read from it."""
        self._transport = self.make_transport(
            sock, self._received, self._limits, self._share, self.deflate, self.request.heartbeat
        )
        self.request = log_fields(self.request)
        for out in self._take_early():
            self._transport.send(out)
        if self.disconnected:  # the server was declared dead since the decision
            self.close(SERVICE_RESTART, "")
        if buffered:
            self._transport.received(buffered)
        self._transport.read()
        self._catch_up()

    @property
    def closed(self) -> bool:
        """Whether the socket is closed, so that ``tick`` need not be called."""
        return self._transport is None or self._transport.closed

    @property
    def closing(self) -> bool:
        """Whether one side has closed."""
        return self._transport is None or self._transport.closed or self._transport.closing

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake; no more messages of the client are consumed."""
        if self._transport is not None:
            self._transport.close(code, reason)
            self._drop_waiting()

    def tick(self, now: float) -> None:
        """Check deadlines and send pings; called every few seconds."""
        if self._transport is not None:
            self._transport.tick(now)
            if self._transport.closing and not self.disconnected:
                self._drop_waiting()

    # From the layer.

    @property
    def in_layer(self) -> Send | None:
        """The message that a worker has to consume; None while its consumer has postponed it, or it waits."""
        return None if self._is_postponed or self._turn.waits else self._in_flight

    def deliver(self, reply: Reply) -> None:
        """Take a reply: data, a decision on the handshake, or what became of the message in the layer."""
        message = reply.message
        if LOST in message:
            self._lost(message[LOST], message.get("channel"))
            return
        if EVENT in message:
            self._take_event(reply)
        if not reply.is_interpreted:  # by another member of the group
            reply.interpret(self.reply_channel, self._path)
        out = reply.outgoing
        if out is None:
            if FINISHED in message or "accept" in message:
                self._decide(denied(500))  # the log has the error in the connect consumer's reply
        elif self._transport is not None:
            # A connect consumer that raised after it had accepted is in the log already.
            if out.accept is False and out.close is None and message.get(FINISHED) != 0:
                refused_late.count(None, self._path)
            self._transport.send(out, id_before(self.resume, out, reply.position))
            if out.close is not None:
                self._drop_waiting()
        elif not self.disconnected:  # before the 101
            # ``accept``, or a close without data, decides at once; data waits for the decision.
            bare_close = out.accept is None and out.close is not None and not (out.frame or self._early)
            if isinstance(self._decided, Accepted):
                self._keep(out)
            elif out.accept is False or bare_close:
                self._decide(denied(message.get("status"), out.headers))
            else:
                if out.frame or out.close is not None:
                    self._keep(out)
                if out.accept or message.get(FINISHED) == 0:  # the connect message's order
                    self._decide(Accepted(out.subprotocol, out.headers))
        if FINISHED in message:
            self._finished(message[FINISHED])
        elif AGAIN in message:
            self._consume_again(message[AGAIN])

    def _catch_up(self) -> None:
        """Deliver what the client has missed, once the socket is open and the connect consumer has joined groups."""
        is_connecting = self._in_flight is not None and self._in_flight.channel == "websocket.connect"
        if self.resume is None or self._transport is None or is_connecting:
            return
        if self.resume.is_new:
            self._send_position(START, self.resume.after)
        self._relay.history.catch_up(self.reply_channel, self.request.client[0])

    def tell_gap(self, position: int) -> None:
        """Tell the client that messages up to a position are gone."""
        self._send_position(GAP, position)

    def when_drained(self, call: Callable[[], None]) -> None:
        """Call a function once the client has taken what it was sent."""
        if self._transport is not None:
            self._transport.when_drained(call)

    def _send_position(self, word: str, position: int) -> None:
        if self._transport is not None:
            self._transport.send(Outgoing(None, position_frame(word, position), None, "", None, []))

    def _keep(self, out: Outgoing) -> None:
        """Keep data until the 101 is written, as much as may wait for a client that does not read."""
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
        """Discard what waits, and close the connection, if need be after its 101."""
        if self._transport is not None:
            self.close(code, "")
            return
        self._take_early()
        self._drop_waiting()
        self._early = [Outgoing(close=code)]

    def _take_event(self, reply: Reply) -> None:
        """Have a worker run the handler of a group's event, after what waits."""
        is_closing = self._transport is not None and (self._transport.closed or self._transport.closing)
        if self.disconnected or self._abandoned or is_closing:
            return
        if self._in_flight is None:
            self._send_event(reply)
        elif self._events >= EVENTS:
            self._drop_event(reply.message[EVENT])
        else:
            self._inbox.append(reply)
            self._events += 1
            self._unsent.add(self, reply.payload)  # one payload for all members of the group

    def _drop_event(self, name: object) -> None:
        self._relay.counts.dropped_events += 1
        dropped_events.count(None, name, self._path)

    def _send_event(self, reply: Reply) -> None:
        event = {key: one for key, one in reply.message.items() if key not in WORKERS_KEYS}
        self._send("websocket.event", {EVENT: event[EVENT], "event": event})

    def _decide(self, decision: Accepted | Denied) -> None:
        self._decided = self._decided or decision
        if not self.decision.ready():
            self.decision.set(decision)
        self._on_decided()

    def _finished(self, order: object) -> None:
        """The message in the layer was consumed. Replies to other messages are ignored.

        A batch that was written just before the database went away is written again, so it may be finished twice.
        """
        finished = self._in_flight
        if finished is None or order != self._order:
            return
        self._set_in_flight(None)
        if finished.channel == "websocket.connect":
            self._catch_up()
        denied = self._abandoned and isinstance(self._decided, Denied)
        if denied or finished.channel == "websocket.disconnect":
            self._end()
        elif self._abandoned:
            self._disconnect(VANISHED)
        else:
            self._pump()

    def _consume_again(self, order: object) -> None:
        """The consumer of the message in the layer wants it later. No message overtakes it, as only one is sent."""
        if self._in_flight is None or order != self._order or self._is_postponed:  # the reply came twice
            return
        now = time.monotonic()
        if self._retries is None:
            self._retries, self._retry_until = Backoff(RETRY_FIRST, RETRY_MOST), now + RETRY_DEADLINE
        if now <= self._retry_until:
            self._is_postponed = True
            self._turn.leave()
            self.call_later(self._retries.delay(), self._send_again, self._in_flight)
        elif self._in_flight.channel == "websocket.disconnect":
            self._end()
        else:
            self._lost(EXPIRED, None)

    def call_later(self, delay: float, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function after so many seconds; tests replace the clock."""
        gevent.spawn_later(delay, function, *arguments)

    def _send_again(self, send: Send) -> None:
        if send is self._in_flight:
            self._is_postponed = False
            self._send_in_turn()

    def _lost(self, why: str, channel: str | None) -> None:
        """The message in the layer will not be consumed; ``channel`` None: whichever message it is."""
        if why == DECLARED_DEAD and (self._abandoned or isinstance(self._decided, Accepted)):
            # Another process has cleaned up after this server, and runs the disconnect consumer.
            self._on_decided()
            self._log_end(SERVICE_RESTART)
            self.disconnected, self._last = True, None
            self._set_in_flight(None)
            self._relay.close(self.reply_channel)
            self.close(SERVICE_RESTART, "")
            return
        if self._in_flight is None or channel not in (None, self._in_flight.channel):
            return
        channel = self._in_flight.channel
        if channel == "websocket.connect":
            self._set_in_flight(None)
            self._decide(denied(502 if why == WORKER_DIED else 503))
            if self._abandoned:
                self._end()
            self._catch_up()
        elif channel == "websocket.disconnect" and why == WORKER_DIED:
            self._end()
        elif channel == "websocket.disconnect" or why == FULL:
            self._again()
        else:
            self._fail(INTERNAL_ERROR if why == WORKER_DIED else TRY_AGAIN)

    def _again(self) -> None:
        """Send the message once more, later: the channel was full, or no worker took the message in time."""
        now = time.monotonic()
        self._refused_at = self._refused_at or now
        last = self._in_flight is not None and self._in_flight.channel == "websocket.disconnect"
        if not last and now - self._refused_at > FULL_DEADLINE:
            self._fail(TRY_AGAIN)
        else:
            self.call_later(random.uniform(0.2, 0.6), self._send_in_flight)

    def _fail(self, code: int) -> None:
        """A message was lost, so the next ones are not consumed either, except the disconnect.

        An event that no worker has taken in time is left out, as many members of its group may be in this position.
        """
        lost = self._in_flight
        self._set_in_flight(None)
        if lost is not None and lost.channel == "websocket.event" and code == TRY_AGAIN:
            self._drop_event(codec.decode(lost.payload)[EVENT])
        else:
            self.close(code, "")
        self._pump()

    # From the client.

    def _received(self, event: Event) -> None:
        if isinstance(event, Closed):
            # A client's messages before its own Close are consumed: a page may send and close at once.
            if event.abrupt and not self.disconnected:
                self._drop_waiting()
            self._disconnect(event.code, event.reason)
        elif self._in_flight is None:
            self._send_frame(event)
        else:
            data = event.encode() if isinstance(event, str) else event
            self._inbox.append((isinstance(event, str), data))
            self._share.hold(ENTRY + len(data))
            if len(self._inbox) - self._events >= INBOX and self._transport is not None:
                self._transport.paused = True

    def _send_frame(self, data: str | bytes) -> None:
        self._send("websocket.receive", {"text" if isinstance(data, str) else "bytes": data})

    def _send(self, channel: str, fields: dict[str, Any]) -> None:
        self._order += 1
        own = {"reply_channel": self.reply_channel, "path": self._path, "order": self._order}
        self._set_in_flight(self._relay.make_send(channel, {**own, **fields}))
        self._send_in_turn()

    def _set_in_flight(self, send: Send | None) -> None:
        # The limits of a request's head bound a connect message, so it does not count.
        size = 0 if send is None or send.channel == "websocket.connect" else sys.getsizeof(send.payload)
        self._share.hold(size - self._in_flight_size)
        self._in_flight, self._in_flight_size = send, size
        self._refused_at, self._retries, self._is_postponed = None, None, False
        if send is None:
            self._turn.leave()

    def _drop_waiting(self) -> None:
        """Consume nothing more but the disconnect: the server has closed, or the client is lost."""
        while self._inbox:
            self._take_waiting()
        if self._turn.waits:
            self._set_in_flight(None)
        if self._transport is not None:
            self._transport.read()

    def _pump(self) -> None:
        """Send the next message if the last one is finished, and read on if few are waiting."""
        if self._in_flight is None:
            if self._inbox:
                first = self._take_waiting()
                if isinstance(first, Reply):
                    self._send_event(first)
                else:
                    self._send_frame(first[1].decode() if first[0] else first[1])
            elif self._last is not None:
                last, self._last = self._last, None
                self._send("websocket.disconnect", last)
        frames = len(self._inbox) - self._events
        if self._transport is not None and self._transport.paused and frames < INBOX // 2:
            self._transport.read()

    def _take_waiting(self) -> Waiting:
        """Return the first of what waits."""
        first = self._inbox.pop(0)
        if isinstance(first, Reply):
            self._events -= 1
            self._unsent.remove(self, first.payload)
        else:
            self._share.hold(-ENTRY - len(first[1]))
        return first

    def _send_in_turn(self) -> None:
        if self._in_flight is not None and self._in_flight.channel == "websocket.receive":
            self._turn.enter(self._send_in_flight)
        else:
            self._send_in_flight()

    def _send_in_flight(self) -> None:
        if self._in_flight is None:
            return
        try:
            self._relay.send(self._in_flight)
        except OutboxFull:
            self._again()

    def _disconnect(self, code: int, reason: str = "") -> None:
        """Send the last message of the connection, once."""
        if not self.disconnected:
            self._log_end(code)
            self.disconnected, self._last = True, {"code": code, "reason": reason}
            self._pump()

    def _log_end(self, code: int) -> None:
        if self._transport is not None and not self.disconnected:
            self._relay.counts.closes[code] += 1
            log_websocket("WSDISCONNECT", self.request, code, time.monotonic() - self.opened_at)

    def _end(self) -> None:
        self._set_in_flight(None)
        self._relay.close(self.reply_channel)
        self._relay.disconnect(self.reply_channel)
