"""Workers that die or are stopped, and messages that make them: nothing is lost, and nobody else waits."""

from __future__ import annotations

import pytest

from tests.harness import LiveSite
from tests.soak import poison, workers

pytestmark = pytest.mark.postgresql


def others_ran_once(found: poison.Poison, messages: int) -> None:
    """Every message but the poison took effect once."""
    assert found.others == (messages, 0, 0)


# Fault 1: SIGKILL.


def test_no_message_is_lost_when_workers_are_killed(site: LiveSite) -> None:
    found = workers.kills(site, 10, 5000, workers=4)
    assert (found.tally.sent, found.tally.lost, found.dead_letters) == (5000, 0, 0)
    assert found.in_flight >= 10
    assert found.tally.duplicated <= found.in_flight


def test_clients_of_a_killed_worker_are_told(site: LiveSite) -> None:
    found = workers.answers(site, 2)
    assert (found.statuses, found.close_codes) == ({502}, {1011})
    assert found.disconnects == {"left tea 1011"}


# Fault 2: SIGTERM.


def test_no_message_is_lost_or_run_twice_when_workers_are_stopped(site: LiveSite) -> None:
    assert workers.cycles(site, 4, 2000) == ((2000, 0, 0), {0}, 0)


# Faults 15 and 16: poison.


def test_a_message_that_always_raises_holds_up_nobody(site: LiveSite) -> None:
    found = poison.poison(site, "raise", 500, retries=1)
    others_ran_once(found, 1000)
    assert (found.tries, found.attempts) == (2, 2)
    assert found.error.rstrip().endswith("at length")
    assert len(found.error) <= 16_384


def test_a_message_that_kills_its_process_is_given_up_after_as_many_tries(site: LiveSite) -> None:
    found = poison.poison(site, "exit", 500, retries=1)
    others_ran_once(found, 1000)
    # A death in a batch does not say which message it was, so it is not counted against any.
    assert found.tries in (2, 3)
    assert found.attempts == 2
    assert "WorkerKilled" in found.error
