"""Fault 31: a large group, which many processes change at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any, NamedTuple

from tests.harness import MANAGE, LiveSite
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled

# One line of JSON, (verb, numbers), is so many calls in an order of the process's own; what it answers is its end.
LOOP = """
import json, random, sys
from dbchannels import Group
group = Group("crowd")
print("ready", flush=True)
for line in sys.stdin:
    verb, numbers = json.loads(line)
    random.shuffle(numbers)
    for number in numbers:
        getattr(group, verb if verb != "both" else random.choice(["add", "discard"]))(f"reply.crowd!{number}")
    print("done", flush=True)
"""


class Crowd(NamedTuple):
    """The members of the group after each part."""

    added: int  # by all processes, each member by each
    doubles: int  # rows beyond one for a member, in any part
    kept: int  # members left of those that half of the processes added again ...
    discarded: int  # ... and of those that the other half discarded meanwhile
    delivered: int  # members that a message to the group is for
    seconds: float


class Crew:
    """Processes that change the group at once."""

    def __init__(self, site: LiveSite, number: int) -> None:
        command = [sys.executable, str(MANAGE), "shell", "--verbosity", "0", "-c", LOOP]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._processes = [subprocess.Popen(command, env=site.environment(), **pipes) for _ in range(number)]
        self._wait("ready")

    def change(self, *orders: tuple[str, list[int]]) -> None:
        """Give the orders to the processes in turn; return when all are done."""
        for number, process in enumerate(self._processes):
            assert process.stdin
            process.stdin.write(json.dumps(orders[number % len(orders)]) + "\n")
            process.stdin.flush()
        self._wait("done")

    def _wait(self, word: str) -> None:
        for process in self._processes:
            assert process.stdout
            assert process.stdout.readline().strip() == word, "A process of the crew has ended."

    def end(self) -> None:
        """Let them end."""
        for process in self._processes:
            process.communicate(timeout=20)


def crowd(site: LiveSite, processes: int, members: int) -> Crowd:
    """Add, add again, discard, and do both at once."""
    crew = Crew(site, processes)
    started = time.monotonic()
    everybody = list(range(members))
    try:
        crew.change(("add", everybody))
        added, doubles = _members(site), _doubles(site)
        crew.change(("add", everybody[::2]), ("discard", everybody[1::2]))
        kept, doubles = _members(site, even=True), doubles + _doubles(site)
        discarded = _members(site, even=False)
        site.shell("from dbchannels import Group; Group('crowd').send({})")
        delivered = _delivered(site)
        crew.change(("both", everybody[: members // 10]))
        doubles += _doubles(site)
    finally:
        crew.end()
    return Crowd(added, doubles, kept, discarded, delivered, time.monotonic() - started)


def _members(site: LiveSite, even: bool | None = None) -> int:
    return site.count("membership", "true" if even is None else f"(recipient::int % 2 = 0) = {even}")


def _doubles(site: LiveSite) -> int:
    return site.count("membership") - len(
        set(site.rows("SELECT channel, recipient FROM dbchannels_membership"))
    )


def _delivered(site: LiveSite) -> int:
    """Return for how many members the one message is, and that it is one row."""
    rows = site.rows("SELECT recipients FROM dbchannels_protocolmessage WHERE channel = 'reply.crowd!'")
    assert len(rows) == 1
    return len(set(rows[0][0].split()))


def _crowd(scale: float) -> Seen:
    members = scaled(10_000, scale, 200)
    with on_postgresql() as (site, _):
        found = crowd(site, 8, members)
    exact = found[:5] == (members, 0, members // 2, 0, members // 2)
    text = (
        f"{found.added:,} rows for 8 x {members:,} adds, {found.doubles} doubles; then {found.kept:,} kept and "
        f"{found.discarded} of the discarded left; one row for {found.delivered:,}; {found.seconds:.0f} s"
    )
    return Seen(text, exact)


ROWS = [Row(31, "a group of 10,000, added and discarded by 8 processes", "one row for each member", _crowd)]
