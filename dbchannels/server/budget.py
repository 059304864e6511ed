"""The limits that all WebSockets share: the server's memory, in both directions, the time of the hub, and the workers'.

Without them, each socket could hold as much as one may, and a few sockets with thousands of tiny frames would delay all
others. Nothing here knows sockets, frames or consumers.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Protocol
from weakref import WeakValueDictionary

import gevent
from gevent.hub import Waiter

from dbchannels.protocol import TRY_AGAIN
from dbchannels.server.connection_limits import FairQueue, address_key, is_local

SPARE = 8  # this fraction of the total is kept for copies, which are not counted
RESERVED = 4096  # bytes that each connection may hold even when the others hold all
LEAST_ROOM = 1024  # bytes of room below which a connection waits
FRAME_OVERHEAD = 512  # bytes that a waiting frame takes besides its own
SOCKET_OVERHEAD = 128  # bytes of each socket that it waits for
SLICE = 0.005  # seconds in each turn of the hub's loop for reading and parsing what clients send
SOCKET_SLICE = 0.001  # seconds of them for one socket, before others have theirs


class MemoryBudget:
    """Counts the bytes that connections hold; called in the hub.

    The connections of an address together may hold as many bytes as are free, so any number of them leaves as much for
    others; those from this machine count one by one. None may hold more than ``per_connection``. If all waited for the
    rest of their messages, nothing would ever be freed, so the first one that waits may go on up to
    ``per_connection``. Together they hold at most ``total``, one message, and RESERVED bytes for each connection.
    """

    def __init__(self, total: int, per_connection: int, turns: FairQueue | None = None) -> None:
        """``turns``: a frame goes to the layer when it is its address's turn."""
        self.turns = turns or FairQueue(None)
        self.total, self.per_connection, self.used = total - total // SPARE, per_connection, 0
        self.hub_time = HubTime()
        self.unsent = UnsentFrames(total)
        self.first: Share | None = None  # the connection that may go on without room
        self._addresses: WeakValueDictionary[str, AddressMemory] = WeakValueDictionary()
        self._waiting: dict[Share, Callable[[], None]] = {}  # in the order of their arrival
        self._resuming = False

    def of_address(self, client: str) -> AddressMemory:
        """Return the count that the connections of a client's address have in common."""
        if is_local(client):
            return AddressMemory()
        return self._addresses.setdefault(address_key(client), AddressMemory())

    def wait(self, share: Share, resume: Callable[[], None]) -> None:
        """Call the function when the connection may go on, which may be soon."""
        self._waiting[share] = resume
        self._resume_later()

    def freed(self, share: Share) -> None:
        """A connection holds less than before."""
        if share is self.first and share.held <= share.fair():
            self.first = None
        if self._waiting:
            self._resume_later()

    def _resume_later(self) -> None:
        if not self._resuming:
            self._resuming = True
            self.hub_time.add(self._resume)

    def _resume(self) -> None:
        self._resuming = False
        for share in [one for one in self._waiting if one.room() >= LEAST_ROOM]:
            self.hub_time.add(self._waiting.pop(share))
        if self.first is None:
            most = self.per_connection - LEAST_ROOM
            self.first = next((one for one in self._waiting if one.held <= most), None)
            if self.first is not None:
                self._waiting.pop(self.first)()


class AddressMemory:
    """What the connections of one address hold together."""

    __slots__ = ("__weakref__", "held")

    def __init__(self) -> None:
        self.held = 0  # bytes


class Share:
    """What one connection holds; ``client`` is its address."""

    __slots__ = ("_together", "budget", "held")

    def __init__(self, budget: MemoryBudget, client: str = "") -> None:
        self.budget = budget
        self.held = 0  # bytes
        self._together = budget.of_address(client)

    def hold(self, size: int) -> None:
        """Count more bytes, or fewer if the number is negative."""
        self.held += size
        self._together.held += size
        self.budget.used += size
        if size < 0:
            self.budget.freed(self)

    def room(self) -> int:
        """Return how many more bytes the connection may hold."""
        return (self.budget.per_connection if self is self.budget.first else self.fair()) - self.held

    def has_room(self) -> bool:
        """Whether the connection may hold more, without being the first that waits."""
        return self.fair() - self.held >= LEAST_ROOM

    def fair(self) -> int:
        """Return how many bytes the connection may hold now."""
        budget = self.budget
        free = budget.total - budget.used - (self._together.held - self.held)
        return max(RESERVED, min(budget.per_connection, free))


class SlowSocket(Protocol):
    """A socket that has not taken all frames."""

    charged: int  # bytes, 0 at first

    def drop(self, code: int) -> None:
        """Close the socket, and discard its frames."""


class UnsentFrame:
    """A frame, the sockets that it waits for, and the number by which its size is divided among them."""

    __slots__ = ("divisor", "size", "sockets")

    def __init__(self, size: int) -> None:
        self.size, self.divisor = size, 1
        self.sockets: set[SlowSocket] = set()

    @property
    def part(self) -> int:
        """Return what each socket is charged."""
        return SOCKET_OVERHEAD + self.size // self.divisor


class UnsentFrames:
    """Counts the frames that wait for clients that do not read; called in the hub.

    The frame of a broadcast is one object and counts once. Each of its sockets is charged an equal part, so members of
    a large group are charged almost nothing. Beyond ``total``, the sockets with the highest charge are dropped. The
    sockets are grouped by the power of two of their charge, and a part changes only when the number of sockets has
    doubled or halved, so a frame costs the same however many sockets are slow.
    """

    def __init__(self, total: int) -> None:
        self.total, self.used = total, 0
        self._frames: dict[int, UnsentFrame] = {}  # by id, which is unique while a socket has the frame
        self._by_charge: list[OrderedDict[SlowSocket, None]] = [OrderedDict() for _ in range(64)]
        self._dropping = False

    def add(self, sock: SlowSocket, data: bytes) -> None:
        """Count a frame that a socket has not taken."""
        frame = self._frames.get(id(data))
        if frame is None:
            frame = self._frames[id(data)] = UnsentFrame(FRAME_OVERHEAD + len(data))
            self.used += frame.size
        if sock in frame.sockets:  # the same frame waits twice
            return
        frame.sockets.add(sock)
        self.used += SOCKET_OVERHEAD
        self._charge(sock, frame.part)
        if len(frame.sockets) >= 2 * frame.divisor:
            self._divide(frame, 2 * frame.divisor)
        if self.used > self.total and not self._dropping:
            # Later in this turn: now the first socket of a broadcast would be charged the whole frame.
            self._dropping = True
            gevent.get_hub().loop.run_callback(self._drop)

    def remove(self, sock: SlowSocket, data: bytes) -> None:
        """Forget a frame that was sent or discarded."""
        frame = self._frames.get(id(data))
        if frame is None or sock not in frame.sockets:
            return
        frame.sockets.remove(sock)
        self.used -= SOCKET_OVERHEAD
        self._charge(sock, -frame.part)
        if not frame.sockets:
            del self._frames[id(data)]
            self.used -= frame.size
        elif 2 * len(frame.sockets) <= frame.divisor:
            self._divide(frame, frame.divisor // 2)

    def _divide(self, frame: UnsentFrame, divisor: int) -> None:
        before, frame.divisor = frame.part, divisor
        for sock in frame.sockets:
            self._charge(sock, frame.part - before)

    def _charge(self, sock: SlowSocket, size: int) -> None:
        before, after = sock.charged.bit_length(), (sock.charged + size).bit_length()
        sock.charged += size
        if before != after:
            self._by_charge[before].pop(sock, None)
            if after:
                self._by_charge[after][sock] = None

    def _drop(self) -> None:
        ends_at = time.perf_counter() + SLICE
        while self.used > self.total and time.perf_counter() < ends_at:
            most = next(sockets for sockets in reversed(self._by_charge) if sockets)
            next(iter(most)).drop(TRY_AGAIN)  # the one that has been there longest
        self._dropping = self.used > self.total
        if self._dropping:
            gevent.get_hub().loop.run_callback(self._drop)


class HubTime:
    """Divides the turns of the hub's loop: in each, sockets take SLICE together and SOCKET_SLICE one after another."""

    def __init__(self) -> None:
        self._turn_ends_at = 0.0  # 0: in this turn no function has been called
        self._socket_ends_at = 0.0
        self._waiting: deque[Callable[[], None]] = deque()

    @cached_property
    def _later(self) -> Any:
        return gevent.get_hub().loop.timer(0)  # due in the next turn

    @cached_property
    def _turned(self) -> Any:
        return gevent.get_hub().loop.check()  # called when the next turn begins

    def run(self, function: Callable[[], None]) -> bool:
        """Call the function now; or in a later turn, after those that wait, and return False."""
        if self._waiting or self._is_used_up():
            self.add(function)
            return False
        self._run(function)
        return True

    def is_over(self) -> bool:
        """Whether the running function has used its time, and should leave the rest to another ``add``."""
        return time.perf_counter() > self._socket_ends_at

    def add(self, function: Callable[[], None]) -> None:
        """Call the function in a later turn."""
        self._waiting.append(function)
        if not self._later.active:
            self._later.start(self._run_waiting)

    def wait(self) -> None:
        """Let a greenlet wait for a later turn, in which it may run until it waits again."""
        waiter = Waiter()
        self.add(partial(waiter.switch, None))
        waiter.get()

    def _is_used_up(self) -> bool:
        now = time.perf_counter()
        if not self._turn_ends_at:
            self._turn_ends_at = now + SLICE
            self._turned.start(self._next_turn)
        return now > self._turn_ends_at

    def _next_turn(self) -> None:
        self._turned.stop()
        self._turn_ends_at = 0.0

    def _run(self, function: Callable[[], None]) -> None:
        self._socket_ends_at = min(self._turn_ends_at, time.perf_counter() + SOCKET_SLICE)
        function()

    def _run_waiting(self) -> None:
        self._later.stop()
        try:
            while self._waiting and not self._is_used_up():
                self._run(self._waiting.popleft())
        finally:
            if self._waiting:
                self._later.start(self._run_waiting)
