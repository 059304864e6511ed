"""The body of a request: its beginning in memory, the rest in an unnamed file, from which the worker asks for it."""

from __future__ import annotations

import errno
import io
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent

from dbchannels.layers.relay import OutboxFull
from dbchannels.protocol import CHUNK, FULL_PAUSE, OFFSET, SINCE, UNTIL, body_ends, chunk
from dbchannels.redaction import RateLimitedLog
from dbchannels.server.connection_limits import first_kept
from dbchannels.server.http.messages import Refused
from dbchannels.server.relay import Relay

log = logging.getLogger("dbchannels.server")

IN_MEMORY = 262_144  # bytes after the first CHUNK that are collected before they are written to the file
RESERVED = 4  # a body begins a file only while a fourth of the disk is free, which is for files that grow
SHARE = 3  # times the memory that is left: an address alone has three fourths, two leave a sixteenth

MEMORY, DISK = "memory", "disk"


class BodyBudget:
    """What the bodies of all requests together may take, of memory and of the disk, in bytes. Used in the hub.

    One address may have half of the disk, and SHARE times the memory that is left, so that some is always left for
    others. The address "" has no share of its own; it is that of this machine. What was taken must be given back.
    """

    def __init__(self, memory: int, disk: int) -> None:
        self.memory, self.disk = memory, disk  # free
        self._memory, self._disk = memory, disk  # in all
        self._by_address: Counter[str] = Counter()  # of the disk
        self._kept: Counter[str] = Counter()  # of the memory, by address
        self.refused = RateLimitedLog(
            log,
            f"Refused %d bodies beyond --max-body-memory ({memory}) and %d beyond --max-spool ({disk}), "
            "or beyond an address's half of it.",
            MEMORY,
            DISK,
        )

    def used(self) -> tuple[int, int]:
        """Return the bytes that are taken, of the memory and of the disk."""
        return self._memory - self.memory, self._disk - self.disk

    @property
    def is_tight(self) -> bool:
        """Whether less than half of the memory is free: bodies then go to the disk as soon as they can."""
        return 2 * self.memory < self._memory

    def room(self, address: str) -> int:
        """Return how much of the disk is left for an address."""
        return min(self.disk, self._disk // 2 - self._by_address[address]) if address else self.disk

    def admit(self, size: int, address: str = "") -> None:
        """Let a body begin its file, which will have at least this size. Raises Refused."""
        if size > self.room(address) or RESERVED * self.disk < self._disk:
            raise self._full(DISK)

    def keep(self, size: int, address: str = "") -> None:
        """Take memory. Raises Refused."""
        if size > self.memory or (address and self._kept[address] + size > SHARE * self.memory):
            raise self._full(MEMORY)
        self.take(address, size)

    def store(self, size: int, address: str = "") -> None:
        """Take room on the disk. Raises Refused."""
        if size > self.room(address):
            raise self._full(DISK)
        self.take(address, disk=size)

    def take(self, address: str, memory: int = 0, disk: int = 0) -> None:
        """Count bytes as taken, however few are left; negative numbers give them back."""
        self.memory -= memory
        self.disk -= disk
        for counter, size in ((self._by_address, disk), (self._kept, memory)):
            counter[address] += size
            if not counter[address]:
                del counter[address]

    def _full(self, what: str) -> Refused:
        self.refused.count(what)
        return Refused(503, "There is no room for the body of this request now: try again soon.")


class BodyStorageError(Exception):
    """The disk does not take the body, or does not give it back."""


class BodyBuffer:
    """Holds one body: ``write`` what comes, then ``read`` it, and ``close`` the buffer.

    The file is read and written in native threads.
    """

    def __init__(self, budget: BodyBudget, expected: int = 0, address: str = "") -> None:
        """``expected``: the length of the body if it is known, else 0. Raises Refused when it finds no room.

        ``address``: whose share of the budget the body takes.
        """
        if expected > CHUNK + IN_MEMORY:
            budget.admit(expected, address)
        self.size = 0  # bytes in all
        self._budget, self._address = budget, address
        self._first: bytearray | bytes = bytearray()  # goes to the worker in the message of the request
        self._memory = bytearray()  # the end of the body, while it is not in the file
        self._file: Any = None  # what is between the two
        self._in_memory = self._on_disk = 0  # bytes of the budget

    @property
    def first(self) -> bytes:
        """The first part of a body that is whole, at most CHUNK bytes."""
        self._first = bytes(self._first)  # no second copy is held, however often this is called
        return self._first

    @property
    def rest(self) -> int:
        """The number of bytes behind the first part."""
        return self.size - len(self._first)

    def write(self, data: bytes) -> None:
        """Add received data. Raise BodyStorageError when the disk is full, Refused when all bodies take too much."""
        budget = self._budget
        budget.keep(len(data), self._address)
        self._in_memory += len(data)
        self.size += len(data)
        room = max(0, CHUNK - len(self._first))
        self._first += data[:room]
        self._memory += data[room:]
        size = len(self._memory)
        if size >= IN_MEMORY or (size and budget.is_tight):
            if not self._on_disk:
                budget.admit(size, self._address)
            budget.store(size, self._address)
            self._on_disk += size
            memory, self._memory = self._memory, bytearray()
            in_thread(self._append, memory)
            budget.take(self._address, memory=-size)
            self._in_memory -= size

    def _append(self, data: bytearray) -> None:
        if self._file is None:
            self._file = new_file()
        self._file.write(data)
        self._file.flush()

    def read(self, position: int, size: int) -> bytes:
        """Return up to ``size`` bytes from a position, in a thread that may wait. Raises OSError, also once closed."""
        start, on_disk, file = position - len(self._first), self._on_disk, self._file
        if start < 0:
            return bytes(self._first[position : position + size])
        data = b""
        if start >= on_disk:
            data = bytes(self._memory[start - on_disk : start - on_disk + size])
        elif file is not None:
            with suppress(ValueError):  # the file was closed meanwhile
                data = os.pread(file.fileno(), min(size, on_disk - start), start)
        if not data:
            raise OSError("The client went away.")
        return data

    def close(self) -> None:
        """Give memory and disk back."""
        file, self._file = self._file, None
        self._memory.clear()
        self._budget.take(self._address, -self._in_memory, -self._on_disk)
        self._in_memory = self._on_disk = 0
        if file is not None:
            gevent.get_hub().threadpool.spawn(file.close)  # freeing its blocks takes a while


class BodyFile(io.RawIOBase):
    """A body as the file that a WSGI application reads (PEP 3333), in a thread."""

    def __init__(self, body: BodyBuffer) -> None:
        super().__init__()
        self._body = body
        self._position = 0

    def readable(self) -> bool:
        """Return True: the file is for reading only."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read once into the buffer; return 0 at the end. Raises OSError when the client is gone."""
        wanted = min(len(buffer), self._body.size - self._position)
        if wanted == 0:
            return 0
        piece = self._body.read(self._position, wanted)
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def new_file() -> Any:
    """Return an unnamed file. Raises OSError, also when its descriptor is one of those that are kept."""
    file = tempfile.TemporaryFile(prefix="dbchannels-")  # noqa: SIM115  (it lives longer)
    if file.fileno() >= first_kept():
        file.close()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return file


def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a native thread. Raise BodyStorageError for OSError, which gevent would print there."""

    def call() -> tuple[Any, OSError | None]:
        try:
            return function(*arguments), None
        except OSError as error:
            return None, error

    result, error = gevent.get_hub().threadpool.apply(call)
    if error is not None:
        raise BodyStorageError(error.strerror or str(error))
    return result


class BodyUpload:
    """Sends the rest of a body to the worker, up to the position that the worker has asked for (``UNTIL``).

    A worker that misses a chunk (its channel was full, the database crashed) asks again, with ``SINCE``.
    """

    def __init__(self, relay: Relay, channel: str, body: BodyBuffer) -> None:
        self._relay, self._channel, self._body = relay, channel, body
        self._position = body.size - body.rest
        self._until = 0
        self._sender: Any = None

    def asked(self, wanted: dict[str, Any]) -> None:
        """Send what the worker wants; called in the hub."""
        since, until = wanted.get(SINCE), wanted.get(UNTIL)
        if isinstance(since, int):
            self._position = max(self._body.size - self._body.rest, since)
        if isinstance(until, int):
            self._until = min(until, self._body.size)
        if not self._sender:
            self._sender = gevent.spawn(self._send_all)

    def break_off(self) -> None:
        """Tell the worker that no more comes, because the client left."""
        self.close()
        self._send(body_ends())

    def close(self) -> None:
        self._until = 0

    def _send_all(self) -> None:
        try:
            while (position := self._position) < self._until:
                content = in_thread(self._body.read, position, CHUNK)
                if self._position != position or position >= self._until:
                    continue  # meanwhile the worker asked for another place, or the request has ended
                self._position += len(content)
                message = {OFFSET: position, **chunk(content, self._position < self._body.size)}
                while not self._send(message):
                    gevent.sleep(FULL_PAUSE)
        except BodyStorageError as error:
            if self._until:
                log.error("The body of a request could not be read from the disk (%s).", error)
                self.break_off()

    def _send(self, message: dict[str, Any]) -> bool:
        try:
            self._relay.send(self._relay.make_send(self._channel, message))
        except OutboxFull:
            return False
        return True
