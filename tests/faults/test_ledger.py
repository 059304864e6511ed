"""Many processes on one queue, and each message takes effect exactly once."""

from __future__ import annotations

import pytest

from tests.harness import LiveSite
from tests.soak import ledger


def exactly_once(found: ledger.Ledger, messages: int, workers: int) -> None:
    """Nothing is missing, nothing is there twice, and no worker stood idle."""
    assert found.tally == (messages, 0, 0)
    assert found.workers == workers


@pytest.mark.postgresql
def test_eight_workers_book_each_message_once(site: LiveSite) -> None:
    exactly_once(ledger.ledger(site, 8, 5000), 5000, 8)


def test_four_workers_on_sqlite_book_each_message_once(sqlite_site: LiveSite) -> None:
    exactly_once(ledger.ledger(sqlite_site, 4, 1000), 1000, 4)
