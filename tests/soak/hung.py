"""Fault 17: consumers and views that hang, asleep and busy, among others that do not."""

from __future__ import annotations

import time
from typing import NamedTuple

from tests.harness import LiveSite, Served, is_running, until
from tests.sender import sender
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, options, scaled
from tests.soak.tally import Tally, drained, numbered, tally

WAYS = ("sleep", "busy")
HARD = 2.0  # seconds
STANDS = "has run for {:g} s (soft_timeout) and stands here"
ENDED = "error LIKE '%had not ended after % s (hard_timeout)%consumers.py%'"


class Hung(NamedTuple):
    """What became of those that hang, and of the others."""

    others: Tally
    letters: int  # dead letters that say where a hung consumer stood
    slowest: float  # seconds from the send of one until it was a dead letter
    statuses: list[int]  # of views that hang
    slowest_view: float  # seconds until one was answered
    stacks: int  # in the log
    replaced: int  # workers
    unbroken: bool  # the same server, as many workers as before, and a page is served


def hung(site: LiveSite, number: int, each: int, soft: float = 0.5, hard: float = HARD) -> Hung:
    """Let so many consumers hang in each way, one after another, and so many others run beside each; then views."""
    served = site.serve("--workers", "2", settings=options(soft_timeout=soft, hard_timeout=hard, retries=0))
    workers = _replaced(served, set(), 2)
    slowest, texts = 0.0, numbered(0, 2 * number * each)
    with sender(site) as one:
        for turn in range(2 * number):
            others = [{"text": text} for text in texts[turn * each : (turn + 1) * each]]
            started = time.monotonic()
            one.send("ledger", [{"text": "hangs", WAYS[turn % 2]: 3600}, *others])
            until(lambda turn=turn: _letters(site) == turn + 1, "the hung message is a dead letter")  # type: ignore[misc]
            slowest = max(slowest, time.monotonic() - started)
            workers |= _replaced(served, workers)
    drained(site)
    statuses, slowest_view = [], 0.0
    for _ in range(number):
        started = time.monotonic()
        statuses.append(served.get("/sleep/3600000").status)
        slowest_view = max(slowest_view, time.monotonic() - started)
        workers |= _replaced(served, workers)
    unbroken = served.process.poll() is None and served.get("/").text == "hello"
    stacks = served.output().count(STANDS.format(soft))
    found = tally(site, texts)
    return Hung(found, _letters(site), slowest, statuses, slowest_view, stacks, len(workers) - 2, unbroken)


def _letters(site: LiveSite) -> int:
    return site.count("deadletter", ENDED)


def _replaced(served: Served, known: set[int], number: int = 1) -> set[int]:
    """Wait until two workers are alive and on record, and so many of them are new; return the new ones."""

    def new() -> set[int]:
        pids = {
            pid for (pid,) in served.site.rows("SELECT pid FROM dbchannels_process WHERE kind = 'worker'")
        }
        alive = pids.intersection(filter(is_running, served.workers()))
        return alive - known if len(alive) == 2 and len(alive - known) == number else set()

    found: set[int] = until(new, f"{number} workers are new", 60)
    return found


def _hung(scale: float) -> Seen:
    number = scaled(10, scale)
    with on_postgresql() as (site, _):
        found = hung(site, number, scaled(1000, scale, 100) // (2 * number))
    text = (
        f"{2 * number} consumers: {found.letters} dead letters after {found.slowest:.1f} s at most, others "
        f"{found.others}; {number} views: {set(found.statuses)} after {found.slowest_view:.1f} s; "
        f"{found.stacks} stacks logged, {found.replaced} workers replaced"
    )
    right = found.others[1:] == (0, 0) and found.letters == 2 * number and set(found.statuses) == {500}
    replaced = found.replaced == 3 * number <= found.stacks and found.unbroken
    return Seen(text, right and replaced and max(found.slowest, found.slowest_view) < HARD + 1)


ROWS = [
    Row(
        17,
        "20 consumers and 10 views that hang, hard time-out 2 s",
        "stack logged, process replaced, 0 lost",
        _hung,
    )
]
