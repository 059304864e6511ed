"""Messages flow while the database restarts and while its LISTEN session is ended: each one arrives."""

from __future__ import annotations

import pytest

from dbchannels.testing.postgres import EmbeddedPostgres
from tests.harness import LiveSite
from tests.soak import outages

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
