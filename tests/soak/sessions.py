"""Fault 38: how many database connections a process has, whatever the number of its clients."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

from tests.harness import LiveSite, Served
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled

# "dbchannels publisher 4711" is the layer's, "site 4711" Django's.
NAMES = (
    "SELECT application_name FROM pg_stat_activity "
    "WHERE application_name LIKE 'dbchannels %' OR application_name LIKE 'site %'"
)


class Sessions(NamedTuple):
    """The most connections that were seen at once."""

    server: int
    worker: int  # of the worker that had the most
    looks: int
    visits: int  # requests that read and wrote the session by the ORM


class Observer(threading.Thread):
    """Looks at pg_stat_activity again and again."""

    def __init__(self, site: LiveSite) -> None:
        super().__init__(daemon=True)
        self._site = site
        self._stopping = threading.Event()
        self.most: Counter[int] = Counter()  # by process id
        self.looks = 0

    def run(self) -> None:
        with closing(self._site.connect()) as connection, connection.cursor() as cursor:
            while not self._stopping.wait(0.01):
                cursor.execute(NAMES)
                self.most |= Counter(int(name.rpartition(" ")[2]) for (name,) in cursor.fetchall())
                self.looks += 1

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        self.join()


def sessions(site: LiveSite, clients: int) -> Sessions:
    """Let so many clients open sockets, say something, and visit pages; consumers and views use the ORM."""
    served = site.serve("--workers", "2")
    observer = Observer(site)
    observer.start()
    sockets = [served.socket(f"/member/g/c{number}/") for number in range(clients)]
    for one in sockets:
        one.send("hello")
    with ThreadPoolExecutor(min(clients, 50)) as pool:
        visits = sum(pool.map(lambda _: _visit(served), range(clients)))
    heard = [one.receive() for one in sockets]
    observer.stop()
    assert heard == ["hello"] * clients
    workers = [observer.most[pid] for pid in served.workers()]
    return Sessions(observer.most[served.process.pid], max(workers), observer.looks, visits)


def _visit(served: Served) -> bool:
    return served.get("/visits").text == "1"


def _sessions(scale: float) -> Seen:
    clients = scaled(1000, scale, 50)
    with on_postgresql() as (site, _):
        found = sessions(site, clients)
    text = f"{found.server} and {found.worker}, with {clients:,} sockets and {found.visits:,} visits"
    return Seen(text, found.server <= 5 and found.worker <= 2 and found.visits == clients)


ROWS = [Row(38, "connections of the interface server and of a worker", "5 and 2 at most", _sessions)]
