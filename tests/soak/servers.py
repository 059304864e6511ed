"""Faults 4 and 5: an interface server that is killed, and processes that stand still for longer than their lease."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from typing import NamedTuple

from tests.harness import LiveSite, Served, Socket, until
from tests.sender import sender
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, options, scaled
from tests.soak.tally import Tally, drained, numbered, tally
from tests.soak.workers import BUSY

#: What a server leaves in the database when it is killed; nothing of it may stay.
ORPHANS = (
    "SELECT (SELECT count(*) FROM dbchannels_membership) + (SELECT count(*) FROM dbchannels_connection) "
    "+ (SELECT count(*) FROM dbchannels_protocolmessage) "
    "+ (SELECT count(*) FROM dbchannels_process WHERE kind = 'server')"
)
NAME_OF = "SELECT name FROM dbchannels_process WHERE pid = {}"


class Killed(NamedTuple):
    """What was left of a killed server."""

    seconds: float  # until no row of it was left, and every disconnect consumer had run
    missing: int  # clients whose disconnect consumer never ran
    repeated: int  # runs beyond the first
    codes: set[str]
    by_others: bool  # all of them in the process that lived


def kill_server(site: LiveSite, clients: int, groups: int, lease: float) -> Killed:
    """Kill ``runchannels`` with its clients in groups; a ``runworker`` beside it cleans up."""
    settings = options(lease=lease)
    served = site.serve("--workers", "2", settings=settings)
    other = site.work(settings=settings)
    for number in range(clients):
        member(served, number, groups)
    until(lambda: site.count("membership") == site.count("connection") == clients, "all are on record")
    served.process.kill()
    served.process.wait()
    started = time.monotonic()
    until(lambda: site.rows(ORPHANS) == [(0,)], "all its rows are gone", 120, every=0.05)
    until(lambda: not site.count("held", "messages <> ''"), "the last consumer has run")
    seconds = time.monotonic() - started
    return Killed(seconds, *resigned(site, clients), by_others=writers(site) == {other.process.pid})


def member(served: Served, number: int, groups: int = 1) -> Socket:
    """Open a socket that is in one of so many groups."""
    opened = served.socket(f"/member/g{number % groups}/c{number}/")
    assert opened.status == 101
    return opened


def resigned(site: LiveSite, clients: int) -> tuple[int, int, set[str]]:
    """Return how many clients' disconnects were not consumed, how many too often, and the codes."""
    lines = [text.split() for text in site.entries() if text.startswith("resigned")]
    runs = Counter(client for _, client, _ in lines)
    expected = {f"c{number}" for number in range(clients)}
    return len(expected - runs.keys()), runs.total() - len(runs), {code for _, _, code in lines}


def writers(site: LiveSite) -> set[int]:
    """Return which processes consumed the disconnects."""
    return {pid for (pid,) in site.rows("SELECT pid FROM livesite_entry WHERE text LIKE 'resigned %'")}


class Woken(NamedTuple):
    """What a server did that had stood still, was declared dead, and woke."""

    codes: set[int | None]  # with which its sockets were closed
    renamed: bool  # registered anew under another name
    missing: int
    repeated: int
    spoken: int  # frames consumed that came while it stood still: it had no name to speak under
    serves: bool


def stop_server(site: LiveSite, clients: int, lease: float) -> Woken:
    """SIGSTOP an interface server until it is declared dead, let its clients speak, and SIGCONT it."""
    settings = options(lease=lease)
    served = site.serve("--workers", "0", settings=settings)
    site.work(settings=settings)
    sockets = [member(served, number) for number in range(clients)]
    old = stand_still(site, served.process.pid)
    for one in sockets:
        one.send("from the past")
    until(lambda: resigned(site, clients)[0] == 0, "all disconnect consumers have run", 60)
    served.process.send_signal(signal.SIGCONT)
    codes = {one.closed() for one in sockets}
    new = until(lambda: site.rows(NAME_OF.format(served.process.pid)), "it is on record again")
    serves = member(served, clients).ask("hello") == "hello"
    missing, repeated, _ = resigned(site, clients)
    spoken = sum(text.startswith("from the past") for text in site.entries())
    return Woken(codes, new != old, missing, repeated, spoken, serves)


def stand_still(site: LiveSite, pid: int) -> list[tuple[str]]:
    """Stop a process until it is off the record; return the name that it had."""
    old = site.rows(NAME_OF.format(pid))
    assert len(old) == 1
    os.kill(pid, signal.SIGSTOP)
    until(lambda: not site.rows(NAME_OF.format(pid)), "it is declared dead", 120, every=0.05)
    return old


class WokenWorker(NamedTuple):
    """What a worker did that stood still in mid-consumer, was declared dead, and woke."""

    tally: Tally
    renamed: bool
    told: bool  # its log says so
    works: bool  # it takes messages again


def stop_worker(site: LiveSite, lease: float) -> WokenWorker:
    """SIGSTOP a worker inside a transaction, until another one has done its work, and SIGCONT it."""
    crew = site.crew(2, "--only", "booked", settings=options(lease=lease))
    with sender(site) as one:
        one.send("booked", [{"text": "0", "sleep": 0.5}])
        ((_, pid),) = until(lambda: site.rows(BUSY), "it is under way")
        worker = next(one for one in crew if one.process.pid == pid)
        old = stand_still(site, pid)
        until(lambda: site.entries() == ["0"], "another one has run it", 60)
        worker.process.send_signal(signal.SIGCONT)
        worker.wait_for_line("was declared dead")
        new = until(lambda: site.rows(NAME_OF.format(pid)), "it is on record again")
        next(one for one in crew if one is not worker).terminate()
        one.send("booked", [{"text": text} for text in numbered(1, 50)])
        drained(site)
    works = site.rows(f"SELECT count(*) FROM livesite_entry WHERE pid = {pid}") == [(50,)]
    return WokenWorker(
        tally(site, numbered(0, 51)), new != old, "goes on as a new one" in worker.output(), works
    )


def _killed(scale: float) -> Seen:
    clients = scaled(500, scale, 50)
    with on_postgresql() as (site, _):
        found = kill_server(site, clients, max(1, clients // 10), lease=15)
    text = (
        f"0 orphan rows after {found.seconds:.1f} s; of {clients} disconnects {found.missing} missing, "
        f"{found.repeated} repeated"
    )
    exact = found.missing == found.repeated == 0 and found.by_others
    return Seen(text, exact and found.seconds <= 20)


def _stopped_server(scale: float) -> Seen:
    with on_postgresql() as (site, _):
        found = stop_server(site, scaled(100, scale, 5), lease=15)
    return Seen(str(found._asdict()), found == Woken({1012}, True, 0, 0, 0, True))


def _stopped_worker(scale: float) -> Seen:
    with on_postgresql() as (site, _):
        found = stop_worker(site, lease=15)
    return Seen(str(found.tally), found == WokenWorker(Tally(51, 0, 0), True, True, True))


ROWS = [
    Row(4, "server SIGKILL, 500 clients in 50 groups", "0 orphans after 20 s, each disconnect once", _killed),
    Row(5, "server SIGSTOP, SIGCONT", "1012, another name, nothing under the old one", _stopped_server),
    Row(5, "worker SIGSTOP, SIGCONT", "another name, nothing lost, nothing twice", _stopped_worker),
]
