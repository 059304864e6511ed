"""Which files of the package a message passes, and how the package is laid out: ``python -m tests.benchmarks.trips``.

The site of the end-to-end tests is served by ``runchannels`` with one worker, on a PostgreSQL of its own. In the
server, in the worker, and in a third process that only sends, a profile notes each call of a function whose code is in
dbchannels/. Each trip is made a few times to warm up, and then ROUNDS times with the profile on, from the moment at
which the client or the sender begins until SETTLE seconds after the end.

The *files* of a trip are those that more than half of the rounds pass. Its *changes* are how often a call lies in
another file than the call before it in the same thread; each further thread that takes part counts as one change. The
median of the rounds is printed. Returns and comprehensions are not counted, nor is what the threads call again and
again while nothing is sent.

Beside each file stands how often control comes to it. ``--calls`` prints every call of one round. ``--write PAGE``
brings the lists of files in a page up to date. ``--checkout FOLDER`` measures another checkout, an older one too.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import statistics
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from tests.harness import LiveSite, until

PROGRAM = Path(__file__).with_name("profiled.py")
WARM = 5
ROUNDS = 9
SETTLE = 0.05  # seconds after the answer, in which the worker ends its batch
SOCKETS = 5

SEND = """
import sys
from dbchannels import Channel, Group
sends = {
    "durable": lambda: Channel("ledger").send({"text": "trip"}),
    "broadcast": lambda: Group("room-trips").send({"text": "trip"}),
}
print("ready", flush=True)
for line in sys.stdin:
    sends[line.strip()]()
    print("sent", flush=True)
"""


class Call(NamedTuple):
    """A line of the log."""

    process: str
    thread: str
    file: str
    function: str


class Trip(NamedTuple):
    """What was measured of one trip."""

    name: str
    rounds: list[list[Call]]

    @property
    def files(self) -> list[str]:
        """The files in the order in which they are first called."""
        found = Counter(file for calls in self.rounds for file in {call.file for call in calls})
        firsts = dict.fromkeys(call.file for calls in self.rounds for call in calls)
        return [file for file in firsts if found[file] > len(self.rounds) / 2]

    @property
    def changes(self) -> int:
        """The median of the changes from one file to another."""
        return int(statistics.median_low(map(changes, self.rounds)))

    @property
    def typical(self) -> list[Call]:
        """A round with the median number of changes."""
        return next(calls for calls in self.rounds if changes(calls) == self.changes)


def entries(calls: list[Call]) -> list[str]:
    """Return the file of each call that lies in another one than the call before it in its thread."""
    threads: dict[tuple[str, str], list[str]] = {}
    for call in calls:
        threads.setdefault((call.process, call.thread), []).append(call.file)
    return [file for files in threads.values() for file, _ in groupby(files)]


def changes(calls: list[Call]) -> int:
    """Return how often control changes from file to file."""
    return len(entries(calls)) - 1


class Profile:
    """The log of all processes, and the switch for it."""

    def __init__(self, folder: Path) -> None:
        self._on, self._log = folder / "on", folder / "log"
        self._on.write_bytes(b"\0")
        self._log.touch()

    def round(self, action: Callable[[], object]) -> list[Call]:
        """Return the calls that an action leads to."""
        start = self._log.stat().st_size
        self._switch(1)
        action()
        time.sleep(SETTLE)
        self._switch(0)
        time.sleep(0.005)  # a call that has seen the switch on is written
        with self._log.open() as log:
            log.seek(start)
            return [Call(*line.split(" ")) for line in log.read().splitlines()]

    def _switch(self, on: int) -> None:
        with self._on.open("r+b") as file:
            file.write(bytes([on]))


@contextmanager
def sender(site: LiveSite) -> Iterator[Callable[[str], None]]:
    """Lend a function that lets a process of the site's own send, and returns when it has."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), "shell", "--verbosity", "0", "-c", SEND],
        env=site.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    stdin, stdout = process.stdin, process.stdout

    def answered(word: str) -> None:
        line = stdout.readline()
        assert line.strip() == word, f"The sender has ended, after {line!r}."

    def send(what: str) -> None:
        print(what, file=stdin, flush=True)
        answered("sent")

    with process:
        answered("ready")
        yield send
        stdin.close()


@contextmanager
def ended(site: LiveSite) -> Iterator[None]:
    """End the site's processes after the block."""
    try:
        yield
    finally:
        site.end()


def trips(site: LiveSite, rounds: int = ROUNDS) -> list[Trip]:
    """Make the four trips on a site whose tables are there."""
    profile = Profile(site.folder)
    site = LiveSite(site.database, site.folder, PROGRAM)
    with sender(site) as send, closing(site.connect()) as database, ended(site):
        served = site.serve("--workers", "1")
        cursor = database.cursor()

        def durable() -> None:
            send("durable")
            until(acknowledged, "the acknowledgement", every=0.005)

        def acknowledged() -> bool:
            cursor.execute("SELECT count(*) FROM dbchannels_durablemessage")
            return cursor.fetchone()[0] == 0  # type: ignore[no-any-return]

        with served.connection() as connection:

            def get() -> None:
                connection.request("GET", "/")
                assert connection.getresponse().read() == b"hello"

            echo = served.socket("/echo/")
            room = [served.socket("/room/trips/") for _ in range(SOCKETS)]

            def broadcast() -> None:
                send("broadcast")
                for one in room:
                    assert one.receive() == "trip"

            actions = {
                "request": get,
                "frame": lambda: echo.ask("trip"),
                "durable message": durable,
                "broadcast": broadcast,
            }
            return [Trip(name, measured(profile, action, rounds)) for name, action in actions.items()]


def measured(profile: Profile, action: Callable[[], object], rounds: int) -> list[list[Call]]:
    """Return the calls of so many rounds, after a few for warmth."""
    for _ in range(WARM):
        action()
    time.sleep(SETTLE)
    idle = [set(profile.round(lambda: None)) for _ in range(3)]
    always = set.intersection(*idle)
    return [[call for call in profile.round(action) if call not in always] for _ in range(rounds)]


def page_with(page: str, found: list[Trip], package: Path) -> str:
    """Return a page with the lists of files as they are now; each stands behind a comment ``.. trip: NAME``."""
    for trip in found:
        items = [f"#. ``{file}``: {purpose(package / file)}" for file in trip.files]
        lines = [textwrap.fill(item, 119, subsequent_indent="   ", break_long_words=False) for item in items]
        before, comment, rest = page.partition(f".. trip: {trip.name}\n\n")
        assert comment, f"The page has no list for {trip.name}."
        _, blank, after = rest.partition("\n\n")
        page = f"{before}{comment}{chr(10).join(lines)}{blank}{after}"
    return page


def purpose(path: Path) -> str:
    """Return the first sentence of a module's docstring."""
    text = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n\n")[0]
    return re.split(r"(?<=\.)\s", " ".join(text.split()))[0]


def measure(calls: bool, write: str) -> None:
    """Measure the checkout whose ``tests`` this process imports."""
    from tests.soak.sites import on_postgresql

    with on_postgresql(fsync="off") as (site, _):
        found = trips(site)
    for trip in found:
        print(f"\n{trip.name}: {len(trip.files)} files, {trip.changes} changes")
        if trip.name == "durable message":
            sends = dict.fromkeys(
                call.file for call in trip.typical if call.process == trip.typical[0].process
            )
            print(f"    (Channel.send to its SQL: {len(sends)} files)")
        entered = Counter(entries(trip.typical))
        print(*(f"    {entered[file]:>3} x {file}" for file in trip.files), sep="\n")
        if calls:
            print(*(f"        {' '.join(call)}" for call in trip.typical), sep="\n")
    if write:
        page = Path(write)
        page.write_text(page_with(page.read_text(), found, Path.cwd() / "dbchannels"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", action="store_true")
    parser.add_argument("--write", metavar="PAGE", default="")
    parser.add_argument("--checkout", metavar="FOLDER", type=Path, default=Path(__file__).parents[2])
    options = parser.parse_args()
    if os.environ.get("TRIPS_CHECKOUT"):
        return measure(options.calls, options.write)
    from tests.benchmarks.structure import Package

    root = options.checkout.resolve()
    print(*Package(root / "dbchannels").figures(), sep="\n", flush=True)
    # By its path, so that the checkout's own ``tests`` are imported.
    subprocess.run(
        [sys.executable, __file__, *sys.argv[1:]],
        env={**os.environ, "PYTHONPATH": str(root), "TRIPS_CHECKOUT": "1"},
        cwd=root,
        check=True,
    )
    return None


if __name__ == "__main__":
    main()
