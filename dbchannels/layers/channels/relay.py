"""What stands behind Channels' coroutines in one process: threads that write and read, and the inboxes of its channels.

A process-specific channel, ``specific.A!B``, is a reply channel as those of the interface server: messages for all of
the process's channels come in one queue, ``specific.A!``, and wait in the *inbox* of the channel until they are
received. A plain channel, ``thumbnails``, is the queue ``thumbnails?``, so that it has a capacity and its messages
expire, unlike those of a durable channel of that name. Nothing is taken from it before somebody receives.

What stays in this process is neither written nor read, if the layer can tell, see ``local``.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress

from channels import exceptions as channels_exceptions

from dbchannels import exceptions as errors
from dbchannels import names
from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.channels.local import Futures, LocalDelivery, finish
from dbchannels.layers.link import Link
from dbchannels.layers.operations import (
    Delivery,
    Disconnect,
    GroupAdd,
    Operation,
    Send,
    SendGroup,
)
from dbchannels.layers.relay import BATCH, BaseRelay, OutboxFull
from dbchannels.models import Process
from dbchannels.redaction import RateLimitedLog
from dbchannels.wakeup import Backoff

log = logging.getLogger("dbchannels.layer")

PATIENCE = 10.0  # seconds of an outage for which a send waits
SLOWEST_LOOP = (
    5.0  # seconds that an event loop may take to receive what it was woken for, or it counts as ended
)
LAST_WRITES = 3.0  # seconds at the end of the process
DROPPED = "%d messages were dropped, because their channels had reached their capacity; the last one was %s."

#: The channels that a message is for, its payload, and for how many seconds it has waited.
Incoming = tuple[Sequence[str], bytes, float]


class ChannelFull(errors.ChannelFull, channels_exceptions.ChannelFull):  # type: ignore[misc]
    """A channel has as many unread messages as its capacity allows; nothing was sent."""


class MessageTooLarge(errors.MessageTooLarge, channels_exceptions.MessageTooLarge):  # type: ignore[misc]
    """A message is larger than ``max_message_size`` of the DBCHANNELS setting."""


class Inbox:
    """The messages of one channel that this process has, and those who wait for one. Used under the relay's lock."""

    __slots__ = ("capacity", "filled_at", "messages", "waiters")

    def __init__(self, capacity: int | None) -> None:
        self.capacity = math.inf if capacity is None else capacity
        self.messages: deque[tuple[bytes, float]] = deque()  # and when each expires, by time.monotonic()
        self.waiters: list[asyncio.Future[None]] = []
        self.filled_at = 0.0  # time.monotonic() when the last message came

    def take(self) -> bytes | None:
        """Return the next message that has not expired."""
        while self.messages:
            payload, ends_at = self.messages.popleft()
            if time.monotonic() < ends_at:
                return payload
        return None


class ChannelsRelay(BaseRelay):
    """Writes what the coroutines of all event loops send, and keeps what comes until they receive it."""

    def __init__(self, layer: BaseLayer, capacity_of: Callable[[str], int | None]) -> None:
        super().__init__(layer, log, f"channels-{os.getpid()}")
        self._capacity_of = capacity_of
        self._name = names.random_part()
        self._lock = threading.Lock()
        self.queues: dict[str, str] = {}  # by prefix
        self._registered: set[str] = set()  # of the queues
        self._ready = threading.Event()  # cleared while a queue is not yet registered
        self._ready.set()
        self._look_now = threading.Event()
        self._inboxes: dict[str, Inbox] = {}
        self._plain: set[str] = set()  # the plain channels among them
        #: (group, channel of this process) that were added here, in case that others declare this process dead.
        self._memberships: set[tuple[str, str]] = set()
        self._sent: dict[int, asyncio.Future[None]] = {}  # by the id of an operation that waits to be written
        # Held until what was popped is in its inbox: two threads would mix up the order.
        self.popping = threading.Lock()
        members = layer.members_session()
        self._local = members and LocalDelivery(self, members)
        self._dropped = RateLimitedLog(log, DROPPED, None)
        self._pid = os.getpid()
        self._threads = [self._thread("publisher", self._publish)]
        self._threads[0].start()
        atexit.register(self.stop)

    def _thread(self, name: str, target: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=target, name=name, daemon=True)

    def stop(self) -> None:
        """Write what is left, unregister this process, and end the threads. A forked child leaves them alone."""
        atexit.unregister(self.stop)
        if os.getpid() != self._pid:
            return
        ends_at = time.monotonic() + LAST_WRITES
        if self._local:
            self._local.close()
        self._outbox.put(None)
        self._threads[0].join(LAST_WRITES / 2)
        self.stopping.set()
        self._look_now.set()
        self._wake.notify()
        for thread in self._threads:
            thread.join(max(0.0, ends_at - time.monotonic()))
        closed = LayerUnavailable("The channel layer was closed.")
        self._resolve(dict.fromkeys(list(self._sent), closed))
        if not any(thread.is_alive() for thread in self._threads):
            for end in (*self._wake, *self.reply_wakeup):
                os.close(end)

    # Sending, from any event loop.

    async def write(self, operation: Operation) -> None:
        """Return when the operation was written. Raises ChannelFull, LayerUnavailable, or what the layer raises."""
        future = asyncio.get_running_loop().create_future()
        if not (
            self._local and isinstance(operation, (Send, SendGroup)) and self._local.take(operation, future)
        ):
            self.put(operation, future)
        await asyncio.shield(future)  # it ends when the operation is written, even if nobody waits any more

    def put(self, operation: Operation, future: asyncio.Future[None]) -> None:
        """Hand an operation to the publisher, which sets the future."""
        self._sent[id(operation)] = future
        try:
            self._put([operation])
        except OutboxFull:
            self._resolve({id(operation): self.outbox_full()})

    def outbox_full(self) -> LayerUnavailable:
        """Return the error for what is sent while too much waits."""
        return LayerUnavailable(
            "Too many messages wait for the layer's database: send fewer at once, or try again later."
        )

    def check_room(self, channel: str) -> None:
        """Raise ChannelFull if this channel of this process has as many messages as it may have."""
        inbox = self._inboxes.get(channel)
        if inbox is not None and len(inbox.messages) >= inbox.capacity:
            raise ChannelFull(channel)

    def note_group(self, group: str, channel: str, *, added: bool) -> None:
        """Note that a channel of this process is, or is no longer, in a group."""
        with self._lock:
            if added and self.has(names.split(channel)[0]):
                self._memberships.add((group, channel))
            else:
                self._memberships.discard((group, channel))

    # The publisher.

    def _write(self, link: Link, operations: Sequence[Operation]) -> None:
        """Write a batch. After PATIENCE of an outage each send gets the error, after one more try."""
        delays = Backoff(from_start=True)
        # The membership of a channel expires if its process is not on record.
        if not self._ready.wait(max(0.0, PATIENCE - self.health.lasted("housekeeper"))):
            missing = LayerUnavailable(
                "The layer's database cannot be used: this process is not on record there."
            )
            return self._resolve(dict.fromkeys(map(id, operations), missing))
        while True:
            try:
                full, woken = self._exchange(link, operations)
                if self.health.failing:
                    self.health.worked()
                results: dict[int, Exception | None] = dict.fromkeys(map(id, operations))
                return self._resolve(
                    results | {id(one): ChannelFull(shown(one.channel)) for one in full}, woken
                )
            except LayerUnavailable as error:
                self.health.failed(error)
                if self.health.lasted("publisher") >= PATIENCE or self.stopping.is_set():
                    return self._resolve(dict.fromkeys(map(id, operations), error))
                time.sleep(delays.delay())

    def _exchange(self, link: Link, operations: Sequence[Operation]) -> tuple[list[Send], Futures]:
        """Write operations, and take what they send to this process; return the sends without room, and who is woken.

        A second round trip, and a second thread, would take as long again. Group changes may wait for a transaction of
        the site, so they are written apart.
        """
        own = list(self.queues.values())
        link.local_wakeups = dict.fromkeys(own, self.reply_wakeup)
        sends = [one for one in operations if isinstance(one, (Send, SendGroup))]
        for_here = any(isinstance(one, SendGroup) or names.split(one.channel)[0] in own for one in sends)
        only_sends = len(sends) == len(operations)
        if not (own and only_sends and for_here and self.popping.acquire(blocking=False)):
            return link.apply(operations), []
        try:
            full, deliveries = link.exchange(operations, own, BATCH)
            if len(deliveries) == BATCH:
                self.reply_wakeup.notify()
            return full, self.deliver(map(incoming, deliveries))
        finally:
            self.popping.release()

    def _left_out(self, operation: Operation, error: Exception) -> None:
        self._resolve({id(operation): error})

    def _resolve(self, results: dict[int, Exception | None], woken: Futures = ()) -> None:
        ended = [(self._sent.pop(key, None), error) for key, error in results.items()]
        raised = {future: error for future, error in ended if future is not None and error is not None}
        finish([*woken, *(future for future, _ in ended if future is not None)], raised)

    # Receiving, from any event loop.

    def open(self, prefix: str) -> str:
        """Return the queue of this process's channels that begin with this prefix."""
        if queue := self.queues.get(prefix):
            return queue
        queue = names.check_channel_name(f"{prefix}.{self._name}!")
        with self._lock:
            if prefix not in self.queues:
                self._ready.clear()
                self.queues[prefix] = queue
                self._look_now.set()
            if len(self._threads) == 1:
                self._threads += [
                    self._thread("reader", self._read),
                    self._thread("housekeeper", self._keep_house),
                ]
                for thread in self._threads[1:]:
                    thread.start()
        self.reply_wakeup.notify()
        return queue

    def has(self, queue: str) -> bool:
        """Whether a queue is this process's."""
        return queue in self.queues.values()

    def _inbox(self, channel: str) -> Inbox:
        inbox = self._inboxes.get(channel)
        if inbox is None:
            inbox = self._inboxes[channel] = Inbox(self._capacity_of(channel))
            if "!" not in channel:
                self._plain.add(channel)
        return inbox

    async def receive(self, channel: str) -> bytes:
        """Wait for a message, and return it. A cancelled call has taken none."""
        loop, is_plain = asyncio.get_running_loop(), "!" not in channel
        while True:
            with self._lock:
                inbox = self._inbox(channel)
                if (payload := inbox.take()) is not None:
                    if not inbox.messages and not inbox.waiters:
                        del self._inboxes[channel]
                    return payload
                future = loop.create_future()
                inbox.waiters.append(future)
            if is_plain:
                self.reply_wakeup.notify()
            try:
                await future
            except BaseException:
                self._leave(channel, inbox, future)
                raise

    def _leave(self, channel: str, inbox: Inbox, future: asyncio.Future[None]) -> None:
        """End a wait that was cancelled; what has come for it on a plain channel goes to another process."""
        with self._lock:
            with suppress(ValueError):
                inbox.waiters.remove(future)
            if not inbox.waiters and not (inbox.messages and "!" in channel):
                self._put_back(channel, inbox)
                self._inboxes.pop(channel, None)

    def _put_back(self, channel: str, inbox: Inbox) -> None:
        expiry = self.layer.options["expiry"]
        sends = [Send(stored(channel), payload, "", expiry, certain=True) for payload, _ in inbox.messages]
        inbox.messages.clear()
        if sends:
            self._outbox.put(sends)

    # The reader.

    def _take(self, link: Link) -> bool:
        with self._lock:
            self._plain &= self._inboxes.keys()
            wanted = {one: len(self._inboxes[one].waiters) for one in self._plain}
        for channel, number in wanted.items():
            if number:
                finish(self.deliver(map(incoming, link.receive_many([stored(channel)], number))))
        queues = list(self.queues.values())
        with self.popping:
            deliveries = link.receive_many(queues, BATCH) if queues else []
            woken = self.deliver(map(incoming, deliveries))
        finish(woken)
        return len(deliveries) == BATCH

    def deliver(self, messages: Iterable[Incoming]) -> Futures:
        """Put messages into their inboxes; return who waits for them."""
        woken: list[asyncio.Future[None]] = []
        now, expiry = time.monotonic(), self.layer.options["expiry"]
        with self._lock:
            for channels, payload, waited in messages:
                message = payload, now + expiry - waited
                for channel in channels:
                    inbox = self._inbox(channel)
                    inbox.filled_at = now
                    if len(inbox.messages) < inbox.capacity:
                        inbox.messages.append(message)
                    else:
                        self._dropped.count(None, channel)
                    if inbox.waiters:
                        woken += inbox.waiters
                        inbox.waiters.clear()
        return woken

    def _is_for_reader(self, kinds: AbstractSet[str]) -> bool:
        return any(self.has(kind) or shown(kind) in self._inboxes for kind in kinds)

    # The housekeeper.

    def _keep_house(self) -> None:
        link, delays = self.layer.link("housekeeper", listen=False), Backoff(from_start=True)
        lease = self.layer.options["lease"]
        while not self.stopping.is_set():
            self._look_now.clear()
            pause = lease / 3 * random.uniform(0.8, 1.0)
            try:
                self._look(link)
                if self.health.failing:
                    self.health.worked()
                delays.reset()
            except Exception as error:
                self.health.failed(error)
                if not isinstance(error, LayerUnavailable):
                    log.exception("A chore of Channels' layer failed; trying again.")
                pause = min(pause, delays.delay())
            self._look_now.wait(pause)
        with suppress(LayerUnavailable):
            for queue in self._registered:
                link.unregister(queue[:-1])
        link.close()
        if self._local:
            self._local.close()

    def _look(self, link: Link) -> None:
        """Renew the leases, let go what nobody receives, and clean up after dead processes."""
        queues = list(self.queues.values())
        for queue in queues:
            if queue not in self._registered:
                link.register(queue[:-1], Process.CHANNELS, queue)
                self._registered.add(queue)
            elif not link.renew(queue[:-1]):
                log.warning(
                    "This process was declared dead while it stood still; its channels join their groups again."
                )
                link.register(queue[:-1], Process.CHANNELS, queue)
                with self._lock:
                    again = [GroupAdd(*one) for one in self._memberships if one[1].startswith(queue)]
                self._outbox.put(again)
        with self._lock:
            if self._registered.issuperset(self.queues.values()):
                self._ready.set()
        self._let_go()
        self._dropped.count(number=0)
        if self._local:
            with suppress(LayerUnavailable):  # until it can be opened, everything is written
                self._local.open()
        link.clean_up()

    def _let_go(self) -> None:
        """Remove channels from their groups if a message has expired there unread: their consumers have ended.

        What was taken from a plain channel for an event loop that has ended is put back.
        """
        now = time.monotonic()
        with self._lock:
            gone = set()
            for channel, inbox in list(self._inboxes.items()):
                if not inbox.messages or inbox.waiters:
                    continue
                if "!" not in channel:
                    if inbox.filled_at > now - SLOWEST_LOOP:
                        continue
                    self._put_back(channel, inbox)
                elif inbox.messages[0][1] > now:
                    continue
                else:
                    gone.add(channel)
                    self._outbox.put([Disconnect(channel)])
                del self._inboxes[channel]
            self._memberships = {one for one in self._memberships if one[1] not in gone}


def stored(channel: str) -> str:
    """Return the name of a channel's queue; ``shown`` is the way back."""
    return channel if "!" in channel else channel + "?"


def shown(queue: str) -> str:
    """Return the channel's name, as Channels knows it."""
    return queue.removesuffix("?")


def incoming(delivery: Delivery) -> Incoming:
    """Return a message that was popped, with the whole names of its channels."""
    channels = [delivery.channel + local for local in delivery.recipients] or [shown(delivery.channel)]
    return channels, delivery.payload, delivery.waited
