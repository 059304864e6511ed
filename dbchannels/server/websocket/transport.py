"""The socket of one open WebSocket, without a greenlet.

A watcher reads the socket. The bytes are parsed frame by frame while the connection has room for messages, memory is
left in its share, and the hub has time for it. Nothing more is read until all of them are parsed.

Frames are written at once, without blocking. What the socket does not take waits in one bounded queue, and a second
watcher continues when there is room. So an idle socket has no stack, and a client that does not read delays no other.
"""

from __future__ import annotations

import random
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gevent

from dbchannels.protocol import GOING_AWAY, POLICY_VIOLATION, TRY_AGAIN, VANISHED
from dbchannels.server.budget import LEAST_ROOM, Share
from dbchannels.server.history import Resume
from dbchannels.server.options import LINGERING, WebSocketLimits
from dbchannels.server.websocket.framing import (
    STEP,
    TEXT,
    Closed,
    Deflate,
    Event,
    WebSocket,
    decode_frame,
    encode_frame,
)
from dbchannels.server.websocket.messages import Outgoing

READ = 65_536  # bytes read at once
STALLED_DEADLINE = 20.0  # seconds for which a socket may wait for memory; 1013
CLOSE_DEADLINE = 5.0  # seconds for the client's half of the closing handshake
PINGS_WITHIN = 10.0  # seconds in which the client's pings are counted

HEARTBEAT = encode_frame(TEXT, b"\0heartbeat")  # dbchannels.js hides it from the page
# What a client is told that asked for ids: the id of the next message, up to which id it has everything, and up to
# which messages are gone.
ID, START, GAP = "id", "start", "gap"


def position_frame(word: str, position: int) -> bytes:
    """Return the frame with one of these words and a position; dbchannels.js hides it from the page."""
    return encode_frame(TEXT, f"\0{word} {position}".encode())


def id_before(resume: Resume | None, out: Outgoing, position: int) -> bytes:
    """Return the frame before a message with this position, 0 for none; b"" if the client needs no such frame.

    What follows an id is always a message. So a text that looks like one of our own frames, perhaps another client's,
    gets the last id once more.
    """
    if resume is None:
        return b""
    if position:
        return position_frame(ID if out.frame else START, position)
    looks_like_ours = out.frame and decode_frame(out.frame[:11])[1][:1] == b"\0"
    return position_frame(ID, resume.told) if looks_like_ours else b""


class Transport:
    """Calls ``on_event`` with what the client sends, and with Closed, perhaps again, when the socket is closed."""

    def __init__(
        self,
        sock: Any,
        on_event: Callable[[Event], None],
        limits: WebSocketLimits,
        share: Share,
        deflate: Deflate | None = None,
        heartbeat: int = 0,
    ) -> None:
        loop = gevent.get_hub().loop
        self._on_event, self._limits = on_event, limits
        self._share, self._hub_time, self._unsent = share, share.budget.hub_time, share.budget.unsent
        self._held = 0  # bytes of the share that the client's unfinished message takes
        self._events: Iterator[Event | None] | None = None  # of what was read and is not yet parsed
        self.paused = True  # nothing is read until `read`; may be set
        self._stalled_at: float | None = None  # since when the socket has waited for memory
        self._unfinished_at: float | None = None  # since when a message has been incomplete
        self._deflate = deflate
        self._protocol = WebSocket(
            limits.max_size, limits.max_fragments, limits.max_pings, compression=deflate is not None
        )
        self._frames: deque[bytes | memoryview] = deque()  # what the socket has not taken
        self._waiting = 0  # bytes in _frames
        self.charged = 0  # bytes of them, as UnsentFrames counts
        self._blocked_at: float | None = None  # since when the socket has taken nothing
        self._on_drained: Callable[[], None] | None = None
        self._closing_at: float | None = None
        now = self._heard_at = self._pinged_at = self._message_at = self._opened_at = time.monotonic()
        self._pings_since = now  # since when the client's are counted
        self._discarded: int | None = None  # bytes that came after the connection had failed; None before
        self._heartbeat = heartbeat  # seconds between two; 0: none
        self._beat_at = now - random.uniform(0, heartbeat)  # thousands may reconnect at the same moment
        self._socket = sock  # None: closed
        self._reader, self._writer = loop.io(sock.fileno(), 1), loop.io(sock.fileno(), 2)

    @property
    def closed(self) -> bool:
        """Whether the socket is closed."""
        return self._socket is None

    @property
    def closing(self) -> bool:
        """Whether one side has closed: no more messages come from the client."""
        return self._closing_at is not None

    # In.

    def read(self) -> None:
        """Start or continue to read."""
        if self.paused:
            self.paused = False
            self._hub_time.run(self._go_on)

    def _readable(self) -> None:
        if not self._hub_time.run(self._receive):
            self._reader.stop()

    def _receive(self) -> None:
        if self._socket is None:
            return
        if self._discarded is not None:
            data = self._read_now(READ)
            self._discarded += len(data or b"")
            if data == b"" or self._discarded > LINGERING:
                self.drop()
            elif not self._reader.active:
                self._reader.start(self._readable)
        elif not self.paused:
            room = self._share.room()
            if room < LEAST_ROOM:
                self._stall()
            elif (data := self._read_now(min(READ, room))) == b"":
                self.drop()
            elif data is None:
                self._go_on()
            else:
                self.received(data)

    def _read_now(self, size: int) -> bytes | None:
        """Return what has come, b"" at the end of the stream, and None if there is nothing."""
        try:
            return self._socket.recv(size)  # type: ignore[no-any-return]
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    def received(self, data: bytes) -> None:
        """Take bytes that were read from the socket."""
        self._heard_at = time.monotonic()
        if self._heard_at - self._pings_since > PINGS_WITHIN:
            self._protocol.pings_left, self._pings_since = self._limits.max_pings, self._heard_at
        self._events = self._protocol.receive(data)
        self._go_on()

    def _go_on(self) -> None:
        """Parse what was read, then read on. Called again whenever the socket has waited for something."""
        while self._events is not None and not self.paused and self._grant_step():
            try:
                event = next(self._events)
            except StopIteration:
                self._events = None
                break
            if event is not None:
                if not isinstance(event, Closed):
                    self._message_at, self._unfinished_at = self._heard_at, None
                self._on_event(event)
            if self._hub_time.is_over():
                self._hub_time.add(self._go_on)
                break
        self._hold()
        self._flush_protocol()
        if self._socket is None or self._discarded is not None:
            return
        if self._events is not None or self.paused:
            self._reader.stop()
        elif not self._reader.active:
            self._reader.start(self._readable)

    def _hold(self) -> None:
        """Count the memory of the client's unfinished message, and note since when it has been unfinished."""
        held = 0 if self._socket is None else self._protocol.held
        if held != self._held:
            self._share.hold(held - self._held)
            self._held = held
        if not held or self.paused:
            self._unfinished_at = None
        elif self._unfinished_at is None:
            self._unfinished_at = time.monotonic()
        if self._stalled_at is not None and self._share.has_room():
            self._stalled_at = None

    def _grant_step(self) -> bool:
        """Let the next step inflate as much as memory allows; False: it has to wait."""
        partial = self._protocol.partial
        if partial is None or partial.inflater is None:
            return True
        self._hold()
        room = self._share.room()
        if room < LEAST_ROOM:
            self._stall()
            return False
        partial.step = min(STEP, room)
        return True

    def _stall(self) -> None:
        """Wait for memory."""
        self._stalled_at = self._stalled_at or time.monotonic()
        self._reader.stop()
        self._share.budget.wait(self._share, self._go_on)

    # Out.

    def send(self, out: Outgoing, before: bytes = b"") -> None:
        """Send what a reply asks for: a frame, a close, or both. The frame ``before`` is written together with it."""
        if (out.frame or before) and self._protocol.state == "open":
            if self._limits.idle_timeout:
                self._message_at = time.monotonic()
            frame = out.frame if self._deflate is None or not out.frame else self._deflate.frame(out.frame)
            self._write(before + frame if before else frame)
        if out.close is not None:
            self.close(out.close, out.reason)

    def when_drained(self, call: Callable[[], None]) -> None:
        """Call a function once the socket has taken everything; at once if it has."""
        if self._frames:
            self._on_drained = call
        else:
            call()

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake, for which the client has CLOSE_DEADLINE."""
        if self._socket is None or self._closing_at is not None:
            return
        self._closing_at = time.monotonic()
        self._protocol.close(code, reason)
        self._flush_protocol()

    def _fail(self, code: int, reason: str) -> None:
        """Close, and parse nothing more of what the client sends."""
        self._on_event(self._protocol.fail(code, reason))
        self._hold()
        self._flush_protocol()

    def _flush_protocol(self) -> None:
        """Write control frames. If the connection is over, close the socket once all is written.

        After a failure, what the client still sends is discarded first, up to LINGERING bytes. If a socket is closed
        with bytes unread, the kernel resets the connection, and the client may lose the Close frame that says what was
        wrong (RFC 6455 section 7.1.1).
        """
        if self._protocol.pongs or self._protocol.control:
            self._write(self._protocol.take_output())
        if self._protocol.state != "closed" or self._socket is None:
            return
        self._closing_at = self._closing_at or time.monotonic()
        if self._frames:
            return
        if not self._protocol.failed:
            self.drop()
        elif self._discarded is None:
            self._discarded = 0
            self._events = None
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            if not self._reader.active:
                self._reader.start(self._readable)

    def _write(self, data: bytes | memoryview) -> None:
        if self._socket is not None and not self._frames:
            data = self._send_now(data)
        if self._socket is None or not data:
            return
        if not self._frames:
            self._blocked_at = time.monotonic()
            self._writer.start(self._writable)
        self._frames.append(data)
        self._waiting += len(data)
        self._unsent.add(self, _whole(data))
        if len(self._frames) > self._limits.waiting_frames or self._waiting > self._limits.waiting_bytes:
            self.drop(TRY_AGAIN)

    def _send_now(self, data: bytes | memoryview) -> Any:
        """Write without blocking; return what the socket did not take."""
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            return data
        except OSError:
            self.drop()
            return b""
        return memoryview(data)[sent:] if sent < len(data) else b""

    def _writable(self) -> None:
        while self._frames:
            data = self._frames[0]
            rest = self._send_now(data)
            if self._socket is None:
                return
            self._waiting -= len(data) - len(rest)
            if len(rest) < len(data):
                self._blocked_at = time.monotonic()
            if rest:
                self._frames[0] = rest
                return
            self._frames.popleft()
            self._unsent.remove(self, _whole(data))
        self._blocked_at = None
        self._writer.stop()
        self._flush_protocol()
        on_drained, self._on_drained = self._on_drained, None
        if on_drained is not None:
            on_drained()

    def drop(self, code: int = VANISHED) -> None:
        """Close the socket at once."""
        sock, self._socket = self._socket, None
        if sock is None:
            return
        for watcher in (self._reader, self._writer):
            watcher.stop()
            watcher.close()
        sock.close()
        while self._frames:
            self._unsent.remove(self, _whole(self._frames.popleft()))
        self._events = None
        self._protocol.receive_end()
        self._hold()
        self._on_event(Closed(code, abrupt=True))

    def tick(self, now: float) -> None:
        """Check deadlines, and send heartbeats and pings; called every few seconds."""
        # A heartbeat is a message, because a browser does not show pings to the page.
        if self._heartbeat and now - self._beat_at >= self._heartbeat:
            self._beat_at = now
            if self._protocol.state == "open" and not self._frames:
                self._write(HEARTBEAT)
        if self._socket is None:
            return
        limits = self._limits
        if self._blocked_at is not None and now - self._blocked_at > limits.send_timeout:
            self.drop(TRY_AGAIN)
        elif self._closing_at is not None:
            if now - self._closing_at > CLOSE_DEADLINE:
                self.drop()
        elif self._stalled_at is not None and now - self._stalled_at > STALLED_DEADLINE:
            self._fail(TRY_AGAIN, "there is no memory for what you send")
        elif self._unfinished_at is not None and now - self._unfinished_at > limits.message_timeout:
            self._fail(POLICY_VIOLATION, "a message was not finished in time")
        elif now - self._heard_at > limits.silence and self._reader.active:
            self.drop()
        elif limits.lifetime and now - self._opened_at > limits.lifetime:
            self.close(GOING_AWAY, "it was open for as long as it may be")
        elif limits.idle_timeout and now - self._message_at > limits.idle_timeout:
            self.close(GOING_AWAY, "nothing was said for too long")
        elif now - self._pinged_at > limits.ping_interval:
            self._pinged_at = now + random.uniform(-0.1, 0.1) * limits.ping_interval
            self._protocol.ping()
            self._flush_protocol()


def _whole(data: bytes | memoryview) -> bytes:
    """Return the whole frame of which this is the rest: it stays in memory until the last byte is sent."""
    return data.obj if isinstance(data, memoryview) else data  # type: ignore[return-value]
