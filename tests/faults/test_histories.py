"""Clients come back to a group's history after kills, and hear each message once and in order."""

from __future__ import annotations

import pytest

from examples.embedded_postgres import EmbeddedPostgres
from tests.harness import LiveSite
from tests.soak import histories

pytestmark = pytest.mark.postgresql


def test_nothing_is_missed_or_doubled_when_all_are_killed_in_turn(
    site: LiveSite, server: EmbeddedPostgres
) -> None:
    found = histories.kills(site, server, 1_000, 100, ("worker", "server", "kill"))
    assert (found.missed, found.doubled, found.inversions, found.gaps) == (0, 0, 0, 0), str(found)
    assert found.kills >= 3 and found.connections > 4
