"""The body of a request while it comes: in memory at its beginning, beyond that in a file without a name."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Callable
from typing import Any

import gevent

from dbchannels.server.connection_limits import first_kept
from dbchannels.server.http.storage import Storage

FIRST = 131_072  # bytes that go to the worker in the request's message; the rest it asks for
IN_MEMORY = 262_144  # bytes behind them that are gathered before they are written to the file


class NotStored(Exception):
    """The disk does not take the body, or does not give it back."""


class Spool:
    """``write`` what comes, ``read`` the part behind ``first``, ``close`` it. Files are touched in native threads."""

    def __init__(self, storage: Storage, expected: int = 0, address: str = "") -> None:
        """``expected``: the body's length in bytes, 0 if unknown; raises Refused when there is no room for it.

        ``address``: whose share of the storage it takes, see ``Storage``.
        """
        if expected > FIRST + IN_MEMORY:
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
        """The first part, of FIRST bytes at the most."""
        return bytes(self._first)

    @property
    def rest(self) -> int:
        """How many bytes there are behind it."""
        return self.size - len(self._first)

    def write(self, data: bytes) -> None:
        """Add what has come. Raises NotStored when the disk is full, and Refused beyond what all bodies may take."""
        self._storage.keep(len(data), self._address)
        self._kept += len(data)
        self.size += len(data)
        room = FIRST - len(self._first)
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


class SpooledBody(io.RawIOBase):
    """A spool as the file that a WSGI application reads (PEP 3333), from its beginning to its end, in a thread."""

    def __init__(self, spool: Spool) -> None:
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
    """Call a function in a native thread; raises NotStored. gevent would print what is raised there."""

    def call() -> tuple[Any, OSError | None]:
        try:
            return function(*arguments), None
        except OSError as error:
            return None, error

    result, error = gevent.get_hub().threadpool.apply(call)
    if error is not None:
        raise NotStored(error.strerror or str(error))
    return result
