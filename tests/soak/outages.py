"""Faults 6 and 7: the database restarts, and the session that LISTENs is ended, while messages flow."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, cycle, islice
from typing import Any, NamedTuple

import psycopg2

from examples.embedded_postgres import EmbeddedPostgres
from tests.harness import LiveSite, Socket, until
from tests.sender import Sender, sender
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled
from tests.soak.tally import Tally, drained, numbered, tally

RATE = 200  # messages a second
LISTENERS = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'dbchannels receiver %'"


class Stream(threading.Thread):
    """Sends numbered messages one by one at the rate, as far as the layer takes them; ``sent`` were acknowledged."""

    def __init__(self, one: Sender, channel: str) -> None:
        super().__init__(daemon=True)
        self._sender, self._channel = one, channel
        self._stopping = threading.Event()
        self.sent = 0

    def run(self) -> None:
        started = time.monotonic()
        for number in count():
            if self._stopping.wait(max(0.0, started + number / RATE - time.monotonic())):
                return
            self._sender.send(self._channel, [{"text": str(number), "sent": time.time()}])
            self.sent += 1

    def stop(self) -> None:
        """Send no more, and wait for the last acknowledgement."""
        self._stopping.set()
        self.join()


@contextmanager
def streaming(site: LiveSite, channel: str, prefix: Sequence[str] = ()) -> Iterator[Stream]:
    """Lend a stream that flows during the block; ``prefix`` is as for ``sender``."""
    with sender(site, prefix) as one:
        stream = Stream(one, channel)
        stream.start()
        try:
            yield stream
        finally:
            stream.stop()


class Restarts(NamedTuple):
    """What came of a stream, and of open sockets, while the database restarted."""

    tally: Tally
    dropped: int  # sockets
    slowest: float  # seconds from when it accepts connections until a message and a frame were delivered


def restarts(site: LiveSite, server: EmbeddedPostgres, number: int, clients: int) -> Restarts:
    """Restart the database in each way in turn."""
    served = site.serve("--workers", "2")
    sockets = [served.socket("/echo/") for _ in range(clients)]
    slowest = 0.0
    with streaming(site, "stream") as stream:
        for mode in islice(cycle(["fast", "immediate", "kill"]), number):
            server.restart(mode)
            until(lambda: _answer(site, "SELECT 1"), "it accepts connections", 60)
            slowest = max(slowest, _delivering(site, sockets))
            for one in sockets[1:]:  # who never reads answers no ping, and is left after a minute
                one.ask("hello")
    drained(site)
    dropped = sum(one.ask("still here") != "still here" for one in sockets)
    return Restarts(tally(site, numbered(0, stream.sent)), dropped, slowest)


def _answer(site: LiveSite, query: str) -> Any:
    try:
        return site.rows(query)
    except psycopg2.Error:
        return None


def _delivering(site: LiveSite, sockets: list[Socket]) -> float:
    """Return the seconds until one more message has run and one more frame has been answered."""
    started = time.monotonic()
    newest = "SELECT coalesce(max(id), 0) FROM livesite_entry"
    before = until(lambda: _answer(site, newest), "the ledger answers")
    sockets[0].ask("hello")
    until(lambda: (_answer(site, newest) or before) > before, "a message has run", 60)
    return time.monotonic() - started


class Terminations(NamedTuple):
    """What came of a stream while the session that LISTENs was ended."""

    tally: Tally
    p99: float  # seconds from a send to its consumer
    slowest_return: float  # seconds until another session listened


def terminations(site: LiveSite, number: int) -> Terminations:
    """End the session that LISTENs, again and again."""
    site.serve("--workers", "2")
    slowest = 0.0
    with streaming(site, "timed") as stream:
        until(lambda: stream.sent > RATE / 10, "messages flow")
        for _ in range(number):
            slowest = max(slowest, _end_listener(site))
    drained(site)
    entries = [text.split() for text in site.entries()]
    times = sorted(float(seconds) for _, seconds in entries)
    site.rows("UPDATE livesite_entry SET text = split_part(text, ' ', 1)")
    return Terminations(tally(site, numbered(0, stream.sent)), times[int(len(times) * 0.99)], slowest)


def _end_listener(site: LiveSite) -> float:
    (old,) = until(lambda: site.rows(LISTENERS), "one listens")[0]
    site.rows(f"SELECT pg_terminate_backend({old})")
    started = time.monotonic()
    until(lambda: site.rows(f"{LISTENERS} AND pid <> {old}"), "another one listens")
    return time.monotonic() - started


def _restarts(scale: float) -> Seen:
    with on_postgresql() as (site, server):
        found = restarts(site, server, scaled(100, scale, 3), 50)
    text = (
        f"{found.tally}; {found.dropped} sockets dropped; delivery again after {found.slowest:.2f} s at most"
    )
    return Seen(text, found.tally.lost == found.dropped == 0 and found.slowest < 2)


def _terminations(scale: float) -> Seen:
    with on_postgresql() as (site, _):
        found = terminations(site, scaled(1000, scale, 10))
    text = f"{found.tally}; p99 {found.p99 * 1000:.0f} ms; listens again after {found.slowest_return:.2f} s at most"
    return Seen(text, found.tally.lost == 0 and found.p99 < 1)


ROWS = [
    Row(6, "100 restarts at 200 messages/s", "0 lost, 0 sockets dropped, delivery again < 2 s", _restarts),
    Row(7, "1,000 ends of the LISTEN session at 200 messages/s", "0 lost, p99 < 1 s", _terminations),
]
