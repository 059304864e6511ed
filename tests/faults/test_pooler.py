"""A transaction pooler between the site and its database: it is said at the start, and the messages arrive."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.faults.test_postgresql import heard_by_all, room, unbroken
from tests.harness import LiveSite, until
from tests.pooler import PROGRAM, pooled

pytestmark = [pytest.mark.postgresql, pytest.mark.pooler]

SAID = "A pooler in transaction mode stands between this process and the database"
ADVICE = "Connect the layer directly: DBCHANNELS['default']['OPTIONS']['direct']"


@pytest.fixture
def pooled_site(site: LiveSite) -> Iterator[LiveSite]:
    """The site as it is seen through a pooler; its own way to look at the tables stays direct."""
    if PROGRAM is None:
        pytest.skip("no pgbouncer: apt-get install pgbouncer")
    with pooled(site.database) as through:
        other = LiveSite(through, site.folder)
        other.connect = site.connect  # type: ignore[method-assign]
        try:
            yield other
        finally:
            other.end()


def options(**given: object) -> dict[str, object]:
    """Return the settings for these OPTIONS of the layer."""
    return {"DBCHANNELS": {"default": {"OPTIONS": given}}}


def sent_by_the_site(site: LiveSite, text: str) -> None:
    """Send a durable message from another process, by Django's connection through the pooler; it runs."""
    site.send("ledger", {"text": text})
    until(lambda: text in site.entries(), f"{text} has run")


def test_through_a_pooler_the_poll_delivers_and_the_start_says_why(pooled_site: LiveSite) -> None:
    served = pooled_site.serve("--workers", "2", settings=options(poll_interval=0.2))
    (line,) = [one for one in served.output().splitlines() if SAID in one]
    assert ADVICE in line and "readers poll every 0.2 s" in line
    sockets = room(served, 3)
    heard_by_all(sockets, "one", "two")
    sent_by_the_site(pooled_site, "durable")
    assert served.get("/").text == "hello"
    unbroken(pooled_site, served, sockets)
    sockets[0].close()
    until(lambda: any(text.startswith("left") for text in pooled_site.entries()), "one has left")
    served.process.send_signal(signal.SIGTERM)
    assert [one.closed() for one in sockets[1:]] == [1001] * 2
    assert served.process.wait(60) == 0
    assert pooled_site.count("membership") == pooled_site.count("process") == 0


def test_with_a_direct_way_round_it_wakeups_work(pooled_site: LiveSite, site: LiveSite) -> None:
    direct = {key: site.database[key] for key in ("HOST", "PORT")}
    # Nobody looks unless woken: what arrives all the same was told by a NOTIFY.
    served = pooled_site.serve("--workers", "2", settings=options(direct=direct, poll_interval=3600))
    sockets = room(served, 3)
    heard_by_all(sockets, "one", "two")
    sent_by_the_site(pooled_site, "durable")
    assert SAID not in served.output()
    unbroken(pooled_site, served, sockets)
