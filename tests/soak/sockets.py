"""Faults 20 and 21: a client that reads nothing among a thousand, and ten thousand that say nothing."""

from __future__ import annotations

import socket
import time
from contextlib import closing
from pathlib import Path

from tests.benchmarks.crowd import Crowd
from tests.benchmarks.sockets import FRAME, ROOM, idle, paced
from tests.harness import LiveSite, client_frame
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled

EACH_SECOND = 5  # broadcasts, of a thousand frames each
FILL = client_frame(1, b"x" * 100_000)  # what fills the one that reads nothing


def _slow_reader(scale: float) -> Seen:
    members, seconds = scaled(999, scale, 99), 20.0
    with on_postgresql(fsync="off") as (site, _):
        served = site.serve("--workers", "2")
        with closing(Crowd(served.port)) as crowd:
            good = crowd.open(members, ROOM)
            paced(crowd, good, FRAME, EACH_SECOND, 2)
            before = _late(paced(crowd, good, FRAME, EACH_SECOND, seconds))
            stuck = served.socket(ROOM)
            stuck.raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck_at = _fill(crowd, good, stuck.raw.getsockname()[1])
            during = _late(paced(crowd, good, FRAME, EACH_SECOND, seconds))
            dropped = _until_dropped(site, crowd) - stuck_at
    text = f"p99 of the others {before:.0f} ms without and {during:.0f} ms with it; dropped after {dropped:.1f} s"
    return Seen(text, during <= 2 * before and dropped <= 25)


def _late(spent: list[float]) -> float:
    return 1000 * spent[len(spent) * 99 // 100]


def _fill(crowd: Crowd, good: list[int], port: int) -> float:
    """Say so much that the kernel takes no more for the client at ``port``; return when that was."""
    held = -1
    while held < (held := _queued(port)) or held < 100_000:
        heard: dict[int, int] = {}
        crowd.send(good[0], FILL)

        def read(one: int, data: bytes, heard: dict[int, int] = heard) -> None:
            heard[one] = heard.get(one, 0) + len(data)

        def all_have_it(heard: dict[int, int] = heard) -> bool:
            return len(heard) == len(good) and min(heard.values()) >= 100_000

        crowd.run(read, until=all_have_it, seconds=20)
    return time.monotonic()


def _queued(port: int) -> int:
    """Return how many bytes the kernel holds for the client at that port."""
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(int(fields[4].split(":")[0], 16) for fields in lines if fields[2].endswith(f":{port:04X}"))


def _until_dropped(site: LiveSite, crowd: Crowd) -> float:
    """Wait until the one has left; return when that was."""
    deadline = time.monotonic() + 40
    while not any(text.endswith(" 1013") for text in site.entries()) and time.monotonic() < deadline:
        crowd.rest(0.2)
    return time.monotonic()


def _idle(scale: float) -> Seen:
    number, seconds = scaled(10_000, scale, 500), 600 * scale
    with on_postgresql(fsync="off") as (site, _):
        each, share = idle(site.serve("--workers", "2"), number, seconds)
    text = f"{number:,} sockets for {seconds:.0f} s: {each:.1f} kB each, {100 * share:.1f} % of a core, none dropped"
    return Seen(text, each <= 10 and share <= 0.05)


ROWS = [
    Row(20, "one of 1,000 members reads nothing", "dropped <= 25 s, p99 of the others <= 2 x", _slow_reader),
    Row(21, "10,000 idle sockets, 10 min", "<= 10 kB each, <= 5 % of a core, none dropped", _idle),
]
