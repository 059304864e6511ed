"""One HTTP request between its client and the layer: the wait for its response, and a response in chunks."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from functools import partial
from queue import Empty
from typing import TYPE_CHECKING, Any

from dbchannels.exceptions import safe_repr
from dbchannels.layers.operations import Operation, Send, Withdraw
from dbchannels.layers.relay import OutboxFull
from dbchannels.protocol import (
    BODY,
    CLOSED,
    DECLARED_DEAD,
    EVENT_STREAM,
    FULL,
    LATER,
    LOST,
    MORE_CONTENT,
    REPORT_AFTER,
    REPORT_EVERY,
    SERVER_STOPS,
    TAKEN,
    body_channel,
    chunk,
    failure_reply,
    flow_channel,
    is_event,
    is_failure,
    lost,
    status_reply,
)
from dbchannels.server.connection_limits import FairQueue, Turn
from dbchannels.server.history import Resume
from dbchannels.server.http import events, messages
from dbchannels.server.relay import Relay, Reply

if TYPE_CHECKING:
    from dbchannels.server.http.body import BodyUpload
    from dbchannels.server.http.direct import DirectExchange

log = logging.getLogger("dbchannels.server")

WAITING = 4_194_304  # bytes in memory that may wait for a slow client: a window bounds views, but not groups

_THEN = "then"  # what is to be done when the client has come so far

Message = dict[str, Any]


class BrokenOff(ConnectionError):
    """The response ended in its middle: the connection is closed, so that the client sees it."""

    def __init__(self) -> None:
        # At this number a WSGI server closes without a word. The reason is in the log already.
        super().__init__(errno.ECONNRESET, "The response was broken off.")


class ResponseBuffer:
    """The messages of a response that wait for their client. Here all are in memory.

    ``received`` and ``freed`` are bytes of content that have come, and that have left the memory since.
    """

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self.received = self.freed = 0
        self.ended = False  # the last message has come
        self.report: Callable[[Message], None] | None = None  # to the worker or thread, see `begin`
        self._in_hand = 0  # bytes of the message that `get` has returned last
        self._reported, self._reported_at = 0, time.monotonic()

    @property
    def waiting(self) -> int:
        """The number of bytes in memory that wait for their turn."""
        return self.received - self.freed - self._in_hand

    def begin(
        self, report: Callable[[Message], None], length: int | None = None, is_made: bool = False
    ) -> bool:
        """Begin a response in chunks, of ``length`` bytes if that is known. Return False when there is no room.

        With ``is_made`` it needs no worker any more, as a stream of events.
        """
        self.report = report
        return True

    def put(self, message: Message) -> None:
        self._queue.put((self.count_message(message), message))

    def count_message(self, message: Message) -> int:
        """Count what a message brings. Return the bytes of its content."""
        content = message.get("content")
        size = len(content) if isinstance(content, bytes) else 0
        self.received += size
        self.ended = self.ended or not (message.get(MORE_CONTENT) or LATER in message or TAKEN in message)
        return size

    def get(self, timeout: float | None = None) -> Message:
        """Return the next message, after the client has taken the one before. Raises Empty."""
        self._free_taken()
        self._in_hand, message = self._queue.get(timeout=timeout)
        return message  # type: ignore[no-any-return]

    def _free_taken(self) -> None:
        size, self._in_hand = self._in_hand, 0
        self.free(size)

    def free(self, size: int) -> None:
        """Count bytes that have left the memory."""
        self.freed += size
        if self.freed > self._reported:
            self.tell(0.0 if self.freed - self._reported >= REPORT_EVERY else REPORT_AFTER)

    def tell(self, after: float) -> None:
        """Report what was freed, if the response is still made and the last report is so many seconds old."""
        now = time.monotonic()
        if self.report is not None and not self.ended and now - self._reported_at >= after:
            self._reported, self._reported_at = self.freed, now
            self.report({TAKEN: self.freed})

    def close(self) -> None:
        """Free all of it."""


class Exchange:
    """Sends one request, and receives its response. ``close`` it when the response was written.

    With ``turns`` the request goes to the layer when it is its address's turn.
    """

    def __init__(
        self,
        relay: Relay,
        later_timeout: float = 600.0,
        turns: FairQueue | None = None,
        buffer: ResponseBuffer | None = None,
    ) -> None:
        self._relay = relay
        self._later_timeout = later_timeout
        self._turns = turns
        self._turn: Turn | None = None
        self.buffer = buffer or ResponseBuffer(relay.hub.queue())
        #: Called when the view has raised ResponseLater.
        self.on_later: Callable[[], None] = lambda: None
        self.upload: BodyUpload | None = None
        self.is_made = False  # the response needs no worker any more
        self._sent: Send | None = None  # the request, until a worker has answered it, and its path
        self._path: str | None = None
        self._address = ""  # of the client
        self._answered = False  # by a worker, if only in part
        self._consumed = False  # its consumer has returned
        self._later = False  # the view has raised ResponseLater
        self._left = self._broken = False  # by the client, or because the client takes less than comes
        self._in_groups = False  # the reply channel may be in some
        self.resume: Resume | None = None  # of a stream of events
        self._opened_position = relay.history.position
        self.reply_channel = relay.open(self)
        self.flow_channel = flow_channel(self.reply_channel)
        self.body_channel = body_channel(self.reply_channel)

    def request(self, message: Message, timeout: float) -> Message:
        """Send the request; return the first message of its response, or of the failure to answer with.

        In an outage of the layer that is a 503 at once. Raises BrokenOff when the client leaves.
        """
        if self._left:
            raise BrokenOff
        if self._relay.refuses:
            return status_reply(503)
        self._address = message["client"][0]
        start = partial(self._send_request, message, timeout)
        if self._turns is None:
            start()
        else:
            self._turn = self._turns.enter(self._address, start)
        try:
            first = self._next(timeout)
        except Empty:
            self._in_groups = True  # its worker may still add it to some
            if self._consumed:
                told = "send a response to message.reply_channel, or raise ResponseLater"
                log.warning(
                    "The consumer of %s returned without an answer: %s.", safe_repr(self._path, 200), told
                )
            return status_reply(503 if self._relay.unavailable else 504)
        return failure_reply(first) if is_failure(first) else first

    def _send_request(self, message: Message, timeout: float) -> None:
        sent = self._relay.make_send("http.request", message)._replace(expiry=timeout)
        try:
            self._relay.send(sent)
        except OutboxFull:
            self.buffer.put(lost(FULL))
        else:
            self._sent, self._path = sent, message["path"]

    @property
    def in_layer(self) -> Send | None:
        """The request, until a worker has answered it, if only in part."""
        return self._sent

    def deliver(self, reply: Reply) -> None:
        """Take one message, in the hub."""
        message = reply.message
        if is_event(message):  # of a group that the request waits in
            return
        if EVENT_STREAM in message:
            message = self._begin_events(message)
        elif self.resume is not None:
            message = reply.event
        elif reply.position and not self._answered and "status" not in message:
            return  # it was read before the head of a stream of events, which will catch up
        self._answered = message.get(LOST) != DECLARED_DEAD  # else the request may still wait in the layer
        if self._answered:
            self._sent = None  # a stream of events may last for days
        if self._turn is not None:
            self._turn.leave()
            self._turn = None
        self._consumed = self._consumed or TAKEN in message
        wanted = message.get(BODY)
        if isinstance(wanted, dict) and "status" not in message:
            if self.upload is not None:
                self.upload.asked(wanted)
        elif not self._broken:
            # What waits already counts: one message alone may be larger, however fast its client is.
            if self.buffer.waiting > WAITING:
                self._broken = True
                log.warning("A response was broken off: its client reads more slowly than the site sends.")
            self.buffer.put(message)

    def _begin_events(self, head: Message) -> Message:
        """Begin a stream of events; its groups are on record. Return the first message of the response."""
        self.resume, first = events.begin(head, self._opened_position)
        self.is_made = self._in_groups = True
        self._relay.history.catch_up(self.reply_channel, self._address)
        return first

    def end_events(self) -> None:
        """End a stream of events after what was sent: the server stops, and the client reconnects by itself."""
        self.buffer.put(chunk(b"", more=False))

    def tell_gap(self, position: int) -> None:
        """Tell the client that messages up to a position are gone."""
        self.buffer.put(chunk(events.event(str(position), position, "gap")))

    def when_drained(self, call: Callable[[], None]) -> None:
        """Call a function once the client has taken what it was sent."""
        self.buffer.put({TAKEN: True, _THEN: call})

    def next_chunk(self, timeout: float) -> Message:
        """Return the next message of the response. Raises BrokenOff when there is none."""
        self._in_groups = True
        try:
            message = self._next(events.KEEP_ALIVE if self.resume else timeout)
        except Empty:
            if self.resume:
                return chunk(events.COMMENT)
            raise BrokenOff from None
        if is_failure(message):
            raise BrokenOff
        return message

    def _next(self, timeout: float) -> Message:
        """Return the next message. Raises Empty after the timeout, which is another one after ResponseLater."""
        started = time.monotonic()
        while True:
            if self._left or self._broken:
                raise BrokenOff
            is_later = self._later and self.resume is None
            latest = started + (self._later_timeout if is_later else timeout)
            message = self.buffer.get(timeout=max(0.0, latest - time.monotonic()))
            if LATER in message:
                self._later = self._in_groups = True
                self.on_later()
            elif TAKEN not in message:
                return message
            elif _THEN in message:
                message[_THEN]()

    def report(self, report: Message) -> None:
        """Tell the worker that makes the response how far its client is."""
        if not self.is_made:
            self._send(self._relay.make_send(self.flow_channel, report))

    def client_left(self) -> None:
        """Tell the site, once, that the client has left; called in the hub."""
        if self._left:
            return
        self._left = True
        self.buffer.put({TAKEN: True})  # ends the wait
        if self.upload is not None:
            self.upload.break_off()
        if self._path is not None:
            message = {"reply_channel": self.reply_channel, "path": self._path}
            self._send(self._relay.make_send("http.disconnect", message))

    def give_up(self) -> None:
        """End the wait for the next message: the server stops, and its client is answered 503."""
        self._in_groups = True  # its worker may still add it to some
        self.buffer.put(lost(SERVER_STOPS))

    def withdraw(self) -> None:
        """Take the request back, unless a worker has it."""
        self._send(Withdraw("http.request", self.reply_channel))

    def close(self) -> bool:
        """Wait for nothing more, and leave all groups.

        A request that no worker has answered, if only in part, is withdrawn; then return True.
        """
        self._relay.close(self.reply_channel)  # first: the publisher then leaves out what it has not written
        self.buffer.close()
        if self._turn is not None:
            self._turn.leave()
        was_sent = self._path is not None
        is_unanswered = was_sent and not self._answered
        if is_unanswered:
            self.withdraw()
        if self.upload is not None:
            self.upload.close()
        if was_sent and (self._in_groups or self._left):
            self._relay.disconnect(self.reply_channel)
        return is_unanswered

    def _send(self, operation: Operation) -> None:
        with suppress(OutboxFull):
            self._relay.send(operation)


class Stream:
    """The content of a response in chunks, checked.

    It must be closed, as PEP 3333 requires; that ends the exchange, even if nothing was iterated.
    """

    def __init__(
        self,
        exchange: Exchange | DirectExchange,
        first: Message,
        head: messages.ResponseHead,
        timeout: float,
        ended: Callable[[], object],
    ) -> None:
        self._exchange, self._timeout, self._ended = exchange, timeout, ended
        self._finished = False
        self._failed = False  # the response broke off, though the client has not left
        self._has_body = head.has_body
        self._left = head.length if head.has_body else None  # bytes; None: any number
        self._chunks = self._run(first)

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        """End the exchange, and tell the worker if the client left early."""
        self._chunks.close()
        if not self._finished:
            self._exchange.report({CLOSED: True})
            if not self._failed:
                self._exchange.client_left()
        self._ended()

    def _run(self, message: Message) -> Generator[bytes, None, None]:
        try:
            yield self._content(message)
            while message.get(MORE_CONTENT):
                message = self._exchange.next_chunk(self._timeout)
                yield self._content(message)
            self._finished = True
            if self._left:
                log.error(
                    "A response ended %d bytes before the Content-Length that its view gave.", self._left
                )
                raise BrokenOff
        except BrokenOff:
            self._failed = True
            raise

    def _content(self, message: Message) -> bytes:
        """Return what to write of a chunk. A client would take what exceeds the length for the next response."""
        try:
            content = messages.checked_content(message)
        except ValueError as error:
            log.error("A response was broken off: %s", error)
            raise BrokenOff from None
        if not self._has_body:
            return b""
        if self._left is not None:
            if len(content) > self._left:
                log.error("A response went beyond the Content-Length that its view gave.")
                raise BrokenOff
            self._left -= len(content)
        return content
