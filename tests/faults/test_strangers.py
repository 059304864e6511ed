"""Fault 10: a transaction that somebody forgot keeps every deleted row in the tables."""

from __future__ import annotations

import pytest

from tests.harness import LiveSite
from tests.soak import stranger

pytestmark = pytest.mark.postgresql


def test_all_arrive_though_a_stranger_holds_a_transaction_open(site: LiveSite) -> None:
    found = stranger.stranger(site, seconds=1.0, parts=2)
    assert found.tally[1:] == (0, 0)
    assert all(one.messages and one.echoes for one in [found.before, *found.during])
