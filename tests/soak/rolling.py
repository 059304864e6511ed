"""Fault 37: two releases work on one database, that of the release before and this one, after this one's migrations."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.harness import MANAGE, LiveSite, Socket, gather, until
from tests.sender import sender
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled
from tests.soak.tally import Tally, drained, numbered, tally

ROOT = MANAGE.parents[2]
PREVIOUS = "9d6ec64"  # the last commit before migration 0004


@contextmanager
def previous_release(site: LiveSite) -> Iterator[LiveSite]:
    """Lend the same site on the code of the release before, out of the repository's history."""
    with tempfile.TemporaryDirectory(prefix="dbchannels-previous-") as folder:
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", PREVIOUS], capture_output=True)
        assert archive.returncode == 0, f"This clone has no commit {PREVIOUS}: fetch the whole history."
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        old = LiveSite(site.database, site.folder, Path(folder) / MANAGE.relative_to(ROOT))
        imported = old.shell("import dbchannels; print(dbchannels.__file__)")
        assert imported.startswith(folder), imported
        try:
            yield old
        finally:
            old.end()


class Traffic(NamedTuple):
    """What became of messages of each kind."""

    tally: Tally  # of jobs
    statuses: set[int]  # of requests
    unheard: int  # lines of a chat that a client of either server has missed


def traffic(servers: list[LiveSite], workers: list[LiveSite], scale: float) -> Traffic:
    """Start a server without workers and a worker of each release that is named, and use all of them at once."""
    served = [one.serve("--workers", "0") for one in servers]
    for one in workers:
        one.work()
    site, jobs, lines = servers[0], scaled(2000, scale, 100), scaled(500, scale, 20)
    rooms = [one.socket("/room/tea/") for one in served for _ in range(5)]
    until(lambda: site.count("membership") == len(rooms), "all are members")

    def send(number: int) -> None:
        with sender(servers[number % len(servers)]) as one:
            for text in numbered(number * jobs, jobs):
                one.send("stream", [{"text": text}])

    def talk(room: Socket, who: int) -> None:
        for number in range(lines):
            room.send(f"{who} {number}")

    with ThreadPoolExecutor(8) as pool:
        sending = [pool.submit(send, number) for number in range(2)]
        talking = [pool.submit(talk, rooms[who * 5], who) for who in range(len(served))]
        asked = [pool.submit(served[number % len(served)].get, "/") for number in range(jobs // 10)]
        for future in [*sending, *talking]:
            future.result()
        statuses = {future.result().status for future in asked}
    expected = lines * len(served)
    with suppress(AssertionError):  # lines are missing, which is counted
        gather(rooms, expected, 60)
    drained(site, 120)
    unheard = sum(expected - len(set(one.frames)) for one in rooms)
    return Traffic(tally(site, numbered(0, 2 * jobs)), statuses, unheard)


def _rolling(servers: str, workers: str) -> Callable[[float], Seen]:
    def measure(scale: float) -> Seen:
        with on_postgresql() as (new, _), previous_release(new) as old:
            releases = {"new": new, "old": old}
            chosen = [[releases[name] for name in names.split()] for names in (servers, workers)]
            found = traffic(chosen[0], chosen[1], scale)
        text = (
            f"{found.tally} of the jobs; requests {found.statuses}, {found.unheard} lines of the chat missed"
        )
        return Seen(text, found.tally.lost == found.unheard == 0 and found.statuses == {200})

    return measure


ROWS = [
    Row(37, "server of the release before, worker of this one", "0 lost", _rolling("old", "new")),
    Row(37, "server of this release, worker of the one before", "0 lost", _rolling("new", "old")),
    Row(37, "both releases at once", "0 lost", _rolling("old new", "old new")),
]
