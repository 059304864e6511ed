"""The order of a connection's frames, with several workers that die."""

from __future__ import annotations

import pytest

from tests.harness import LiveSite
from tests.soak import order, shares


@pytest.mark.postgresql
def test_frames_are_consumed_in_order_whatever_dies(site: LiveSite) -> None:
    found = order.order(site, 10, 100, workers=4, kills=3)
    assert (found.inversions, found.gaps, found.finished) == (0, 0, 10)
    assert found.consumed >= 10 * 100
    assert found.kills == 3


@pytest.mark.postgresql
def test_a_limited_channel_has_its_share_beside_busy_ones(site: LiveSite) -> None:
    found = shares.shares(site, 200)
    assert all(0.6 <= share <= 1.4 for share in found.values()), found  # shares of 200 messages vary


def test_disorder_would_be_seen() -> None:
    assert order.disorder(["a 0", "b 0", "a 1", "b 1"]) == (4, 0, 0)
    assert order.disorder(["a 1", "a 0", "b 0", "b 0", "c 0", "c 2"]) == (6, 2, 1)
