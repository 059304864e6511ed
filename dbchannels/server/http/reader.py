"""Reads what comes in on a connection, with deadlines: one head after another, and the body behind each."""

from __future__ import annotations

import random
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent

from dbchannels.server.budget import HubTime
from dbchannels.server.http.messages import Refused
from dbchannels.server.http.parser import BodyReader, HeadLimits, HeadReader, RequestHead
from dbchannels.server.options import LINGERING, ServerConfig
from dbchannels.wakeup import wait_readable

READ = 65_536  # bytes of a body read at once
# Bytes read at once where nobody knows whether so many belong to the request: what is beyond it is held meanwhile.
READ_AHEAD = 8_192
PIECE = 2_048  # bytes of a body that are parsed at once: they may be hundreds of chunks
SLOWEST = 1_024  # bytes a second that a body must bring, beyond what body_timeout gives it
LINGER = 2.0  # seconds in which a refused client may still send, so that it sees its refusal
HALF_CLOSED = 10.0  # seconds in which the response to a client that has shut down its sending half must begin
LOOK_EVERY = 0.5  # seconds between two checks whether such a client has reset the connection since
SPREAD = 0.1  # of a deadline, which is later by up to so much: a flood that came at once must not end at once

_SLOW_HEAD = "The head of the request took too long to come."
_SLOW_BODY = "The body of the request took too long to come."
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_GONE = select.POLLERR | select.POLLHUP
# The client has shut down its sending half. Only Linux reports that.
_RDHUP: int = getattr(select, "POLLRDHUP", 0)


class ClientDisconnected(ConnectionError):
    """The connection broke."""


class RequestReader:
    """The reading half of one connection. Only the connection's own greenlet reads."""

    def __init__(self, sock: Any, options: ServerConfig, hub_time: HubTime) -> None:
        self._socket, self._options, self._hub_time = sock, options, hub_time
        self._head_limits = HeadLimits(options.max_line, options.max_head, options.max_headers)
        self._ahead = b""  # read, and not used yet
        self._is_first = True  # no request has come yet
        self._head_reader: HeadReader | None = None
        self.length: int | None = 0  # of the body of this request, see `RequestHead`
        self.unread = False  # the body of this request has not been read to its end
        self._expects_continue = False
        self._reading: Any = None  # the greenlet, while it waits for more of a body
        self._given_up = False
        # While a response is made:
        self._watcher: Any = None
        self._on_left: Callable[[], None] | None = None
        self._is_timed = False  # the watcher is a timer
        self._half_closed_at: float | None = (
            None  # when the client was seen to have shut down its sending half
        )
        self._needs_client = False  # such a client counts as gone
        self._is_answered = False  # the response has begun

    @property
    def request_line(self) -> str:
        """The request line so far, for the log."""
        return self._head_reader.request_line if self._head_reader else ""

    # Heads.

    def read_head(self) -> RequestHead | None:
        """Return the next request's head. Raise Refused with the response to a malformed or slow one.

        Return None when the client has sent nothing in time, at its beginning or between two requests, or has left.
        """
        reader = self._head_reader = None
        idle = self._options.head_timeout if self._is_first else self._options.keep_alive_timeout
        self._is_first = False
        deadline = _deadline(idle)
        data, self._ahead = self._ahead, b""
        while True:
            if data:
                if reader is None:
                    reader = self._head_reader = HeadReader(self._head_limits)
                has_begun = reader.begun
                head = reader.feed(data)
                if head is not None:
                    self._ahead = reader.rest
                    self.length, self.unread = head.length, head.length != 0
                    self._expects_continue, self._given_up = head.expects_continue, False
                    return head
                if not has_begun:
                    deadline = _deadline(self._options.head_timeout)
            try:
                data = self._receive(deadline)
            except TimeoutError:
                if reader is None or not reader.begun:
                    return None
                raise Refused(408, _SLOW_HEAD) from None
            if not data:
                return None

    def close_if_idle(self) -> None:
        """End a connection on which no request has begun to come."""
        if self._head_reader is None and not wait_readable([self._socket.fileno()], 0):
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RD)  # ends the wait in `read_head`

    # Bodies.

    def read_body(self, take: Callable[[bytes], None]) -> None:
        """Read the body of this request, and pass each block to ``take``.

        Raises Refused, and ClientDisconnected. A client that waits for a 100 gets it before the body is read, unless
        the body has begun to come.
        """
        reader = BodyReader(self.length, self._options.max_body)
        started, received = time.monotonic(), len(self._ahead)
        patience = self._options.body_timeout * _spread()
        data, self._ahead = self._ahead, b""
        if self._expects_continue and not data:
            self._socket.sendall(_CONTINUE)
        while True:
            for start in range(0, len(data), PIECE):
                if content := reader.feed(data[start : start + PIECE]):
                    take(content)
                # Otherwise a client that sends faster than this reads has the hub alone.
                if self._hub_time.is_over():
                    self._hub_time.wait()
            if reader.ended:
                self._ahead, self.unread = reader.rest, False
                return
            if self._given_up:
                raise _stopping()
            self._reading = gevent.getcurrent()
            try:
                latest = started + patience + received / SLOWEST
                size = min(READ, max(READ_AHEAD, reader.left))
                data = self._receive(min(latest, time.monotonic() + patience), size)
            except TimeoutError:
                raise Refused(408, _SLOW_BODY) from None
            finally:
                self._reading = None
            if not data:
                raise Refused(400, "The body of the request ended before its end.")
            received += len(data)

    def give_up(self) -> None:
        """Stop reading a body because the server stops: ``read_body`` raises Refused with a 503."""
        self._given_up = True
        gevent.get_hub().loop.run_callback(self._interrupt)

    def _interrupt(self) -> None:
        if self._reading is not None:
            self._reading.throw(_stopping())

    def _receive(self, deadline: float, size: int = READ_AHEAD) -> bytes:
        """Return received bytes, b"" at the end of the stream. Raises TimeoutError, and ClientDisconnected."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        try:
            return self._socket.recv(size)  # type: ignore[no-any-return]
        except TimeoutError:
            raise
        except OSError:
            raise ClientDisconnected from None

    # While a response is made.

    def take_ahead(self) -> bytes:
        """Return what was read beyond this request, such as frames behind a handshake."""
        data, self._ahead = self._ahead, b""
        return data

    def watch(self, on_left: Callable[[], None]) -> None:
        """Call ``on_left``, in the hub, when the client leaves while nobody reads.

        Unread data does not hide that it has left. A client that has shut down its sending half, as ``nc -N`` does,
        looks like one that has closed its socket: its response must begin within HALF_CLOSED seconds. A client that
        resets the connection is gone.
        """
        self._on_left, self._needs_client, self._is_answered = on_left, False, False
        self._start_watcher(gevent.get_hub().loop.io(self._socket.fileno(), 1))
        self._look()  # in a flood of requests that are reset at once, it has left already

    def answered(self) -> None:
        """The response has begun: a half-closed client has left only when it takes no more of it."""
        self._is_answered = True

    def need_client(self) -> None:
        """The response has no end in sight: a half-closed client has left."""
        self._needs_client = True
        if self._half_closed_at is not None:
            self._leave()

    def _start_watcher(self, watcher: Any) -> None:
        self._stop_watcher()
        self._watcher = watcher
        watcher.start(self._look)

    def _stop_watcher(self) -> None:
        self._is_timed = False
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()
            watcher.close()

    def _look(self) -> None:
        socket_events = select.poll()
        socket_events.register(self._socket.fileno(), select.POLLIN | _RDHUP)
        events = sum(seen for _, seen in socket_events.poll(0))
        now = time.monotonic()
        if events & _RDHUP and self._half_closed_at is None:
            self._half_closed_at = now
        is_late = self._half_closed_at is not None and (
            self._needs_client or (not self._is_answered and now - self._half_closed_at >= HALF_CLOSED)
        )
        if events & _GONE or is_late:
            self._leave()
        elif events and not self._is_timed:
            # The socket stays readable, so an io watcher would run without end.
            self._start_watcher(gevent.get_hub().loop.timer(LOOK_EVERY, LOOK_EVERY))
            self._is_timed = True

    def _leave(self) -> None:
        on_left = self._on_left
        self.unwatch()
        if on_left is not None:
            on_left()

    def unwatch(self) -> None:
        """Stop watching; no error when nobody watches."""
        self._stop_watcher()
        self._on_left = self._half_closed_at = None

    # The end.

    def linger(self) -> None:
        """Shut down the sending half, and drop what the client still sends for a short while.

        A socket that is closed with unread data resets the connection, and the client may lose the response that
        says what was wrong (RFC 9112 section 9.6).
        """
        deadline, dropped = time.monotonic() + LINGER, 0
        try:
            self._socket.shutdown(socket.SHUT_WR)
            while dropped < LINGERING and (data := self._receive(deadline, READ)):
                dropped += len(data)
        except OSError:
            return


def _spread() -> float:
    return 1 + SPREAD * random.random()


def _deadline(seconds: float) -> float:
    return time.monotonic() + seconds * _spread()


def _stopping() -> Refused:
    return Refused(503, "This server is stopping: send the request again.")
