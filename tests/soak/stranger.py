"""Fault 10: a stranger holds a transaction open, so that no deleted row can be cleared away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

from tests.harness import LiveSite, Served, until
from tests.sender import sender
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql
from tests.soak.tally import Tally, drained, numbered, tally

AT_ONCE = 100  # messages in one send_many
BACKLOG = 2000  # messages that wait at most
NEWEST = "SELECT coalesce(max(id), 0) FROM livesite_entry"


class Load(NamedTuple):
    """What was done in one span of time."""

    messages: int  # durable ones consumed, a second
    echoes: int  # frames answered, a second, one client after each answer


class Stranger(NamedTuple):
    """What was done without and with the stranger's transaction."""

    before: Load
    during: list[Load]  # of equal parts of the time
    tally: Tally


class Echoes(threading.Thread):
    """One client that says something again as soon as it was answered."""

    def __init__(self, served: Served) -> None:
        super().__init__(daemon=True)
        self._socket = served.socket("/echo/")
        self._stopping = threading.Event()
        self.number = 0

    def run(self) -> None:
        while not self._stopping.is_set():
            assert self._socket.ask("hello") == "hello"
            self.number += 1

    def stop(self) -> None:
        """Say no more."""
        self._stopping.set()
        self.join()


class Flood(threading.Thread):
    """Sends as many messages as are consumed."""

    def __init__(self, site: LiveSite) -> None:
        super().__init__(daemon=True)
        self._site = site
        self._stopping = threading.Event()
        self.sent = 0

    def run(self) -> None:
        with sender(self._site) as one, closing(self._site.connect()) as connection:
            cursor = connection.cursor()
            cursor.execute(NEWEST)
            first = cursor.fetchone()[0]
            while not self._stopping.is_set():
                cursor.execute(NEWEST)
                if self.sent - (cursor.fetchone()[0] - first) > BACKLOG:
                    time.sleep(0.01)
                    continue
                one.send("stream", [{"text": text} for text in numbered(self.sent, AT_ONCE)])
                self.sent += AT_ONCE

    def stop(self) -> None:
        """Send no more."""
        self._stopping.set()
        self.join()


def stranger(site: LiveSite, seconds: float, parts: int) -> Stranger:
    """Measure for so many seconds without, and as long in each part with, the stranger."""
    served = site.serve("--workers", "2")
    flood, echoes = Flood(site), Echoes(served)
    flood.start()
    echoes.start()
    try:
        until(lambda: site.rows(NEWEST) != [(0,)], "messages are consumed", 60)
        before = _load(site, echoes, seconds)
        with open_transaction(site):
            during = [_load(site, echoes, seconds) for _ in range(parts)]
    finally:
        echoes.stop()
        flood.stop()
    drained(site)
    return Stranger(before, during, tally(site, numbered(0, flood.sent)))


@contextmanager
def open_transaction(site: LiveSite) -> Iterator[None]:
    """Hold a transaction whose snapshot keeps every row that is deleted from now on."""
    with closing(site.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SELECT count(*) FROM dbchannels_process")
        yield


def _load(site: LiveSite, echoes: Echoes, seconds: float) -> Load:
    started = time.monotonic()
    (before,), said = site.rows(NEWEST)[0], echoes.number
    time.sleep(seconds)
    (after,), now_said = site.rows(NEWEST)[0], echoes.number
    took = time.monotonic() - started
    return Load(round((after - before) / took), round((now_said - said) / took))


def _stranger(scale: float) -> Seen:
    with on_postgresql(fsync="off") as (site, _):  # or the disk alone would be measured
        found = stranger(site, 600 * scale / 10, 10)
    worst = min(one.messages for one in found.during), min(one.echoes for one in found.during)
    text = (
        f"durable {found.before.messages} to {worst[0]} messages/s, echo {found.before.echoes} to {worst[1]} frames/s "
        f"({', '.join(f'{one.messages}, {one.echoes}' for one in found.during)}); {found.tally}"
    )
    held = worst[0] >= found.before.messages / 2 and worst[1] >= found.before.echoes / 2
    return Seen(text, held and found.tally[1:] == (0, 0))


ROWS = [Row(10, "a stranger's transaction, 10 min under load", "throughput >= 50 %, nothing lost", _stranger)]
