"""Fault 43: what a message leaves behind is not there for the next."""

from __future__ import annotations

from tests.soak.leftovers import WORKERS, leftovers


def test_a_message_finds_nothing_of_the_one_before(site):
    found = leftovers(site, 50)
    assert found.unclean == []
    assert found.failed == 1
    assert found.sessions <= WORKERS + found.failed
