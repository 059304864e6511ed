"""Each message exactly once, by consumers that are one transaction with the end of their message."""

from __future__ import annotations

import time
from typing import NamedTuple

from tests.harness import LiveSite
from tests.sender import sender
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, on_sqlite, scaled
from tests.soak.tally import Tally, drained, numbered, tally

AT_ONCE = 1000  # messages in one send_many


class Ledger(NamedTuple):
    """What workers made of a queue."""

    tally: Tally
    workers: int  # that wrote at least one entry
    seconds: float  # from the last send to the last acknowledgement


def ledger(site: LiveSite, workers: int, messages: int) -> Ledger:
    """Let ``runworker`` processes consume so many messages, which are sent while they run."""
    site.crew(workers, "--only", "booked")
    texts = numbered(0, messages)
    with sender(site) as one:
        for start in range(0, messages, AT_ONCE):
            one.send("booked", [{"text": text} for text in texts[start : start + AT_ONCE]])
    started = time.monotonic()
    drained(site)
    seconds = time.monotonic() - started
    ((writers,),) = site.rows("SELECT count(DISTINCT pid) FROM livesite_entry")
    return Ledger(tally(site, texts), int(writers), seconds)


def _seen(found: Ledger, workers: int) -> Seen:
    exact = found.tally.lost == found.tally.duplicated == 0
    text = f"{found.tally}; {found.workers} workers, {found.seconds:.0f} s"
    return Seen(text, exact and found.workers == workers)


def _postgresql(scale: float) -> Seen:
    with on_postgresql() as (site, _):
        return _seen(ledger(site, 8, scaled(100_000, scale, 1000)), 8)


def _sqlite(scale: float) -> Seen:
    with on_sqlite() as site:
        # Of a few hundred one worker may get none: SQLite's lock goes to whoever asks at the right moment.
        return _seen(ledger(site, 4, scaled(2000, scale, 1000)), 4)


ROWS = [
    Row(0, "PostgreSQL: 8 workers, 100,000 messages, atomic", "each exactly once", _postgresql),
    Row(0, "SQLite: 4 workers, 4 x 500 messages, atomic", "each exactly once", _sqlite),
]
