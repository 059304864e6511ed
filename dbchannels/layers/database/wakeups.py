"""Wakeups for the readers of a SQLite file: a folder beside it, with a Unix datagram socket for each waiting reader.

After the commit of a send a datagram goes to each socket, without waiting. A datagram is only a hint: readers poll as
well, so nothing is lost when one cannot be sent. See https://man7.org/linux/man-pages/man7/unix.7.html.
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

from dbchannels.wakeup import wait_readable

log = getLogger("dbchannels.layer")

LONGEST_FOLDER = 80  # bytes of its path: sun_path has 104 to 108 for all, and a socket's name takes 17
LONGEST_DATAGRAM = 4096  # bytes; a longer one is replaced by EVERYBODY
EVERYBODY = "*"
FULL = 10  # waiting datagrams after which the next may be refused: Linux's least net.unix.max_dgram_qlen
TRIES = 50  # at making the folder, while other readers that leave remove it
NO_ENTRY = (
    "Readers of %s are not woken by this process, which may not enter %s: they find what it sends when they look. "
    "Run the site's processes as one user, or let one group of theirs write the file."
)


class WakeupFolder:
    """The readers' sockets beside one SQLite file. The folder exists only while somebody listens.

    Like the file it belongs to the file's owner, and to its group where the group may write the file.
    """

    def __init__(self, database: str) -> None:
        self.database = os.path.realpath(database)
        self.path = self.database + "-wakeups"
        self._has_warned = False

    @cached_property
    def problem(self) -> str:
        """Why nobody can listen here, as a part of a sentence; "" when everybody can. Tried once in each process."""
        try:
            self.listen().close()
        except (OSError, AttributeError) as error:  # AttributeError: a system without Unix sockets
            return getattr(error, "strerror", None) or str(error)
        return ""

    def listen(self) -> WakeupSocket:
        """Return a new socket for a reader. Raises OSError where there can be none."""
        for _ in range(TRIES - 1):
            with suppress(FileNotFoundError):
                return self._listen()
        return self._listen()

    def _listen(self) -> WakeupSocket:
        file = os.stat(self.database)
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
            _share(self.path, file, 0o700)
        wakeup_socket = WakeupSocket(os.path.join(self.path, secrets.token_hex(8)))
        try:
            with self._short_path() as folder:
                wakeup_socket.socket.bind(os.path.join(folder, os.path.basename(wakeup_socket.path)))
            _share(wakeup_socket.path, file, 0o600)
        except OSError:
            wakeup_socket.close()
            raise
        return wakeup_socket

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

    def notify(self, kinds: Iterable[str]) -> None:
        """Wake every reader of these kinds of messages, see ``Link.wait``. Never waits, and raises nothing."""
        payload = " ".join(sorted(kinds)).encode()
        if len(payload) > LONGEST_DATAGRAM:
            payload = EVERYBODY.encode()
        with suppress(OSError, AttributeError):
            try:
                names = os.listdir(self.path)
                # A new socket each time: a lasting one would be shared with forked children, and what hung readers
                # leave unread would count against it.
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, self._short_path() as folder:
                    sender.setblocking(False)
                    for name in names:
                        path = os.path.join(folder, name)
                        # A full socket has enough to wake its reader; a missing one was closed just now.
                        with suppress(BlockingIOError, FileNotFoundError):
                            try:
                                sender.sendto(payload, path)
                            except ConnectionRefusedError:
                                # The reader was killed; names are never used again.
                                os.unlink(path)
            except PermissionError:
                if not self._has_warned:
                    log.warning(NO_ENTRY, self.database, self.path)
                self._has_warned = True


class WakeupSocket:
    """One reader's socket. Closing it removes its path, and the folder after the last one."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)

    def wait(self, timeout: float, *others: int) -> set[str] | None:
        """Wait for a wakeup, or for one of the other descriptors; return the kinds of messages, None for all kinds."""
        if self.socket.fileno() not in wait_readable([self.socket.fileno(), *others], timeout):
            return set()
        kinds: set[str] = set()
        datagrams = 0
        with suppress(BlockingIOError):
            while True:
                kinds.update(self.socket.recv(LONGEST_DATAGRAM).decode(errors="replace").split())
                datagrams += 1
        # Where so many waited, others may have been refused.
        return None if datagrams >= FULL or EVERYBODY in kinds else kinds

    def exists(self) -> bool:
        """Whether wakeups can reach the socket; not when somebody has removed its path."""
        return os.path.exists(self.path)

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()
        with suppress(OSError):
            os.unlink(self.path)
        with suppress(OSError):  # the folder is not empty
            os.rmdir(os.path.dirname(self.path))


class WakeOnCommit:
    """The hook that wakes readers once a transaction has committed; its later writes add to ``kinds``."""

    def __init__(self, folder: WakeupFolder, kinds: set[str]) -> None:
        self.folder = folder
        self.kinds = kinds

    def __call__(self) -> None:
        self.folder.notify(self.kinds)


def wakeup_folder(database: str) -> WakeupFolder | None:
    """Return the folder for an alias of DATABASES; None if that is not a SQLite file."""
    connection: Any = connections[database]
    name = str(connection.settings_dict["NAME"])  # in a test another one than in settings.DATABASES
    if connection.vendor != "sqlite" or name.startswith("file:") or name in (":memory:", ""):
        return None
    return _folder(name)


_folder = cache(WakeupFolder)


def wake_on_commit(folder: WakeupFolder, database: str, kinds: set[str]) -> None:
    """Wake readers once when the caller's transaction commits, however much it sends; at once outside of one.

    The rollback of a savepoint drops the wakeups for what was sent inside.
    """
    connection = connections[database]
    if not connection.in_atomic_block and not connection.get_autocommit():
        return  # a transaction by hand, whose commit Django does not tell of
    # A hook that is there now is dropped only by a rollback that drops the new writes too.
    for _, hook, *_ in connection.run_on_commit:
        if isinstance(hook, WakeOnCommit) and hook.folder is folder:
            hook.kinds |= kinds
            return
    transaction.on_commit(WakeOnCommit(folder, set(kinds)), using=database, robust=True)


def _share(path: str, file: os.stat_result, mode: int) -> None:
    """Give a path to the owner and the group of the database's file, as SQLite does with its own files."""
    owner = file.st_uid if os.geteuid() == 0 else -1
    with suppress(PermissionError):
        os.chown(path, owner, file.st_gid)
    if file.st_mode & stat.S_IWGRP and os.stat(path).st_gid == file.st_gid:
        mode |= mode >> 3
    os.chmod(path, mode)
