"""How much one client may have of the server: connections, and requests and frames that run at once.

A client counts by its ``address_key``: an IPv6 client can choose its addresses from a whole /64. Rejecting a connection
needs no greenlet: a flood of connections must cost less than the requests that it keeps out.

Workers run requests and frames in the order in which these reach the layer, so each there delays all others. Therefore
an address may have only so many there, and addresses take turns. The others wait in the server, where a request
whose client leaves costs nothing.
"""

from __future__ import annotations

import ipaddress
import logging
import resource
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from math import inf
from typing import Any

from dbchannels.redaction import RateLimitedLog
from dbchannels.server.http.messages import refuse_response
from dbchannels.server.proxy_headers import read_address

log = logging.getLogger("dbchannels.server")

CONNECTIONS = 1_000  # of one address, by default
REQUESTS = 32  # of one address that are in the layer and unanswered, by default
TOGETHER = 4  # times as many requests of all addresses
FRAMES_TOGETHER = 16  # the same of frames: these are short, and workers are fastest with many at once
RESERVED = 200  # descriptors for all but connections: the database, workers, log files, bodies on disk
KEPT = 50  # of them that no connection may have, whatever else is open: the database must be reached again
REJECTED = "Rejected %d connections beyond --max-connections and %d beyond --max-per-address; %d may be open."

_RETRY = [("Retry-After", "5")]
FULL = refuse_response(503, "This server has no room for more connections: try again soon.", _RETRY)
TOO_MANY = refuse_response(429, "There are too many connections from this address: close some.", _RETRY)


class ConnectionLimits:
    """Counts the open connections; ``per_address`` None allows CONNECTIONS, and any number from this machine.

    The connections of an address that ``is_proxy`` are those of many clients. They count in all, but not by their
    address: what comes through them counts by the client's address, from ``enter`` to ``leave``.
    """

    def __init__(
        self, total: int, per_address: int | None, is_proxy: Callable[[str], bool] | None = None
    ) -> None:
        self.total = total
        self.open = 0
        self.kept_from = inf  # the first descriptor that no connection may have
        self._per_address = per_address
        self._is_proxy = is_proxy
        self._by_address: Counter[str] = Counter()
        self._rejected = RateLimitedLog(log, REJECTED, FULL, TOO_MANY)

    def admit(self, address: str, descriptor: int = 0) -> bytes | None:
        """Count a connection, until its ``release``; or return the answer to one too many.

        The kernel gives the lowest descriptor that is free, so at ``kept_from`` all below are in use.
        """
        if self.open >= self.total or descriptor >= self.kept_from:
            self._rejected.count(FULL, self.total)
            return FULL
        is_proxy = self._is_proxy is not None and self._is_proxy(address)
        if not is_proxy and (answer := self.enter(address)):
            return answer
        self.open += 1
        return None

    def release(self, address: str) -> None:
        """Stop counting a connection that has ended."""
        self.open -= 1
        if self._is_proxy is None or not self._is_proxy(address):
            self.leave(address)

    def enter(self, address: str) -> bytes | None:
        """Count by the address alone, until ``leave``; or return the answer to one too many."""
        key = address_key(address)
        if self._by_address[key] >= limit_of(address, self._per_address, CONNECTIONS):
            self._rejected.count(TOO_MANY, self.total)
            return TOO_MANY
        self._by_address[key] += 1
        return None

    def leave(self, address: str) -> None:
        """Stop counting what ``enter`` has counted."""
        key = address_key(address)
        self._by_address[key] -= 1
        if self._by_address[key] <= 0:
            del self._by_address[key]


class FairQueue:
    """Starts requests, handshakes, frames, or reads of histories, when it is their address's turn; used in the hub.

    ``per_address`` None allows REQUESTS, and any number from this machine; an address that ``is_proxy`` may have any
    number too.
    """

    def __init__(
        self,
        per_address: int | None,
        is_proxy: Callable[[str], bool] | None = None,
        together: int = TOGETHER,
    ) -> None:
        self._per_address = per_address
        self._is_proxy = is_proxy
        self.room = together * (per_address or REQUESTS)  # for so many more
        self._addresses: dict[str, _Address] = {}
        #: The addresses that have a request waiting and may start it, the next one first.
        self._next: OrderedDict[str, _Address] = OrderedDict()

    def enter(self, client: str, start: Callable[[], None]) -> Turn:
        """Call ``start`` now, or when it is this client's turn. It must not raise, and not end the turn itself."""
        key = address_key(client)
        address = self._addresses.get(key)
        if address is None:
            is_proxy = self._is_proxy is not None and self._is_proxy(client)
            limit = inf if is_proxy else limit_of(client, self._per_address, REQUESTS)
            address = self._addresses[key] = _Address(key, limit)
        turn = Turn(self, address)
        address.waiting[turn] = start
        self._start(address)
        return turn

    def waiting(self, client: str) -> int:
        """Return how many requests of a client's address wait for their turn."""
        address = self._addresses.get(address_key(client))
        return len(address.waiting) if address is not None else 0

    def leave(self, turn: Turn) -> None:
        """End a turn, or the wait for it."""
        address = turn.address
        if turn.started:
            address.started -= 1
            self.room += 1
        else:
            del address.waiting[turn]
        if not address.waiting:
            self._next.pop(address.key, None)
            if not address.started:
                del self._addresses[address.key]
        self._start(address)

    def _start(self, changed: _Address) -> None:
        """Start what may start now."""
        self._line_up(changed)
        while self.room > 0 and self._next:
            _, address = self._next.popitem(last=False)
            turn, start = address.waiting.popitem(last=False)
            turn.started = True
            address.started += 1
            self.room -= 1
            self._line_up(address)
            start()

    def _line_up(self, address: _Address) -> None:
        if address.waiting and address.started < address.limit:
            self._next.setdefault(address.key, address)


class Turn:
    """The turn of one request; ``leave`` it as soon as a worker has answered, or the client has left.

    A turn that has started holds nothing of its request: a timer may still know it for a minute.
    """

    def __init__(self, queue: FairQueue, address: _Address) -> None:
        self.address = address
        self.started = False
        self._queue: FairQueue | None = queue

    def leave(self) -> None:
        """Let others have their turn; once."""
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.leave(self)


class FrameTurn:
    """The turn of a WebSocket's frame, one after another."""

    def __init__(self, queue: FairQueue, client: str) -> None:
        self._queue, self._client = queue, client
        self._turn: Turn | None = None

    @property
    def waits(self) -> bool:
        """Whether there is a frame that has not started."""
        return self._turn is not None and not self._turn.started

    def enter(self, start: Callable[[], None]) -> None:
        """Call ``start`` when it is the turn of the next frame, see ``FairQueue.enter``."""
        self.leave()
        self._turn = self._queue.enter(self._client, start)

    def leave(self) -> None:
        """End the turn, if there is one."""
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.leave()


class _Address:
    def __init__(self, key: str, limit: float) -> None:
        self.key, self.limit = key, limit
        self.started = 0
        self.waiting: OrderedDict[Turn, Callable[[], None]] = OrderedDict()  # with what starts each


def limit_of(address: str, per_address: int | None, default: int) -> float:
    """Return how many of something an address may have."""
    if per_address is not None:
        return per_address
    return inf if is_local(address) else default


def address_of(client: Any) -> str:
    """Return a client's address without its port; "" for one on a Unix socket."""
    return str(client[0]) if isinstance(client, tuple) else ""


@lru_cache(4096)  # a new one costs 4 us
def address_key(address: str) -> str:
    """Return what a client counts as: its IPv4 address, or the /64 network of its IPv6 address.

    ``2001:db8::5:1`` counts as ``2001:db8::/64``, and ``::ffff:192.0.2.1`` as ``192.0.2.1``. Any other text, such as
    a Unix socket's "", counts as itself.
    """
    parsed = read_address(address)
    if parsed is None:
        return address
    return str(parsed if parsed.version == 4 else ipaddress.ip_network((parsed, 64), strict=False))


@lru_cache(4096)
def is_local(address: str) -> bool:
    """Whether a client is on this machine: its address is a loopback address, or "", for a Unix socket."""
    parsed = read_address(address)
    return not address if parsed is None else parsed.is_loopback


def reject(sock: Any, answer: bytes) -> None:
    """Answer and close without waiting; what the client does not take at once is lost."""
    plain = sock._sock  # gevent's own would wait
    with suppress(OSError):
        plain.send(answer)
        plain.shutdown(socket.SHUT_WR)
        plain.recv(65_536)  # unread data would reset the connection, and take the answer along
    sock.close()


class CountedSocket(socket.socket):
    """A plain socket that calls a function when it is closed."""

    def __init__(self, descriptor: int, on_close: Callable[[], None]) -> None:
        super().__init__(fileno=descriptor)
        self._on_close: Callable[[], None] | None = on_close

    def close(self) -> None:
        """Close the socket, and call the function once."""
        super().close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()


def first_kept() -> float:
    """Return the first descriptor that no connection may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return inf if soft == resource.RLIM_INFINITY else max(soft // 2, soft - KEPT)


def connections_that_fit(wanted: int) -> int:
    """Raise the limit of open files of this process as far as it goes; return how many connections it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    fit = wanted if soft == resource.RLIM_INFINITY else min(wanted, max(1, soft - RESERVED))
    if fit < wanted:
        log.warning(
            "This process may have %d open files, enough for %d connections but not for the %d of --max-connections: "
            "raise the limit (ulimit -n, or LimitNOFILE= in systemd).",
            soft,
            fit,
            wanted,
        )
    return fit
