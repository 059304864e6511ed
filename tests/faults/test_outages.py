"""Messages flow while the database restarts and while its LISTEN session is ended: each one arrives."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from examples.embedded_postgres import EmbeddedPostgres
from tests.harness import LiveSite, is_running, until
from tests.proxy import proxied
from tests.soak import outages
from tests.soak.sites import options

START = 1.0  # seconds that the interpreter's own end may take on a slow machine

pytestmark = pytest.mark.postgresql


# Fault 6.


def test_no_message_and_no_socket_is_lost_in_restarts(site: LiveSite, server: EmbeddedPostgres) -> None:
    found = outages.restarts(site, server, 3, clients=5)
    assert (found.tally.lost, found.dropped) == (0, 0)
    assert found.tally.sent > 0


# Fault 7.


def test_no_message_is_lost_when_the_listener_is_ended(site: LiveSite) -> None:
    found = outages.terminations(site, 10)
    assert (found.tally.lost, found.tally.duplicated) == (0, 0)
    assert found.tally.sent > 0


def test_it_is_two_lines_of_each_process_and_new_requests_are_503_at_once(
    site: LiveSite, server: EmbeddedPostgres
) -> None:
    served = site.serve("--workers", "2", "--http-timeout", "60")
    assert served.get("/").status == 200
    with server.outage():
        until(lambda: served.output().count("cannot be used now") == 3, served.output)
        time.sleep(2.0)
        answer = served.get("/")  # it does not wait for longer than 30 s
        assert (answer.status, answer.header("Retry-After")) == (503, "5")
    until(lambda: served.get("/").status == 200, "it is back")
    until(lambda: served.output().count("can be used again") == 3, served.output)
    for line in (r"(\S+): The layer cannot be used now \(", r"(\S+): The layer can be used again, after \d"):
        names = re.findall(line, served.output())
        assert len(names) == len(set(names)) == 3, served.output()
        assert {name.split("-")[0] for name in names} == {"server", "worker"}


def test_no_message_meets_a_connection_that_was_ended_while_its_worker_was_idle(site: LiveSite) -> None:
    served = site.serve("--workers", "0")
    site.work(settings=options(lease=0.6))
    sessions = "FROM pg_stat_activity WHERE application_name LIKE 'site %'"
    found: set[tuple[Any, ...]] = set()

    def has_checked_twice() -> bool:
        found.update(
            site.rows(f"SELECT query_start {sessions} AND query ~ 'pg_notification_queue_usage|DISCARD ALL'")
        )
        return len(found) > 2

    until(has_checked_twice, "it checks")
    assert site.rows(f"SELECT pg_terminate_backend(pid, 5000) {sessions}") == [(True,)]
    assert served.get("/visits").status == 200


# The end of a server meanwhile.


@pytest.mark.parametrize("silent", [False, True], ids=["away", "silent"])
def test_a_server_ends_in_time_though_the_database_is_away(
    site: LiveSite, server: EmbeddedPostgres, silent: bool
) -> None:
    graceful = 0.5
    with proxied(site.database) as (proxy, database):
        beyond = LiveSite(database, site.folder)
        try:
            served = beyond.serve("--workers", "1", "--graceful-timeout", str(graceful))
            socket = served.socket("/echo/")
            assert socket.ask("hello") == "hello"
            workers = served.workers()
            if silent:
                proxy.fall_silent()
                assert served.terminate(deadline=graceful + 4 + START) == 0
            else:
                with server.outage():
                    assert served.terminate(deadline=graceful + 4 + START) == 0
            assert socket.closed() == 1001
            assert not any(map(is_running, workers))
        finally:
            proxy.speak()
            beyond.end()


def test_a_burst_does_not_wait_for_a_database_that_stays_away(
    site: LiveSite, server: EmbeddedPostgres
) -> None:
    site.send("ledger", {"text": "slow", "announce": True, "sleep": 2})
    worker = site.work("--burst", "--only", "ledger", "--wait-for-database", "1")
    until(lambda: site.entries() == ["started slow"], worker.output)
    with server.outage():
        assert worker.process.wait(60) == 1
    last = worker.output().strip().splitlines()[-1]
    assert last.startswith(
        "CommandError: The database was unavailable for longer than --wait-for-database allows ("
    )
