"""The relay between the server's hub and the layer: its side in the hub, and three threads.

The hub sends operations to the layer and receives the replies, but never touches the database. The *publisher* and the
*reader* are those of ``layers.relay``; this reader also wakes the workers, as no other thread of its process tree
LISTENs. The *housekeeper*, see ``housekeeper``, renews the server's lease and cleans up after dead processes.

While all registered workers belong to this process tree, the publisher wakes them itself, without a NOTIFY, and they
wake the reader in the same way.

The hub of the interface server, gevent's, is in server.py, and the one for threads in wsgi_gateway.py: a WSGI server
that uses the relay never imports gevent.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property, partial
from typing import Any, Protocol

from dbchannels import codec, names
from dbchannels.exceptions import DeclaredDead, UnreadableMessage
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.link import Link
from dbchannels.layers.operations import Connect, Disconnect, Operation, Send, Withdraw
from dbchannels.layers.relay import BATCH, BaseRelay
from dbchannels.measures import OTHER, ServerCounts
from dbchannels.models import Process
from dbchannels.protocol import (
    BODY,
    CLOSED,
    DECLARED_DEAD,
    DURABLE,
    EVENT_STREAM,
    FROM_DESCRIPTOR,
    FULL,
    HISTORY,
    MORE_CONTENT,
    TAKEN,
    WORKER_DIED,
    body_channel,
    body_ends,
    flow_channel,
    lost,
)
from dbchannels.server.history import HistoryReader, Resume
from dbchannels.server.housekeeper import Housekeeper
from dbchannels.server.http import events
from dbchannels.server.websocket.messages import Outgoing, outgoing, oversight
from dbchannels.wakeup import Backoff, WakeupPipe

log = logging.getLogger("dbchannels.server")

REFUSE_AFTER = 2.0  # seconds of an outage, after which new requests and handshakes are answered 503 at once
LAST_WRITES = 1.5  # seconds at the end for a layer that cannot be used

#: The channels that are counted by name: those of bodies and their flow have a name for each request.
COUNTED = frozenset((*names.WEBSOCKET, "http.request", "http.disconnect"))

_MADE = {FROM_DESCRIPTOR, EVENT_STREAM}  # with one of these, a response needs its view no more
_ENDS = ("websocket.connect", "websocket.disconnect")  # of a connection: each consumer runs once


class Reply:
    """A message from a reply channel. It may have many receivers: a frame or an event is made once for all."""

    def __init__(self, message: dict[str, Any], payload: bytes = b"", position: int = 0) -> None:
        self.message, self.payload = message, payload
        self.position = position  # in the history of its group; 0: it has none
        #: What a WebSocket has to do, after ``interpret``; None if the message asks for nothing that it can do.
        self.outgoing: Outgoing | None = None
        self.is_interpreted = False

    @classmethod
    def read(cls, payload: bytes, position: int = 0) -> Reply:
        """Decode a reply. If that fails, the reply is lost, and so is the answer that it may have been."""
        try:
            return cls(codec.decode(payload), payload, position)
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

    @cached_property
    def event(self) -> dict[str, Any]:
        """The message as a part of a stream of events."""
        return events.part(self.message, self.position)


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

    def run_all(self, seconds: float = math.inf) -> None:
        """Run all functions that were added; after so many seconds leave the others to the next wakeup."""
        ends_at = time.perf_counter() + seconds
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception:
                log.exception("One reply could not be delivered and was left out.")
            if time.perf_counter() > ends_at:
                self.wake()
                return


class Receiver(Protocol):
    """What waits for replies: a WebSocket or an HTTP request."""

    #: How far the client has come; None: it has not asked for what it missed.
    resume: Resume | None

    @property
    def in_layer(self) -> Send | None:
        """The message that a worker has to answer; None if none is in the layer."""

    def deliver(self, reply: Reply) -> None:
        """Take one message. Called in the hub, so it must not block."""

    def tell_gap(self, position: int) -> None:
        """Tell a client with ``resume`` that messages up to a position are gone."""

    def when_drained(self, call: Callable[[], None]) -> None:
        """Call a function once a client with ``resume`` has taken what it was sent."""


class Relay(BaseRelay):
    """``open`` a reply channel for a receiver, ``send`` operations, ``close`` the channel.

    The threads run from ``start`` to ``stop``.
    """

    def __init__(self, layer: BaseLayer, wakeups: dict[str, WakeupPipe], hub: Hub) -> None:
        super().__init__(layer, log, f"server-{os.getpid()}")
        self.hub = hub
        self.name = names.random_part()
        self.queue = f"reply.{self.name}!"
        self._receivers: dict[str, Receiver] = {}  # by reply channel
        #: Reply channels whose Disconnect waits: one is enough for all the messages that still come for them.
        self._leaving: set[str] = set()
        self._past_queues: set[str] = set()  # of the names under which this server was declared dead
        self._wakeups = wakeups
        #: Returns the names of the workers of this process tree that take every protocol message.
        self.own_workers: Callable[[], set[str]] = set
        self._local_wakeups: dict[str, WakeupPipe] = {}  # of the workers that the publisher wakes itself
        self.counts = ServerCounts()
        self._renewed_at = time.monotonic()
        self.housekeeper = Housekeeper(self, self._receivers)
        self.history = HistoryReader(
            self._receivers,
            self.hub.call,
            lambda payload, position, channels: self._deliver(Reply.read(payload, position), channels),
            self.reply_wakeup.notify,
        )
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (
                ("publisher", self._publish),
                ("reader", self._read),
                ("housekeeper", self.housekeeper.run),
            )
        ]

    def start(self) -> None:
        """Register this server, then start the threads. Raises LayerUnavailable."""
        self.hub.start()
        self.history.begin(self.housekeeper.register())
        for thread in self._threads:
            thread.start()

    def stop(self, within: float = 10.0) -> None:
        """Write what is left, unregister this server, and end the threads. Call it in a native thread.

        A thread that has not ended after so many seconds is left alone: its database does not answer.
        """
        ends_at = time.monotonic() + (min(within, LAST_WRITES) if self.unavailable else within)
        self._outbox.put(None)
        self._threads[0].join((ends_at - time.monotonic()) / 2)
        self.stopping.set()
        self._wake.notify()
        self.housekeeper.stop()
        for thread in self._threads:
            thread.join(max(0.0, ends_at - time.monotonic()))

    # In the hub.

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
        """Hand operations to the publisher, in order. Raises OutboxFull: answer 503, or close with 1013."""
        self._put(operations)
        for one in operations:
            if isinstance(one, Send):
                self.counts.sent[one.channel if one.channel in COUNTED else OTHER] += 1

    def disconnect(self, reply_channel: str) -> None:
        """Have a connection leave all groups, even if the outbox is full: nobody else would end its memberships."""
        if reply_channel not in self._leaving:
            self._leaving.add(reply_channel)
            self._outbox.put([Disconnect(reply_channel)])

    # From any thread.

    @property
    def unavailable(self) -> bool:
        """Whether the layer cannot be used at the moment, in one direction at least."""
        return bool(self.health.failing)

    @property
    def refuses(self) -> bool:
        """Whether the layer has been away for so long that a new request is not worth its wait."""
        return bool(self.health.failing) and self.health.lasted("publisher", "reader") > REFUSE_AFTER

    def make_send(self, channel: str, message: dict[str, Any]) -> Send:
        """Return the sending of a message that this server made itself."""
        payload = codec.encode_trusted(message)
        return Send(channel, payload, message.get("reply_channel") or "", self.layer.options["expiry"])

    # For the housekeeper.

    def renew(self, link: Link) -> None:
        """Renew the lease. A server that was declared dead closes its sockets, and gets a new name."""
        asked_at = time.monotonic()
        self.counts.renewals += 1
        if not link.renew(self.name):
            log.warning(
                "This server was declared dead while it stood still; it closes its sockets and goes on."
            )
            self._past_queues.add(self.queue)
            self.name = names.random_part()
            self.queue = f"reply.{self.name}!"
            link.register(self.name, Process.SERVER, self.queue)
            self.declared_dead()
        self._renewed_at = asked_at

    def choose_wakeups(self, workers: Iterable[str]) -> None:
        """Wake the workers through their pipes if only this process tree has any: others need the NOTIFY."""
        own = self.own_workers()
        alone = bool(own) and own.issuperset(workers)
        self._local_wakeups = {
            kind: self._wakeups[kind] for kind in self._wakeups if alone and kind != DURABLE
        }

    # From the threads to the hub.

    def lose(self, reply_channel: str, why: str, channel: str) -> None:
        """Deliver the notice that no answer comes to a message of ``channel``."""
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
                self.disconnect(reply_channel)
                # A view that streams a response, or reads a body, would otherwise wait for a minute.
                if reply.message.get(MORE_CONTENT) and reply.message.keys().isdisjoint(_MADE):
                    self._outbox.put([self.make_send(flow_channel(reply_channel), {CLOSED: True})])
                if isinstance(reply.message.get(BODY), dict):
                    self._outbox.put([self.make_send(body_channel(reply_channel), body_ends())])

    # The publisher.

    def _written(self, operations: Sequence[Operation], full: Sequence[Send]) -> None:
        for send in full:
            self.lose(send.reply_channel, FULL, send.channel)

    def _left_out(self, operation: Operation, error: Exception) -> None:
        if isinstance(operation, Send):
            self.lose(operation.reply_channel, WORKER_DIED, operation.channel)

    def _apply(self, link: Link, operations: Sequence[Operation]) -> list[Send]:
        """Write operations, without those that an outage has made obsolete; return the sends that found no room.

        A server that may have been declared dead begins and ends no connection. Only the database knows: the clock
        stands still together with the machine.
        """
        # Before they are written, so that what was committed until now is seen by the one that waits, or by another.
        self._leaving.difference_update(
            one.reply_channel for one in operations if isinstance(one, Disconnect)
        )
        self._await_renewal(link)
        link.local_wakeups = self._local_wakeups
        name, rest = self.name, [one for one in operations if not self._is_obsolete(one)]
        if not rest:
            link.renew(name)  # or nothing would tell whether the layer can be used again
            return []
        if not any(isinstance(one, Connect) or getattr(one, "channel", "") in _ENDS for one in rest):
            return link.apply(rest)
        try:
            return link.apply_as(name, rest)
        except DeclaredDead:
            if self.stopping.is_set():
                return []
            self._renewed_at = -math.inf
            self.housekeeper.look_soon()
            return self._apply(link, rest)

    def _await_renewal(self, link: Link) -> None:
        """Wait for a lease that may have ended: a server that stood still must know first whether it is dead."""
        lease, delays = self.layer.options["lease"], None
        while time.monotonic() - self._renewed_at > lease and not self.stopping.is_set():
            asked_at = time.monotonic()
            try:
                alive = link.renew(self.name)  # the housekeeper may be busy with a long chore
            except Exception:
                alive = False  # the housekeeper logs it
            if alive:
                self._renewed_at = asked_at
            else:
                delays = delays or Backoff()
                self.stopping.wait(delays.delay())

    def _is_obsolete(self, operation: Operation) -> bool:
        """Whether an operation is of a name that was given up, whose connections other processes have ended.

        Or it is a request whose client has left, or was answered 503 while it waited here and may have sent it again.
        """
        if isinstance(operation, Withdraw):
            return False
        reply_channel = getattr(operation, "reply_channel", "")
        if self._past_queues and names.split(reply_channel)[0] in self._past_queues:
            return True
        is_request = getattr(operation, "channel", "") == "http.request"
        return bool(reply_channel) and is_request and reply_channel not in self._receivers

    # The reader.

    def _take(self, link: Link) -> bool:
        deliveries = link.receive_many([self.queue], BATCH)
        for one in deliveries:
            reply_channels = [self.queue + local for local in one.recipients]
            self.hub.call(partial(self._deliver, Reply.read(one.payload), reply_channels))
        if len(deliveries) == BATCH:
            return True
        is_due = self.history.behind or time.monotonic() >= self.history.read_at
        return bool(is_due) and self.history.read(link, self.queue, self.layer.poll_interval())

    def _is_for_reader(self, kinds: AbstractSet[str]) -> bool:
        if HISTORY in kinds:
            self.history.read_soon()
        return self.queue in kinds or HISTORY in kinds

    def _woken(self, kinds: AbstractSet[str]) -> None:
        self.counts.wakeups += bool(kinds)
        self._wake_workers(kinds)

    def _missed_wakeups(self) -> None:
        self._wake_workers(self._wakeups)  # they look for messages themselves
        self.history.read_soon()

    def _wake_workers(self, kinds: Container[str]) -> None:
        for kind, wakeup in self._wakeups.items():
            if kind in kinds:
                wakeup.notify()
