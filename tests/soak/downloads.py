"""Fault 40: clients that take large responses slowly, beside visitors who want their pages."""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from dbchannels.wakeup import wait_readable
from tests.harness import HOST, Served, ask, until
from tests.soak.row import Row, Seen, p99
from tests.soak.sites import on_postgresql

MEBIBYTE = 1_048_576
RATE = 40_000  # bytes a second that each client takes
STEP = 0.1  # seconds between two readings


class Downloads(NamedTuple):
    """What visitors have seen before and while the downloads were under way."""

    before: float  # p99 in milliseconds
    beside: float  # from the first download's request on
    begun: float  # seconds until all downloads had begun
    start: float  # p99 in milliseconds until then
    longest: float  # that a page took at any time, in milliseconds
    pages: int  # that were asked for beside them, all answered
    clients: Counter[str]  # statuses of the downloads, "cut" for one that was broken off
    grown: float  # MiB of the server's memory


def downloads(served: Served, clients: int, path: str, seconds: float) -> Downloads:
    """Ask for pages so long without, and so long beside so many slow downloads."""
    assert served.get(path).status == 200
    before = pages(served, seconds / 2)
    memory = resident(served.process.pid)
    with crowd(served, clients, path) as others:
        started = time.monotonic()
        start = pages(served, 300, lambda: bool(wait_readable([others.stdout.fileno()], 0)))
        begun = time.monotonic() - started
        assert others.stdout.readline() == "begun\n"
        beside = start + pages(served, max(1.0, seconds - begun))
        grown = resident(served.process.pid) - memory
        others.stdin.close()
        statuses = Counter(json.loads(others.stdout.readline()))
    until(lambda: files(served) == 0, "the files of those who left are closed")
    found = (1000 * p99(beside), begun, 1000 * p99(start), 1000 * max(beside))
    return Downloads(1000 * p99(before), *found, len(beside), statuses, grown)


def pages(served: Served, seconds: float, ended: Callable[[], bool] = lambda: False) -> list[float]:
    """Ask for one page after another so long, or until something has ended; return how long each took."""
    spent, ends_at = [], time.monotonic() + seconds
    with closing(http.client.HTTPConnection(HOST, served.port, timeout=300)) as kept:
        while time.monotonic() < ends_at and not (spent and ended()):
            started = time.perf_counter()
            assert ask(kept, "GET", "/").text == "hello"
            spent.append(time.perf_counter() - started)
            time.sleep(0.01)
    return spent


@contextmanager
def crowd(served: Served, clients: int, path: str):
    """Slow clients in a process of their own, which tells their statuses when its input ends."""
    command = [sys.executable, "-m", "tests.soak.downloads", str(served.port), str(clients), path]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as others:
        try:
            yield others
        finally:
            others.kill()


def resident(pid: int) -> float:
    """Return how many MiB of memory a process has."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Pss:")) / 1024


def files(served: Served) -> int:
    """Return how many files without a name the server has open."""
    found = 0
    for one in Path(f"/proc/{served.process.pid}/fd").iterdir():
        with suppress(OSError):  # it was closed just now
            target = os.readlink(one)  # the workers' reports are in memory
            found += target.endswith("(deleted)") and not target.startswith("/memfd:")
    return found


def take_slowly(port: int, clients: int, path: str) -> list[str]:
    """Take so many downloads at the RATE until the input ends; return the status of each."""
    head = f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    opened = []
    for _ in range(clients):
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # or the kernel takes 6 MB at once
        raw.connect((HOST, port))
        raw.sendall(head)
        raw.setblocking(False)
        opened.append(raw)
    statuses, begun = [""] * clients, False
    while not _input_ended():
        time.sleep(STEP)
        for number, raw in enumerate(opened):
            try:
                data = raw.recv(int(RATE * STEP))
            except BlockingIOError:
                continue
            except ConnectionResetError:
                data = b""
            statuses[number] = statuses[number] or data[9:12].decode()
            if not data and statuses[number] == "200":
                statuses[number] = "cut"
        if all(statuses) and not begun:
            begun = True
            print("begun", flush=True)
    return statuses


def _input_ended() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


def _slow(clients: int, path: str, seconds: float, scale: float, *, factor: float = 2.0) -> Seen:
    with on_postgresql(fsync="off") as (site, _):
        served = site.serve("--workers", "4")
        found = downloads(served, clients, path, max(5.0, seconds * scale))
        sound = "Traceback" not in served.output() and '" 504 ' not in served.output()
    statuses = ", ".join(f"{count} x {status or 'waits'}" for status, count in sorted(found.clients.items()))
    text = (
        f"p99 {found.before:.1f} ms before, {found.beside:.1f} ms beside them ({found.pages:,} pages); {statuses} "
        f"after {found.begun:.1f} s, until when p99 {found.start:.1f} ms; the slowest page {found.longest:.1f} ms; "
        f"memory + {found.grown:.0f} MiB"
    )
    quick = found.beside <= factor * found.before
    return Seen(text, quick and set(found.clients) <= {"200", "503"} and sound)


ROWS = [
    Row(
        40,
        "2 clients take files of 50 MiB at 40 kB/s",
        "pages' p99 at most doubles, from the first request on",
        lambda scale: _slow(2, "/file/50", 30, scale),
    ),
    Row(
        40,
        "50 clients take such files",
        "the same",
        lambda scale: _slow(50, "/file/50", 120, scale),
    ),
    Row(
        40,
        "2 clients take what a view makes, 50 MiB",
        "the same",
        lambda scale: _slow(2, "/download/50", 30, scale),
    ),
    Row(
        40,
        "50 clients take that, together more than the spool",
        "every page comes, every download begins or is answered 503",
        lambda scale: _slow(50, "/download/50", 60, scale, factor=float("inf")),
    ),
]


if __name__ == "__main__":
    print(json.dumps(take_slowly(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
