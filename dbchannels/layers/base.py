"""The contract of a channel layer, and what all layers share: checks, buffering, capacity, batches.

A layer has two sides. The **layer** object is shared by all threads; what is sent through it takes part in the
caller's transaction. A **link** (``layer.link()``) belongs to one reader, a worker or an interface server: it
has a way of its own into the layer, where it receives, claims, acknowledges and waits, outside any transaction
of the site's code.

A layer of your own implements the methods under "For layers to implement", or subclasses ``StoreLayer``, which does
that for anything that keeps tables; ``memory`` is the shortest example.
"""

from __future__ import annotations

import difflib
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from django.db import connections

from dbchannels import codec, exceptions, foreign, names
from dbchannels.conf import LayerSettings
from dbchannels.layers.delivery import delivery_options
from dbchannels.layers.link import Link
from dbchannels.layers.operations import (
    Delivery,
    Failure,
    GroupAdd,
    GroupClear,
    GroupDiscard,
    Identify,
    Keep,
    Operation,
    Record,
    Send,
    SendGroup,
)
from dbchannels.layers.transactions import Buffer, after_commit, open_transactions, rollback_probe

Fields = dict[str, Any]

log = logging.getLogger("dbchannels.layer")


class BaseLayer:
    """What every layer can do. Positional arguments as in the public channel-layer draft."""

    #: Other processes receive what is sent here.
    shared = True
    #: A send is part of the caller's database transaction: seen at commit, never after a rollback.
    transactional = True
    #: Readers are woken; without it they look every ``poll_interval`` seconds.
    wakeups = False
    #: The draft's names for what is offered beyond ``send`` and ``receive``.
    extensions = ("groups", "flush", "statistics")

    ChannelFull = exceptions.ChannelFull
    MessageTooLarge = exceptions.MessageTooLarge

    def __init__(self, settings: LayerSettings) -> None:
        self.alias = settings.alias
        self.database = settings.database
        self.options = settings.options
        self.group_expiry: float = self.options["group_expiry"]
        self._threads = threading.local()
        # By context and not by thread: what an async consumer awaits runs in another thread, and sends into it too.
        self._buffer: ContextVar[Buffer | None] = ContextVar("buffer", default=None)
        self._spread: dict[str, deque[tuple[str, bytes]]] = {}
        self._spreading = threading.Lock()
        #: With DEBUG, in a worker: the channels that have a consumer. The log names any other that is sent to, once.
        self.consumed_channels: set[str] | None = None

    if not TYPE_CHECKING:  # or no type checker would find a name that is not there

        def __getattr__(self, name: str) -> Any:
            return foreign.missing_attribute("layer", self, name)

    # Sending: into the caller's transaction, or the consumer's buffer.

    def send(self, channel: str, message: Fields, *, immediately: bool = False, **delivery: Any) -> None:
        """Put one message on a channel; never waits for a reader.

        ``delivery`` is for durable channels, see ``options.delivery_options``: ``delay``, ``deliver_at``, ``priority``,
        ``unique``. ``immediately`` writes the message now though a consumer's sends are otherwise written
        together when it ends. Raises InvalidName, InvalidMessage, MessageTooLarge or ChannelFull, and then
        nothing was sent.
        """
        self._submit([self.make_send(channel, message, **delivery)], immediately)

    def send_many(self, messages: Iterable[tuple[str, Fields]], *, immediately: bool = False) -> None:
        """Put (channel, message) pairs on their channels, in order, all of them or none."""
        self._submit([self.make_send(channel, message) for channel, message in messages], immediately)

    def group_add(self, group: str, channel: str, *, immediately: bool = False) -> None:
        """Put a channel into a group. Again = its membership is as new; it is there once."""
        add = GroupAdd(names.check_group_name(group), names.check_channel_name(channel))
        self._submit([add], immediately)

    def group_discard(self, group: str, channel: str, *, immediately: bool = False) -> None:
        """Take a channel out of a group; no error when it is not in there."""
        discard = GroupDiscard(names.check_group_name(group), names.check_channel_name(channel))
        self._submit([discard], immediately)

    def group_clear(self, group: str) -> None:
        """Take every channel out of a group."""
        self._submit([GroupClear(names.check_group_name(group))])

    def send_group(self, group: str, message: Fields, *, immediately: bool = False) -> None:
        """Send one message to each channel of a group; a full channel goes without, and no error is raised."""
        payload = codec.encode(message, self.options["max_message_size"])
        self._submit([SendGroup(names.check_group_name(group), payload)], immediately)

    def make_send(self, channel: str, message: Fields, **delivery: Any) -> Send:
        """Check a message and encode it: what happens to the dict afterwards changes nothing."""
        names.check_channel_name(channel)
        if self.consumed_channels is not None and channel not in self.consumed_channels:
            self._tell_unconsumed(channel, self.consumed_channels)
        options = delivery_options(channel, **delivery) if delivery else None
        if options:
            self.check_text("unique key", options["unique"])
        payload = codec.encode(message, self.options["max_message_size"])
        reply_channel = message.get("reply_channel")
        reply_channel = names.check_channel_name(reply_channel) if reply_channel is not None else ""
        send = Send(channel, payload, reply_channel, self.options["expiry"])
        return send._replace(**options) if options else send

    def check_text(self, what: str, text: str) -> None:
        """Raise InvalidMessage for a text that the layer cannot keep; NUL and the like are refused before."""

    def _tell_unconsumed(self, channel: str, consumed: set[str]) -> None:
        if names.is_protocol(channel):
            return
        near = difflib.get_close_matches(channel, sorted(consumed), n=1)
        advice = f"write {near[0]!r}" if near else f"write @consumer({channel!r}) above one"
        log.warning(
            "A message was sent to %s, which has no consumer, so it waits for ever: %s.", channel, advice
        )
        consumed.add(channel)

    @contextmanager
    def buffered(self) -> Iterator[Buffer]:
        """Hold back what is sent and added outside ``atomic()`` in this context; the caller writes ``pending()``."""
        token = self._buffer.set(buffer := Buffer())
        try:
            yield buffer
        finally:
            self._buffer.reset(token)

    def _submit(self, operations: Sequence[Operation], immediately: bool = False) -> None:
        """Write or buffer; with transactions open on other databases only, wait until all of them have committed.

        ``immediately`` means before the consumer's end, never before a commit.
        """
        if self.transactional and (others := open_transactions(self.database)) and not self.in_transaction():
            after_commit(others, lambda: self._submit(operations, immediately))
        else:
            self._write_or_buffer(operations, immediately)

    def _write_or_buffer(self, operations: Sequence[Operation], immediately: bool) -> None:
        buffer = self._buffer.get()
        if buffer is None or immediately:
            self.write(operations)
        elif not self.in_transaction():
            buffer.append(operations)
        elif together := [*buffer.pending(), *operations]:
            self.write(together)
            buffer.written(self.rollback_probe())

    # For open WebSockets. Their records are the server's: it makes and deletes them.

    def identify(self, channel: str, user_id: str) -> None:
        """Record whose WebSocket has this reply channel; "" for an unknown user. A closed one is no error."""
        self.check_text("user's id", names.check_user_id(user_id))
        self._submit([Identify(names.check_channel_name(channel), user_id)])

    def keep(self, channel: str, *, session: bytes | None = None, login: str | None = None) -> None:
        """Store an encoded channel session, or the login, with a WebSocket; see ``operations.Record``."""
        self._submit([Keep(names.check_channel_name(channel), session, login)])

    def close_connections(self, channels: Iterable[str], code: int) -> None:
        """Close the WebSockets with these reply channels; those that are closed already are ignored."""
        payload, expiry = codec.encode_trusted({"close": code}), self.options["expiry"]
        # Certain: a logout neither fails nor is ignored because a server has much to read.
        closing = [Send(channel, payload, "", expiry, certain=True) for channel in channels]
        if closing:
            self._submit(closing)

    # Receiving, without a link of one's own.

    def new_channel(self, pattern: str) -> str:
        """Return a name that no channel has yet; the pattern ends in ``?`` or ``!``."""
        return names.new_name(pattern)

    def receive(self, channels: Sequence[str], block: bool = False) -> tuple[str | None, Fields | None]:
        """Take one message off one of the channels, at most once: (channel, message), or (None, None).

        With ``block`` it waits up to a second for one. Of process-specific channels give the part up to and
        with the ``!``; the full name comes back. Raises InvalidName for anything that cannot be read.
        """
        queues = [names.check_receivable(channel) for channel in channels]
        random.shuffle(queues)  # so that no channel, however busy, is always the first
        if not queues:
            return None, None
        link = self._own_link()
        found = self._take_one(link, queues)
        if found is None and block:
            link.wait(1.0)
            found = self._take_one(link, queues)
        return (None, None) if found is None else (found[0], codec.decode(found[1]))

    def _own_link(self) -> Link:
        link: Link | None = getattr(self._threads, "link", None)
        if link is None:
            link = self._threads.link = self.link()
        return link

    def close(self) -> None:
        """Let go of what ``receive`` opened for the calling thread; the next call opens it again."""
        link, self._threads.link = getattr(self._threads, "link", None), None
        if link is not None:
            link.close()

    def _take_one(self, link: Link, queues: list[str]) -> tuple[str, bytes] | None:
        """One row may be for several local parts: the first is given now, the others at the next calls."""
        with self._spreading:
            for queue in queues:
                if self._spread.get(queue):
                    return self._spread[queue].popleft()
        for delivery in link.receive_many(queues, 1):
            first, *rest = delivery.recipients or ("",)
            with self._spreading:
                waiting = self._spread.setdefault(delivery.channel, deque())
                waiting.extend((delivery.channel + local, delivery.payload) for local in rest)
                if not waiting:
                    del self._spread[delivery.channel]
            return delivery.channel + first, delivery.payload
        return None

    def capacity(self, channel: str) -> int | None:
        """Return how many unread messages a channel may hold; None when there is no limit.

        Names and patterns of OPTIONS["channel_capacity"] come first, in their order. Durable channels have no
        limit but one given there.
        """
        for pattern, capacity in self.options["channel_capacity"].items():
            if fnmatchcase(channel, pattern):
                return capacity  # type: ignore[no-any-return]
        return self.options["capacity"] if names.is_protocol(channel) else None

    def poll_interval(self) -> float:
        """Return how long a reader sleeps at most before it looks, in seconds."""
        return self.options["poll_interval"] or (1.0 if self.wakeups else 0.05)

    # For layers to implement.

    def link(self, name: str = "", listen: bool = True) -> Link:
        """Return a new link; ``name`` shows in the database's list of sessions."""
        return Link(self)

    def in_transaction(self) -> bool:
        """Whether the calling thread has a transaction open in which a send would take part."""
        return self.transactional and bool(connections[self.database].in_atomic_block)

    def rollback_probe(self) -> Callable[[], bool]:
        """Return a function that tells later whether what was just written in a transaction was rolled back."""
        return rollback_probe(self.database)

    def write(self, operations: Sequence[Operation], drop: bool = False) -> list[Send]:
        """Write operations in order, in the caller's transaction, all or none. May raise ChannelFull.

        With ``drop`` a send that finds its channel full is left out, and returned.
        """
        raise NotImplementedError

    def connections(
        self, after: str = "", limit: int = 500, *, watched: bool = False, **fields: Sequence[str]
    ) -> list[Record]:
        """Return the records of the WebSockets whose fields each have one of the given values.

        The fields are ``reply_channel``, ``server``, ``session_digest`` and ``login``. The records are sorted by reply
        channel and begin after ``after``; there are ``limit`` at most. With ``watched``, those without a login are left
        out. A layer that keeps no records knows no sessions of WebSockets.
        """
        return []

    def group_channels(self, group: str) -> list[str]:
        """Return the full names of a group's channels. This and what else asks by a name raises InvalidName."""
        raise NotImplementedError

    def group_count(self, group: str) -> int:
        """Return how many channels a group has."""
        return len(self.group_channels(group))

    def group_users(self, group: str) -> list[str]:
        """Return the ids of the users, each once, sorted as text, whose connections are in a group."""
        raise NotImplementedError

    def pop(self, queues: Sequence[str], limit: int) -> list[Delivery]:
        """Take up to ``limit`` messages off the queues; nobody else gets them."""
        raise NotImplementedError

    def claim(
        self, channels: Sequence[str], limit: int, worker: str, at_most: Mapping[str, int] | None = None
    ) -> list[Delivery]:
        """Claim due messages of durable channels for a worker, and count the attempt; see ``Link.claim``."""
        raise NotImplementedError

    def acknowledge(self, worker: str, delivery: Delivery) -> bool:
        """End a claim in the caller's transaction; False when it was lost, so that the caller can roll back."""
        raise NotImplementedError

    def fail(self, worker: str, failure: Failure) -> None:
        """End a claim without success: due again in ``retry_in`` seconds, or a dead letter. Nothing if it was lost."""
        raise NotImplementedError

    def release(self, worker: str, delivery: Delivery) -> None:
        """End a claim that did not start: back to its old place, the attempt not counted. Nothing if it was lost."""
        raise NotImplementedError

    def flush(self) -> None:
        """Empty the layer for everybody: messages, also those that workers hold, groups, dead letters, schedules."""
        raise NotImplementedError

    def dead_letter_ids(self, channels: Sequence[str] = ()) -> list[int]:
        """Return the ids of the dead letters of these channels, or of all, oldest first."""
        raise NotImplementedError

    def replay(self, ids: Iterable[int]) -> int:
        """Move dead letters back to their channels, to run again from the first attempt; return how many it moved.

        They are due now, have no priority and no unique key, and no capacity is asked: they were let in once. All
        go in the caller's transaction on the layer's database, or in one of their own. Ids that no dead letter has,
        or that somebody else is moving at this moment, are left out, so each runs again once.
        """
        raise NotImplementedError

    def global_statistics(self) -> dict[str, float]:
        """Return what the layer holds now, over all channels, counted at the call.

        ``messages_pending``: messages that wait to be taken, those that wait for their time among them.
        ``messages_max_age``: seconds since the oldest of those that could be taken now was sent, 0 when there is
        none; a delayed message has no age before its time. Both as in the public draft. ``messages_held`` is ours:
        taken by a worker whose consumer has not finished. What the draft counts since a server's start
        (``messages_count``, ``channel_full_count``, their rates) is not given: it would cost a write for each.
        """
        raise NotImplementedError

    def channel_statistics(self, channel: str) -> dict[str, float]:
        """Return the same for one channel; of a process-specific one give the part up to and with the ``!``."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise LayerUnavailable, with the sentence for the operator, when the layer cannot be used now."""

    def describe(self) -> str:
        """Return what the banner says of the layer: where it is, and how readers are woken."""
        return f"{type(self).__name__}, readers look every {self.poll_interval():g} s"
