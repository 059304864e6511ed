"""What was sent against what consumers wrote down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from tests.harness import LiveSite, until

PATIENCE = 3600.0  # seconds in which a queue of any size is consumed; a run that stands still fails by then


class Tally(NamedTuple):
    """How many messages there were, how many never took effect, and how many effects were one too many."""

    sent: int
    lost: int
    duplicated: int

    def __str__(self) -> str:
        return f"{self.lost} of {self.sent:,} lost, {self.duplicated} duplicated"


def tally(site: LiveSite, texts: Iterable[str]) -> Tally:
    """Compare the texts that were sent, each once, with the site's entries; others are not counted."""
    expected = set(texts)
    written = Counter(text for text in site.entries() if text in expected)
    return Tally(len(expected), len(expected - written.keys()), written.total() - len(written))


def drained(site: LiveSite, deadline: float = PATIENCE) -> None:
    """Wait until no durable message is left, waiting or under way."""
    until(
        lambda: not site.count("durablemessage"),
        lambda: f"{site.count('durablemessage')} messages are consumed",
        deadline,
        every=0.05,
    )


def numbered(first: int, number: int) -> list[str]:
    """Return so many texts from a number on."""
    return [str(one) for one in range(first, first + number)]
