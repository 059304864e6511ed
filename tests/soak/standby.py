"""Fault 47: the primary database is killed under load, and its standby takes over."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.clusters import NAME, Cluster, entry
from tests.harness import LiveSite, close_all, until
from tests.soak.outages import streaming
from tests.soak.row import Row, Seen
from tests.soak.sites import scaled
from tests.soak.tally import Tally, drained, numbered, tally

UNNOTICED = 1.0  # seconds for which nobody promotes the standby


class Promotion(NamedTuple):
    """What clients saw; times are in seconds from when the standby took writes."""

    tally: Tally  # of durable messages that were acknowledged
    page: float  # until a request was answered
    echo: float  # until a frame was
    message: float  # until a durable message had run
    dropped: int  # sockets
    unanswered: int  # of the requests that were under way
    left: int  # rows of protocol messages, and of such in flight, in the end


@contextmanager
def site_with_standby(synchronous: bool, early: bool = False) -> Iterator[tuple[LiveSite, Cluster, Cluster]]:
    """Lend a site on a primary with a standby.

    The standby is made after the tables, unless it is to be ``early``: PostgreSQL 15 and later lose the sequences of
    UNLOGGED tables that were made since, if it is promoted before its next restartpoint.
    """
    primary, standby = Cluster("127.0.0.1"), Cluster("127.0.0.1")
    with tempfile.TemporaryDirectory(prefix="dbchannels-soak-") as folder:
        site = LiveSite(entry(primary, standby), Path(folder))
        try:
            primary.make().start()
            primary.rows(f"CREATE DATABASE {NAME}")
            if early:
                standby.follow(primary, synchronous)
            done = site.manage("migrate", "--verbosity", "0")
            assert done.returncode == 0, done.stderr
            if not early:
                standby.follow(primary, synchronous)
            yield site, primary, standby
        finally:
            site.end()
            close_all()
            standby.end()
            primary.end()


def promotion(site: LiveSite, primary: Cluster, standby: Cluster, clients: int, flow: int) -> Promotion:
    """Kill the primary while messages, requests and frames flow, and promote the standby."""
    served = site.serve("--workers", "2")
    sockets = [served.socket(f"/member/g/c{number}/") for number in range(clients)]
    assert all(one.ask("before") == "before" for one in sockets)
    with streaming(site, "stream") as stream, ThreadPoolExecutor(8) as pool:
        until(lambda: stream.sent > flow, "messages flow", 60)
        under_way = [pool.submit(served.get, "/sleep/300") for _ in range(3)]
        until(lambda: site.count("inflight", "messages LIKE '%http.request %'"), "a view runs")
        primary.kill()
        under_way += [pool.submit(served.get, "/") for _ in range(3)]
        time.sleep(UNNOTICED)
        standby.promote()
        started, sent, ran = time.monotonic(), stream.sent, len(site.entries())
        page = pool.submit(seconds_until, lambda: served.get("/").status == 200, started)
        echo = pool.submit(seconds_until, lambda: sockets[0].ask("after") == "after", started)
        message = seconds_until(lambda: len(site.entries()) > ran, started)
        until(lambda: stream.sent > sent + flow, "messages flow again", 60)
        statuses = [one.result().status for one in under_way]
    drained(site, 60)
    dropped = sum(one.ask("last") != "last" for one in sockets)
    in_flight = "messages <> ''"
    until(lambda: not site.count("protocolmessage") and not site.count("inflight", in_flight), "all is quiet")
    return Promotion(
        tally(site, numbered(0, stream.sent)),
        page.result(),
        echo.result(),
        message,
        dropped,
        sum(status not in (200, 502, 503) for status in statuses),
        site.count("protocolmessage") + site.count("inflight", in_flight),
    )


def seconds_until(condition: Callable[[], bool], started: float) -> float:
    """Return how many seconds after ``started`` the condition became true."""
    until(condition, "all is back", 60)
    return time.monotonic() - started


def _promotion(synchronous: bool) -> Callable[[float], Seen]:
    def measure(scale: float) -> Seen:
        with site_with_standby(synchronous) as (site, primary, standby):
            found = promotion(site, primary, standby, scaled(50, scale, 5), scaled(1000, scale, 100))
        text = (
            f"{found.tally}; after the promotion a page in {found.page:.1f} s, a frame in {found.echo:.1f} s, a "
            f"message in {found.message:.1f} s; {found.dropped} sockets dropped, {found.unanswered} unanswered"
        )
        back = max(found.page, found.echo, found.message) < 5
        exact = found.dropped == found.unanswered == found.left == 0
        return Seen(text, back and exact and not (synchronous and found.tally.lost))

    return measure


ROWS = [
    Row(
        47,
        "a synchronous standby is promoted at 200 messages/s",
        "0 lost, all back in < 5 s",
        _promotion(True),
    ),
    Row(47, "an asynchronous standby is promoted at 200 messages/s", "all back in < 5 s", _promotion(False)),
]
