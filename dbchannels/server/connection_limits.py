"""How many connections the server takes, in all and from one address, and what it says to one too many.

An address counts by its ``address_key``: an IPv6 client has a whole /64 to choose its addresses from.
Turning one away costs no greenlet: a flood of them must cost less than the requests that it keeps out.
"""

from __future__ import annotations

import ipaddress
import logging
import resource
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

from dbchannels.redaction import RateLimitedLog
from dbchannels.server.http.messages import refuse_response
from dbchannels.server.proxy_headers import read_address

log = logging.getLogger("dbchannels.server")

FROM_ONE = 1_000  # connections from one address, unless told
RESERVED = 200  # descriptors for all that is no connection: the database, workers, log files, bodies on disk
KEPT = 50  # of them that no connection may have, whatever else is open: the database must be reached again
REJECTED = "Rejected %d connections beyond --max-connections and %d beyond --max-per-address; %d may be open."

_RETRY = [("Retry-After", "5")]
FULL = refuse_response(503, "This server has as many connections as it takes: try again soon.", _RETRY)
TOO_MANY = refuse_response(429, "There are too many connections from this address: close some.", _RETRY)


class ConnectionLimits:
    """Counts the open connections. ``per_address`` None: 1,000, but any number from this machine.

    ``is_proxy`` says whose connections are those of many clients: they count in all, and not by their address. What
    comes through them counts by the client's address, from ``enter`` to ``leave``.
    """

    def __init__(
        self, total: int, per_address: int | None, is_proxy: Callable[[str], bool] = lambda address: False
    ) -> None:
        self.total = total
        self.open = 0
        self.kept_from = float("inf")  # the first descriptor that is kept
        self._per_address = per_address
        self._is_proxy = is_proxy
        self._by_address: Counter[str] = Counter()
        self._rejected = RateLimitedLog(log, REJECTED, FULL, TOO_MANY)

    def admit(self, address: str, descriptor: int = 0) -> bytes | None:
        """Count a connection, to be released when it ends; or return the answer for one too many.

        The kernel gives the lowest descriptor that is free, so at ``kept_from`` all below are in use.
        """
        if self.open >= self.total or descriptor >= self.kept_from:
            self._rejected.count(FULL, self.total)
            return FULL
        if not self._is_proxy(address) and (answer := self.enter(address)):
            return answer
        self.open += 1
        return None

    def release(self, address: str) -> None:
        """One that was admitted has ended."""
        self.open -= 1
        if not self._is_proxy(address):
            self.leave(address)

    def enter(self, address: str) -> bytes | None:
        """Count one by its address alone, that has a connection of a proxy's; or return the answer for one too many."""
        key = address_key(address)
        if self._by_address[key] >= self._limit(address):
            self._rejected.count(TOO_MANY, self.total)
            return TOO_MANY
        self._by_address[key] += 1
        return None

    def leave(self, address: str) -> None:
        """One that has entered is gone."""
        key = address_key(address)
        self._by_address[key] -= 1
        if self._by_address[key] <= 0:
            del self._by_address[key]

    def _limit(self, address: str) -> float:
        if self._per_address is not None:
            return self._per_address
        return float("inf") if is_local(address) else FROM_ONE


def address_of(client: Any) -> str:
    """Return a client's address without its port; "" for one on a Unix socket."""
    return str(client[0]) if isinstance(client, tuple) else ""


@lru_cache(4096)  # a new one costs 4 us
def address_key(address: str) -> str:
    """Return what a client counts as: its IPv4 address, or the /64 network of its IPv6 address.

    ``2001:db8::5:1`` counts as ``2001:db8::/64``, ``::ffff:192.0.2.1`` as ``192.0.2.1``, and what is no address, such
    as a Unix socket's "", as itself.
    """
    parsed = read_address(address)
    if parsed is None:
        return address
    return str(parsed if parsed.version == 4 else ipaddress.ip_network((parsed, 64), strict=False))


def is_local(address: str) -> bool:
    """Whether it is this machine: a loopback address, or none, which is a Unix socket."""
    parsed = read_address(address)
    return not address if parsed is None else parsed.is_loopback


def reject(sock: Any, answer: bytes) -> None:
    """Answer and close, without waiting: what the client does not take at once it does not get."""
    plain = sock._sock  # gevent's own would wait
    with suppress(OSError):
        plain.send(answer)
        plain.shutdown(socket.SHUT_WR)
        plain.recv(65_536)  # unread data would reset the connection, and take the answer along
    sock.close()


class CountedSocket(socket.socket):
    """A plain socket that says when it is closed."""

    def __init__(self, descriptor: int, on_close: Callable[[], None]) -> None:
        super().__init__(fileno=descriptor)
        self._on_close: Callable[[], None] | None = on_close

    def close(self) -> None:
        """Close it, and say so once."""
        super().close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()


def first_kept() -> float:
    """Return the first of the descriptors that no connection may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if soft == resource.RLIM_INFINITY else max(soft // 2, soft - KEPT)


def connections_that_fit(wanted: int) -> int:
    """Raise this process's limit of descriptors as far as it goes; return how many connections it suffices for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    fit = wanted if soft == resource.RLIM_INFINITY else min(wanted, max(1, soft - RESERVED))
    if fit < wanted:
        log.warning(
            "This process may have %d open files, which suffices for %d connections and not for the %d of "
            "--max-connections: raise the limit (ulimit -n, or LimitNOFILE= in systemd).",
            soft,
            fit,
            wanted,
        )
    return fit
