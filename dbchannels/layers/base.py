"""The contract of a channel layer, and what all layers share: checks, the buffer of a consumer, capacity.

A layer has two sides. The **layer** object is shared by all threads, and its sends are part of the caller's
transaction. A **link** (``layer.link()``) belongs to one reader, a worker or an interface server: it receives, claims,
acknowledges and waits outside any transaction of the site's code.

A layer of your own implements the methods under "For layers to implement", or subclasses ``StoreLayer``, which
implements them for anything that keeps tables; ``memory`` is the shortest example.
"""

from __future__ import annotations

import difflib
import logging
import random
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction

from dbchannels import codec, exceptions, names, other_libraries
from dbchannels.conf import LayerSettings
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
    delivery_options,
    history_options,
)
from dbchannels.layers.tasks import TaskRecord
from dbchannels.protocol import VANISHED, Fields, lost

if TYPE_CHECKING:
    from dbchannels.layers.postgresql.members import MembersSession

log = logging.getLogger("dbchannels.layer")


class Buffer:
    """The sends, adds and discards of a consumer that are not yet written, in order.

    A write inside ``atomic()`` also writes what was buffered before it, so that the order is kept. If that transaction
    or savepoint is rolled back, what was buffered outside it is pending again; what was sent inside it is gone.
    """

    def __init__(self) -> None:
        self._operations: list[Operation] = []
        self._written: list[tuple[int, Callable[[], bool]]] = []

    def append(self, operations: Sequence[Operation]) -> None:
        """Add operations."""
        self._operations += operations

    def written(self, rolled_back: Callable[[], bool]) -> None:
        """Note that everything so far was written in a transaction; ``rolled_back()`` tells whether it was undone."""
        self._written.append((len(self._operations), rolled_back))

    def pending(self) -> list[Operation]:
        """Return the operations that are still to be written."""
        done = max((count for count, rolled_back in self._written if not rolled_back()), default=0)
        return self._operations[done:]


class BaseLayer(other_libraries.ForeignNames, ABC):
    """The contract of a layer. The positional arguments are those of the ASGI draft of Channels 1."""

    _place = "layer"

    #: Other processes receive what is sent here, and outlive one that dies.
    shared = True
    #: Sends are part of the caller's database transaction: visible after the commit, and never after a rollback.
    transactional = True
    #: Readers are woken when a message arrives. Otherwise they poll every ``poll_interval`` seconds.
    wakeups = False
    #: What the layer offers beyond ``send`` and ``receive``, by the draft's names.
    extensions = ("groups", "flush", "statistics")

    ChannelFull = exceptions.ChannelFull
    MessageTooLarge = exceptions.MessageTooLarge

    def __init__(self, settings: LayerSettings) -> None:
        self.alias = settings.alias
        self.database = settings.database
        self.options = settings.options
        self.group_expiry: float = self.options["group_expiry"]
        self._threads = threading.local()
        # By context, not by thread: what an async consumer awaits sends from another thread.
        self._buffer: ContextVar[Buffer | None] = ContextVar("buffer", default=None)
        self._opening = ContextVar("opening", default="")  # see `opening`
        self._received: dict[str, deque[tuple[str, bytes]]] = {}  # by queue: popped, and given by later calls
        self._receiving = threading.Lock()
        #: With DEBUG, in a worker: the channels that have a consumer. A send to any other is logged once.
        self.consumed_channels: set[str] | None = None
        self._unread: set[str] = set()  # those others

    # Sending: into the caller's transaction, or the consumer's buffer.

    def send(self, channel: str, message: Fields, *, immediately: bool = False, **delivery: Any) -> None:
        """Send one message to a channel, without waiting for a reader.

        ``delivery`` is for durable channels: ``delay``, ``deliver_at``, ``priority`` and ``unique``, as in ``Channel``.
        A consumer's sends are written when it returns; ``immediately=True`` writes this one at once. Raises
        InvalidName, InvalidMessage, MessageTooLarge or ChannelFull; then nothing was sent.
        """
        self._submit([self.make_send(channel, message, **delivery)], immediately)

    def send_many(self, messages: Iterable[tuple[str, Fields]], *, immediately: bool = False) -> None:
        """Send (channel, message) pairs in order, all of them or none."""
        self._submit([self.make_send(channel, message) for channel, message in messages], immediately)

    def group_add(self, group: str, channel: str, *, immediately: bool = False) -> None:
        """Add a channel to a group. Adding it again renews its expiry; it is never added twice."""
        is_later = self._opening.get() != channel
        add = GroupAdd(names.check_group_name(group), names.check_channel_name(channel), is_later)
        self._submit([add], immediately)

    def group_discard(self, group: str, channel: str, *, immediately: bool = False) -> None:
        """Remove a channel from a group. It is no error if it is not a member."""
        discard = GroupDiscard(names.check_group_name(group), names.check_channel_name(channel))
        self._submit([discard], immediately)

    def group_clear(self, group: str) -> None:
        """Remove every channel from a group."""
        self._submit([GroupClear(names.check_group_name(group))])

    def send_group(
        self,
        group: str,
        message: Fields,
        *,
        immediately: bool = False,
        history: int | timedelta | None = None,
    ) -> None:
        """Send one message to each channel of a group. Channels that are full are skipped without an error.

        With ``history`` the message is kept too, see ``Group``.
        """
        payload = codec.encode(message, self.options["max_message_size"])
        kept = {} if history is None else history_options(message, history, self.options["history_expiry"])
        self._submit([SendGroup(names.check_group_name(group), payload, **kept)], immediately)

    def make_send(self, channel: str, message: Fields, **delivery: Any) -> Send:
        """Check and encode a message; later changes of the dict have no effect."""
        names.check_channel_name(channel)
        if self.consumed_channels is not None and channel not in self.consumed_channels:
            self._warn_of_unread(channel, self.consumed_channels)
        options = delivery_options(channel, **delivery) if delivery else None
        if options:
            self.check_text("unique key", options["unique"])
        payload = codec.encode(message, self.options["max_message_size"])
        reply_channel = message.get("reply_channel")
        reply_channel = names.check_channel_name(reply_channel) if reply_channel is not None else ""
        send = Send(channel, payload, reply_channel, self.options["expiry"])
        return send._replace(**options) if options else send

    def _warn_of_unread(self, channel: str, consumed: set[str]) -> None:
        """Log, once for each channel, that no consumer will get its messages; replies go to a server."""
        if channel in self._unread or "!" in channel or "?" in channel:
            return
        self._unread.add(channel)
        own = sorted(one for one in consumed if not names.is_protocol(one))
        near = difflib.get_close_matches(channel, own, n=1)
        if names.is_protocol(channel):
            lost, advice = "is dropped", "send it to message.reply_channel, or to a channel of your own"
        else:
            lost = "waits forever"
            advice = f"write {near[0]!r}" if near else f"write @consumer({channel!r}) above one"
        log.warning("A message was sent to %s, which has no consumer, so it %s: %s.", channel, lost, advice)

    # Messages that dbchannels makes itself. They are queued even on a full channel, because somebody waits for them.

    def reply(self, channel: str, fields: Fields) -> Send:
        """Return the send of a reply."""
        return Send(channel, codec.encode_trusted(fields), "", self.options["expiry"], certain=True)

    def lost_messages(self, messages: Iterable[tuple[str, str]], why: str) -> list[Send]:
        """Return the replies to messages that nobody will answer: a (channel, reply channel) pair for each.

        ``why`` is WORKER_DIED or EXPIRED of ``protocol``.
        """
        return [
            self.reply(reply_channel, lost(why, channel))
            for channel, reply_channel in messages
            if reply_channel
        ]

    def disconnect_send(self, record: Record, path: str) -> Send:
        """Return the ``websocket.disconnect`` of a connection whose server died, with what was on record of it."""
        about = {"reply_channel": record.reply_channel, "path": path, "code": VANISHED, "reason": ""}
        send = self.reply("websocket.disconnect", {**about, "order": -1, **record.kept()})
        return send._replace(reply_channel=record.reply_channel)

    def resends(self, deliveries: Iterable[Delivery]) -> list[Send]:
        """Return the sends that put protocol messages back on their channels."""
        return [
            Send(one.channel + to, one.payload, one.reply_channel, self.options["expiry"], certain=True)
            for one in deliveries
            for to in one.recipients or ("",)
        ]

    @contextmanager
    def buffered(self) -> Iterator[Buffer]:
        """Buffer what this context sends and adds outside ``atomic()``; the caller writes what is ``pending()``."""
        token = self._buffer.set(buffer := Buffer())
        try:
            yield buffer
        finally:
            self._buffer.reset(token)

    @contextmanager
    def opening(self, channel: str) -> Iterator[None]:
        """While a client's first message is handled, its last id counts for the groups that its reply channel joins."""
        token = self._opening.set(channel)
        try:
            yield
        finally:
            self._opening.reset(token)

    def _submit(self, operations: Sequence[Operation], immediately: bool = False) -> None:
        """Write or buffer; with transactions open on other databases only, wait until all of them have committed.

        ``immediately`` means before the consumer returns, never before a commit.
        """
        # A site with one database pays for no look at threads' connections: they took half of a send's time in Python.
        others = [one for one in connections if one != self.database and connections[one].in_atomic_block]
        if others and self.transactional and not self.in_transaction():
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

    # WebSockets. Their records are the interface server's, which makes and deletes them.

    def identify(self, channel: str, user_id: str) -> None:
        """Record which user the WebSocket with this reply channel belongs to; "" for none.

        It is no error if the WebSocket is closed.
        """
        self.check_text("user's id", names.check_user_id(user_id))
        self._submit([Identify(names.check_channel_name(channel), user_id)])

    def keep(self, channel: str, *, session: bytes | None = None, login: str | None = None) -> None:
        """Store an encoded channel session, or the login, with a WebSocket; see ``operations.Record``."""
        self._submit([Keep(names.check_channel_name(channel), session, login)])

    def close_connections(self, channels: Iterable[str], code: int) -> None:
        """Close the WebSockets with these reply channels. Those that are already closed are ignored."""
        if closing := [self.reply(channel, {"close": code}) for channel in channels]:
            self._submit(closing)

    # Receiving, without a link of one's own.

    def new_channel(self, pattern: str) -> str:
        """Return a name that no channel has yet; the pattern ends in ``?`` or ``!``."""
        return names.new_name(pattern)

    def receive(self, channels: Sequence[str], block: bool = False) -> tuple[str | None, Fields | None]:
        """Receive one message from one of the channels, at most once: (channel, message), or (None, None).

        With ``block`` it waits up to a second for one. Give a process-specific channel up to and including its ``!``,
        such as ``reply.A!``; the full name is returned. Raises InvalidName for a name that cannot be read.
        """
        queues = [names.check_receivable(channel) for channel in channels]
        random.shuffle(queues)  # so that no channel, however busy, is always the first
        if not queues:
            return None, None
        link: Link | None = getattr(self._threads, "link", None)
        if link is None:
            link = self._threads.link = self.link()
        found = self._take_one(link, queues)
        if found is None and block:
            link.wait(1.0)
            found = self._take_one(link, queues)
        return (None, None) if found is None else (found[0], codec.decode(found[1]))

    def _take_one(self, link: Link, queues: list[str]) -> tuple[str, bytes] | None:
        """Return the next (channel, payload). One row may be for several recipients, who get it by several calls."""
        with self._receiving:
            for queue in queues:
                if self._received.get(queue):
                    return self._received[queue].popleft()
        for delivery in link.receive_many(queues, 1):
            first, *rest = delivery.recipients or ("",)
            if rest:
                with self._receiving:
                    waiting = self._received.setdefault(delivery.channel, deque())
                    waiting.extend((delivery.channel + one, delivery.payload) for one in rest)
            return delivery.channel + first, delivery.payload
        return None

    def close(self) -> None:
        """Close what ``receive`` has opened for the calling thread. The next ``receive`` opens it again."""
        link, self._threads.link = getattr(self._threads, "link", None), None
        if link is not None:
            link.close()

    def capacity(self, channel: str) -> int | None:
        """Return how many unread messages a channel may hold; None for no limit.

        The first name or pattern in OPTIONS["channel_capacity"] that matches counts. Durable channels have no other
        limit.
        """
        for pattern, capacity in self.options["channel_capacity"].items():
            if fnmatchcase(channel, pattern):
                return capacity  # type: ignore[no-any-return]
        return self.options["capacity"] if names.is_protocol(channel) else None

    def global_statistics(self) -> dict[str, float]:
        """Return the numbers of all channels together, at this moment:

        * ``messages_pending``: messages that wait to be taken, delayed ones included;
        * ``messages_max_age``: seconds since the oldest message that can be taken now was sent, 0 if there is none;
        * ``messages_in_flight``: messages that a worker has taken and not finished.

        The last is not in the draft. The draft's counters since the start of a server (``messages_count``,
        ``channel_full_count`` and their rates) are left out: they would cost a write for each message.
        """
        return self.statistics(None)

    def channel_statistics(self, channel: str) -> dict[str, float]:
        """Return the same for one channel. Give a process-specific channel up to and including its ``!``."""
        return self.statistics(names.check_channel_name(channel))

    def poll_interval(self) -> float:
        """Return after how many seconds a reader looks for messages without being woken."""
        return self.options["poll_interval"] or (1.0 if self.wakeups else 0.05)

    # For layers to implement.

    def check_text(self, what: str, text: str) -> None:
        """Raise InvalidMessage for a text that the layer cannot store. Control characters were refused before."""

    def link(self, name: str = "", listen: bool = True) -> Link:
        """Return a new link. ``name`` is for the database's list of sessions, where it has one."""
        return Link(self)

    def members_session(self) -> MembersSession | None:
        """Return a new session that tells an event loop who the members of groups are, if the layer has such ones."""
        return None

    def in_transaction(self) -> bool:
        """Whether the calling thread has a transaction open in which a send would take part."""
        return self.transactional and bool(connections[self.database].in_atomic_block)

    def rollback_probe(self) -> Callable[[], bool]:
        """Return a function that tells whether the caller's innermost transaction or savepoint was rolled back since.

        Django keeps what is given to ``on_commit`` until the commit runs it, and drops it at a rollback.
        """
        connection = connections[self.database]
        committed: list[bool] = []

        def commit() -> None:
            committed.append(True)

        transaction.on_commit(commit, using=self.database)
        return lambda: not committed and all(entry[1] is not commit for entry in connection.run_on_commit)

    @abstractmethod
    def write(self, operations: Sequence[Operation], drop: bool = False) -> list[Send]:
        """Write operations in order, in the caller's transaction, all or none. May raise ChannelFull.

        With ``drop``, sends to full channels are left out and returned.
        """

    def connections(
        self, after: str = "", limit: int = 500, *, watched: bool = False, **fields: Sequence[str]
    ) -> list[Record]:
        """Return the records of the WebSockets whose fields each have one of the given values.

        The fields are ``reply_channel``, ``server``, ``session_digest`` and ``login``. There are at most ``limit``
        records, sorted by reply channel, from the first one after ``after``. With ``watched``, records without a login
        are left out. A layer that keeps no records returns none; then WebSockets have no sessions.
        """
        return []

    @abstractmethod
    def group_channels(self, group: str) -> list[str]:
        """Return the full names of a group's channels. Raises InvalidName, as all methods that take a name."""

    def group_count(self, group: str) -> int:
        """Return how many channels a group has."""
        return len(self.group_channels(group))

    @abstractmethod
    def group_users(self, group: str) -> list[str]:
        """Return the ids of the users whose connections are in a group, each once, sorted as text."""

    def pop(self, queues: Sequence[str], limit: int) -> list[Delivery]:
        """Remove up to ``limit`` messages from the queues and return them."""
        raise NotImplementedError

    def claim(
        self, channels: Sequence[str], limit: int, worker: str, at_most: Mapping[str, int] | None = None
    ) -> list[Delivery]:
        """Claim due messages of durable channels for a worker, and count the attempt; see ``Link.claim``."""
        raise NotImplementedError

    @abstractmethod
    def acknowledge(self, worker: str, delivery: Delivery) -> bool:
        """End a claim in the caller's transaction. Return False if the claim was lost: the caller then rolls back.

        Of a task the result is kept.
        """

    def fail(self, worker: str, failure: Failure) -> None:
        """End a claim after a failure: the message is due again, or a dead letter. A lost claim changes nothing."""
        raise NotImplementedError

    def release(self, worker: str, delivery: Delivery) -> None:
        """Give back a claim whose consumer did not start: the attempt does not count. A lost claim changes nothing."""
        raise NotImplementedError

    @abstractmethod
    def task_record(self, task: str) -> TaskRecord | None:
        """Return what is known of the task with this id, a UUID; None if it is unknown, or no longer known."""

    @abstractmethod
    def flush(self) -> None:
        """Delete all messages, those in flight among them, and all groups, dead letters, results and schedules."""

    @abstractmethod
    def dead_letter_ids(self, channels: Sequence[str] = ()) -> list[int]:
        """Return the ids of the dead letters of these channels, or of all channels, oldest first."""

    @abstractmethod
    def replay(self, ids: Iterable[int], to: str = "") -> int:
        """Move dead letters back to their channels, to run again from the first attempt; return how many were moved.

        With ``to`` all of them are sent to this channel instead.
        They are due now, without priority and unique key, and whatever the capacity. All are moved in the caller's
        transaction on the layer's database, or in one of their own. An id is ignored if there is no such dead letter,
        or if another process is moving it at this moment, so each runs again once.
        """

    @abstractmethod
    def statistics(self, channel: str | None) -> dict[str, float]:
        """Return the numbers of ``global_statistics`` for one channel, or for all channels together."""

    def check(self) -> None:
        """Raise LayerUnavailable, with a sentence for the operator, if the layer cannot be used now."""

    def describe(self) -> str:
        """Return the layer's line in the start-up banner: where it is, and how readers are woken."""
        how = "readers are woken" if self.wakeups else f"readers poll every {self.poll_interval():g} s"
        return f"{type(self).__name__}; {how}"


def after_commit(aliases: Sequence[str], write: Callable[[], None]) -> None:
    """Call ``write`` once, when the last of these transactions has committed; never, if one is rolled back.

    Writes keep their order, because Django runs hooks in the order in which they were registered. What ``write`` raises
    leaves the ``atomic()`` block, as from any ``on_commit``: the transaction is committed by then.
    """
    left = set(aliases)

    def committed(alias: str) -> None:
        left.discard(alias)
        if not left:
            write()

    for alias in aliases:
        transaction.on_commit(partial(committed, alias), using=alias)
