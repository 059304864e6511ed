"""Between the interface server's hub and the channel layer: three native threads with a link each.

The hub never touches the database. What it sends goes to a bounded outbox, which the ``Publisher`` empties. The
``ReplyReader`` takes the replies, which are handed to the hub; it is the one that LISTENs, and wakes the workers
of this process tree. The *housekeeper* renews the server's lease and cleans up after the dead. Where all workers on
record are of this process tree, the publisher wakes them itself, and no NOTIFY is sent; they wake the reader
alike.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any

from dbchannels import codec, names
from dbchannels.exceptions import DeclaredDead, LayerUnavailable
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.health import LayerHealth
from dbchannels.layers.link import Link
from dbchannels.layers.operations import Connect, Delivery, Disconnect, Operation, Send, Withdraw
from dbchannels.models import Process
from dbchannels.protocol import (
    BODY,
    CLOSED,
    DECLARED_DEAD,
    DURABLE,
    FROM_DESCRIPTOR,
    MORE_CONTENT,
    TAKEN,
    body_channel,
    body_ends,
    flow_channel,
    lost,
)
from dbchannels.server.calls import Calls, Hub
from dbchannels.server.overload import Overload
from dbchannels.server.relay_threads import Outbox, Publisher
from dbchannels.server.reply import Receiver, Reply, read_reply
from dbchannels.server.reply_reader import ReplyReader
from dbchannels.wakeup import Backoff, WakeupPipe

log = logging.getLogger("dbchannels.server")

OUTBOX = 20_000  # operations that may wait for the database; beyond it clients get 503 or 1013
FAREWELL = 3  # tries to leave the record, in about half a second: without it the lease ends, and others sweep
REFUSE_AFTER = 2.0  # seconds of an outage, after which new requests and handshakes are answered 503 at once
LAST_CHORE = 0.5  # seconds at the end for what a killed worker held
AWAY = 1.5  # seconds at the end for a layer that cannot be used
CHECK_LOGINS = 60.0  # seconds between two looks at who is still logged in; see logins.py


_ENDS = ("websocket.connect", "websocket.disconnect")  # of a connection: each consumer runs once


class OutboxFull(Exception):
    """More waits for the database than the outbox holds: answer 503, or close 1013."""


class Relay:
    """``open`` a reply channel for a receiver, ``send`` operations, ``close`` it."""

    def __init__(
        self, layer: BaseLayer, wakeups: dict[str, WakeupPipe], on_dead: Callable[[], None], hub: Hub
    ) -> None:
        self.layer = layer
        self.hub = hub
        self.name = names.random_part()
        self.queue = f"reply.{self.name}!"
        self._health = LayerHealth(log, f"server-{os.getpid()}")
        self._overload = Overload()
        self._past: set[str] = set()  # queues that were given up
        self._wakeups = wakeups
        self._on_dead = on_dead
        self._receivers: dict[str, Receiver] = {}
        self._opened_on: dict[str, str] = {}  # the queue of each
        self._outbox: Outbox = queue.SimpleQueue()
        self._chores: queue.SimpleQueue[Callable[[Link], Any] | None] = queue.SimpleQueue()
        self._calls = Calls(hub)
        self._stopping = threading.Event()
        self._renewed_at = time.monotonic()
        #: Workers on the database that take requests, and servers beside this one that they answer.
        self.http_workers, self.servers = 0, 1
        self.has_sessions = False  # whether a WebSocket has brought a session's cookie
        self._checked_at = time.monotonic()
        self._reader = ReplyReader(layer, lambda: self.queue, wakeups, self._hand_to_hub, self._health)
        #: Returns the names of the workers of this process tree that take every protocol message.
        self.own_workers: Callable[[], set[str]] = set
        self._local_wakeups: dict[str, WakeupPipe] = {}  # of workers that the publisher wakes itself
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (
                ("publisher", self._publish),
                ("reader", self._reader.run),
                ("housekeeper", self._keep_house),
            )
        ]

    # The hub's side.

    def start(self) -> None:
        """Register this server, then start the threads. Raises LayerUnavailable."""
        link = self.layer.link("housekeeper", listen=False)
        link.register(self.name, Process.SERVER, self.queue)
        self._house_link = link
        self._calls.start()
        for thread in self._threads:
            thread.start()

    def open(self, receiver: Receiver) -> str:
        """Return a new reply channel whose messages go to the receiver."""
        local = names.random_part()
        queue = self.queue
        self._receivers[local], self._opened_on[local] = receiver, queue
        return queue + local

    def close(self, reply_channel: str) -> None:
        """Stop delivering."""
        local = names.split(reply_channel)[1]
        self._receivers.pop(local, None)
        self._opened_on.pop(local, None)

    def receiver(self, reply_channel: str) -> Receiver | None:
        """Return who waits for the messages of a channel."""
        return self._receivers.get(names.split(reply_channel)[1])

    def waiting(self) -> int:
        """Return how many receivers are open."""
        return len(self._receivers)

    @property
    def reply_wakeup(self) -> WakeupPipe:
        """The pipe by which workers of this process tree wake the reader of replies, in place of a NOTIFY."""
        return self._reader.reply_wakeup

    def is_reachable(self) -> bool:
        """Whether the layer has answered when it was last looked at, or should have been."""
        return self._reader.is_reachable()

    @property
    def unavailable(self) -> bool:
        """Whether the layer cannot be used at the moment, in one direction at least."""
        return self._health.unavailable

    @property
    def refuses(self) -> bool:
        """Whether the layer has been away for so long that a new request is not worth its wait."""
        return self._health.lasted("publisher", "reader") > REFUSE_AFTER

    def send(self, *operations: Operation) -> None:
        """Hand operations to the publisher, in order. Raises OutboxFull."""
        if self._outbox.qsize() > OUTBOX:
            raise OutboxFull
        self._outbox.put(operations)

    def make_send(self, channel: str, message: dict[str, Any]) -> Send:
        """Return the sending of a message that this server made itself."""
        payload = codec.encode_trusted(message)
        return Send(channel, payload, message.get("reply_channel") or "", self.layer.options["expiry"])

    def clean_up_after(self, worker: str) -> None:
        """Clean up after a worker that was seen to die; from any thread."""
        self._chores.put(lambda link: link.clean_up_after(worker))
        if self._stopping.is_set() and not self.unavailable:  # the housekeeper has ended
            last = threading.Thread(target=self._clean_up_after_last, args=(worker,), daemon=True)
            last.start()
            last.join(LAST_CHORE)

    def _clean_up_after_last(self, worker: str) -> None:
        link = self.layer.link("housekeeper", listen=False)
        with closing(link), suppress(LayerUnavailable):
            link.clean_up_after(worker)

    def stop(self, within: float = 10.0) -> None:
        """Write what is left, take this server off the record, end the threads. Call it in a native thread.

        Threads that have not ended after so many seconds are left alone: their database does not answer.
        """
        ends_at = time.monotonic() + (min(within, AWAY) if self.unavailable else within)
        self._outbox.put(None)
        self._threads[0].join((ends_at - time.monotonic()) / 2)
        self._stopping.set()
        self._reader.stop()
        self._chores.put(None)
        for thread in self._threads:
            thread.join(max(0.0, ends_at - time.monotonic()))

    def call_in_hub(self, function: Callable[[], None]) -> None:
        """Have the hub run a function, in the order of these calls; from any thread."""
        self._calls.add(function)
        self._calls.wake()

    def _hand_to_hub(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._calls.add(partial(self._deliver, delivery.recipients, read_reply(delivery)))
        self._calls.wake()

    def _deliver(self, parts: Sequence[str], reply: Reply) -> None:
        strangers = []
        for local in parts:
            receiver = self._receivers.get(local)
            if receiver is not None:
                receiver.deliver(reply)
            else:
                strangers.append(local)
        self._forget(strangers, reply.message)

    def lose_all(self) -> None:
        """Tell those that no reply will come who wait on a queue that is read no more."""
        past = [local for local, queue in self._opened_on.items() if queue in self._past]
        for local in past:
            self._deliver((local,), Reply(lost(DECLARED_DEAD)))

    def _forget(self, strangers: Sequence[str], message: dict[str, Any]) -> None:
        """Replies for a connection that has ended may come from a group that it was added to too late.

        Or from a view that reads a body, or streams, when its client was answered before: it would wait for a minute.
        """
        if TAKEN in message:  # a consumer's own, of a request
            return
        for local in strangers:
            self._outbox.put([Disconnect(self.queue + local)])
            if message.get(MORE_CONTENT) and FROM_DESCRIPTOR not in message:
                self._outbox.put([self.make_send(flow_channel(local), {CLOSED: True})])
            if isinstance(message.get(BODY), dict):
                self._outbox.put([self.make_send(body_channel(local), body_ends())])

    # The publisher.

    def _publish(self) -> None:
        link = self.layer.link("publisher", listen=False)
        Publisher(self._outbox, partial(self._apply, link), retry=self._retry, lost=self._hand_over).run()
        link.close()

    def _apply(self, link: Link, operations: Sequence[Operation]) -> list[Send]:
        """Write what the hub has sent, but for what is past, which an outage may have made of it since the last try.

        A server that may have been declared dead begins and ends no connection: a clock that stood still with its
        machine does not say so, only the database does.
        """
        self._await_renewal(link)
        link.local_wakeups = self._local_wakeups
        name, rest = self.name, [one for one in operations if not self._is_past(one)]
        if not rest:
            link.renew(name)  # else nothing would say whether the layer can be used again
            return []
        if not any(isinstance(one, Connect) or getattr(one, "channel", "") in _ENDS for one in rest):
            return link.apply(rest)
        try:
            return link.apply_as(name, rest)
        except DeclaredDead:
            if self._stopping.is_set():
                return []
            self._renewed_at = -math.inf
            self._chores.put(self._look_after)
            return self._apply(link, rest)

    def _await_renewal(self, link: Link) -> None:
        """Say nothing once the lease may have ended: who stood still learns first whether it was declared dead."""
        lease, delays = self.layer.options["lease"], Backoff()
        while time.monotonic() - self._renewed_at > lease and not self._stopping.is_set():
            asked_at = time.monotonic()
            try:
                alive = link.renew(self.name)  # the housekeeper may be at a long chore
            except Exception:
                alive = False  # it will say so
            if alive:
                self._renewed_at = asked_at
            else:
                self._stopping.wait(delays.delay())

    def _is_past(self, operation: Operation) -> bool:
        """Whether it speaks for a connection of a name that was given up; others ran its disconnect consumer.

        Or it is a request whose client has left, or was answered 503 while it waited here and may have sent it again.
        """
        if isinstance(operation, Withdraw):
            return False
        queue_name, local = names.split(getattr(operation, "reply_channel", ""))
        answered = local not in self._receivers and getattr(operation, "channel", "") == "http.request"
        return queue_name in self._past or bool(local and answered)

    def _hand_over(self, reply_channel: str, message: dict[str, Any]) -> None:
        queue_name, local = names.split(reply_channel)
        if queue_name == self.queue:
            self.call_in_hub(partial(self._deliver, (local,), Reply(message)))

    def _retry(self, attempt: Callable[[], Any], tries: int = 5) -> Any:
        """Try until the layer takes it; a server that stops gives up after so many tries."""
        delays = Backoff()
        while True:
            try:
                result = attempt()
                self._health.worked()
                return result
            except LayerUnavailable as error:
                self._health.failed(error)
                if self._stopping.is_set() and delays.tries > tries:
                    return None
                time.sleep(delays.delay())

    # The housekeeper.

    def _keep_house(self) -> None:
        link, lease, started_at = self._house_link, self.layer.options["lease"], time.monotonic()
        chore: Callable[[Link], Any] | None = self._look_after
        while chore is not None:
            try:
                self._retry(lambda chore=chore: chore(link))
            except Exception:
                log.exception("A chore of this server failed and was left out.")
            # In the first seconds its workers get ready, and whom they know of is to be found.
            pause = lease / 3 if time.monotonic() - started_at > lease else min(1.0, lease / 3)
            try:
                chore = self._chores.get(timeout=pause * random.uniform(0.8, 1.0))
            except queue.Empty:
                chore = self._look_after
        try:
            self._retry(lambda: link.unregister(self.name), FAREWELL)
        finally:
            link.close()

    def _look_after(self, link: Link) -> None:
        asked_at = time.monotonic()
        if not link.renew(self.name):
            log.warning(
                "This server was declared dead while it stood still; it closes its sockets and goes on."
            )
            self._past.add(self.queue)
            self.name = names.random_part()
            self.queue = f"reply.{self.name}!"
            link.register(self.name, Process.SERVER, self.queue)
            self.call_in_hub(self._on_dead)
        self._renewed_at = asked_at
        workers = link.workers()
        self._find_local_wakeups(set(workers))
        self._overload.look(link, workers)
        if self.has_sessions and asked_at - self._checked_at > CHECK_LOGINS:
            self._checked_at = asked_at
            link.apply([self.make_send("websocket.logins", {"server": self.name})])
        link.clean_up()
        self.http_workers, self.servers = link.count_live("http.request")

    def _find_local_wakeups(self, workers: set[str]) -> None:
        """Wake our own workers through their pipes while there are no others: those need the NOTIFY."""
        own = self.own_workers()
        alone = bool(own) and workers <= own
        self._local_wakeups = {
            kind: self._wakeups[kind] for kind in self._wakeups if alone and kind != DURABLE
        }
