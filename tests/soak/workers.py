"""Faults 1 and 2: workers that are killed, and workers that are asked to stop, in mid-stream."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import NamedTuple

from tests.harness import LiveSite, Served, until
from tests.sender import sender
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, options, scaled
from tests.soak.tally import Tally, drained, numbered, tally

WORK = 0.002  # seconds that each message of the stream is under way

#: The lease decides nothing: who is dead was seen to die.
LONG_LEASE = options(lease=600)

# Which workers have messages of a site's own channels in flight, those with most of them first. A message that was in
# flight at a kill already is spared: after a few kills it would rightly be a dead letter.
BUSY = """
SELECT process.name, process.pid FROM dbchannels_process AS process
JOIN dbchannels_durablemessage AS message ON message.claimed_by = process.name
GROUP BY 1, 2 HAVING max(message.attempts) = 1 ORDER BY count(*) DESC
"""
CLAIMED_BY = "SELECT id FROM dbchannels_durablemessage WHERE claimed_by = '{}'"
# Of some messages those that nobody has taken again yet.
UNTOUCHED = (
    "SELECT id FROM dbchannels_durablemessage WHERE id IN ({}) AND (claimed_by IS NULL OR claimed_by = '{}')"
)


class Kills(NamedTuple):
    """What came of a stream whose workers were killed."""

    tally: Tally
    in_flight: int  # messages in the hands of workers when they were killed, in all
    slowest: float  # seconds until the messages of one were all in other hands, or done
    dead_letters: int


def kills(site: LiveSite, number: int, messages: int, workers: int) -> Kills:
    """SIGKILL workers of ``runchannels``, one after another, each in mid-consumer, during a stream of messages."""
    site.serve("--workers", str(workers), settings=LONG_LEASE)
    each = max(1, messages // number)
    in_flight, slowest = 0, 0.0
    with sender(site) as one:
        for start in range(0, each * number, each):
            one.send("stream", [{"text": text, "sleep": WORK} for text in numbered(start, each)])
            held, seconds = kill_in_mid_consumer(site)
            in_flight, slowest = in_flight + held, max(slowest, seconds)
    drained(site)
    return Kills(tally(site, numbered(0, each * number)), in_flight, slowest, site.count("deadletter"))


def kill_in_mid_consumer(site: LiveSite) -> tuple[int, float]:
    """Kill a worker that has messages; return how many it had, and the seconds until others had taken them all.

    It is stopped first, so that what it has can be counted.
    """
    while True:
        name, pid = until(lambda: site.rows(BUSY), "a worker is busy", 60)[0]
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            if held := [str(key) for (key,) in site.rows(CLAIMED_BY.format(name))]:
                break
            os.kill(pid, signal.SIGCONT)
    os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    untouched = UNTOUCHED.format(", ".join(held), name)
    until(lambda: not site.rows(untouched), f"the messages of {name} are taken again", 60)
    return len(held), time.monotonic() - started


class Answers(NamedTuple):
    """What the clients were told whose messages a killed worker had."""

    statuses: set[int]
    close_codes: set[int | None]
    slowest: float  # seconds from the request, or the frame, to the answer
    disconnects: set[str]  # what the disconnect consumers wrote down


def answers(site: LiveSite, number: int) -> Answers:
    """Send requests and frames of which each kills the worker that takes it."""
    served = site.serve("--workers", "3", settings=LONG_LEASE)
    statuses, codes, slowest = set(), set(), 0.0
    for _ in range(number):
        idle(site, served)
        started = time.monotonic()
        statuses.add(served.get("/die").status)
        slowest = max(slowest, time.monotonic() - started)
        victim = served.socket("/room/tea/")
        idle(site, served)
        started = time.monotonic()
        victim.send("die")
        codes.add(victim.closed())
        slowest = max(slowest, time.monotonic() - started)
    until(lambda: len(site.entries()) == number, "the disconnect consumers have run")
    return Answers(statuses, codes, slowest, set(site.entries()))


def idle(site: LiveSite, served: Served) -> None:
    """Wait until at least one worker is alive and on record: a killed one may not have been cleaned up after yet."""

    def alive() -> bool:
        pids = {pid for (pid,) in site.rows("SELECT pid FROM dbchannels_process WHERE kind = 'worker'")}
        return bool(pids.intersection(served.workers()))

    until(alive, "a worker is there", 60)


class Cycles(NamedTuple):
    """What came of a stream whose workers were asked to stop, one after another."""

    tally: Tally
    statuses: set[int]
    attempted: int  # messages that were given back with an attempt counted


def cycles(site: LiveSite, number: int, messages: int) -> Cycles:
    """SIGTERM a worker while others take over, again and again, during a stream of messages."""
    each = max(1, messages // number)
    statuses, attempted = set(), 0
    crew = site.crew(2, "--only", "stream")
    with sender(site) as one:
        for start in range(0, each * number, each):
            one.send("stream", [{"text": text, "sleep": WORK} for text in numbered(start, each)])
            crew.append(site.work("--only", "stream"))
            statuses.add(crew.pop(0).terminate())
            attempted += site.count("durablemessage", "claimed_by IS NULL AND attempts > 0")
    drained(site)
    return Cycles(tally(site, numbered(0, each * number)), statuses, attempted)


def _kills(scale: float) -> Seen:
    with on_postgresql() as (site, _):
        found = kills(site, scaled(1000, scale, 5), scaled(100_000, scale, 500), 8)
    text = (
        f"{found.tally} of {found.in_flight:,} in flight, {found.dead_letters} dead letters; "
        f"back in {found.slowest:.2f} s at most"
    )
    right = found.tally.lost == 0 and found.tally.duplicated <= found.in_flight and not found.dead_letters
    return Seen(text, right and found.slowest < 2)


def _answers(scale: float) -> Seen:
    with on_postgresql() as (site, _):
        found = answers(site, scaled(20, scale, 2))
    text = f"{found.statuses}, close {found.close_codes}, {found.slowest:.2f} s at most"
    return Seen(text, (found.statuses, found.close_codes) == ({502}, {1011}) and found.slowest < 1)


def _cycles(scale: float) -> Seen:
    with on_postgresql() as (site, _):
        found = cycles(site, scaled(200, scale, 3), scaled(100_000, scale, 1000))
    text = f"{found.tally}; exit {found.statuses}, {found.attempted} given back with an attempt counted"
    exact = found.tally.lost == found.tally.duplicated == found.attempted == 0
    return Seen(text, exact and found.statuses == {0})


ROWS = [
    Row(1, "1,000 kills in 100,000 messages", "0 lost, duplicated <= in flight, back in < 2 s", _kills),
    Row(1, "requests and frames that kill their worker", "502 and close 1011 at once (< 1 s)", _answers),
    Row(2, "200 SIGTERMs in 100,000 messages", "0 lost, 0 duplicated, exit 0", _cycles),
]
