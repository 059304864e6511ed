"""Fault 33: ids are given when a message is sent, and seen when it is committed."""

from __future__ import annotations

import pytest

from tests.harness import LiveSite
from tests.soak import commits

pytestmark = pytest.mark.postgresql


def test_messages_that_are_committed_in_reverse_are_all_taken(site: LiveSite) -> None:
    found = commits.commits(site, 8, rounds=5, each=20)
    assert found == ((800, 0, 0), 800, 800)
