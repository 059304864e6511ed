"""The addresses that a server listens at: ``8000``, ``0.0.0.0:8000``, ``[::1]:8000``, ``unix:/run/site.sock``."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import re
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from dbchannels.exceptions import DBChannelsError, InvalidConfiguration

_TCP = re.compile(r"(?:(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]]+):)?(?P<port>[0-9]{1,5})\Z")
_LONGEST_PATH = 107  # bytes: the kernel's sockaddr_un has 108, the last of which is a NUL
_MODE = re.compile(r"0?o?[0-7]{3}\Z")
BACKLOG = 1024  # connections that wait to be accepted


class AddressInUse(DBChannelsError):
    """The address cannot be bound; the sentence says why and what to do."""


class Address(NamedTuple):
    """A host and a port, or the path of a Unix socket."""

    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address from the command line. Raises InvalidConfiguration."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not path or "\0" in path or len(os.fsencode(path)) > _LONGEST_PATH:
                raise InvalidConfiguration(
                    f"{path!r} is not the path of a Unix socket: write unix:/run/site.sock, "
                    f"{_LONGEST_PATH} bytes at most."
                )
            return cls("", 0, os.path.abspath(path))
        found = _TCP.match(text)
        if found is None or int(found["port"]) > 65_535:
            raise InvalidConfiguration(
                f"{text!r} is not an address: give a port, as 8000, or an address and a port, as 0.0.0.0:8000."
            )
        return cls((found["host"] or "127.0.0.1").strip("[]"), int(found["port"]))

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


DEFAULT = Address("127.0.0.1", 8000)


class SocketPermissions(NamedTuple):
    """Who may connect to a Unix socket; -1 leaves the owner or the group as it is."""

    mode: int = 0o660
    user: int = -1
    group: int = -1

    @classmethod
    def parse(cls, mode: str, owner: str) -> SocketPermissions:
        """Read ``660`` and ``user[:group]``, each by name or number. Raises InvalidConfiguration."""
        if not _MODE.match(mode):
            raise InvalidConfiguration(
                f"{mode!r} is not a mode for --socket-mode: write three digits, as 660."
            )
        ids = []
        for kind, name in zip(("user", "group"), owner.partition(":")[::2], strict=True):
            if not name or name.isdecimal():
                ids.append(int(name or -1))
                continue
            try:
                ids.append(pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid)
            except KeyError:
                raise InvalidConfiguration(
                    f"--socket-owner names {name!r}, and there is no such {kind}."
                ) from None
        return cls(int(mode.removeprefix("0o"), 8), *ids)


@dataclass(eq=False)
class Listener:
    """A listening socket. ``address`` has the port that the kernel chose for port 0."""

    socket: socket.socket
    address: Address
    #: Of a Unix socket's file: another server's file may replace it. 0: the file is not this process's to remove.
    inode: int = 0

    @classmethod
    def inherited(cls, descriptor: int) -> Listener:
        """Take a descriptor that another process has made. Raises InvalidConfiguration if it does not listen."""
        try:
            os.set_inheritable(descriptor, False)
            sock = socket.socket(fileno=descriptor)
            try:
                sock.setblocking(False)
                return cls(sock, _listens_at(sock))
            except OSError:
                sock.close()
                raise
        except OSError as error:
            raise InvalidConfiguration(
                f"The descriptor {descriptor} that was passed to this server cannot be used ({error.strerror}): "
                "pass listening stream sockets, TCP or Unix."
            ) from None

    def is_at(self, address: Address) -> bool:
        """Whether this is a listener for an address of the command line; port 0 is any."""
        return self.address._replace(port=address.port and self.address.port) == address

    def remove(self) -> None:
        """Remove the file of a Unix socket, if it is still this listener's."""
        if self.inode:
            with suppress(OSError):
                if os.stat(self.address.path).st_ino == self.inode:
                    os.unlink(self.address.path)


class Inherited(NamedTuple):
    """Listeners that this process has not made: of the service manager, or of a server from which it takes over."""

    site: tuple[Listener, ...] = ()
    probe: Listener | None = None


def listen_all(
    addresses: Sequence[Address], permissions: SocketPermissions, inherited: Sequence[Listener] = ()
) -> list[Listener]:
    """Listen at all addresses, the default one if there is none; raises AddressInUse, and then listens at none.

    An inherited listener is taken for its address, and without addresses all of them are taken.
    """
    if inherited and not addresses:
        return list(inherited)
    free, listeners = list(inherited), list[Listener]()
    try:
        for address in addresses or [DEFAULT]:
            known = next((one for one in free if one.is_at(address)), None)
            if known is not None:
                free.remove(known)
            listeners.append(known or listen(address, permissions))
    except AddressInUse:
        for listener in listeners:
            listener.socket.close()
            listener.remove()
        raise
    return listeners


def listen(address: Address, permissions: SocketPermissions) -> Listener:
    """Listen at one address; raises AddressInUse."""
    family = socket.AF_UNIX if address.path else socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)  # gevent accepts from it
            if address.path:
                listener = _bind_unix(sock, address, permissions)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                # Accepted sockets inherit it. Without, a keep-alive response waits 44 ms for the client's delayed ACK.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if family == socket.AF_INET6:
                    # [::] takes IPv6 alone, whatever the machine's default, so that 0.0.0.0 can have the same port.
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((address.host, address.port))
                listener = Listener(sock, address._replace(port=sock.getsockname()[1]))
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        advice = (_UNIX_ADVICE if address.path else _TCP_ADVICE).get(error.errno or 0, "name another one")
        if isinstance(error, socket.gaierror):  # its numbers are not errno's
            advice = "there is no such host; name an address of this machine, as 127.0.0.1 or 0.0.0.0"
        raise AddressInUse(f"{address} cannot be used ({reason}): {advice}.") from None
    return listener


def _listens_at(sock: socket.socket) -> Address:
    """Return the address of a listening stream socket, TCP or Unix. Raises OSError for any other."""
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise OSError(errno.EINVAL, "it is not a listening stream socket")
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        # Linux's abstract addresses begin with a NUL, and are bytes in Python.
        return Address("", 0, name if isinstance(name, str) else os.fsdecode(name).replace("\0", "@"))
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        raise OSError(errno.EAFNOSUPPORT, "it is neither a TCP nor a Unix socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # see `listen`
    return Address(*name[:2])


def _bind_unix(sock: socket.socket, address: Address, permissions: SocketPermissions) -> Listener:
    _remove_stale(address.path)
    # Nobody else may connect before the mode is set. No other thread makes files at this time.
    before = os.umask(0o177)
    try:
        sock.bind(address.path)
    finally:
        os.umask(before)
    listener = Listener(sock, address, os.stat(address.path).st_ino)
    try:
        if permissions[1:] != (-1, -1):
            os.chown(address.path, permissions.user, permissions.group)
        os.chmod(address.path, permissions.mode)
    except OSError:
        os.unlink(address.path)
        raise
    return listener


def _remove_stale(path: str) -> None:
    """Remove the socket of a server that was killed, but no other kind of file and no socket that is in use."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "the file there is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        try:
            client.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full, so a server listens there
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


_NOT_ALLOWED = (
    "this user may not listen there; name a port from 1024 on, or give the service CAP_NET_BIND_SERVICE"
)
_TCP_ADVICE = {
    errno.EADDRINUSE: "stop what listens there, or name another port",
    errno.EADDRNOTAVAIL: "it is not an address of this machine; name one that is, or 0.0.0.0 for all of them",
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EAFNOSUPPORT: "this machine has no IPv6; name an IPv4 address, as 127.0.0.1 or 0.0.0.0",
}
_UNIX_ADVICE = {
    errno.EADDRINUSE: "stop what listens there, or name another path",
    errno.EEXIST: "remove that file, or name another path",
    errno.ENOENT: "create the folder first, or name another path",
    errno.ENOTDIR: "a part of the path is a file; name another path",
    errno.EACCES: "this user may not write to the folder; change its permissions, or name another path",
    errno.EPERM: "this user may not do that; look at --socket-owner and the folder's permissions",
    errno.EROFS: "the file system is read-only; name another path",
}
