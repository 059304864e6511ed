"""What systemd and this process tell each other: sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3)."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import MutableMapping

import gevent
from gevent import socket as gevent_socket

from dbchannels.exceptions import InvalidConfiguration
from dbchannels.server.listeners import Inherited, Listener

log = logging.getLogger("dbchannels.server")

FIRST_DESCRIPTOR = 3
PROBE = "probe"  # FileDescriptorName= of the socket for health checks; all others are the site's
_NAMES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Service:
    """The service that this process is, if systemd or the like has started it.

    The variables leave the environment at once, so that no child process takes them for its own.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        given = {name: environ.pop(name, "") for name in _NAMES}
        self._notify_socket = given["NOTIFY_SOCKET"]
        self._number, self._names = _number(given["LISTEN_FDS"]), given["LISTEN_FDNAMES"].split(":")
        if self._number and given["LISTEN_PID"] != str(os.getpid()):
            log.warning(
                "LISTEN_FDS is for process %s, and this is %d: no socket is taken from it. Start Python itself as the "
                "service, or with exec.",
                given["LISTEN_PID"],
                os.getpid(),
            )
            self._number = 0
        for_this = given["WATCHDOG_PID"] in ("", str(os.getpid()))
        #: Microseconds within which systemd wants to hear of this process; 0: never.
        self.watchdog = _number(given["WATCHDOG_USEC"]) if for_this else 0

    def listeners(self) -> Inherited:
        """Take the sockets of socket activation. Raises InvalidConfiguration for a descriptor that does not listen."""
        if self._names.count(PROBE) > 1:
            raise InvalidConfiguration("systemd passed more than one socket named probe: name one only.")
        site, probe = list[Listener](), None
        for index in range(self._number):
            name = self._names[index] if index < len(self._names) else ""
            listener = Listener.inherited(FIRST_DESCRIPTOR + index)
            if name == PROBE:
                probe = listener
            else:
                site.append(listener)
        return Inherited(tuple(site), probe)

    def tell(self, *lines: str) -> None:
        """Send ``NAME=value`` lines to the service manager, if there is one."""
        if self._notify_socket[:1] not in ("/", "@"):
            return
        address = (
            self._notify_socket.replace("@", "\0", 1)
            if self._notify_socket[0] == "@"
            else self._notify_socket
        )
        try:
            with gevent_socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(1.0)  # if its queue is full
                sock.connect(address)  # or poll(2) would not tell of the queue
                sock.send("\n".join(lines).encode())
        except OSError as error:
            log.warning("The service manager could not be notified (%s).", error)

    def tell_reloading(self) -> None:
        """Say that a reload begins; ``READY=1`` ends it."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def feed_watchdog(self) -> None:
        """Tell systemd for ever that the hub is alive, twice in each of its intervals. Run this in a greenlet."""
        while self.watchdog:
            self.tell("WATCHDOG=1")
            gevent.sleep(self.watchdog / 2_000_000)

    def leave(self) -> None:
        """Say nothing more: another process is the service now."""
        self._notify_socket, self.watchdog = "", 0


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
