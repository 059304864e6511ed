"""Fault 34: a view's sends share the fate of its transaction, on channels of both kinds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import LiveSite, Served, until

pytestmark = pytest.mark.postgresql

CHANNELS = ("http.noted", "stream")  # a protocol channel and a durable one


@pytest.fixture(scope="module")
def served(fragile_site: LiveSite) -> Iterator[Served]:
    """A server for all these tests, whose views have no transaction but their own."""
    try:
        yield fragile_site.serve("--workers", "2")
    finally:
        fragile_site.end()


@pytest.fixture(autouse=True)
def _forget(fragile_site: LiveSite) -> None:
    forget(fragile_site)


def forget(site: LiveSite) -> None:
    """Empty the ledger; the other tables are in use."""
    site.rows("DELETE FROM livesite_entry")


def view(served: Served, how: str) -> set[int]:
    """Let a view send to a channel of each kind in its way; return the statuses."""
    return {served.get(f"/sends/{how}/{channel}/{channel}").status for channel in CHANNELS}


def arrived(served: Served, *expected: str) -> None:
    """These and no others have been consumed, on each channel once; one sent last shows that all were."""
    site = served.site
    for channel in CHANNELS:
        assert served.get(f"/sends/commit/{channel}/last").text == "sent"
    until(lambda: site.entries().count("last") == len(CHANNELS), "the last ones have been consumed")
    left = "SELECT count(*) FROM dbchannels_{} WHERE channel IN ('http.noted', 'stream')"
    for table in ("protocolmessage", "durablemessage"):
        until(lambda table=table: site.rows(left.format(table)) == [(0,)], "all have been consumed")
    until(lambda: not site.count("held", "messages <> ''"), "no consumer runs")
    texts = [f"{channel}{text}" for channel in CHANNELS for text in expected]
    assert sorted(site.entries()) == sorted([*texts, "last", "last"])


def test_nothing_is_sent_on_rollback(served):
    assert view(served, "roll-back") == {200}
    arrived(served)


def test_exactly_one_is_sent_on_commit(served):
    assert view(served, "commit") == {200}
    arrived(served, "")


def test_a_savepoint_takes_its_own_sends_along(served):
    assert view(served, "savepoint") == {200}
    arrived(served, " before", " after")


def test_a_kill_between_insert_and_commit_sends_nothing(served):
    assert view(served, "die") == {502}
    until(lambda: len(served.workers()) == 2, "another has taken its place")
    arrived(served)


def test_with_atomic_requests_a_send_shares_the_fate_of_its_view(fragile_site):
    fragile_site.end()  # or the workers of the other server would take these requests
    site = LiveSite({**fragile_site.database, "ATOMIC_REQUESTS": True}, fragile_site.folder)
    try:
        served = site.serve("--workers", "2")
        assert view(served, "plainly-and-raise") == {500}
        arrived(served)
        forget(site)
        assert view(served, "plainly") == {200}
        arrived(served, "")
    finally:
        site.end()
