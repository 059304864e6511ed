"""What a layer can write, as values, so that a consumer's writes can wait in order until it returns.

Here is also what makes these values of the options of a send.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from itertools import chain
from typing import Any, NamedTuple

from django.utils import timezone as site_timezone

from dbchannels import codec, names, samples
from dbchannels.conf import MAX_MESSAGES, TEN_YEARS
from dbchannels.exceptions import InvalidMessage, safe_repr
from dbchannels.protocol import EVENT

PRIORITIES = range(-32_768, 32_768)  # PostgreSQL's smallint
UNFINISHED = " (unfinished)"  # after the name of a dead server some of whose rows were locked


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
    task: str = ""  # the id of the task that it runs: what comes of it is kept under this id
    # Of protocol messages: queued even on a full channel, because somebody waits for it and for nothing else: a
    # connection for the end of its frame, a client for its answer. So there are no more of these than clients.
    certain: bool = False


class GroupAdd(NamedTuple):
    """Add a channel to a group, or renew its membership."""

    group: str
    channel: str
    is_later: bool = False  # than the first message of the client: its last id does not count for this group


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
    # With a history: how many messages the group keeps, None for any number, and for how many seconds; 0: no history.
    keep: int | None = None
    lasts: float = 0.0


class Kept(NamedTuple):
    """A message of a group's history, as the servers read it."""

    position: int
    payload: bytes
    recipients: tuple[str, ...]  # the members on the server that reads, by their local parts


class Missed(NamedTuple):
    """What one channel has missed of the histories of its groups: (position, payload), in order."""

    messages: Sequence[tuple[int, bytes]]
    gap: int | None  # a position up to which messages are gone that the channel has not had; None: none are
    complete: bool  # False: there is more


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


def missed(rows: Sequence[tuple[int, bytes]], gap: int | None, limit: int, size: int) -> Missed:
    """Return as many of the (position, payload) pairs as ``Link.missed`` gives at once."""
    count, left = 0, size
    for _, payload in rows[:limit]:
        left -= len(payload)
        if count and left < 0:
            break
        count += 1
    return Missed(rows[:count], gap, count == len(rows))


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
    waited: float = 0.0  # seconds since it was sent, or became due
    cancelled_by: str = ""  # of a durable message that must not run: it becomes a dead letter
    is_task: bool = False  # what comes of it is kept
    return_value: str = "null"  # of a task that has run: what it returned, as JSON

    @property
    def durable(self) -> bool:
        """Whether it must be acknowledged."""
        return self.id is not None


class Failure(NamedTuple):
    """A durable message whose consumer raised."""

    delivery: Delivery
    error: str  # the traceback
    retry_in: float | None  # seconds; None: no more attempts, it becomes a dead letter
    ran: bool = True  # False: the message did not run, so the last claim is no attempt
    exception: type[BaseException] = Exception  # its class
    task_result: Any = None  # of a task that raised: its TaskResult as it was when the attempt began

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
    raised: bool = False  # the consumer has failed; its client has been answered, if one waits
    return_value: str = "null"  # of a task, as JSON


class BatchResult(NamedTuple):
    """What a worker reports of its batch, written in one transaction."""

    operations: Sequence[Operation] = ()  # what the consumers sent, added and discarded, in order
    acknowledged: Sequence[Delivery] = ()  # durable messages whose consumers returned
    failures: Sequence[Failure] = ()  # durable messages whose consumers raised
    returned: Sequence[Delivery] = ()  # taken and not started: they go back, and no attempt counts
    in_flight: Sequence[Delivery] = ()  # taken and not finished
    # Each message that ran, and the number of operations by then.
    boundaries: Sequence[tuple[Delivery, int]] = ()


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


def storable(text: str) -> str:
    """Return a text that every database takes: NUL and halves of surrogate pairs are written as escapes."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def in_flight_lines(deliveries: Sequence[Delivery]) -> str:
    """Return the text of an ``InFlight`` row: a line ``CHANNEL REPLY_CHANNEL`` for each protocol message."""
    return "\n".join(f"{one.channel} {one.reply_channel}" for one in deliveries if not one.durable)


def periodic(channel: str, every: str, at: datetime) -> Send:
    """Return a periodic message, due at that moment. It is not queued while the last one waits.

    Otherwise a slow consumer would never catch up.
    """
    payload = codec.encode_trusted({"scheduled_at": at.isoformat()})
    return Send(channel, payload, "", 0.0, unique=f"every {every}"[:100])


# The options of a message on a durable channel.


def delivery_options(
    channel: str,
    delay: float | timedelta = 0,
    deliver_at: datetime | None = None,
    priority: int = 0,
    unique: str = "",
    task: str = "",
) -> dict[str, Any]:
    """Check the options of a send, and return them as fields of ``operations.Send``.

    * ``delay``: a timedelta or a number of seconds, up to ten years
    * ``deliver_at``: the moment, in place of a delay
    * ``priority``: messages with the highest one are taken first; 0 is the default
    * ``unique``: a key. While a message with this key waits on the channel, no second one is queued; the key is free
      again as soon as the message starts to run.
    * ``task``: the id of the task that the message runs, a UUID

    Raises InvalidMessage.
    """
    _check_order(priority, unique)
    seconds, moment = _due(delay, deliver_at)
    given = seconds or deliver_at is not None or priority or unique
    if given and names.is_protocol(channel):
        raise InvalidMessage(
            f"Messages on {channel} have no delay, priority or unique key: send to a channel of your own, whose "
            "consumer sends the message on."
        )
    return {"delay": seconds, "due_at": moment, "priority": priority, "unique": unique, "task": task}


def history_options(message: Mapping[str, Any], history: int | timedelta, expiry: float) -> dict[str, Any]:
    """Check the ``history`` of a message to a group, and return it as fields of ``SendGroup``. Raises InvalidMessage.

    ``expiry``: for how many seconds a message is kept of which only the number is limited.
    """
    if EVENT in message:
        raise InvalidMessage(
            f"An event ({EVENT!r}) runs code and is not kept: send it to a Group without history, or send a text."
        )
    if isinstance(history, timedelta):
        seconds = history.total_seconds()
        if not 0 < seconds <= TEN_YEARS:
            raise InvalidMessage(
                f"A history lasts more than 0 seconds and at most ten years, not {safe_repr(history, 40)}."
            )
        return {"keep": None, "lasts": seconds}
    if not isinstance(history, int) or isinstance(history, bool) or not 1 <= history <= MAX_MESSAGES:
        raise InvalidMessage(
            f"A history is a number of messages, at least 1, or a timedelta, not {safe_repr(history, 40)}: write "
            "history=100 or history=timedelta(hours=1)."
        )
    return {"keep": history, "lasts": expiry}


def _due(delay: object, deliver_at: object) -> tuple[float, datetime | None]:
    """Return a delay in seconds, and a moment; None for a past one, so that no date of another age reaches a database.

    A database would refuse NaN or 1e300 only when a worker writes a whole batch.
    """
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if not isinstance(seconds, (int, float)) or seconds != seconds:  # NaN
        raise InvalidMessage(
            f"A delay must be a timedelta or a number of seconds, not {safe_repr(seconds, 40)}: write delay=5 or "
            "delay=timedelta(...)."
        )
    if seconds < 0:
        raise InvalidMessage(
            f"A delay must not be negative, unlike {safe_repr(seconds, 40)}: leave it out to send the message now."
        )
    if seconds > TEN_YEARS:
        raise InvalidMessage(
            f"A delay must be at most ten years, not {safe_repr(seconds, 40)} s: send the message later."
        )
    if deliver_at is None:
        return float(seconds), None
    if seconds:
        raise InvalidMessage("A message has a delay or a moment, not both: leave out delay or deliver_at.")
    if not isinstance(deliver_at, datetime):
        raise InvalidMessage(
            f"deliver_at must be a datetime, not {safe_repr(deliver_at, 40)}: write deliver_at=datetime(...)."
        )
    moment = deliver_at
    if site_timezone.is_naive(moment):  # as in a model's field, it is the site's local time
        moment = site_timezone.make_aware(moment, site_timezone.get_default_timezone())
    # Not Django's now(), which is naive with USE_TZ = False.
    left = (moment - datetime.now(timezone.utc)).total_seconds()
    if left > TEN_YEARS:
        raise InvalidMessage(
            f"deliver_at must be within ten years, not {deliver_at!s:.40}: send the message later."
        )
    return 0.0, moment if left > 0 else None


def _check_order(priority: object, unique: object) -> None:
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise InvalidMessage(
            f"A priority must be a whole number, not {safe_repr(priority, 40)}: write priority=5, for example."
        )
    if priority not in PRIORITIES:
        raise InvalidMessage(
            f"A priority must be from {PRIORITIES[0]} to {PRIORITIES[-1]}, not {safe_repr(priority, 40)}."
        )
    if not isinstance(unique, str):
        raise InvalidMessage(f"A unique key must be a str, not {safe_repr(unique)}: write unique=str(...).")
    if len(unique) > names.MAX_LENGTH:
        raise InvalidMessage(
            f"A unique key must have at most {names.MAX_LENGTH} characters, not {len(unique)}: use a shorter one, such "
            "as a hash."
        )
    if not unique.isprintable():
        raise InvalidMessage(
            f"A unique key must consist of printable characters, unlike {safe_repr(unique)}: remove the others."
        )


def read_work(text: str) -> dict[str, Any]:
    """Return what a worker has recorded of its work: ``takes`` (a list), ``runs``, ``since`` and more.

    What another version wrote in another shape is left out.
    """
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = {}
    work: dict[str, Any] = {
        "takes": [],
        "runs": "",
        "since": "",
        **(found if isinstance(found, dict) else {}),
    }
    takes = work["takes"] if isinstance(work["takes"], list) else []
    return {**work, "takes": [one for one in takes if isinstance(one, str)]}


def several_sites(works: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a sentence if workers of several sites answer the same requests, else "".

    ``works``: see ``Link.workers``.
    """
    marks: dict[str, str] = {}
    for name, work in sorted(works.items()):
        if "http.request" in work["takes"] and work.get("site"):
            marks.setdefault(str(work["site"]), name)
    if len(marks) < 2:
        return ""
    return (
        f"The workers {' and '.join(marks.values())} answer the same requests with different SECRET_KEYs or "
        "ROOT_URLCONFs: unless a deploy is changing these, give each project tables of its own."
    )


def gauges(rows: Iterable[tuple[int, str, int, float]]) -> dict[str, Any]:
    """Return what ``Link.gauges`` returns of rows (position in ``samples.GAUGES``, channel, number, age).

    The position -1 stands for numbers of the site: the channel is ``socket``, ``server`` or ``worker``.
    """
    found: dict[str, Any] = {"channels": {}, **dict.fromkeys(samples.PROCESSES, 0)}
    for position, channel, number, age in rows:
        if position < 0:
            if f"{channel}s" in found:  # not the processes with Channels
                found[f"{channel}s"] = number
        else:
            numbers = found["channels"].setdefault(channel, [0] * len(samples.GAUGES))
            numbers[position] += number
            numbers[samples.OLDEST] = max(numbers[samples.OLDEST], round(age, 1))
    return found
