"""Whose request is run next: a bounded number goes to the workers at once, and addresses take turns.

Workers answer requests in the order in which they reach the layer, so whatever is there delays everybody. Each address
may have only so many there. The others wait in the server, where a request whose client leaves costs nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import inf

from dbchannels.server.connection_limits import address_key, is_local

FROM_ONE = 32  # unanswered requests of one address that are in the layer, unless told
TOGETHER = 4  # times as many of all addresses


class Turns:
    """Starts requests, or handshakes, when it is their address's turn; used in the hub alone.

    ``per_address`` None: 32, but any number from this machine. ``is_proxy`` says which addresses are of
    many clients.
    """

    def __init__(self, per_address: int | None, is_proxy: Callable[[str], bool]) -> None:
        self._per_address = per_address
        self._is_proxy = is_proxy
        self.room = TOGETHER * (per_address or FROM_ONE)  # for so many more
        self._addresses: dict[str, _Address] = {}
        #: Those that have a request waiting and room for it, the next one first.
        self._next: OrderedDict[str, _Address] = OrderedDict()

    def enter(self, client: str, start: Callable[[], None]) -> Turn:
        """Call ``start`` now, or when it is this client's turn. It must not raise, and not end the turn itself."""
        key = address_key(client)
        address = self._addresses.get(key)
        if address is None:
            address = self._addresses[key] = _Address(key, self._limit(client))
        turn = Turn(self, address, start)
        address.waiting[turn] = None
        self._start(address)
        return turn

    def waiting(self, client: str) -> int:
        """Return how many requests of a client's address wait for their turn."""
        address = self._addresses.get(address_key(client))
        return len(address.waiting) if address is not None else 0

    def _limit(self, client: str) -> float:
        if self._is_proxy(client):
            return inf
        if self._per_address is not None:
            return self._per_address
        return inf if is_local(client) else FROM_ONE

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
            turn, _ = address.waiting.popitem(last=False)
            turn.started = True
            address.started += 1
            self.room -= 1
            self._line_up(address)
            turn.start()

    def _line_up(self, address: _Address) -> None:
        if address.waiting and address.started < address.limit:
            self._next.setdefault(address.key, address)


class Turn:
    """One request's; ``leave`` it as soon as a worker has answered, or nobody waits any more."""

    def __init__(self, turns: Turns, address: _Address, start: Callable[[], None]) -> None:
        self.address = address
        self.start = start
        self.started = False
        self._turns: Turns | None = turns

    def leave(self) -> None:
        """Let others have their turn; once."""
        turns, self._turns = self._turns, None
        if turns is not None:
            turns.leave(self)


class _Address:
    def __init__(self, key: str, limit: float) -> None:
        self.key, self.limit = key, limit
        self.started = 0
        self.waiting: OrderedDict[Turn, None] = OrderedDict()
