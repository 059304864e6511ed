"""Fault 11: others have taken the database's connections."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psycopg2

from examples.embedded_postgres import EmbeddedPostgres
from tests.harness import Answer, LiveSite, Served, until
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled

END_OURS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE application_name LIKE 'dbchannels %' OR application_name LIKE 'site %'"
)


class Crowded(NamedTuple):
    """What clients were told while there was no room, and how long everything took to be well again."""

    statuses: set[int]  # of requests, then of handshakes
    retry_after: bool  # with each of them
    tries: float  # to connect, by all our processes, a second
    recovery: float  # seconds until a page, a socket that stayed open and a durable message had their turn
    unbroken: bool  # the same processes, and the socket the same


def crowded(site: LiveSite, server: EmbeddedPostgres, taken: int, requests: int) -> Crowded:
    """Take so many connections, end the site's, and leave it what is left; then leave."""
    served = site.serve("--workers", "2", "--http-timeout", "1.5")
    until(lambda: served.get("/").status == 200, "a worker is ready")
    socket = served.socket("/echo/")
    assert (served.get("/visits").text, socket.ask("before")) == ("1", "before")
    before = [served.process.pid, *sorted(served.workers(2))]
    with crowd(site, taken):
        started, refused = time.monotonic(), _refused(server)
        answers = [served.get("/visits") for _ in range(requests)] + [_handshake(served)]
        tries = (_refused(server) - refused) / (time.monotonic() - started)
    started = time.monotonic()
    until(lambda: served.get("/visits").status == 200, "a page is served")
    socket.send("after")
    recovered = socket.receive() == "after"
    site.send("stream", {"text": "durable"})
    until(lambda: "durable" in site.entries(), "a durable message has run")
    unbroken = recovered and before == [served.process.pid, *sorted(served.workers())]
    statuses = {one.status for one in answers}
    polite = all(one.header("Retry-After") for one in answers)
    return Crowded(statuses, polite, tries, time.monotonic() - started, unbroken)


@contextmanager
def crowd(site: LiveSite, taken: int) -> Iterator[None]:
    """Hold so many connections, whoever has them now."""
    with ExitStack() as stack:
        first = stack.enter_context(closing(site.connect())).cursor()

        held = 1
        while held < taken:
            with suppress(psycopg2.OperationalError):
                stack.enter_context(closing(site.connect()))
                held += 1
                continue
            first.execute(f"{END_OURS} LIMIT 1")
        first.execute(END_OURS)
        yield


def _handshake(served: Served) -> Answer:
    refused = served.socket("/echo/")
    lines = refused.head.decode("latin-1").split("\r\n")[1:]
    headers = [tuple(line.split(": ", 1)) for line in lines]
    return Answer(refused.status, headers, b"")  # type: ignore[arg-type]


def _refused(server: EmbeddedPostgres) -> int:
    """Return how many connections the server has refused."""
    return Path(server.folder, "postgres.log").read_text(errors="replace").count("too many clients")


def _crowded(scale: float) -> Seen:
    with on_postgresql(max_connections="20") as (site, server):
        found = crowded(site, server, 18, scaled(10, scale, 2))
    text = (
        f"{found.statuses} with Retry-After {found.retry_after}, {found.tries:.1f} tries a second; all well after "
        f"{found.recovery:.1f} s, nothing broken {found.unbroken}"
    )
    return Seen(text, found.statuses <= {503, 504} and found.retry_after and found.unbroken)


ROWS = [
    Row(
        11,
        "max_connections=20, 18 taken",
        "503 or 504 with Retry-After, then all recover by themselves",
        _crowded,
    )
]
