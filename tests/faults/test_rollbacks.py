"""Fault 34: a view's sends share the fate of its transaction, on channels of both kinds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import LiveSite, Served
from tests.soak.rollbacks import CHANNELS, SENT, SENT_ATOMIC, rollbacks

pytestmark = pytest.mark.postgresql


@pytest.fixture(scope="module", params=[False, True], ids=["autocommit", "atomic-requests"])
def served(fragile_site: LiveSite, request: pytest.FixtureRequest) -> Iterator[Served]:
    """A server for all these tests, whose views have no transaction but their own; and one with ATOMIC_REQUESTS."""
    fragile_site.end()  # or the workers of another server would take these requests
    fragile_site.empty()  # or these workers would take what another test has left
    site = LiveSite({**fragile_site.database, "ATOMIC_REQUESTS": request.param}, fragile_site.folder)
    try:
        yield site.serve("--workers", "2")
    finally:
        site.end()


@pytest.mark.parametrize("how", [*SENT, *SENT_ATOMIC])
def test_a_send_shares_the_fate_of_its_transaction(served: Served, how: str) -> None:
    texts = {**SENT, **SENT_ATOMIC}[how]
    if how == "plainly-and-raise" and not served.site.database["ATOMIC_REQUESTS"]:
        texts = [""]  # each statement is a transaction of its own, and was committed before it raised
    found = rollbacks(served, {how: texts}, 2)
    views = len(CHANNELS) * (1 if how == "die" else 2)
    assert (found.views, *found.tally[1:], found.ghosts, found.wrong.total()) == (views, 0, 0, 0, 0)
    assert found.tally.sent == views * len(texts)
