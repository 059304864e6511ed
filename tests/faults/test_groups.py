"""Fault 31: a large group that many processes change at once."""

from __future__ import annotations

import pytest

from tests.harness import LiveSite
from tests.soak import crowd

pytestmark = pytest.mark.postgresql


def test_a_member_is_there_once_whoever_adds_and_discards(site: LiveSite) -> None:
    found = crowd.crowd(site, 8, 200)
    assert (found.added, found.doubles) == (200, 0)
    assert (found.kept, found.discarded, found.delivered) == (100, 0, 100)
