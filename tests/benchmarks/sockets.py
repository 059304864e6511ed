"""The whole way, from client to server, row, worker and back, beside a bare gevent process that writes ready frames.

Real processes on one machine: a PostgreSQL, ``runchannels`` with two workers, and the clients, all in this one process,
whose own share of a core stands beside each figure.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from examples.embedded_postgres.server import NAME
from tests.benchmarks.crowd import Crowd
from tests.benchmarks.hops import hops
from tests.benchmarks.hops import rounds as hop_rounds
from tests.benchmarks.measure import Figure, compare
from tests.harness import HOST, MANAGE, LiveSite, Served, client_frame
from tests.soak.sites import on_postgresql

TEXT = b"x" * 100
FRAME = client_frame(1, TEXT)
SIZE = 2 + len(TEXT)  # bytes of a server's frame
UNDER_WAY = 16  # broadcasts at once, when as many as possible are measured
SPEAKERS = 8
ROOM, ECHO = "/room/crowd/", "/echo/"
#: What the bare ones make where the targets were set: on a slower machine, what is missed is missed by both.
TARGETS_OF = "the targets' machine:"


def figures(quick: bool) -> Iterator[Figure | str]:
    """Yield all figures."""
    seconds = 1.0 if quick else 4.0
    # None of these rows is logged: what others write is not measured.
    with on_postgresql(fsync="off") as (site, server):
        served = site.serve("--workers", "2")
        # In a database of its own: a NOTIFY wakes whoever listens in the same one, to whatever.
        server.create("hops")
        yield from echoing(served, server.url.replace(NAME, "hops", 1), seconds)
        yield from requesting(served, seconds)
        yield from beside_gunicorn(site, seconds)
        with bare_server() as port:
            yield from broadcasting(served.port, port, seconds)
        yield from idling(served, 1_000 if quick else 10_000, 10 if quick else 60)


class Shares:
    """The processor time of the clients themselves, as a share of a core."""

    def __init__(self) -> None:
        self._found: list[float] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the block."""
        cpu, started = time.process_time(), time.perf_counter()
        yield
        self._found.append((time.process_time() - cpu) / (time.perf_counter() - started))

    def __str__(self) -> str:
        return f"clients {100 * statistics.median(self._found):.0f} %"


def line(name: str, found: str, shares: Shares, target: str) -> str:
    """Return a row of the table without a bare figure."""
    return f"{name:<54} {found + ', ' + str(shares):<50} {target}"


def rounds(
    crowd: Crowd, clients: list[int], data: bytes, whole: Callable[[bytes], bool], seconds: float
) -> list[float]:
    """Let each client send again as soon as it has its answer; return how long the answers took, sorted."""
    sent = {}
    spent: list[float] = []

    def send(one: int) -> None:
        sent[one] = time.perf_counter()
        crowd.send(one, data)

    def read(one: int, answer: bytes) -> None:
        if not whole(answer):  # the head of a response may come before its body
            return
        spent.append(time.perf_counter() - sent[one])
        send(one)

    for one in clients:
        send(one)
    crowd.run(read, until=lambda: False, seconds=seconds)
    return sorted(spent)


def closed_loop(
    name: str,
    target: str,
    crowd: Crowd,
    clients: list[int],
    data: bytes,
    whole: Callable[[bytes], bool],
    seconds: float,
) -> str:
    """Measure how many answers a second clients get that ask again at once."""
    return thrice(name, target, partial(rounds, crowd, clients, data, whole), seconds, crowd.rest)


def thrice(
    name: str,
    target: str,
    once: Callable[[float], list[float]],
    seconds: float,
    rest: Callable[[], None] = lambda: None,
) -> str:
    """Measure three times after a first round that does not count; return a row with the medians."""
    once(seconds / 2)
    rest()
    shares, found = Shares(), []
    for _ in range(3):
        with shares.measured():
            spent = once(seconds)
        rest()
        found.append((len(spent) / seconds, *(1000 * spent[int(len(spent) * part)] for part in (0.5, 0.99))))
    each, p50, p99 = map(statistics.median, zip(*found, strict=True))
    return line(name, f"{each:,.0f}/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms", shares, target)


def echoing(served: Served, dsn: str, seconds: float) -> Iterator[str]:
    """Yield the figures of an echo, each beside those of the two hops alone."""
    for number, target, usual in (
        (1, "p50 <= 2 ms", "p50 1.05 ms"),
        (50, ">= 4,000/s, p50 <= 12 ms", "10,000/s, p50 4.2 ms"),
    ):
        who = f"{number} client{'s' * (number > 1)}"
        with closing(Crowd(served.port)) as crowd:
            clients = crowd.open(number, ECHO)
            yield closed_loop(
                f"echo through a worker, {who}",
                target,
                crowd,
                clients,
                FRAME,
                lambda data: len(data) >= SIZE,
                seconds,
            )
        with hops(dsn) as end:
            once = partial(hop_rounds, end, number)
            yield thrice(f"  the two hops alone (bare), {who}", f"{TARGETS_OF} {usual}", once, seconds)


def requesting(served: Served, seconds: float) -> Iterator[str]:
    request = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    for number, target in ((1, "p50 <= 3 ms"), (32, ">= 2,000/s")):
        with closing(Crowd(served.port)) as crowd:
            clients = [crowd.connect() for _ in range(number)]
            name = f"a trivial view, keep-alive, {number} client{'s' * (number > 1)}"
            yield closed_loop(
                name, target, crowd, clients, request, lambda data: data.endswith(b"hello"), seconds
            )


def beside_gunicorn(site: LiveSite, seconds: float) -> Iterator[str]:
    """Yield the figures of a view without the layer: in the server's threads, and in gunicorn's greenlets."""
    request = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    bind = ["--chdir", str(MANAGE.parent), "--bind", f"{HOST}:0", "--keep-alive", "60"]
    gunicorn = ["livesite.plain", *bind, "--worker-class", "gevent", "--workers", "2"]
    other = Served(site, gunicorn, None, (sys.executable, "-m", "gunicorn"))
    site.processes.append(other)
    other.wait_ready("Listening at")
    for name, served, target in (
        ("--http direct", site.serve("--workers", "1", "--http", "direct"), ""),
        ("gunicorn, gevent", other, f"{TARGETS_OF} 6,200/s"),
    ):
        with closing(Crowd(served.port)) as crowd:
            clients = [crowd.connect() for _ in range(32)]
            yield closed_loop(
                f"the same view, {name}, 32 clients",
                target,
                crowd,
                clients,
                request,
                lambda data: data.endswith(b"hello"),
                seconds,
            )
        served.end()


@contextmanager
def bare_server() -> Iterator[int]:
    """Start the bare server; yield its port."""
    command = [sys.executable, "-m", "tests.benchmarks.bare", str(SIZE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def broadcasting(port: int, bare_port: int, seconds: float) -> Iterator[Figure | str]:
    for size, late, usual in ((1_000, "<= 40 ms", "14 to 28 ms"), (100, "<= 10 ms", "2.5 ms")):
        with closing(Crowd(port)) as crowd, closing(Crowd(bare_port)) as bare:
            members, others = crowd.open(size, ROOM), [bare.connect() for _ in range(size)]
            shares = Shares()

            def ours(crowd: Crowd = crowd, members: list[int] = members, shares: Shares = shares) -> float:
                with shares.measured():
                    return most(crowd, members, FRAME, seconds)

            def plain(bare: Crowd = bare, others: list[int] = others) -> float:
                return most(bare, others, b"!", seconds)

            found = compare(
                f"broadcast to {size:,} sockets, frames", ours, plain, ">= 0.50" * (size == 1_000), rounds=3
            )
            yield found._replace(target=f"{found.target}  {shares}")
            for name, one, speakers, data, goal in (
                ("", crowd, members, FRAME, late),
                (" (bare)", bare, others, b"!", f"{TARGETS_OF} {usual}"),
            ):
                shares = Shares()
                with shares.measured():
                    spent = paced(one, speakers, data, 1_000 / size, 5 * seconds)
                text = f"p50 {1000 * spent[len(spent) // 2]:.1f} ms, p99 {1000 * spent[len(spent) * 99 // 100]:.1f} ms"
                yield line(f"  at 1,000 frames/s{name}", text, shares, goal)


def most(crowd: Crowd, members: list[int], data: bytes, seconds: float) -> float:
    """Keep some broadcasts under way, counted by the first member; return how many frames come in a second."""
    received = heard = said = 0

    def say(number: int) -> None:
        nonlocal said
        for _ in range(number):
            crowd.send(members[said % SPEAKERS], data)
            said += 1

    def read(one: int, frames: bytes) -> None:
        nonlocal received, heard
        received += len(frames)
        if one == members[0]:
            heard += len(frames)
            say(UNDER_WAY + heard // SIZE - said)

    say(UNDER_WAY)
    crowd.run(read, until=lambda: False, seconds=seconds)
    found = received / SIZE / seconds
    crowd.rest()
    return found


def paced(crowd: Crowd, members: list[int], data: bytes, each_second: float, seconds: float) -> list[float]:
    """Send a frame so many times a second; return how long each one took to each member, sorted."""
    spent: list[float] = []
    for number in range(int(seconds * each_second)):
        started, expected = time.perf_counter(), len(spent) + len(members)
        crowd.send(members[number % SPEAKERS], data)
        crowd.run(
            lambda one, frames, started=started: spent.append(time.perf_counter() - started),  # type: ignore[misc]
            until=lambda expected=expected: len(spent) >= expected,  # type: ignore[misc]
            seconds=10,
        )
        time.sleep(max(0.0, started + 1 / each_second - time.perf_counter()))
    return sorted(spent)


def idling(served: Served, number: int, seconds: float) -> Iterator[str]:
    """Yield the figure of many sockets that send nothing."""
    shares = Shares()
    with shares.measured():
        each, share = idle(served, number, seconds)
    text = f"{each:,.1f} kB each, {100 * share:.1f} % of a core"
    yield line(f"{number:,} idle sockets for {seconds:.0f} s", text, shares, "<= 10 kB, <= 5 %")


def idle(served: Served, number: int, seconds: float) -> tuple[float, float]:
    """Open sockets that only answer pings; return kB of the server's memory for each, and its share of a core.

    AssertionError when the server closes one.
    """
    with closing(Crowd(served.port)) as crowd:
        before = resident(served)
        crowd.open(number, ECHO)
        after, cpu = resident(served), processor(served)
        crowd.rest(seconds)
        return (after - before) / number, (processor(served) - cpu) / seconds


def resident(served: Served) -> float:
    """Return the server's memory in kB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{served.process.pid}/status").read_text())
    assert found
    return float(found[1])


def processor(served: Served) -> float:
    """Return the server's processor time in seconds."""
    fields = Path(f"/proc/{served.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
