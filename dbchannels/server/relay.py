"""The hub's side of the relay: what the hub sends to the layer, and who receives the replies.

The hub of the interface server, gevent's, is in server.py, and the one for threads in wsgi_gateway.py: a WSGI server
that uses the relay never imports gevent.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from dbchannels import codec, names
from dbchannels.exceptions import UnreadableMessage
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.operations import Delivery, Disconnect, Operation
from dbchannels.protocol import (
    BODY,
    CLOSED,
    DECLARED_DEAD,
    FROM_DESCRIPTOR,
    MORE_CONTENT,
    TAKEN,
    WORKER_DIED,
    body_channel,
    body_ends,
    flow_channel,
    lost,
)
from dbchannels.server.relay_threads import RelayThreads
from dbchannels.server.websocket.messages import Outgoing, outgoing, oversight
from dbchannels.wakeup import WakeupPipe

log = logging.getLogger("dbchannels.server")

OUTBOX = 20_000  # operations that may wait for the database; beyond it clients get 503 or 1013


class OutboxFull(Exception):
    """The outbox takes no more: answer 503, or close with 1013."""


class Reply:
    """A message from a reply channel. It may have many receivers; a WebSocket's frame is made once for all."""

    def __init__(self, message: dict[str, Any]) -> None:
        self.message = message
        #: What a WebSocket has to do, after ``interpret``; None if the message asks for nothing that it can do.
        self.outgoing: Outgoing | None = None
        self.is_interpreted = False

    @classmethod
    def read(cls, payload: bytes) -> Reply:
        """Decode a reply. If that fails, the reply is lost, and so is the answer that it may have been."""
        try:
            return cls(codec.decode(payload))
        except UnreadableMessage as error:
            log.error("A reply could not be read and was left out: %s", error)
            return cls(lost(WORKER_DIED))

    def interpret(self, reply_channel: str, path: str) -> None:
        """Set ``outgoing``. A mistake in the message is logged once, with the first of the receivers."""
        self.is_interpreted = True
        try:
            self.outgoing = outgoing(self.message)
        except ValueError as error:
            log.warning("A message for %s on %s was left out: %s", reply_channel, path, error)
        else:
            if sentence := oversight(self.message):
                log.warning("A message for %s on %s was not understood: %s", reply_channel, path, sentence)


class Hub:
    """Runs the functions that other threads add, one after another, in their order."""

    #: Makes a queue to wait at in the hub; its ``get`` raises the standard library's Empty.
    queue: Callable[[], Any]
    #: Runs all functions that were added, soon; from any thread.
    wake: Callable[[], None]

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()

    def start(self) -> None:
        """Get ready to be woken."""

    def call(self, function: Callable[[], None]) -> None:
        """Run a function soon, after all that were added before; from any thread."""
        self._calls.append(function)
        self.wake()

    def run_all(self) -> None:
        """Run all functions that were added."""
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception:
                log.exception("One reply could not be delivered and was left out.")


class Receiver(Protocol):
    """What waits for replies: a WebSocket or an HTTP request."""

    def deliver(self, reply: Reply) -> None:
        """Take one message. Called in the hub, so it must not block."""


class Relay(RelayThreads):
    """``open`` a reply channel for a receiver, ``send`` operations, ``close`` the channel."""

    def __init__(self, layer: BaseLayer, wakeups: dict[str, WakeupPipe], hub: Hub) -> None:
        super().__init__(layer, wakeups)
        self.hub = hub
        self._receivers: dict[str, Receiver]

    def start(self) -> None:
        """Register this server, and begin to send and deliver. Raises LayerUnavailable."""
        self.hub.start()
        super().start()

    def open(self, receiver: Receiver) -> str:
        """Return a new reply channel whose messages go to the receiver."""
        reply_channel = self.queue + names.random_part()
        self._receivers[reply_channel] = receiver
        return reply_channel

    def close(self, reply_channel: str) -> None:
        """Deliver nothing more to a reply channel."""
        self._receivers.pop(reply_channel, None)

    def receiver(self, reply_channel: str) -> Receiver | None:
        """Return the receiver of a reply channel."""
        return self._receivers.get(reply_channel)

    def waiting(self) -> int:
        """Return how many receivers there are."""
        return len(self._receivers)

    def send(self, *operations: Operation) -> None:
        """Hand operations to the publisher, in order. Raises OutboxFull."""
        if self._outbox.qsize() > OUTBOX:
            raise OutboxFull
        self._outbox.put(operations)

    # What the threads call.

    def received(self, queue: str, deliveries: Sequence[Delivery]) -> None:
        for one in deliveries:
            reply_channels = [queue + local for local in one.recipients]
            self.hub.call(partial(self._deliver, Reply.read(one.payload), reply_channels))

    def lose(self, reply_channel: str, why: str, channel: str) -> None:
        if reply_channel:
            self.hub.call(partial(self._deliver, Reply(lost(why, channel)), [reply_channel]))

    def declared_dead(self) -> None:
        """Answer all receivers whose reply would come on a past queue: sockets are closed 1012, requests get 503."""

        def lose_past() -> None:
            past = [one for one in self._receivers if names.split(one)[0] in self._past_queues]
            self._deliver(Reply(lost(DECLARED_DEAD)), past)

        self.hub.call(lose_past)

    def _deliver(self, reply: Reply, reply_channels: Iterable[str]) -> None:
        """Deliver a reply to its receivers, and tell its sender of those that are gone."""
        for reply_channel in reply_channels:
            receiver = self._receivers.get(reply_channel)
            if receiver is not None:
                receiver.deliver(reply)
            elif TAKEN not in reply.message:  # a consumer's notice that it has the request
                # The connection may have been added to a group too late.
                self._outbox.put([Disconnect(reply_channel)])
                # A view that streams a response, or reads a body, would otherwise wait for a minute.
                local = names.split(reply_channel)[1]
                if reply.message.get(MORE_CONTENT) and FROM_DESCRIPTOR not in reply.message:
                    self._outbox.put([self.make_send(flow_channel(local), {CLOSED: True})])
                if isinstance(reply.message.get(BODY), dict):
                    self._outbox.put([self.make_send(body_channel(local), body_ends())])
