"""Fault 12: the network between the database and a part of the site falls silent, and neither kernel can tell."""

from __future__ import annotations

import time
from typing import NamedTuple

from tests.harness import LiveSite, Served, Socket, until
from tests.proxy import Proxy, proxied
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, options

SAID = "The layer cannot be used now"
LOST = "was claimed by another worker meanwhile"
SLEEP = 14.0  # seconds: the consumer that is cut off ends after the silence
BUSY = (
    "SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction' AND application_name LIKE 'site %'"
)
#: Sessions that the database holds twice: the locks of the first would not be free.
DOUBLES = (
    "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'dbchannels %' "
    "GROUP BY 1 HAVING count(*) > 1"
)


class Silence(NamedTuple):
    """What became of a server and its workers beyond a proxy that stopped forwarding."""

    noticed: float  # seconds until the server said so
    given_back: float  # seconds until another worker had run what one of them held
    effects: int  # of that message, in the end
    code: int | None  # with which a socket was closed: its server had been declared dead
    recovery: float  # seconds after the silence until a page and a frame had their turn
    unbroken: bool  # the same processes


def silence(site: LiveSite, lease: float) -> Silence:
    """Cut off a server with a worker in mid-consumer; another worker is at the database itself."""
    with proxied(site.database) as (proxy, database):
        beyond = LiveSite(database, site.folder)
        try:
            served = beyond.serve("--workers", "2", settings=options(lease=lease))
            socket = served.socket("/echo/")
            assert socket.ask("before") == "before"
            site.send("booked", {"text": "held", "sleep-first": SLEEP})
            until(lambda: site.rows(BUSY), "it is under way")
            site.work("--only", "booked", settings=options(lease=lease))
            return _cut(site, served, proxy, socket)
        finally:
            proxy.speak()
            beyond.end()


def _cut(site: LiveSite, served: Served, proxy: Proxy, socket: Socket) -> Silence:
    before = [served.process.pid, *sorted(served.workers(2))]
    proxy.fall_silent()
    started = time.monotonic()
    socket.send("in the dark")
    until(lambda: site.entries() == ["held"], "another worker has run it", 60)
    given_back = time.monotonic() - started
    served.wait_for_line(SAID)
    noticed = time.monotonic() - started
    proxy.speak()
    started = time.monotonic()
    until(lambda: served.get("/").status == 200, "a page is served")
    assert served.socket("/echo/").ask("after") == "after"
    recovery = time.monotonic() - started
    served.wait_for_line(LOST)
    until(lambda: not site.rows(DOUBLES), "no session is there twice")
    unbroken = before == [served.process.pid, *sorted(served.workers())]
    return Silence(noticed, given_back, len(site.entries()), socket.closed(), recovery, unbroken)


def _silence(scale: float) -> Seen:
    with on_postgresql() as (site, _):
        found = silence(site, 3 if scale < 1 else 6)
    text = (
        f"noticed after {found.noticed:.1f} s, claims given back after {found.given_back:.1f} s, "
        f"{found.effects} effect; all well {found.recovery:.1f} s after it"
    )
    exact = (found.effects, found.code, found.unbroken) == (1, 1012, True)
    return Seen(text, exact and found.noticed <= 15 and found.given_back <= 15)


ROWS = [
    Row(
        12,
        "a proxy stops forwarding, lease 6 s",
        "noticed in 15 s on both sides, claims given back",
        _silence,
    )
]
