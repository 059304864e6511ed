"""Fault 44: a channel with a limit beside three that are as busy, and a quiet one: each has its turn."""

from __future__ import annotations

from collections import Counter

from tests.harness import LiveSite, until
from tests.sender import sender
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled

BUSY = ("share.a", "share.b", "share.c", "share.limited")


def shares(site: LiveSite, messages: int) -> dict[str, float]:
    """Return what each channel had of the first half of all messages, in parts of an equal share."""
    with sender(site) as one:
        for channel in BUSY:
            one.send(channel, [{}] * messages)
    site.work("--only", "share.*")
    half = messages * len(BUSY) // 2
    until(lambda: len(site.entries()) >= half, "half of the messages have run", 300)
    counts = Counter(site.entries()[:half])
    return {channel: counts[channel] * len(BUSY) / half for channel in BUSY}


def _measured(scale: float) -> Seen:
    with on_postgresql() as (site, _):
        found = shares(site, scaled(5000, scale, 200))
    text = ", ".join(f"{channel.partition('.')[2]} {share:.2f}" for channel, share in found.items())
    return Seen(text, all(0.8 <= share <= 1.2 for share in found.values()))


ROWS = [Row(44, "3 busy channels and 1 with concurrency=1", "0.8 to 1.2 of an equal share each", _measured)]
