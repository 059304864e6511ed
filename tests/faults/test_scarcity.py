"""The database has no connection left, or no space: clients are told, processes live, and all come back."""

from __future__ import annotations

import pytest

from tests.soak import crowded, full_disk, sessions
from tests.soak.sites import on_postgresql

pytestmark = pytest.mark.postgresql


# Fault 11: too many connections.


def test_without_a_connection_clients_are_told_and_all_recovers() -> None:
    with on_postgresql(max_connections="20", fsync="off") as (site, server):
        found = crowded.crowded(site, server, 18, requests=1)
    # 504 where the server has a connection and no worker has one.
    assert found.statuses <= {503, 504}
    assert (found.retry_after, found.unbroken) == (True, True)
    assert 0 < found.tries < 50


# Fault 13: the disk is full.


def test_on_a_full_disk_senders_are_told_and_all_recovers(site) -> None:
    found = full_disk.full_disk(site, full_disk.refuse)
    assert found == ("53100", 503, True, 0, True, True, found.recovery)


# Fault 38: connections.


def test_connections_to_the_database_are_few_whatever_the_clients(site) -> None:
    found = sessions.sessions(site, 50)
    assert 1 <= found.server <= 5
    assert 1 <= found.worker <= 2
    assert found.visits == 50
    assert found.looks > 10
