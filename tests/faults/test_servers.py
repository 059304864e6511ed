"""Interface servers that are killed, and processes that stand still and wake."""

from __future__ import annotations

import pytest

from tests.harness import LiveSite
from tests.soak import servers
from tests.soak.tally import Tally

pytestmark = pytest.mark.postgresql

LEASE = 1.0  # seconds, so that the dead are found soon


# Fault 4: SIGKILL.


def test_a_killed_server_leaves_nothing_behind(site: LiveSite) -> None:
    found = servers.kill_server(site, 50, 5, LEASE)
    assert (found.missing, found.repeated, found.codes, found.by_others) == (0, 0, {"1006"}, True)


# Fault 5: SIGSTOP, SIGCONT.


def test_a_server_that_wakes_after_its_death_starts_anew(site: LiveSite) -> None:
    assert servers.stop_server(site, 5, LEASE) == ({1012}, True, 0, 0, 0, True)


def test_a_worker_that_wakes_after_its_death_starts_anew(site: LiveSite) -> None:
    assert servers.stop_worker(site, LEASE) == (Tally(51, 0, 0), True, True, True)
