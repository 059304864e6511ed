"""A response on its way from the site to its client: in memory, and beyond that in unnamed files.

The worker or thread that makes the response learns how much was taken or stored, so it waits only while there is no
room. What a client takes as fast as it comes never goes to the disk.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from io import FileIO
from queue import Empty
from typing import Any

import gevent
from gevent.event import Event

from dbchannels.names import MAX_LENGTH
from dbchannels.protocol import BROKEN_OFF, CHUNK, CLOSED, ERROR, MORE_CONTENT, WINDOW, chunk, is_failure
from dbchannels.redaction import RateLimitedLog
from dbchannels.server.connection_limits import ConnectionLimits, first_kept
from dbchannels.server.http.body import BodyBudget, BodyStorageError, in_thread, new_file
from dbchannels.server.http.exchange import Exchange, Message, ResponseBuffer
from dbchannels.server.relay import Relay

log = logging.getLogger("dbchannels.server")

IN_MEMORY = 262_144  # bytes of a response that stay in memory
READ_BY_ALL = (
    16_777_216  # bytes read at once from all files that workers have sent, at least LEAST_READ from each
)
LEAST_READ = 8_192
WRITE = 1_048_576  # bytes written to a file at once
SEGMENT = 16_777_216  # bytes of one file: the disk has them back when the client has taken them
OVERHEAD = (
    128  # bytes that a message in memory takes besides its content; of what views make, none is so small
)
PATIENCE = 0.05  # seconds in which a client must take IN_MEMORY, or what waits for it goes to the disk
TELL_EVERY = (
    10.0  # seconds between two reports to a worker that waits, so that it knows that the client is there
)

REFUSED = "refused"


class ResponseBudget(BodyBudget):
    """The same budget for responses. One response may have a fourth of the disk.

    Memory may be overdrawn by what is on its way here, a window of bytes for each worker. ``may_wait`` returns how many
    responses may keep the worker or thread that makes them waiting for their clients, while there is no room for them.
    """

    def __init__(self, memory: int, disk: int, may_wait: Callable[[], int]) -> None:
        super().__init__(memory, disk)
        self.may_wait = may_wait
        self.sent_files = 0  # that workers have sent, and that are being read
        self.share = disk // 4  # of the disk, for one response
        self.waiting = 0  # responses that keep their worker waiting
        self.refused = RateLimitedLog(
            log,
            "Answered %d large responses with 503 and broke off %d: clients read too slowly, and "
            f"--max-response-spool ({disk}), or an address's half of it, is full.",
            REFUSED,
            BROKEN_OFF,
        )

    @property
    def read_size(self) -> int:
        """How many bytes of its file a client holds in memory: fewer when there are many files."""
        return min(CHUNK, max(LEAST_READ, READ_BY_ALL // max(1, self.sent_files)))


class Segment:
    """A file without a name; called in native threads."""

    def __init__(self) -> None:
        self._file: Any = new_file()
        self.size = self.taken = 0  # bytes

    def write(self, data: bytes) -> None:
        written = 0
        while written < len(data):
            written += os.pwrite(self._file.fileno(), data[written:], self.size + written)
        self.size += written

    def read(self, size: int) -> bytes:
        """Take the next bytes, at most so many."""
        data = os.pread(self._file.fileno(), min(size, self.size - self.taken), self.taken)
        if not data:
            raise OSError(errno.ENODATA, "it became shorter")
        self.taken += len(data)
        return data

    def close(self) -> None:
        """Give its blocks back to the disk, which takes a while."""
        self._file.close()


class SentFile(Segment):
    """A part of a file of the site's."""

    def __init__(self, file: FileIO, position: int, size: int) -> None:
        self._file = file
        self.taken, self.size = position, position + size


class StoredResponseBuffer(ResponseBuffer):
    """The messages of one response. ``put`` is called in the hub and never waits, ``get`` in one greenlet."""

    def __init__(self, budget: ResponseBudget, address: str) -> None:
        super().__init__(None)
        self._budget, self._address = budget, address
        # Each with its bytes; younger than what is in files.
        self._messages: deque[tuple[int, Message]] = deque()
        self._segments: deque[Segment] = deque()
        self._file: FileIO | None = None  # sent by a worker; the head says what of it to read
        self._came, self._took = Event(), Event()
        self._length: int | None = None  # of a large response whose head says it
        self._on_disk = self._reserved = 0  # bytes in files, and of the budget's disk
        self._storer: Any = None  # the greenlet that writes to files, while too much waits
        self._is_writing = self._is_closed = self._waits = False
        self._has_failed = False  # to be stored: no more of it goes to the disk
        self._is_made = False  # nobody has to be kept waiting for its client

    # From the site.

    def begin(
        self, report: Callable[[Message], None], length: int | None = None, is_made: bool = False
    ) -> bool:
        """Begin a response in chunks, of ``length`` bytes if that is known. Return False when there is no room.

        With ``is_made`` it needs no worker any more, so it never keeps one waiting, and always begins.
        """
        self._is_made = is_made
        if not is_made and not self._may_begin(length):
            self._budget.refused.count(REFUSED)
            return False
        self.report = report
        self._look_after()
        return True

    def _may_begin(self, length: int | None) -> bool:
        budget = self._budget
        if length is not None and length <= WINDOW:  # it comes without a report, so it holds up nobody
            return length <= budget.memory
        if budget.memory < WINDOW:
            return False
        room = budget.room(self._address)
        # A response of unknown length needs a whole share: else one after another would begin, and be broken off.
        fits = (length or max(WINDOW, budget.share)) <= min(room, budget.share)
        # Where none may wait, a fast client can still have a response that is larger than a share.
        alone = budget.may_wait() < 1 and room >= budget.share > 0
        if not fits and not alone and not self._begin_to_wait():
            return False
        if length is not None:
            self._length = length
            self._reserve(max(0, min(length, room, budget.share)))
        return True

    def take_file(self, file: FileIO) -> None:
        """Keep a file until `begin_file`."""
        self._drop_file()
        self._file = file
        if self._is_closed:
            self._drop_file()

    def begin_file(self, position: int, size: int) -> bool:
        """Let a part of the file be the response. Return False when the file did not come."""
        file, self._file = self._file, None
        if file is None:
            return False
        self._segments.append(SentFile(file, position, size))
        self._on_disk += self._segments[-1].size
        self._budget.sent_files += 1
        self.put(chunk(b"", more=False))
        return True

    def put(self, message: Message) -> None:
        if self._is_closed:
            return
        size = self.count_message(message)
        self._budget.take(self._address, memory=size)
        self._messages.append((size, message))
        self._came.set()
        if self.ended:
            self._end_to_wait()
        self._look_after()

    def _look_after(self) -> None:
        if self.report is not None and self._storer is None and self.waiting > self._most():
            self._storer = gevent.spawn(self._store_all)

    def _most(self) -> int:
        """Return how many bytes may stay in memory."""
        return 0 if self._budget.is_tight else IN_MEMORY

    # To the client.

    def get(self, timeout: float | None = None) -> Message:
        """Return the next message, after the client has taken the one before. Raises Empty."""
        if self._in_hand:
            self._free_taken()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            while self._segments and self._segments[0].taken == self._segments[0].size:
                if self._is_writing and len(self._segments) == 1:
                    break
                self._drop(self._segments.popleft())
                self._took.set()
            if self._segments and (segment := self._segments[0]).taken < segment.size:
                try:
                    content = in_thread(segment.read, self._budget.read_size)
                except BodyStorageError as error:
                    log.error("A response was broken off, because its file could not be read (%s).", error)
                    return {ERROR: BROKEN_OFF}
                self._took.set()
                return chunk(content)
            if self._messages and not self._is_writing:
                self._in_hand, message = self._messages.popleft()
                return message
            self._came.clear()
            if not self._came.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
                raise Empty

    def count_message(self, message: Message) -> int:
        """Count what a message brings. Return its bytes; parts of a stream of events may be tiny."""
        size = super().count_message(message)
        if self._is_made:
            size += OVERHEAD
            self.received += OVERHEAD
        return size

    def free(self, size: int) -> None:
        """Count bytes that have left the memory, for the client or for a file."""
        self._budget.take(self._address, memory=-size)
        super().free(size)
        self._shrink()
        self._took.set()

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = self.ended = True
        self._end_to_wait()
        self._budget.take(self._address, memory=self.freed - self.received)
        self.freed, self._in_hand = self.received, 0
        self._messages.clear()
        self._drop_file()
        if not self._is_writing:
            self._drop_all()
        self._took.set()

    # The files.

    def _store_all(self) -> None:
        """Write to files while more waits than may stay in memory."""
        try:
            # A first file is begun only for a client that takes less than is made, so the client gets some time.
            while not self._segments and self.waiting > self._most() and not self._is_closed:
                freed = self.freed
                gevent.sleep(PATIENCE)
                if self.freed - freed < IN_MEMORY:
                    break
            while self.waiting > self._most() and not self._is_closed:
                if batch := self._next_batch():
                    self._store(batch)
                elif self.ended or (not _is_plain(*self._messages[0]) and not self._is_made):
                    return  # nobody is held up any more
                elif self._is_made and not self._budget.is_tight:
                    return  # what waits for one client in memory has a limit, see WAITING
                elif not self._is_made and self._begin_to_wait():
                    self._took.clear()
                    self._took.wait(TELL_EVERY)
                    self.tell(TELL_EVERY)
                else:  # end the response in its middle, for its client and for the worker or thread that makes it
                    self._budget.refused.count(BROKEN_OFF)
                    self.close()
                    self._messages.append((0, {ERROR: BROKEN_OFF}))
                    self._came.set()
                    if self.report is not None:
                        self.report({CLOSED: True})
        finally:
            self._storer = None

    def _next_batch(self) -> list[tuple[int, Message]]:
        """Take from memory what there is room for in a file."""
        if self._has_failed:
            return []
        room = self._reserved - self._on_disk
        room += max(0, min(self._budget.room(self._address), self._budget.share - self._reserved))
        batch: list[tuple[int, Message]] = []
        size = 0
        while self._messages and _is_plain(*self._messages[0]):
            size += self._messages[0][0]
            if size > room or (batch and size > WRITE):
                break
            batch.append(self._messages.popleft())
        return batch

    def _store(self, batch: list[tuple[int, Message]]) -> None:
        data = b"".join(message["content"] for _, message in batch)
        self._on_disk += len(data)
        self._reserve(max(self._reserved, self._on_disk))
        self._is_writing = True
        try:
            if not self._segments or self._segments[-1].size >= min(SEGMENT, self._budget.share // 4):
                self._segments.append(in_thread(Segment))
            in_thread(self._segments[-1].write, data)
        except BodyStorageError as error:
            log.error("What a client does not take of its response could not be stored (%s).", error)
            self._has_failed = True
        finally:
            self._is_writing = False
        if self._is_closed:
            self._drop_all()
        elif self._has_failed:
            self._on_disk -= len(data)
            self._messages.extendleft(reversed(batch))
            self._shrink()
        else:
            self.free(sum(size for size, _ in batch))
        self._came.set()

    def _begin_to_wait(self) -> bool:
        """Keep the worker waiting for this client. Return False when as many wait as may."""
        if not self._waits and self._budget.waiting < self._budget.may_wait():
            self._waits = True
            self._budget.waiting += 1
        return self._waits

    def _end_to_wait(self) -> None:
        self._budget.waiting -= self._waits
        self._waits = False

    def _reserve(self, size: int) -> None:
        if size != self._reserved:
            self._budget.take(self._address, disk=size - self._reserved)
            self._reserved = size

    def _shrink(self) -> None:
        """Reserve no more than what is in files, and what may still have to go there."""
        needed = self._on_disk + max(0, (self._length or 0) - self.freed)
        if needed < self._reserved and not self._is_closed:
            self._reserve(needed)

    def _drop(self, segment: Segment) -> None:
        self._budget.sent_files -= isinstance(segment, SentFile)
        self._on_disk -= segment.size
        self._shrink()
        gevent.get_hub().threadpool.spawn(segment.close)

    def _drop_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            gevent.get_hub().threadpool.spawn(file.close)

    def _drop_all(self) -> None:
        while self._segments:
            self._drop(self._segments.popleft())
        self._on_disk = 0
        self._reserve(0)


def _is_plain(size: int, message: Message) -> bool:
    """Whether a message is nothing but content with more to come."""
    return bool(size and message.get(MORE_CONTENT)) and not is_failure(message)


class SentFiles:
    """Receives files that workers of this process tree send as descriptors, each for the response to one request.

    The workers inherit one end of a pair of sockets, so nobody else can send here. Made and used in the hub.
    """

    def __init__(self, relay: Relay, limits: ConnectionLimits) -> None:
        self._relay, self._limits = relay, limits
        self._socket, self.sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._refused = RateLimitedLog(
            log,
            "Files are answered with 503, because this process has too many open files: "
            "raise the limit (ulimit -n, or LimitNOFILE= in systemd).",
        )
        self._watcher: Any = gevent.get_hub().loop.io(self._socket.fileno(), 1)
        self._watcher.start(self.receive)

    def receive(self) -> None:
        """Hand received files to their requests. Close a file that no request waits for."""
        while True:
            try:
                channel, descriptors, _, _ = socket.recv_fds(self._socket, MAX_LENGTH, 1)
            except BlockingIOError:
                return
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
                file, receiver = FileIO(descriptor), self._relay.receiver(channel.decode())
                buffer = receiver.buffer if isinstance(receiver, Exchange) else None
                # Each connection that may come yet needs a descriptor: pages must not wait for downloads.
                is_free = descriptor + self._limits.total - self._limits.open < first_kept()
                if is_free and isinstance(buffer, StoredResponseBuffer):
                    buffer.take_file(file)
                else:
                    file.close()
                if not is_free:
                    self._refused.count()

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()
        self._socket.close()
        self.sender.close()
