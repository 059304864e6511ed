"""Clients come back to a group's history after kills, and hear each message once and in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from examples.embedded_postgres import EmbeddedPostgres
from tests.harness import LiveSite, Served, connect_slow, until
from tests.returning import ReturningEvents, ReturningSocket
from tests.soak import histories

pytestmark = pytest.mark.postgresql

SAY = """
from dbchannels import Group
for number in range({0}, {1}):
    Group("room-hall", history=1000).send(text=str(number).rjust({2}))
"""
# What a server waits for before it gives positions, and so before it reads what is new: see sql_history.LOCK.
LOCK_POSITIONS = "SELECT pg_advisory_lock(1684169833, 1)"
WAITS = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = 1684169833 AND NOT granted"


def test_nothing_is_missed_or_doubled_when_all_are_killed_in_turn(
    site: LiveSite, server: EmbeddedPostgres
) -> None:
    found = histories.kills(site, server, 1_000, 100, ("worker", "server", "kill"))
    assert (found.missed, found.doubled, found.inversions, found.gaps) == (0, 0, 0, 0), str(found)
    assert found.kills >= 3 and found.connections > 4


class Hall:
    """Clients that were there, and have left; they take little at once."""

    def __init__(self, site: LiveSite) -> None:
        self.site = site
        self.served: Served = site.serve("--workers", "2")
        kinds = (ReturningSocket, "/room/hall/"), (ReturningEvents, "/room-events/hall")
        self.clients = [kind(lambda: self.served.port, path, connect_slow) for kind, path in kinds]
        self.come_back()
        for client in self.clients:
            assert client.hear()
            client.cut()
        until(lambda: site.count("membership") == 0, "the clients have left")

    def come_back(self) -> None:
        for client in self.clients:
            assert client.connect()

    def hear(self, count: int) -> None:
        for client in self.clients:
            while len(client.heard) < count:
                assert client.hear()
            assert [int(text) for text in client.heard] == list(range(count))
            assert client.gaps == 0

    def kill_server(self) -> None:
        """Kill it, and start another when the clients have noticed."""
        self.served.end()
        for client in self.clients:
            with suppress(ConnectionError):
                while client.hear():
                    continue
            client.cut()

    def start_another(self) -> None:
        self.served = self.site.serve("--workers", "2")
        self.come_back()


@pytest.fixture
def hall(site: LiveSite) -> Iterator[Hall]:
    made = Hall(site)
    yield made
    for client in made.clients:
        client.cut()


def test_a_server_that_is_killed_between_catching_up_and_live_delivery_loses_nothing(hall: Hall) -> None:
    """What was said meanwhile is written, and it was about to read that."""
    hall.site.shell(SAY.format(0, 100, 1))
    hall.come_back()
    hall.hear(100)
    with closing(hall.site.connect()) as other:
        other.cursor().execute(LOCK_POSITIONS)
        hall.site.shell(SAY.format(100, 120, 1))
        until(lambda: hall.site.rows(WAITS), "the server is about to read")
        hall.kill_server()
    hall.start_another()
    hall.hear(120)


def test_a_server_that_is_killed_while_clients_catch_up_loses_nothing(hall: Hall) -> None:
    """They have missed 6 MB, and it waits for them before it reads more; what is said meanwhile is not theirs yet."""
    hall.site.shell(SAY.format(0, 60, 100_000))
    hall.come_back()
    hall.hear(3)
    hall.site.shell(SAY.format(60, 80, 1))
    hall.kill_server()
    counts = [len(client.heard) for client in hall.clients]
    assert max(counts) < 60, counts
    hall.start_another()
    hall.hear(80)
