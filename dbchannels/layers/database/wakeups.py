"""Wakeups for the readers of a SQLite file: a folder beside it, with a Unix datagram socket for each that waits.

Who has committed a send puts one datagram into each socket, and never waits. The datagram is a hint, and the poll is
the truth: nothing is lost when one cannot be sent. See https://man7.org/linux/man-pages/man7/unix.7.html.
"""

from __future__ import annotations

import os
import secrets
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from logging import getLogger
from typing import Any

from django.db import connections, transaction

from dbchannels.waiting import wait_readable

log = getLogger("dbchannels.layer")

LONGEST_FOLDER = 80  # bytes of its path: sun_path has 104 to 108 for all, and a socket's name takes 17
LONGEST_RING = 4096  # bytes; what would be longer tells everybody to look
EVERYBODY = "*"
FULL = 10  # datagrams that wait at least before the next is refused: Linux's least net.unix.max_dgram_qlen
TRIES = 50  # at making the folder, while others that end take it away


class BellFolder:
    """The readers' sockets beside one SQLite file. It is there only while somebody listens.

    Like the file itself it belongs to the file's owner, and to its group where the group may write the file.
    """

    def __init__(self, database: str) -> None:
        self.database = os.path.realpath(database)
        self.path = self.database + "-bells"
        self._complained = False

    @cached_property
    def problem(self) -> str:
        """Why nobody can listen here, as a part of a sentence; "" when everybody can. Tried once in each process."""
        try:
            self.listen().close()
        except (OSError, AttributeError) as error:  # AttributeError: a system without Unix sockets
            return getattr(error, "strerror", None) or str(error)
        return ""

    def listen(self) -> Bell:
        """Return a new socket of a reader's. Raises OSError where there can be none."""
        for _ in range(TRIES - 1):
            with suppress(FileNotFoundError):
                return self._listen()
        return self._listen()

    def _listen(self) -> Bell:
        file = os.stat(self.database)
        self._make(file)
        bell = Bell(os.path.join(self.path, secrets.token_hex(8)))
        try:
            with self._short_path() as folder:
                bell.socket.bind(os.path.join(folder, os.path.basename(bell.path)))
            _give(bell.path, file, 0o600)
        except OSError:
            bell.close()
            raise
        return bell

    def _make(self, file: os.stat_result) -> None:
        try:
            os.mkdir(self.path, 0o700)
        except FileExistsError:
            found = os.lstat(self.path)
            own = found.st_uid in (os.geteuid(), file.st_uid, 0) or (
                file.st_mode & stat.S_IWGRP and found.st_gid == file.st_gid
            )
            if not stat.S_ISDIR(found.st_mode) or found.st_mode & stat.S_IWOTH or not own:
                raise PermissionError(f"{self.path} is not the site's own folder") from None
        else:
            _give(self.path, file, 0o700)

    @contextmanager
    def _short_path(self) -> Iterator[str]:
        """Give a path of the folder that leaves room for a name: a long one is reached by its descriptor."""
        if len(os.fsencode(self.path)) <= LONGEST_FOLDER:
            yield self.path
            return
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)

    def ring(self, kinds: Iterable[str]) -> None:
        """Tell every reader for whom something came, see ``Link.wait``. Never waits, and raises nothing."""
        payload = " ".join(sorted(kinds)).encode()
        if len(payload) > LONGEST_RING:
            payload = EVERYBODY.encode()
        with suppress(OSError, AttributeError):
            try:
                names = os.listdir(self.path)
                # A socket for each ring: one that lasts would be shared with forked children, and what hung readers
                # leave unread would count against it.
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, self._short_path() as folder:
                    sender.setblocking(False)
                    for name in names:
                        self._ring_one(sender, os.path.join(folder, name), payload)
            except PermissionError:
                self._complain()

    def _ring_one(self, sender: socket.socket, path: str, payload: bytes) -> None:
        try:
            sender.sendto(payload, path)
        except ConnectionRefusedError:  # its reader was killed; names are never used again
            os.unlink(path)
        except (BlockingIOError, FileNotFoundError):
            pass  # it has enough to wake for, or it has just gone

    def _complain(self) -> None:
        if not self._complained:
            self._complained = True
            log.warning(
                "Readers of %s are not woken by this process, which may not enter %s: they find what it sends when "
                "they look. Run the site's processes as one user, or let one group of theirs write the file.",
                self.database,
                self.path,
            )


class Bell:
    """One reader's socket. ``path`` goes when it is closed, and the folder with the last one."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)

    def wait(self, timeout: float, *others: int) -> set[str] | None:
        """Wait to be rung, or for one of the other descriptors; return for whom it was, None for everybody."""
        if self.socket.fileno() not in wait_readable([self.socket.fileno(), *others], timeout):
            return set()
        kinds: set[str] = set()
        rings = 0
        with suppress(BlockingIOError):
            while True:
                kinds.update(self.socket.recv(LONGEST_RING).decode(errors="replace").split())
                rings += 1
        # Where so many waited, others may have found no room.
        return None if rings >= FULL or EVERYBODY in kinds else kinds

    def is_there(self) -> bool:
        """Whether it can be rung; not when somebody has cleared up the folder."""
        return os.path.exists(self.path)

    def close(self) -> None:
        """Listen no more."""
        self.socket.close()
        with suppress(OSError):
            os.unlink(self.path)
        with suppress(OSError):  # others are in there
            os.rmdir(os.path.dirname(self.path))


class Ring:
    """What is rung when a transaction has committed; later writes of the transaction add to ``kinds``."""

    def __init__(self, folder: BellFolder, kinds: set[str]) -> None:
        self.folder = folder
        self.kinds = kinds

    def __call__(self) -> None:
        self.folder.ring(self.kinds)


def bell_folder(database: str) -> BellFolder | None:
    """Return the folder for an alias of DATABASES; None for what is no SQLite file."""
    connection: Any = connections[database]
    name = str(connection.settings_dict["NAME"])  # in a test another one than in settings.DATABASES
    if connection.vendor != "sqlite" or name.startswith("file:") or name in (":memory:", ""):
        return None
    return _folder(name)


_folder = cache(BellFolder)


def ring_at_commit(folder: BellFolder, database: str, kinds: set[str]) -> None:
    """Ring once when the caller's transaction commits, however much it sends; at once outside of one.

    A savepoint that is rolled back takes along what was rung for in it alone.
    """
    connection = connections[database]
    if not connection.in_atomic_block and not connection.get_autocommit():
        return  # a transaction by hand, whose commit Django does not tell of
    # What is there now is dropped only together with what is written now: by a rollback around both.
    for _, hook, *_ in connection.run_on_commit:
        if isinstance(hook, Ring) and hook.folder is folder:
            hook.kinds |= kinds
            return
    transaction.on_commit(Ring(folder, set(kinds)), using=database, robust=True)


def _give(path: str, file: os.stat_result, mode: int) -> None:
    """Give a path to the owner and the group of the database's file, as SQLite does with its own files."""
    owner = file.st_uid if os.geteuid() == 0 else -1
    with suppress(PermissionError):
        os.chown(path, owner, file.st_gid)
    if file.st_mode & stat.S_IWGRP and os.stat(path).st_gid == file.st_gid:
        mode |= mode >> 3
    os.chmod(path, mode)
