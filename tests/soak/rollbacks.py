"""Fault 34: what views send shares the fate of their transactions, on channels of both kinds."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from tests.harness import LiveSite, Served, until
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled
from tests.soak.tally import Tally, tally

CHANNELS = ("http.noted", "stream")  # a protocol channel and a durable one
#: What is sent, by how its transaction ends; the texts of all others are to be nowhere.
SENT = {"commit": [""], "roll-back": [], "savepoint": [" before", " after"], "die": []}
SENT_ATOMIC = {"plainly": [""], "plainly-and-raise": []}  # with ATOMIC_REQUESTS
STATUSES = {"die": 502, "plainly-and-raise": 500}  # the others: 200
LAST = "-last"
WAITING = "SELECT count(*) FROM dbchannels_{} WHERE channel IN ('http.noted', 'stream')"
#: One death costs about a second, in which its server starts another worker.
DEATHS = 0.05  # of the other requests' number


class Rollbacks(NamedTuple):
    """What came of the sends of many views."""

    tally: Tally  # of what was committed
    ghosts: int  # entries of what was rolled back, or killed between its INSERT and its COMMIT
    views: int
    wrong: Counter[tuple[str, int]]  # answers: how, and the status


def rollbacks(served: Served, ways: dict[str, list[str]], number: int) -> Rollbacks:
    """Let so many views send in each way to a channel of each kind; of those that die a twentieth."""
    site, views, wrong = served.site, 0, Counter[tuple[str, int]]()
    committed: list[str] = []
    site.rows("DELETE FROM livesite_entry")  # the other tables are in use
    for how, texts in ways.items():
        for one in range(max(1, round(number * DEATHS)) if how == "die" else number):
            for channel in CHANNELS:
                text = f"{how}-{channel}-{one}"
                status = served.get(f"/sends/{how}/{channel}/{text}").status
                if status != STATUSES.get(how, 200):
                    wrong[how, status] += 1
                committed += [text + more for more in texts]
                views += 1
        until(lambda: len(served.workers()) == 2, "two workers are there")
        consumed(served, how)  # a worker that dies takes protocol messages along that it had begun
    known = set(committed)
    ghosts = [text for text in site.entries() if text not in known and not text.endswith(LAST)]
    return Rollbacks(tally(site, committed), len(ghosts), views, wrong)


def consumed(served: Served, how: str) -> None:
    """Wait until all has been consumed: what is sent last, and then whatever is left."""
    site = served.site
    for channel in CHANNELS:
        assert served.get(f"/sends/plainly/{channel}/{how}{LAST}").text == "sent"
    until(lambda: site.entries().count(how + LAST) == len(CHANNELS), "the last ones have been consumed")
    for table in ("protocolmessage", "durablemessage"):
        until(lambda table=table: site.rows(WAITING.format(table)) == [(0,)], "all have been consumed")  # type: ignore[misc]
    until(lambda: not site.count("inflight", "messages <> ''"), "no consumer runs")


def _rollbacks(scale: float) -> Seen:
    number = scaled(1000, scale, 10)
    with on_postgresql() as (site, _):
        served = site.serve("--workers", "2")
        found = [rollbacks(served, SENT, number)]
        site.end()
        atomic = LiveSite({**site.database, "ATOMIC_REQUESTS": True}, site.folder)
        try:
            found.append(rollbacks(atomic.serve("--workers", "2"), SENT_ATOMIC, number))
        finally:
            atomic.end()
    text = "; ".join(
        f"{one.views:,} views: {one.tally}, {one.ghosts} sent though undone, {one.wrong.total()} answers wrong"
        for one in found
    )
    return Seen(text, all((*one.tally[1:], one.ghosts, one.wrong.total()) == (0, 0, 0, 0) for one in found))


ROWS = [
    Row(
        34, "views that commit, undo, die; ATOMIC_REQUESTS", "on commit exactly one, else nothing", _rollbacks
    )
]
