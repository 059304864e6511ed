"""The body of a request while it comes: in memory at its beginning, beyond that in a file without a name."""

from __future__ import annotations

import errno
import io
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent

from dbchannels.protocol import CHUNK, FULL_PAUSE, OFFSET, SINCE, UNTIL, body_ends, chunk
from dbchannels.redaction import RateLimitedLog
from dbchannels.server.connection_limits import first_kept
from dbchannels.server.http.messages import Refused
from dbchannels.server.relay import OutboxFull, Relay

log = logging.getLogger("dbchannels.server")

RESERVED = (
    4  # a body begins a file only while a fourth of the disk's share is free: the rest is for those that grow
)
SHARE = (
    3  # times the memory that is left: alone an address has three fourths, and two of them leave a sixteenth
)

MEMORY, DISK = "memory", "disk"


class BodyBudget:
    """Counts bytes; called in the hub. What finds no room raises Refused with a 503, and must be given back.

    One address may have half of the disk, and of the memory SHARE times what is left, so that some is always left for
    others; "" stands for one without a share of its own, such as this machine's.
    """

    def __init__(self, memory: int, disk: int) -> None:
        self.memory, self.disk = memory, disk  # free
        self._memory, self._disk = memory, disk  # in all
        self._by_address: Counter[str] = Counter()  # of the disk
        self._kept: Counter[str] = Counter()  # of the memory, by address
        self._refused = RateLimitedLog(
            log,
            f"Refused %d bodies beyond --max-body-memory ({memory}) and %d beyond --max-spool ({disk}), "
            "or beyond an address's half of it.",
            MEMORY,
            DISK,
        )

    @property
    def is_tight(self) -> bool:
        """Whether less than half of the memory is free: what can go to the disk goes there at once."""
        return 2 * self.memory < self._memory

    def room(self, address: str) -> int:
        """Return how much of the disk is left for an address."""
        return min(self.disk, self._disk // 2 - self._by_address[address]) if address else self.disk

    def admit(self, size: int, address: str = "") -> None:
        """Let a body begin its file, of which so many bytes are known to come."""
        if size > self.room(address) or RESERVED * self.disk < self._disk:
            raise self._full(DISK)

    def keep(self, size: int, address: str = "") -> None:
        """Take so much memory."""
        if size > self.memory or (address and self._kept[address] + size > SHARE * self.memory):
            raise self._full(MEMORY)
        self.take(address, size)

    def store(self, size: int, address: str = "") -> None:
        """Take so much of the disk."""
        if size > self.room(address):
            raise self._full(DISK)
        self.take(address, disk=size)

    def take(self, address: str, memory: int = 0, disk: int = 0) -> None:
        """Count bytes that are taken, however few are left; numbers below 0 give them back."""
        self.memory -= memory
        self.disk -= disk
        for counter, size in ((self._by_address, disk), (self._kept, memory)):
            counter[address] += size
            if not counter[address]:
                del counter[address]

    def _full(self, what: str) -> Refused:
        self._refused.count(what)
        return Refused(503, "There is no room for the body of this request now: try again soon.")


IN_MEMORY = 262_144  # bytes behind them that are gathered before they are written to the file


class BodyStorageError(Exception):
    """The disk does not take the body, or does not give it back."""


class BodyBuffer:
    """``write`` what comes, ``read`` the part behind ``first``, ``close`` it. Files are touched in native threads."""

    def __init__(self, storage: BodyBudget, expected: int = 0, address: str = "") -> None:
        """``expected``: the body's length in bytes, 0 if unknown; raises Refused when there is no room for it.

        ``address``: whose share of the storage it takes, see ``BodyBudget``.
        """
        if expected > CHUNK + IN_MEMORY:
            storage.admit(expected, address)
        self._address = address
        self.size = 0  # bytes in all
        self._storage = storage
        self._kept = 0  # bytes of the storage's memory
        self._first = bytearray()
        self._memory = bytearray()  # what follows, and is in no file
        self._in_file = 0  # bytes
        self._on_disk = 0  # bytes of the storage's disk: those in the file, or on their way there
        self._file: Any = None

    @property
    def first(self) -> bytes:
        """The first part, of CHUNK bytes at the most."""
        return bytes(self._first)

    @property
    def rest(self) -> int:
        """How many bytes there are behind it."""
        return self.size - len(self._first)

    def write(self, data: bytes) -> None:
        """Add received data. Raise BodyStorageError when the disk is full, Refused when all bodies take too much."""
        self._storage.keep(len(data), self._address)
        self._kept += len(data)
        self.size += len(data)
        room = CHUNK - len(self._first)
        if room > 0:
            self._first += data[:room]
            data = data[room:]
        self._memory += data
        if len(self._memory) >= IN_MEMORY or (self._memory and self._storage.is_tight):
            self._put_away()

    def read(self, position: int, size: int) -> bytes:
        """Return up to ``size`` bytes from a position behind the first part; there is no more to write."""
        start = position - len(self._first)
        if start >= self._in_file:
            start -= self._in_file
            return bytes(self._memory[start : start + size])
        size = min(size, self._in_file - start)
        data: bytes = in_thread(os.pread, self._file.fileno(), size, start)
        return data

    def read_blocking(self, position: int, size: int) -> bytes:
        """Return what is at a position, in a thread that may wait. Raises OSError, also once it is closed."""
        if position < len(self._first):
            return bytes(self._first[position : position + size])
        start, file = position - len(self._first), self._file
        if start >= self._in_file:
            start -= self._in_file
            return bytes(self._memory[start : start + size])
        if file is None:
            raise OSError("The client went away.")
        return os.pread(file.fileno(), min(size, self._in_file - start), start)

    def close(self) -> None:
        """Let go of all of it."""
        file, self._file = self._file, None
        self._memory.clear()
        self._storage.take(self._address, -self._kept, -self._on_disk)
        self._kept = self._on_disk = 0
        if file is not None:
            gevent.get_hub().threadpool.spawn(file.close)  # freeing its blocks takes a while

    def _put_away(self) -> None:
        """Write to the file what is in memory behind the first part."""
        size = len(self._memory)
        if not self._on_disk:
            self._storage.admit(size, self._address)
        self._storage.store(size, self._address)
        self._on_disk += size
        memory, self._memory = self._memory, bytearray()
        in_thread(self._store, memory)
        self._storage.take(self._address, memory=-size)
        self._kept -= size

    def _store(self, data: bytearray) -> None:
        if self._file is None:
            self._file = new_file()
        self._file.write(data)
        self._file.flush()
        self._in_file += len(data)


class BodyFile(io.RawIOBase):
    """A spool as the file that a WSGI application reads (PEP 3333), from its beginning to its end, in a thread."""

    def __init__(self, spool: BodyBuffer) -> None:
        super().__init__()
        self._spool = spool
        self._position = 0

    def readable(self) -> bool:
        """It can be read, and nothing else."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as one reading goes; 0 at the end. Raises OSError when the client is gone."""
        wanted = min(len(buffer), self._spool.size - self._position)
        if wanted == 0:
            return 0
        try:
            piece = self._spool.read_blocking(self._position, wanted)
        except ValueError:  # the file was closed meanwhile
            piece = b""
        if not piece:
            raise OSError("The client went away.")
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def new_file() -> Any:
    """Return a file without a name. Raises OSError, also when its descriptor is one of those that are kept."""
    file = tempfile.TemporaryFile(prefix="dbchannels-")  # noqa: SIM115  (it lives longer)
    if file.fileno() >= first_kept():
        file.close()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return file


def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a native thread; raises BodyStorageError. gevent would print what is raised there."""

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
    """Answers ``UNTIL`` of the worker with the chunks up to there.

    A worker that misses a chunk (its channel was full, the database crashed) asks again, with ``SINCE``.
    """

    def __init__(self, relay: Relay, channel: str, spool: BodyBuffer) -> None:
        self.channel = channel
        self._relay = relay
        self._spool = spool
        self._position = spool.size - spool.rest
        self._until = 0
        self._sender: Any = None

    def asked(self, wanted: dict[str, Any]) -> None:
        """Send what the worker wants; called in the hub."""
        since, until = wanted.get(SINCE), wanted.get(UNTIL)
        if isinstance(since, int):
            self._position = max(self._spool.size - self._spool.rest, since)
        if isinstance(until, int):
            self._until = min(until, self._spool.size)
        if not self._sender:
            self._sender = gevent.spawn(self._send_all)

    def break_off(self) -> None:
        """Tell the worker that its client went away: it waits for nothing more."""
        self.close()
        self._send(body_ends())

    def close(self) -> None:
        """Send nothing more."""
        self._until = 0

    def _send_all(self) -> None:
        try:
            self._send_wanted()
        except BodyStorageError as error:
            log.error("The body of a request could not be read from the disk (%s).", error)
            self.break_off()

    def _send_wanted(self) -> None:
        while (position := self._position) < self._until:
            content = self._spool.read(position, CHUNK)
            if self._position != position or position >= self._until:
                continue  # meanwhile it asked for another place, or nobody wants it any more
            self._position += len(content)
            more = self._position < self._spool.size
            while not self._send({OFFSET: position, **chunk(content, more)}):
                gevent.sleep(FULL_PAUSE)

    def _send(self, chunk: dict[str, Any]) -> bool:
        try:
            self._relay.send(self._relay.make_send(self.channel, chunk))
        except OutboxFull:
            return False
        return True
