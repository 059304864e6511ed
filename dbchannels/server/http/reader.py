"""What comes in on a connection, read with deadlines: one head after another, and the body behind each."""

from __future__ import annotations

import errno
import random
import select
import socket
import time
from collections.abc import Callable
from typing import Any

import gevent

from dbchannels.server.budget import Turns
from dbchannels.server.config import LINGERING, ServerConfig
from dbchannels.server.http.messages import Refused
from dbchannels.server.http.parser import BodyReader, HeadReader, RequestHead

READ = 65_536  # bytes read at once
PIECE = 2_048  # bytes of a body that are taken apart at once: they may be hundreds of chunks
SLOWEST = 1_024  # bytes a second that a body must bring, beyond what body_timeout gives it
LINGER = 2.0  # seconds in which a client may still send what nobody reads, so that it sees its refusal
HALF_CLOSED = 10.0  # seconds in which the answer to a client that has ended its sending half must begin
LOOK_EVERY = 0.5  # seconds between two looks whether it has reset the connection since
SPREAD = 0.1  # of a deadline, by which some have it later: a flood that came at once must not end at once

_STOPS = "This server stops: send the request again."
_SLOW_HEAD = "The head of the request took too long to come."
_SLOW_BODY = "The body of the request took too long to come."
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_GONE = select.POLLERR | select.POLLHUP
_HALF_CLOSED: int = getattr(
    select, "POLLRDHUP", 0
)  # the client has ended its sending half; Linux alone tells it


class ClientDisconnected(ConnectionError):
    """The connection broke in the middle of what the client sent."""

    def __init__(self) -> None:
        super().__init__(
            errno.ECONNRESET, "The client went away."
        )  # at this number pywsgi closes without a word


class RequestReader:
    """The reading half of one connection; only its own greenlet reads."""

    def __init__(self, sock: Any, options: ServerConfig, turns: Turns) -> None:
        self._socket, self._turns = sock, turns
        self._options = options
        self._ahead = b""  # read, and not yet used
        self._first = True  # no request has come yet
        self._watcher: Any = None
        self._looks_again = False  # every now and then, whatever comes
        self._on_left: Callable[[], None] | None = None  # while it is watched
        self._half_closed_at: float | None = None  # when the client was seen to have ended its half
        self._needs_client = False  # a client that has ended its half counts as gone
        self._is_answered = False  # the response has begun
        self._waiting: Any = None  # the greenlet, while it waits for more of a body
        self._given_up = False
        self.reader: HeadReader | None = None  # of the head that comes

    # Heads.

    def read_head(self) -> RequestHead | None:
        """Return the next request's head; None when the client sends none. Raises Refused with what to answer.

        A client that sent nothing in time, at its beginning or between two requests, is left without a word.
        """
        self.reader = HeadReader(self._options.head_limits)
        idle = self._options.head_timeout if self._first else self._options.keep_alive_timeout
        self._first = False
        deadline = time.monotonic() + _spread(idle)
        data, self._ahead = self._ahead, b""
        while True:
            if data:
                begun = self.reader.begun
                head = self.reader.feed(data)
                if head is not None:
                    self._ahead = self.reader.rest
                    return head
                if not begun:
                    deadline = time.monotonic() + _spread(self._options.head_timeout)
            try:
                data = self._receive(deadline)
            except TimeoutError:
                if not self.reader.begun:
                    return None
                raise Refused(408, _SLOW_HEAD) from None
            if not data:
                return None

    # Bodies.

    def read_body(self, head: RequestHead, take: Callable[[bytes], None]) -> None:
        """Read the body, and give it to ``take`` block by block.

        Raises Refused with the response, ClientDisconnected when the connection broke. A client that waits for a 100
        gets it first, unless its body has begun to come.
        """
        self._given_up = False
        reader = BodyReader(head.length, self._options.max_body)
        started, received = time.monotonic(), len(self._ahead)
        patience = _spread(self._options.body_timeout)
        data, self._ahead = self._ahead, b""
        if head.expects_continue and not data:
            self._socket.sendall(_CONTINUE)
        while True:
            for start in range(0, len(data), PIECE):
                if content := reader.feed(data[start : start + PIECE]):
                    take(content)
                if self._turns.is_over():  # or who sends faster than this reads would have the hub alone
                    self._turns.wait()
            if reader.ended:
                self._ahead = reader.rest
                return
            latest = started + patience + received / SLOWEST
            try:
                data = self._receive_more(min(latest, time.monotonic() + patience))
            except TimeoutError:
                raise Refused(408, _SLOW_BODY) from None
            if not data:
                raise Refused(400, "The body of the request ended before its end.")
            received += len(data)

    def _receive_more(self, deadline: float) -> bytes:
        if self._given_up:
            raise _stopping()
        self._waiting = gevent.getcurrent()
        try:
            return self._receive(deadline)
        finally:
            self._waiting = None

    def give_up(self) -> None:
        """Read no more of a body: the server stops, and ``read_body`` raises Refused with a 503."""
        self._given_up = True
        gevent.get_hub().loop.run_callback(self._interrupt)

    def _interrupt(self) -> None:
        if self._waiting is not None:
            self._waiting.throw(_stopping())

    def _receive(self, deadline: float) -> bytes:
        """Return what comes, b"" at the end; raises TimeoutError, and ClientDisconnected for a broken connection."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        try:
            return self._socket.recv(READ)  # type: ignore[no-any-return]
        except TimeoutError:
            raise
        except OSError:
            raise ClientDisconnected from None

    # While a response is made.

    def take_ahead(self) -> bytes:
        """Return what was read too far, frames behind a handshake, and read no more."""
        data, self._ahead = self._ahead, b""
        return data

    def watch(self, on_left: Callable[[], None]) -> None:
        """Call ``on_left``, in the hub, when the client goes away while nobody reads.

        What it has sent before is read in its turn, and does not hide that it has left. A client that ends its sending
        half alone, as ``nc -N`` does, looks like one that has closed its socket: its answer must begin within
        HALF_CLOSED seconds. One that resets the connection is gone.
        """
        self._on_left, self._needs_client, self._is_answered = on_left, False, False
        self._start_watcher(gevent.get_hub().loop.io(self._socket.fileno(), 1), self._look)
        self._look()  # in a flood of requests that are reset at once it has left already

    def answered(self) -> None:
        """From now on a client that has ended its sending half has left when it takes no more of the response."""
        self._is_answered = True

    def need_client(self) -> None:
        """From now on a client that has ended its sending half has left: the response has no end in sight."""
        self._needs_client = True
        if self._half_closed_at is not None:
            self._leave()

    def _start_watcher(self, watcher: Any, call: Callable[[], None]) -> None:
        self._stop_watcher()
        self._watcher = watcher
        watcher.start(call)

    def _stop_watcher(self) -> None:
        self._looks_again = False
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()
            watcher.close()

    def _look(self) -> None:
        socket_events = select.poll()
        socket_events.register(self._socket.fileno(), select.POLLIN | _HALF_CLOSED)
        events = sum(seen for _, seen in socket_events.poll(0))
        if events & _HALF_CLOSED and self._half_closed_at is None:
            self._half_closed_at = time.monotonic()
        if events & _GONE or (self._half_closed_at is not None and self._is_late(self._half_closed_at)):
            self._leave()
        elif events and not self._looks_again:
            # The socket can be read from now on, so a watcher of that would never rest.
            self._start_watcher(gevent.get_hub().loop.timer(LOOK_EVERY, LOOK_EVERY), self._look)
            self._looks_again = True

    def _is_late(self, half_closed_at: float) -> bool:
        late = not self._is_answered and time.monotonic() - half_closed_at >= HALF_CLOSED
        return self._needs_client or late

    def _leave(self) -> None:
        on_left = self._on_left
        self.unwatch()
        if on_left is not None:
            on_left()

    def unwatch(self) -> None:
        """Look no more; no error when nobody looks."""
        self._stop_watcher()
        self._on_left = self._half_closed_at = None

    # The end.

    def linger(self) -> None:
        """Say that nothing more comes, and drop what the client still sends, for a short while.

        A socket that is closed with unread data resets the connection, and the client may lose the answer that
        says what was wrong (RFC 9112 section 9.6).
        """
        deadline, dropped = time.monotonic() + LINGER, 0
        try:
            self._socket.shutdown(socket.SHUT_WR)
            while dropped < LINGERING and (data := self._receive(deadline)):
                dropped += len(data)
        except OSError:
            return


def _spread(seconds: float) -> float:
    return seconds * (1 + SPREAD * random.random())


def _stopping() -> Refused:
    return Refused(503, _STOPS, [("Retry-After", "5")])
