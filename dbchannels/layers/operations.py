"""What a layer can be asked to write, as values: so a consumer's writes can wait, in order, until it ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from dbchannels import codec


class Send(NamedTuple):
    """One encoded message for one channel."""

    channel: str  # the full name, local part included
    payload: bytes
    reply_channel: str  # "" when the message has none
    expiry: float  # seconds, for protocol messages
    # Of durable messages:
    delay: float = 0.0  # seconds until it is due
    due_at: datetime | None = None  # or the moment itself
    priority: int = 0
    unique: str = ""  # not queued while one with this key waits on the channel
    # Of protocol messages: it goes in though its channel is full, because somebody waits for it and for nothing else,
    # a connection for the end of its frame, a client for its answer. So there are no more of these than clients.
    certain: bool = False

    def due_in(self) -> float:
        """Return in how many seconds it is due, by this host's clock; below 0 when it was due before."""
        return (self.due_at - datetime.now(timezone.utc)).total_seconds() if self.due_at else self.delay


class GroupAdd(NamedTuple):
    """Put a channel into a group, or make its membership new."""

    group: str
    channel: str


class GroupDiscard(NamedTuple):
    """Take a channel out of a group."""

    group: str
    channel: str


class GroupClear(NamedTuple):
    """Take every channel out of a group."""

    group: str


class SendGroup(NamedTuple):
    """One encoded message for every channel that is in the group when this is written."""

    group: str
    payload: bytes


class Connect(NamedTuple):
    """Record an open WebSocket."""

    reply_channel: str
    server: str
    path: str
    session_key: str = ""  # of the client's HTTP session; "" when it has none

    def session_digest(self) -> str:
        """Return what the connections of one session are found by."""
        return session_digest(self.session_key)

    def login(self) -> str:
        """Return who is logged in: nobody where there is no session, else it is found out when somebody asks."""
        return UNKNOWN if self.session_key else NOBODY

    def fields(self) -> dict[str, Any]:
        """Return the record's fields, without its key."""
        return {
            "server": self.server,
            "path": storable(self.path),
            "session_key": self.session_key,
            "session_digest": self.session_digest(),
            "login": self.login(),
        }


class Disconnect(NamedTuple):
    """Forget a WebSocket, and take its channel out of all groups."""

    reply_channel: str


class Withdraw(NamedTuple):
    """Take back what waits on a protocol channel with this reply channel; what a worker has taken stays taken."""

    channel: str  # without a local part
    reply_channel: str


class Identify(NamedTuple):
    """Note whose WebSocket it is; nothing happens when no connection has that channel."""

    reply_channel: str
    user_id: str  # the text of the primary key, "" for nobody known


class Keep(NamedTuple):
    """Keep something with a WebSocket until it ends; nothing happens when no connection has that channel."""

    reply_channel: str
    session: bytes | None  # the encoded channel session; None: as it was
    login: str | None  # see Record; None: as it was; NOBODY only where it was UNKNOWN


Operation = (
    Send
    | GroupAdd
    | GroupDiscard
    | GroupClear
    | SendGroup
    | Connect
    | Disconnect
    | Withdraw
    | Identify
    | Keep
)

#: What Record.login says beside ``+`` with the text of a user's primary key.
UNKNOWN, NOBODY = "", "-"


class Record(NamedTuple):
    """What is on record of an open WebSocket."""

    reply_channel: str
    session_key: str = ""  # of the client's HTTP session
    login: str = UNKNOWN  # who is, or was, logged in by that session
    session: bytes = b""  # the encoded channel session; b"" when nothing is kept

    def kept(self) -> dict[str, Any]:
        """Return what the disconnect consumer of a connection is told that has no record any more."""
        told = {"session_key": self.session_key, "login": self.login, "session": self.session}
        return {"session": codec.encode_trusted(told)} if self.session_key or self.session else {}


def session_digest(session_key: str) -> str:
    """Return the SHA-256 of a session's key in hexadecimal digits; "" for no session."""
    return hashlib.sha256(session_key.encode()).hexdigest() if session_key else ""


class Delivery(NamedTuple):
    """One message as a reader gets it."""

    channel: str  # the full name, except of a broadcast: then the queue
    payload: bytes
    recipients: tuple[str, ...] = ()  # of a process-specific channel: the local part of each reader
    reply_channel: str = ""
    id: int | None = None  # of a durable message
    attempt: int = 0  # of a durable message: 1 for the first

    @property
    def durable(self) -> bool:
        """Whether it must be acknowledged."""
        return self.id is not None


class Failure(NamedTuple):
    """A durable message whose consumer raised."""

    delivery: Delivery
    error: str  # the traceback
    retry_in: float | None  # seconds; None: no more attempts, it becomes a dead letter
    ran: bool = True  # False: given up before it ran again, so that its claim is no attempt

    @property
    def attempts(self) -> int:
        """How often the consumer was started."""
        return self.delivery.attempt if self.ran else self.delivery.attempt - 1

    def stored_error(self) -> str:
        """Return the last 16 KiB of the traceback, as a database takes it."""
        return storable(self.error[-16_384:])


class Result(NamedTuple):
    """What came of one message."""

    operations: Sequence[Operation]  # what its consumer sent, added and discarded, in order
    failure: Failure | None  # of a durable message whose consumer raised
    acknowledge: bool  # False: the consumer's own transaction has ended the claim, or it is lost


class BatchResult(NamedTuple):
    """What a worker reports of its batch, written in one transaction."""

    operations: Sequence[Operation] = ()  # what the consumers sent, added and discarded, in order
    acknowledged: Sequence[Delivery] = ()  # durable messages whose consumers returned
    failures: Sequence[Failure] = ()  # durable messages whose consumers raised
    returned: Sequence[Delivery] = ()  # taken and not started: back they go, no attempt counted
    in_flight: Sequence[Delivery] = ()  # taken and not finished
    boundaries: Sequence[
        tuple[Delivery, int]
    ] = ()  # each message that ran, and how many operations there were at its end


def parts(done: BatchResult) -> Iterator[BatchResult]:
    """Yield what came of each message apart, in order, what is returned first; all at once, where no ends are known."""
    if not done.boundaries:
        yield done
        return
    if done.returned:
        yield BatchResult(returned=done.returned)
    acknowledged = {one.id for one in done.acknowledged}
    failures = {one.delivery.id: one for one in done.failures}
    start = 0
    for delivery, end in done.boundaries:
        ended = [delivery] if delivery.durable and delivery.id in acknowledged else []
        failed = [failures[delivery.id]] if delivery.durable and delivery.id in failures else []
        yield BatchResult(done.operations[start:end], ended, failed, boundaries=[(delivery, end - start)])
        start = end


def merged(dones: Iterable[BatchResult]) -> BatchResult:
    """Return what came of several messages as one; what ``parts`` gave."""
    several = list(dones)
    return BatchResult(
        [one for done in several for one in done.operations],
        [one for done in several for one in done.acknowledged],
        [one for done in several for one in done.failures],
        [one for done in several for one in done.returned],
    )


def reply(channel: str, fields: dict[str, Any], expiry: float) -> Send:
    """Return the sending of a message that dbchannels makes itself: it finds room in a full channel too."""
    return Send(channel, codec.encode_trusted(fields), "", expiry, certain=True)


def storable(text: str) -> str:
    """Return a text as every database takes it: NUL, and halves of surrogate pairs, are written out."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def resends(deliveries: Sequence[Delivery], expiry: float) -> list[Send]:
    """Return what puts protocol messages back on their channels."""
    return [
        Send(one.channel + local, one.payload, one.reply_channel, expiry, certain=True)
        for one in deliveries
        for local in one.recipients or ("",)
    ]


def in_flight_lines(deliveries: Sequence[Delivery]) -> str:
    """Return the text of an ``InFlight`` row: a line ``CHANNEL REPLY_CHANNEL`` for each protocol message."""
    return "\n".join(f"{one.channel} {one.reply_channel}" for one in deliveries if not one.durable)
