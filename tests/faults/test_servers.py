"""Interface servers that are asked to stop or killed, and processes that stand still and wake."""

from __future__ import annotations

import signal

import pytest

from tests.harness import LiveSite
from tests.soak import servers
from tests.soak.tally import Tally

pytestmark = pytest.mark.postgresql

LEASE = 1.0  # seconds, so that the dead are found soon


# Fault 3: SIGTERM, and SIGUSR1 before a restart.


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 1001), (signal.SIGUSR1, 1012)])
def test_a_server_that_is_asked_to_stop_leaves_everything_in_order(
    site: LiveSite, number: int, code: int
) -> None:
    found = servers.drain(site, 50, 5, 4, number)
    assert (found.codes, found.consumed) == ({code}, {str(code)})
    assert (found.missing, found.repeated, found.left) == (0, 0, 0)
    assert (found.answered, found.status) == ({200}, 0)


def test_clients_that_never_answer_a_close_are_told_of_too(site: LiveSite) -> None:
    served = site.serve("--workers", "1")
    for number in range(3):
        servers.member(served, number)
    assert served.terminate() == 0
    assert servers.resigned(site, 3) == (0, 0, {"1006"})
    assert site.rows(servers.ORPHANS) == [(0,)]


# Fault 4: SIGKILL.


def test_a_killed_server_leaves_nothing_behind(site: LiveSite) -> None:
    found = servers.kill_server(site, 50, 5, LEASE)
    assert (found.missing, found.repeated, found.codes, found.by_others) == (0, 0, {"1006"}, True)


# Fault 5: SIGSTOP, SIGCONT.


def test_a_server_that_wakes_after_its_death_starts_anew(site: LiveSite) -> None:
    assert servers.stop_server(site, 5, LEASE) == ({1012}, True, 0, 0, 0, True)


# Fault 45: it stands still while clients arrive.


def test_each_connect_that_ran_has_its_one_disconnect(site: LiveSite) -> None:
    found = servers.arrivals(site, 4, LEASE)
    assert found.ran >= 8
    assert (found.missing, found.repeated) == (0, 0)


def test_a_worker_that_wakes_after_its_death_starts_anew(site: LiveSite) -> None:
    assert servers.stop_worker(site, LEASE) == (Tally(51, 0, 0), True, True, True)
