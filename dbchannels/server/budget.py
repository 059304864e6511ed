"""What all WebSockets together may take of the server: memory, for both directions, and the time of the hub.

Without it each of them could hold as much as one may, and a few sockets with thousands of tiny frames each would
silence all others. Nothing in here knows sockets, frames or consumers.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Protocol

import gevent
from gevent.hub import Waiter

from dbchannels.protocol import TRY_AGAIN

SPARE = 8  # one of so many parts of the total is kept for what is copied and not counted
OWN = 4096  # bytes of each connection's that find room even when the others hold all
UNSENT = 512  # bytes that a frame takes beside its own while it waits, and is counted
UNSENT_EACH = 128  # bytes of each socket that it waits for
LEAST = 1024  # bytes of room below which it is not worth while to go on
SLICE = 0.005  # seconds of one turn of the hub's loop in which sockets and bodies may be read and taken apart
GO = 0.001  # seconds of them for one socket, before others have theirs


class MemoryBudget:
    """Counts bytes; called in the hub.

    A connection may hold as many bytes as are free, and never more than ``per_connection``, so a crowd always leaves
    room for the next one. If all waited for the rest of their messages, nothing would ever be freed: therefore the
    first one that waits may go on to ``per_connection``. Together they hold at most ``total``, one message, and OWN
    for each connection.
    """

    def __init__(self, total: int, per_connection: int) -> None:
        self.total, self.per_connection, self.used = total - total // SPARE, per_connection, 0
        self.turns = Turns()
        self.unsent = UnsentFrames(total)
        self._waiting: dict[Share, Callable[[], None]] = {}  # in the order of their coming
        self._first: Share | None = None  # it goes on without room
        self._resuming = False

    def fair(self) -> int:
        """Return what each connection may hold now."""
        return max(OWN, min(self.per_connection, self.total - self.used))

    def limit(self, share: Share) -> int:
        """Return what this one may hold now."""
        return self.per_connection if share is self._first else self.fair()

    def wait(self, share: Share, resume: Callable[[], None]) -> None:
        """Call the function when the connection may go on, which may be soon."""
        self._waiting[share] = resume
        self._resume_later()

    def freed(self, share: Share) -> None:
        """Take note that a connection holds less than before."""
        if share is self._first and share.held <= self.fair():
            self._first = None
        if self._waiting:
            self._resume_later()

    def _resume_later(self) -> None:
        if not self._resuming:
            self._resuming = True
            self.turns.add(self._resume)

    def _resume(self) -> None:
        self._resuming = False
        for share in [one for one in self._waiting if one.room() >= LEAST]:
            self.turns.add(self._waiting.pop(share))
        if self._first is None:
            most = self.per_connection - LEAST
            self._first = next((one for one in self._waiting if one.held <= most), None)
            if self._first is not None:
                self._waiting.pop(self._first)()


class Share:
    """What one connection holds."""

    __slots__ = ("budget", "held")

    def __init__(self, budget: MemoryBudget) -> None:
        self.budget = budget
        self.held = 0  # bytes

    def hold(self, size: int) -> None:
        """Count so many bytes more, or less."""
        self.held += size
        self.budget.used += size
        if size < 0:
            self.budget.freed(self)

    def room(self) -> int:
        """Return how many bytes more there is room for."""
        return self.budget.limit(self) - self.held

    def has_room(self) -> bool:
        """Whether it holds no more than each connection may."""
        return self.budget.fair() - self.held >= LEAST

    def wait(self, resume: Callable[[], None]) -> None:
        """Call the function when there is room."""
        self.budget.wait(self, resume)


class Slow(Protocol):
    """A socket that has not taken its frames."""

    charged: int  # bytes, 0 at first

    def drop(self, code: int) -> None:
        """Close it, and discard its frames."""


class UnsentFrame:
    """A frame, the sockets that it waits for, and by how many its size is divided among them."""

    __slots__ = ("divisor", "size", "sockets")

    def __init__(self, size: int) -> None:
        self.size, self.divisor = size, 1
        self.sockets: set[Slow] = set()

    @property
    def part(self) -> int:
        """Return what each socket is charged."""
        return UNSENT_EACH + self.size // self.divisor


class UnsentFrames:
    """Counts the frames that wait for clients that do not read; called in the hub.

    A broadcast's frame is one object and counts once. Each of its sockets is charged an equal part, so members of a
    large group are charged next to nothing. Beyond ``total`` the sockets that are charged most are dropped. They are
    kept by the power of two of their charge, and a part changes only when the number of sockets has doubled or halved:
    a frame costs the same however many sockets are slow.
    """

    def __init__(self, total: int) -> None:
        self.total, self.used = total, 0
        self._frames: dict[int, UnsentFrame] = {}  # by id: each is alive while a socket has it
        self._by_charge: list[OrderedDict[Slow, None]] = [OrderedDict() for _ in range(64)]
        self._dropping = False

    def add(self, sock: Slow, data: bytes) -> None:
        """Count a frame that a socket has not taken."""
        frame = self._frames.get(id(data))
        if frame is None:
            frame = self._frames[id(data)] = UnsentFrame(UNSENT + len(data))
            self.used += frame.size
        if sock in frame.sockets:  # it waits twice
            return
        frame.sockets.add(sock)
        self.used += UNSENT_EACH
        self._charge(sock, frame.part)
        if len(frame.sockets) >= 2 * frame.divisor:
            self._divide(frame, 2 * frame.divisor)
        if self.used > self.total and not self._dropping:
            # Later, but in this turn: of a broadcast's sockets the first one would be charged all of it now.
            self._dropping = True
            gevent.get_hub().loop.run_callback(self._drop)

    def remove(self, sock: Slow, data: bytes) -> None:
        """Forget a frame that was sent or discarded."""
        frame = self._frames.get(id(data))
        if frame is None or sock not in frame.sockets:
            return
        frame.sockets.remove(sock)
        self.used -= UNSENT_EACH
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

    def _charge(self, sock: Slow, size: int) -> None:
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
            next(iter(most)).drop(TRY_AGAIN)  # the one that has been there for longest
        self._dropping = self.used > self.total
        if self._dropping:
            gevent.get_hub().loop.run_callback(self._drop)


class Turns:
    """Shares the turns of the hub's loop: in each, sockets take SLICE together and GO one after another."""

    def __init__(self) -> None:
        self._ends_at = 0.0  # this turn's slice; 0: it has not begun
        self._go_ends_at = 0.0
        self._waiting: deque[Callable[[], None]] = deque()

    @cached_property
    def _later(self) -> Any:
        return gevent.get_hub().loop.timer(0)  # due in the next turn

    @cached_property
    def _turned(self) -> Any:
        return gevent.get_hub().loop.check()  # called when the next turn begins

    def run(self, go: Callable[[], None]) -> bool:
        """Call the function now; or, and return False, in a later turn, behind those that wait already."""
        if self._waiting or self._is_used_up():
            self.add(go)
            return False
        self._run(go)
        return True

    def is_over(self) -> bool:
        """Whether the function that runs has had its time: it leaves the rest to another ``add``."""
        return time.perf_counter() > self._go_ends_at

    def add(self, go: Callable[[], None]) -> None:
        """Call the function in a later turn."""
        self._waiting.append(go)
        if not self._later.active:
            self._later.start(self._run_waiting)

    def wait(self) -> None:
        """Wait for a later turn, in a greenlet: until it waits again, what it does is done in that turn."""
        waiter = Waiter()
        self.add(partial(waiter.switch, None))
        waiter.get()

    def _is_used_up(self) -> bool:
        now = time.perf_counter()
        if not self._ends_at:
            self._ends_at = now + SLICE
            self._turned.start(self._next_turn)
        return now > self._ends_at

    def _next_turn(self) -> None:
        self._turned.stop()
        self._ends_at = 0.0

    def _run(self, go: Callable[[], None]) -> None:
        self._go_ends_at = min(self._ends_at, time.perf_counter() + GO)
        go()

    def _run_waiting(self) -> None:
        self._later.stop()
        try:
            while self._waiting and not self._is_used_up():
                self._run(self._waiting.popleft())
        finally:
            if self._waiting:
                self._later.start(self._run_waiting)
