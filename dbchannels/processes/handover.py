"""How a new server takes over from a running one, without a connection that is refused.

Both know the path of a Unix socket, ``--control``. They send each other JSON, one object a line:

1. The new server connects and asks: ``{"version": 1, "site": ["mysite.settings", "site"]}``.
2. The running one answers with its listening sockets (SCM_RIGHTS), this one included, and what they are; or with
   ``refused``, a sentence. From here on the kernel refuses no connection as long as one of the two lives.
3. The new one starts its workers. When they are ready, it says which sockets it keeps: ``{"kept": [0, 1], ...}``.
4. The running one stops accepting, answers ``{"drains": true}`` and finishes what it has. The new one accepts.

If the connection ends before step 3, or the new server is silent for too long, the running server goes on as before. If
it ends after step 2 because the running server has died, the new one goes on. Both must never accept. So a running
server that was late still reads step 3, and one that goes on says so. When the connection ends without a word, the new
server looks whether the running one has died.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent
from gevent import socket as gevent_socket
from gevent.server import StreamServer

from dbchannels.exceptions import DBChannelsError
from dbchannels.server.listeners import BACKLOG, Address, Inherited, Listener
from dbchannels.wakeup import wait_readable

log = logging.getLogger("dbchannels.server")

VERSION = 1
LONGEST = 65_536  # bytes of a line
MOST_SOCKETS = 250  # that one message can carry
ANSWER_WITHIN = 10.0  # seconds for a line that the other side can send at once
READY_WITHIN = 60.0  # seconds in which the new server and its workers must be ready
TAKEN_WITHIN = 120.0  # seconds for all of it, the system checks too, until another one may try
DEAD_WITHIN = 2.0  # seconds from the end of a process's sockets to its own
SITE, PROBE, CONTROL = "site", "probe", "control"


class TakeoverFailed(DBChannelsError):
    """The new server does not take over, and the running one goes on; the sentence says why."""


def send(sock: Any, line: dict[str, Any], descriptors: list[int] | None = None) -> None:
    """Send an object, with descriptors. Raises OSError."""
    socket.send_fds(sock, [json.dumps(line).encode() + b"\n"], descriptors or [])


def receive(sock: Any, timeout: float | None) -> tuple[dict[str, Any], list[int]]:
    """Return an object and the descriptors that came with it. Raises OSError, EOFError, and ValueError for garbage."""
    sock.settimeout(timeout)
    data, descriptors = b"", list[int]()
    try:
        while not data.endswith(b"\n"):
            part, found, flags, _ = socket.recv_fds(sock, LONGEST, MOST_SOCKETS)
            descriptors += found
            data += part
            if not part:
                raise EOFError
            if len(data) >= LONGEST or len(descriptors) > MOST_SOCKETS or flags & socket.MSG_CTRUNC:
                raise ValueError("a line or its descriptors were too long")
        try:
            line = json.loads(data)
        except RecursionError:
            raise ValueError("a line was nested too deeply") from None
        if not isinstance(line, dict):
            raise ValueError("a line was no object")
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return line, descriptors


def peer_of(sock: Any) -> int:
    """Return the process id of the other side. Raises TakeoverFailed unless it is this user's, or root's."""
    pid, user, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if user not in (0, os.geteuid()):
        raise TakeoverFailed(
            f"The processes at the control socket must be of one user: {user} is not {os.geteuid()}."
        )
    return int(pid)


# The running server.


class ControlSocket:
    """Waits for a server that takes over, and gives it all listeners. ``on_taken`` gets the names of its workers."""

    def __init__(
        self,
        listener: Listener,
        listeners: Callable[[], Inherited],
        site: list[str],
        watchdog: int,
        on_taken: Callable[[set[str]], None],
    ) -> None:
        self._listener, self._listeners, self._site = listener, listeners, site
        self._watchdog, self._on_taken = watchdog, on_taken
        self._successor: Any = None  # the connection of the server that is about to take over
        self._pid = 0  # of that server
        self._closed = False
        self._server = StreamServer(listener.socket, self._serve)

    def start(self) -> None:
        """Let another server take over from now on."""
        self._listener.socket.listen(
            BACKLOG
        )  # again after a takeover: peers see the process that did so last
        self._server.start()

    def close(self) -> None:
        """Let nobody take over any more, and remove the socket's file unless it was handed over."""
        self._server.close()
        self._listener.remove()
        self._closed = True
        if self._successor is not None:
            with suppress(OSError):
                send(
                    self._successor,
                    {"refused": "The running server was told to stop, so this one stops too."},
                )

    def _serve(self, sock: Any, address: Any) -> None:
        try:
            question, descriptors = receive(sock, ANSWER_WITHIN)
            for descriptor in descriptors:
                os.close(descriptor)
            pid = peer_of(sock)
            if question.get("version") != VERSION:
                raise TakeoverFailed(
                    "The running server hands over in another way than this one: restart the service instead."
                )
            if question.get("site") != self._site:
                raise TakeoverFailed(
                    "The running server is another project's (settings {!r}, database {!r}): give each project a "
                    "--control of its own, or restart the service if it is the same project.".format(
                        *self._site
                    )
                )
            if self._successor is not None:
                raise TakeoverFailed(f"Process {self._pid} takes over already: wait until it is done.")
        except TakeoverFailed as error:
            log.warning("A takeover was refused: %s", error)
            with suppress(OSError):
                send(sock, {"refused": str(error)})
        except (OSError, EOFError, ValueError) as error:
            if not isinstance(error, EOFError):  # a server that starts looks whether another one is there
                log.warning("Something at the control socket could not be read: %s.", error)
        else:
            self._successor, self._pid = sock, pid
            try:
                self._offer(sock)
            finally:
                self._successor = None

    def _offer(self, sock: Any) -> None:
        site, probe = self._listeners()
        offered = [
            *((SITE, one) for one in site),
            *([(PROBE, probe)] if probe else []),
            (CONTROL, self._listener),
        ]
        what = [[role, *one.address, one.inode] for role, one in offered]
        log.info("Process %d gets ready to take over.", self._pid)
        try:
            descriptors = [one.socket.fileno() for _, one in offered]
            send(sock, {"listeners": what, "watchdog": self._watchdog}, descriptors)
            try:
                answer, _ = receive(sock, TAKEN_WITHIN)
            except TimeoutError:
                answer, _ = receive(sock, 0.0)  # this process may have been stopped meanwhile
            kept, workers = [offered[index][1] for index in answer["kept"]], set(answer["workers"])
        except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
            if not self._closed:
                ended = isinstance(error, (EOFError, ConnectionError))
                why = "has ended before it took over" if ended else "did not take over in time"
                log.warning("Process %d %s, so this server goes on.", self._pid, why)
                with suppress(OSError):
                    send(sock, {"refused": "The running server did not understand this one, or not in time."})
            return
        if self._closed:
            return  # it knows
        for listener in kept:
            listener.inode = 0
        self._successor = None
        self._on_taken(workers)
        with suppress(OSError):
            send(sock, {"drains": True})


# The new server.


class Predecessor:
    """The running server, from which this one takes over. ``listeners`` are what it listens at."""

    def __init__(self, sock: Any, site: list[str]) -> None:
        self._sock = sock
        self.pid = peer_of(sock)
        try:
            send(sock, {"version": VERSION, "site": site})
            offer, descriptors = receive(sock, ANSWER_WITHIN)
            if "refused" in offer:
                raise TakeoverFailed(offer["refused"])
            self.watchdog: int = offer["watchdog"]
            self._offered = list[tuple[Listener, int]]()  # with the inode of the socket's file
            roles: dict[str, list[Listener]] = {SITE: [], PROBE: [], CONTROL: []}
            for (role, *address, inode), descriptor in zip(offer["listeners"], descriptors, strict=True):
                listener = Listener.inherited(descriptor)
                listener.address = Address(*address)
                self._offered.append((listener, inode))
                roles[role].append(listener)
            (self.control,) = roles[CONTROL]
        except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
            raise TakeoverFailed(
                f"The running server, process {self.pid}, does not hand over ({error!r}): look at its log, or restart "
                "the service."
            ) from None
        self.listeners = Inherited(tuple(roles[SITE]), next(iter(roles[PROBE]), None))

    @classmethod
    def find(cls, path: str, site: list[str]) -> Predecessor | None:
        """Ask the server at a path for its listeners; None if no server is there. Raises TakeoverFailed."""
        sock = gevent_socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(ANSWER_WITHIN)
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            log.info("No server is at %s, so there is nothing to take over.", path)
            return None
        except OSError as error:
            sock.close()
            raise TakeoverFailed(
                f"The server at {path} cannot be asked to hand over: {error.strerror}."
            ) from None
        try:
            return cls(sock, site)
        except TakeoverFailed:
            sock.close()
            raise

    def check(self) -> None:
        """Raise TakeoverFailed if the running server was told to stop meanwhile."""
        with suppress(OSError, EOFError, ValueError):  # it says nothing, or has died
            line, _ = receive(self._sock, 0.0)
            raise TakeoverFailed(line.get("refused", "The running server does not hand over any more."))

    def take_over(self, used: Inherited, workers: set[str]) -> None:
        """Let the running server accept nothing more; ``used`` are the listeners that this one keeps.

        Returns as well when the running server has died, or does not answer: it will read this. Raises TakeoverFailed.
        """
        kept = {id(one) for one in (*used.site, used.probe, self.control)}
        numbers = [index for index, (one, _) in enumerate(self._offered) if id(one) in kept]
        self.check()
        try:
            send(self._sock, {"kept": numbers, "workers": sorted(workers)})
            line, _ = receive(self._sock, ANSWER_WITHIN)
        except (OSError, EOFError, ValueError) as error:
            if not isinstance(error, TimeoutError) and is_alive(self.pid):
                raise TakeoverFailed(
                    f"The running server, process {self.pid}, goes on ({error!r}): look at its log, or restart "
                    "the service."
                ) from None
            log.warning("Process %d has not confirmed that this server takes over (%r).", self.pid, error)
        else:
            if "refused" in line:
                raise TakeoverFailed(line["refused"])
        for listener, inode in self._offered:
            if id(listener) in kept:
                listener.inode = inode
            else:
                listener.socket.close()
        self._sock.close()


def is_alive(pid: int) -> bool:
    """Whether a process goes on, whose sockets were closed just now."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        return not wait_readable([process], DEAD_WITHIN)
    finally:
        os.close(process)


def await_ready(
    why_not: Callable[[], str], is_over: Callable[[], bool] = lambda: False, within: float = 1e9
) -> str:
    """Wait until a server is ready; return why it is not when the time, or all of it, is over."""
    deadline = time.monotonic() + within
    while (why := why_not()) and not is_over() and time.monotonic() < deadline:
        gevent.sleep(0.05)
    return why


# In the background.


def detach() -> bool:
    """Run this command again in the background, with ``--ready``; return whether it has taken over.

    The process that serves is no child of this one: systemd adopts it, and can only supervise its own children.
    """
    reader, writer = os.pipe()
    if (middle := os.fork()) == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                os.set_inheritable(writer, True)
                os.execv(sys.executable, [*sys.orig_argv, f"--ready={writer}"])
        finally:
            os._exit(0)
    os.waitpid(middle, 0)
    os.close(writer)
    said = b""
    while part := os.read(reader, 64):
        said += part
    return said.endswith(b"!")
