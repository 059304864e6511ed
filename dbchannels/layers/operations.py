"""What a layer can write, as values, so that a consumer's writes can wait in order until it returns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from itertools import chain
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
    unique: str = ""  # not queued while a message with this key waits on the channel
    # Of protocol messages: queued even on a full channel, because somebody waits for it and for nothing else: a
    # connection for the end of its frame, a client for its answer. So there are no more of these than clients.
    certain: bool = False

    def due_in(self) -> float:
        """Return in how many seconds the message is due, by this host's clock; less than 0 for a past moment."""
        return (self.due_at - datetime.now(timezone.utc)).total_seconds() if self.due_at else self.delay


class GroupAdd(NamedTuple):
    """Add a channel to a group, or renew its membership."""

    group: str
    channel: str


class GroupDiscard(NamedTuple):
    """Remove a channel from a group."""

    group: str
    channel: str


class GroupClear(NamedTuple):
    """Remove every channel from a group."""

    group: str


class SendGroup(NamedTuple):
    """One encoded message for every channel that is a member of the group at the moment of writing."""

    group: str
    payload: bytes


class Connect(NamedTuple):
    """Record an open WebSocket."""

    reply_channel: str
    server: str
    path: str
    session_key: str = ""  # of the client's HTTP session; "" when it has none

    def fields(self) -> dict[str, Any]:
        """Return the record's fields, without its key. The login of a session is looked up when somebody asks."""
        return {
            "server": self.server,
            "path": storable(self.path),
            "session_key": self.session_key,
            "session_digest": session_digest(self.session_key),
            "login": UNKNOWN if self.session_key else NOBODY,
        }


class Disconnect(NamedTuple):
    """Delete the record of a WebSocket, and remove its channel from all groups."""

    reply_channel: str


class Withdraw(NamedTuple):
    """Delete what waits on a protocol channel with this reply channel; what a worker has received is not affected."""

    channel: str  # without a local part
    reply_channel: str


class Identify(NamedTuple):
    """Record whose WebSocket it is; nothing happens if no connection has that channel."""

    reply_channel: str
    user_id: str  # the primary key as text, "" for an unknown user


class Keep(NamedTuple):
    """Store something with a WebSocket until it closes; nothing happens if no connection has that channel."""

    reply_channel: str
    session: bytes | None  # the encoded channel session; None leaves it
    login: str | None  # see Record; None leaves it; NOBODY replaces UNKNOWN only


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

#: The values of Record.login beside ``+`` with a user's primary key as text.
UNKNOWN, NOBODY = "", "-"


class Record(NamedTuple):
    """The record of an open WebSocket."""

    reply_channel: str
    session_key: str = ""  # of the client's HTTP session
    login: str = UNKNOWN  # who is, or was, logged in by that session
    session: bytes = b""  # the encoded channel session; b"" when nothing is kept

    def kept(self) -> dict[str, Any]:
        """Return what the message of a disconnect carries when the record is deleted."""
        kept = {"session_key": self.session_key, "login": self.login, "session": self.session}
        return {"session": codec.encode_trusted(kept)} if self.session_key or self.session else {}


def session_digest(session_key: str) -> str:
    """Return the SHA-256 of a session's key in hexadecimal digits; "" for no session."""
    return hashlib.sha256(session_key.encode()).hexdigest() if session_key else ""


class Delivery(NamedTuple):
    """One message as a reader receives it."""

    channel: str  # of a process-specific channel the part up to and with the "!"
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
    ran: bool = True  # False: the message did not run again, so the last claim is no attempt

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
    returned: Sequence[Delivery] = ()  # taken and not started: they go back, and no attempt counts
    in_flight: Sequence[Delivery] = ()  # taken and not finished
    boundaries: Sequence[
        tuple[Delivery, int]
    ] = ()  # each message that ran, and the number of operations by then


def parts(done: BatchResult) -> Iterator[BatchResult]:
    """Yield the result of each message, in order, after what is returned; without boundaries the whole result."""
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
    """Return several results of ``parts`` as one."""
    fields = zip(*(done[:4] for done in dones), strict=True)
    return BatchResult(*(list(chain.from_iterable(field)) for field in fields))


def reply(channel: str, fields: dict[str, Any], expiry: float) -> Send:
    """Return the send of a message that dbchannels makes itself; it is queued even on a full channel."""
    return Send(channel, codec.encode_trusted(fields), "", expiry, certain=True)


def storable(text: str) -> str:
    """Return a text that every database takes: NUL and halves of surrogate pairs are written as escapes."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def resends(deliveries: Sequence[Delivery], expiry: float) -> list[Send]:
    """Return the sends that put protocol messages back on their channels."""
    return [
        Send(one.channel + recipient, one.payload, one.reply_channel, expiry, certain=True)
        for one in deliveries
        for recipient in one.recipients or ("",)
    ]


def in_flight_lines(deliveries: Sequence[Delivery]) -> str:
    """Return the text of an ``InFlight`` row: a line ``CHANNEL REPLY_CHANNEL`` for each protocol message."""
    return "\n".join(f"{one.channel} {one.reply_channel}" for one in deliveries if not one.durable)
