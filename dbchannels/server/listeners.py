"""Where a server listens: ``8000``, ``0.0.0.0:8000``, ``[::1]:8000``, ``unix:/run/site.sock``."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import re
import socket
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from gevent import socket as gevent_socket

from dbchannels.exceptions import DBChannelsError, InvalidConfiguration

_TCP = re.compile(r"(?:(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]]+):)?(?P<port>[0-9]{1,5})\Z")
_LONGEST_PATH = 107  # bytes: the kernel's sockaddr_un has 108, one of them the end
_MODE = re.compile(r"0?o?[0-7]{3}\Z")
BACKLOG = 1024  # connections that wait to be accepted


class AddressInUse(DBChannelsError):
    """The address cannot be bound; the sentence says why and what to do."""


class Bind(NamedTuple):
    """An address to listen at: a host and a port, or the path of a Unix socket."""

    host: str
    port: int
    path: str = ""

    @classmethod
    def of(cls, text: str) -> Bind:
        """Read one; raises InvalidConfiguration, one sentence."""
        if text.startswith("unix:"):
            return cls("", 0, _checked_path(text.removeprefix("unix:")))
        found = _TCP.match(text)
        if found is None or int(found["port"]) > 65_535:
            raise InvalidConfiguration(
                f"{text!r} is no address: give a port, as 8000, or an address and a port, as 0.0.0.0:8000."
            )
        return cls((found["host"] or "127.0.0.1").strip("[]"), int(found["port"]))

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _checked_path(path: str) -> str:
    if not path or "\0" in path or len(os.fsencode(path)) > _LONGEST_PATH:
        raise InvalidConfiguration(
            f"{path!r} is no path of a Unix socket: write unix:/run/site.sock, {_LONGEST_PATH} bytes at most."
        )
    return os.path.abspath(path)


class SocketRights(NamedTuple):
    """Who may connect to the server's Unix sockets; -1 leaves the owner or the group as it is."""

    mode: int = 0o660
    user: int = -1
    group: int = -1

    @classmethod
    def of(cls, mode: str, owner: str) -> SocketRights:
        """Read ``660`` and ``user[:group]``, by name or number; raises InvalidConfiguration, one sentence."""
        if not _MODE.match(mode):
            raise InvalidConfiguration(f"{mode!r} is no mode for --socket-mode: write three digits, as 660.")
        user, _, group = owner.partition(":")
        return cls(int(mode.removeprefix("0o"), 8), _user(user), _group(group))


def _user(name: str) -> int:
    if not name or name.isdecimal():
        return int(name or -1)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise InvalidConfiguration(f"--socket-owner names {name!r}, and there is no such user.") from None


def _group(name: str) -> int:
    if not name or name.isdecimal():
        return int(name or -1)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise InvalidConfiguration(f"--socket-owner names {name!r}, and there is no such group.") from None


class Listening(NamedTuple):
    """A bound socket; ``bind`` says where, with the port that the kernel chose for port 0."""

    socket: socket.socket
    bind: Bind
    inode: int = 0  # of a Unix socket's file: another server's may stand there in the end

    def remove(self) -> None:
        """Take a Unix socket's file away, if it is still this one's."""
        if self.bind.path:
            with suppress(OSError):
                if os.stat(self.bind.path).st_ino == self.inode:
                    os.unlink(self.bind.path)


def listen_all(binds: Iterable[Bind], rights: SocketRights) -> list[Listening]:
    """Listen at every address; raises AddressInUse, and then at none."""
    listening: list[Listening] = []
    try:
        for bind in binds:
            listening.append(listen(bind, rights))
    except AddressInUse:
        for one in listening:
            one.socket.close()
            one.remove()
        raise
    return listening


def listen(bind: Bind, rights: SocketRights) -> Listening:
    """Return a listening socket; raises AddressInUse."""
    return _listen_unix(bind, rights) if bind.path else _listen_tcp(bind)


def _listen_tcp(bind: Bind) -> Listening:
    family = socket.AF_INET6 if ":" in bind.host else socket.AF_INET
    listening = gevent_socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted sockets inherit it. Without, a keep-alive response waits 44 ms for the client's delayed ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if family == socket.AF_INET6:
        # [::] is IPv6 alone, whatever the machine's default, so that 0.0.0.0 with the same port can stand beside it.
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        listening.bind((bind.host, bind.port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise AddressInUse(f"{bind} cannot be used {_why(error, _TCP_ADVICE)}.") from None
    return Listening(listening, bind._replace(port=listening.getsockname()[1]))


def _listen_unix(bind: Bind, rights: SocketRights) -> Listening:
    listening = gevent_socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(bind.path)
        # Nobody else may connect before the mode is set; no other thread makes files yet.
        before = os.umask(0o177)
        try:
            listening.bind(bind.path)
        finally:
            os.umask(before)
        inode = os.stat(bind.path).st_ino
        _give(bind.path, rights)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise AddressInUse(f"{bind} cannot be used {_why(error, _UNIX_ADVICE)}.") from None
    return Listening(listening, bind, inode)


def _why(error: OSError, advice: dict[int, str]) -> str:
    reason = error.strerror or str(error)
    if isinstance(error, socket.gaierror):  # whose numbers are not errno's
        return f"({reason}): there is no such host; name an address of this machine, as 127.0.0.1 or 0.0.0.0"
    return f"({reason}): {advice.get(error.errno or 0, 'name another one')}"


_TCP_ADVICE = {
    errno.EADDRINUSE: "stop what listens there, or name another port",
    errno.EADDRNOTAVAIL: "it is not an address of this machine; name one that is, or 0.0.0.0 for all of them",
    errno.EACCES: "this user may not listen there; name a port from 1024 on, or give the service "
    "CAP_NET_BIND_SERVICE",
    errno.EPERM: "this user may not listen there; name a port from 1024 on, or give the service "
    "CAP_NET_BIND_SERVICE",
    errno.EAFNOSUPPORT: "this machine has no IPv6; name an IPv4 address, as 127.0.0.1 or 0.0.0.0",
}
_UNIX_ADVICE = {
    errno.EADDRINUSE: "stop what listens there, or name another path",
    errno.EEXIST: "take that file away, or name another path",
    errno.ENOENT: "make the folder first, or name another path",
    errno.ENOTDIR: "a part of the path is a file; name another path",
    errno.EACCES: "this user may not write into the folder; change its rights, or name another path",
    errno.EPERM: "this user may not do that; look at --socket-owner and the folder's rights",
    errno.EROFS: "the file system cannot be written to; name another path",
}


def _give(path: str, rights: SocketRights) -> None:
    try:
        if (rights.user, rights.group) != (-1, -1):
            os.chown(path, rights.user, rights.group)
        os.chmod(path, rights.mode)
    except OSError:
        os.unlink(path)
        raise


def _remove_stale(path: str) -> None:
    """Take away the socket of a server that was killed; never another kind of file, nor a living server's."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "a file that is no socket stands there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full: somebody listens
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
