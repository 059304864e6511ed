"""A crash of the database empties the UNLOGGED tables: nobody whose message was there waits in vain."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from examples.embedded_postgres import EmbeddedPostgres
from tests.harness import LiveSite, until
from tests.soak.servers import member
from tests.soak.sites import options

pytestmark = pytest.mark.postgresql


def test_clients_of_lost_messages_are_answered_and_all_others_go_on(
    site: LiveSite, server: EmbeddedPostgres
) -> None:
    served = site.serve("--workers", "1", settings=options(lease=6))
    waiting, leaving, idle = [member(served, number) for number in range(3)]
    with ThreadPoolExecutor(4) as pool:
        running = pool.submit(served.get, "/sleep/10000")
        until(lambda: site.count("inflight", "messages LIKE '%http.request %'"), "a view runs")
        queued = [pool.submit(served.get, "/") for _ in range(3)]
        waiting.send("lost")
        leaving.close()
        until(lambda: site.count("protocolmessage") == 5, "all others wait")
        server.restart("kill")
        assert [one.result().status for one in queued] == [502, 502, 502]
        assert running.result().status == 200  # its worker lives, and had it on record again
    assert waiting.closed() == 1011
    assert idle.ask("after") == "after"
    until(lambda: site.count("connection") == site.count("membership") == 1, "two have left")
    assert sorted(site.entries()) == ["after c2", "resigned c0 1011", "resigned c1 1000"]
    assert "has lost the messages of 5 client(s)" in served.output()
