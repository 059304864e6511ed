"""Faults 15 and 16: one message that fails each time it is tried, among others that do not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from tests.harness import LiveSite, until
from tests.sender import Sender, sender
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, options, scaled
from tests.soak.tally import Tally, numbered, tally

OTHERS = "SELECT count(*) FROM livesite_entry WHERE text NOT LIKE 'tried%'"


class Poison(NamedTuple):
    """What became of the one, and of the others."""

    others: Tally
    tries: int  # how often the consumer ran for the poison
    waits: list[float]  # seconds between the tries
    attempts: int  # that its dead letter counts
    error: str  # the traceback that its dead letter has
    seconds: float  # until all others had run
    without: float  # the same for as many without a poison among them


def poison(site: LiveSite, kind: str, messages: int, retries: int) -> Poison:
    """Send one that raises ("raise") or ends its process ("exit"), with all others behind it."""
    site.serve("--workers", "3", settings=options(retries=retries, lease=600))
    with sender(site) as one:
        good = [{"text": text} for text in numbered(0, 2 * messages)]
        without = _consumed(site, one, good[:messages], messages)
        seconds = _consumed(site, one, [{"poison": kind}, *good[messages:]], 2 * messages)
    until(lambda: site.count("deadletter"), "a dead letter", 900)
    ((attempts, error),) = site.rows("SELECT attempts, error FROM dbchannels_deadletter")
    tried = [float(text.split()[1]) for text in site.entries() if text.startswith("tried")]
    waits = [later - earlier for earlier, later in pairwise(tried)]
    others = tally(site, numbered(0, 2 * messages))
    return Poison(others, len(tried), waits, attempts, error, seconds, without)


def _consumed(site: LiveSite, one: Sender, messages: Sequence[dict[str, str]], total: int) -> float:
    """Send, and return the seconds until so many were written down, the tries of the poison apart."""
    started = time.monotonic()
    one.send("poison", messages)
    until(lambda: site.rows(OTHERS)[0][0] == total, "the others have run", 120)
    return time.monotonic() - started


def _raising(scale: float) -> Seen:
    retries = 3 if scale >= 1 else 2  # 1, 5 and 25 s
    with on_postgresql() as (site, _):
        found = poison(site, "raise", scaled(1000, scale, 100), retries)
    waits = ", ".join(f"{seconds:.1f}" for seconds in found.waits)
    text = (
        f"{found.others}, {found.seconds:.1f} s (without {found.without:.1f} s); tried again after {waits} s"
    )
    backed_off = all(
        0.7 * 5**number <= seconds <= 1.3 * 5**number + 1 for number, seconds in enumerate(found.waits)
    )
    right = found.others[1:] == (0, 0) and found.tries == found.attempts == retries + 1 and backed_off
    normal = found.seconds < 1.5 * found.without + 1
    return Seen(text, right and normal and 0 < len(found.error) <= 16_384)


def _exiting(scale: float) -> Seen:
    with on_postgresql() as (site, _):
        found = poison(site, "exit", scaled(1000, scale, 100), 5)
    text = f"{found.others}, {found.seconds:.1f} s; {found.tries} deaths, {found.attempts} attempts counted"
    # The first death may have been in a batch, which does not say whose fault it was.
    right = found.tries in (6, 7) and found.attempts == 6
    return Seen(text, right and found.others[1:] == (0, 0))


ROWS = [
    Row(15, "1 that raises among 1,000", "999 in normal time; 1, 5, 25 s, then a dead letter", _raising),
    Row(16, "1 that calls os._exit among 1,000", "999 run; a dead letter after 6 tries", _exiting),
]
