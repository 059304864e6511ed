"""Fault 41: requests whose clients leave at once, and an address that asks for all at once."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.harness import HOST, Served, connect, reset, until
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled

VIEW = "/sleep/100"  # takes 0.1 s
#: As a proxy on this machine says: what comes from the machine itself without one is exempt.
ATTACKER, VISITOR = "198.51.100.7", "203.0.113.9"


class Attack(NamedTuple):
    """What a visitor has seen of one."""

    sent: int
    seconds: float  # the attack's own length
    visits: int
    slowest: float  # of the visitor's requests, in seconds, from the attack's beginning until all is quiet

    def __str__(self) -> str:
        return f"{self.sent:,} in {self.seconds:.1f} s: slowest of {self.visits} visits {self.slowest:.2f} s"


def ask(served: Served, address: str) -> socket.socket:
    """Send a request from an address, and leave its answer unread."""
    raw = connect(served.port)
    lines = (
        f"GET {VIEW} HTTP/1.1",
        f"Host: {HOST}",
        f"X-Forwarded-For: {address}",
        "Connection: close",
        "",
        "",
    )
    raw.sendall("\r\n".join(lines).encode())
    return raw


def attack(served: Served, number: int, leave: Callable[[socket.socket], None]) -> Attack:
    """Send so many requests, one connection after the other, beside a visitor who asks again and again."""
    ended, spent = threading.Event(), [0.0]

    def visit() -> None:
        while not ended.is_set():
            started = time.monotonic()
            answer = served.get("/", **{"X-Forwarded-For": VISITOR})
            spent.append(time.monotonic() - started if answer.text == "hello" else 60.0)

    visitor = threading.Thread(target=visit, daemon=True)
    visitor.start()
    until(lambda: len(spent) > 5, "the visitor is served")
    started = time.monotonic()
    for _ in range(number):
        leave(ask(served, ATTACKER))
    seconds = time.monotonic() - started
    time.sleep(3.0)  # what still waits would delay the visitor now
    ended.set()
    visitor.join(90)
    return Attack(number, seconds, len(spent) - 1, max(spent))


def _row(leave: Callable[[socket.socket], None], most: int, target: float) -> Callable[[float], Seen]:
    def measure(scale: float) -> Seen:
        with on_postgresql(fsync="off") as (site, _):
            limits = ("--max-connections", "4000", "--max-per-address", "4000")
            served = site.serve("--workers", "4", "--proxy-headers", *limits)
            found = attack(served, scaled(most, scale, 100), leave)
            return Seen(str(found), found.slowest < target)

    return measure


# Of those that stay 32 are in the layer, 1.1 s for three workers; what a batch puts back takes its turn again.
ROWS = [
    Row(
        41,
        "3,000 requests of a 0.1 s view, each reset at once",
        "a visitor waits < 2 s",
        _row(reset, 3_000, 2.0),
    ),
    Row(
        41,
        "300 of one address that stay, 10 s of work",
        "a visitor waits < 3 s",
        _row(lambda raw: None, 300, 3.0),
    ),
]
