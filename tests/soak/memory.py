"""What the whole stack takes of the machine's memory, with a thousand sockets that say nothing."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

from examples.embedded_postgres import EmbeddedPostgres
from tests.benchmarks.crowd import Crowd
from tests.harness import children, until
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled

LIMIT = 280.0  # MB
WORKERS = 4  # by default, on a small machine


def taken(pids: list[int]) -> float:
    """Return their proportional share of memory, in MB: what several processes share counts once."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(found[1]) for text in texts if (found := re.search(r"^Pss:\s+(\d+)", text, re.M))) / 1024


def sessions(server: EmbeddedPostgres) -> list[int]:
    """Return the process ids of the database's sessions, and of what else serves them."""
    (file,) = Path(server.folder).rglob("postmaster.pid")
    return children(int(file.read_text().split()[0]))


def _stack(scale: float) -> Seen:
    number = scaled(1000, scale, 100)
    with on_postgresql(fsync="off") as (site, server):
        served = site.serve("--workers", str(WORKERS))
        until(lambda: site.count("process", "kind = 'worker'") == WORKERS, "all workers are there", 60)
        with closing(Crowd(served.port)) as crowd:
            crowd.open(number, "/echo/")
            assert served.socket("/echo/").ask("tea") == "tea"
            for _ in range(scaled(200, scale, 20)):  # so that each worker has done what it does
                served.get("/visits")
            ours, theirs = taken([served.process.pid, *served.workers()]), taken(sessions(server))
    text = f"{number:,} sockets: server and {WORKERS} workers {ours:.0f} MB, PostgreSQL's sessions {theirs:.0f} MB"
    return Seen(text, ours + theirs <= LIMIT)


ROWS = [Row(0, "memory of the whole stack, 1,000 idle sockets", f"<= {LIMIT:.0f} MB (PSS)", _stack)]
