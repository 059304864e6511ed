"""Fault 12: everything that is sent is acknowledged by a kernel, and no answer comes."""

from __future__ import annotations

import pytest

from tests.harness import LiveSite
from tests.soak import silence

pytestmark = pytest.mark.postgresql


def test_a_server_that_is_cut_off_gives_back_its_claims_and_comes_back(site: LiveSite) -> None:
    found = silence.silence(site, lease=3)
    assert (found.effects, found.code, found.unbroken) == (1, 1012, True)
