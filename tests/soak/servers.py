"""Faults 3 to 5: a server asked to stop or killed, and processes that stand still for longer than their lease."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tests.harness import HOST, LiveSite, Served, Socket, until
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


class Drained(NamedTuple):
    """How a server went that was asked to."""

    codes: set[int | None]  # with which its sockets were closed
    answered: set[int]  # the status of each request that was under way
    missing: int
    repeated: int
    consumed: set[str]  # the codes that the disconnect consumers were given
    left: int  # memberships, connections, messages and the server's own record
    status: int
    refused_after: float  # seconds from the signal until the port was closed
    ended_after: float


def drain(site: LiveSite, clients: int, groups: int, requests: int, number: int) -> Drained:
    """Ask ``runchannels`` to stop with its clients in groups, all of them at once, and requests under way."""
    served = site.serve("--workers", "2")
    sockets = [member(served, one, groups) for one in range(clients)]
    until(lambda: site.count("membership") == clients, "all are members")
    with ThreadPoolExecutor(requests + 2) as pool:
        asked = [pool.submit(served.get, "/sleep/300") for _ in range(requests)]
        until(lambda: site.count("inflight", "messages LIKE '%http.request %'"), "a view runs")
        closing = pool.submit(answer_closes, sockets)
        started = time.monotonic()
        served.process.send_signal(number)
        refused = pool.submit(seconds_until_refused, served.port, started)
        status = served.process.wait(60)
        ended = time.monotonic() - started
        answered = {one.result().status for one in asked}
        return Drained(
            closing.result(),
            answered,
            *resigned(site, clients),
            left=site.rows(ORPHANS)[0][0],
            status=status,
            refused_after=refused.result(),
            ended_after=ended,
        )


def answer_closes(sockets: list[Socket]) -> set[int | None]:
    """Read all sockets at once until each was closed; return the codes. Each answers its close, as browsers do."""
    with selectors.DefaultSelector() as selector:
        for one in sockets:
            selector.register(one.raw, selectors.EVENT_READ, one)
        end = time.monotonic() + 60
        while selector.get_map() and time.monotonic() < end:
            for key, _ in selector.select(1.0):
                data = key.data.raw.recv(65_536)
                if data:
                    key.data.feed(data)
                else:
                    selector.unregister(key.fileobj)
    return {one.close_code for one in sockets}


def seconds_until_refused(port: int, started: float) -> float:
    """Return after how many seconds nobody listens at a port any more."""

    def refused() -> bool:
        try:
            socket.create_connection((HOST, port), timeout=20).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:  # it waited to be accepted when the port closed
            return False
        return False

    until(refused, "the port is closed", every=0.001)
    return time.monotonic() - started


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
    until(lambda: not site.count("inflight", "messages <> ''"), "the last consumer has run")
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


class Arrived(NamedTuple):
    """What became of connections that were opened before, while and after a server stood still."""

    statuses: dict[int, int]  # how often each, of those that came meanwhile
    ran: int  # connect consumers
    missing: int  # of these, those whose disconnect consumer never ran
    repeated: int  # disconnects beyond the one of each connect that ran


def arrivals(site: LiveSite, clients: int, lease: float) -> Arrived:
    """SIGSTOP an interface server, let so many clients arrive until it is declared dead, and SIGCONT it."""
    settings = options(lease=lease)
    served = site.serve("--workers", "0", settings=settings)
    site.work(settings=settings)
    sockets = [Socket(served.port, f"/arrival/b{one}/", {}).handshake() for one in range(clients)]
    stand_still(site, served.process.pid)
    during = [Socket(served.port, f"/arrival/d{one}/", {}) for one in range(clients)]
    served.process.send_signal(signal.SIGCONT)
    statuses = Counter(one.handshake().status for one in during)
    until(lambda: site.rows(NAME_OF.format(served.process.pid)), "it is on record again")
    sockets += [Socket(served.port, f"/arrival/a{one}/", {}).handshake() for one in range(clients)]
    for one in [*sockets, *during]:
        one.raw.close()
    until(lambda: not site.count("connection"), "no connection is on record", 60)
    until(
        lambda: not site.count("protocolmessage") and not site.count("inflight", "messages <> ''"),
        "all have run",
    )
    words = [text.split() for text in site.entries()]
    came = {client for word, client in words if word == "arrived"}
    left = Counter(client for word, client in words if word == "departed")
    return Arrived(dict(statuses), len(came), len(came - left.keys()), left.total() - len(left.keys() & came))


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


def _drained(number: int, code: int) -> Callable[[float], Seen]:
    def measure(scale: float) -> Seen:
        clients = scaled(1000, scale, 50)
        with on_postgresql() as (site, _):
            found = drain(site, clients, max(1, clients // 10), 4, number)
        text = (
            f"close {found.codes} for {clients:,}, disconnects {found.consumed}, {found.missing} missing; "
            f"answers {found.answered}; port closed after {found.refused_after * 1000:.0f} ms, exit {found.status} "
            f"after {found.ended_after:.1f} s; {found.left} rows left"
        )
        exact = found[:7] == ({code}, {200}, 0, 0, {str(code)}, 0, 0)
        return Seen(text, exact and found.refused_after < 0.1 and found.ended_after < 15)

    return measure


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


def _arrived(scale: float) -> Seen:
    clients = scaled(20, scale, 5)
    with on_postgresql() as (site, _):
        found = arrivals(site, clients, lease=15)
    exact = found.ran >= 2 * clients and found.missing == found.repeated == 0
    return Seen(str(found._asdict()), exact)


def _stopped_worker(scale: float) -> Seen:
    with on_postgresql() as (site, _):
        found = stop_worker(site, lease=15)
    return Seen(str(found.tally), found == WokenWorker(Tally(51, 0, 0), True, True, True))


GOES = "all closed right, answers 200, port closed < 100 ms, exit 0 < 15 s, 0 rows left"

ROWS = [
    Row(3, "server SIGTERM, 1,000 sockets, 4 requests under way", GOES, _drained(signal.SIGTERM, 1001)),
    Row(3, "server SIGUSR1, the same before a restart", GOES, _drained(signal.SIGUSR1, 1012)),
    Row(4, "server SIGKILL, 500 clients in 50 groups", "0 orphans after 20 s, each disconnect once", _killed),
    Row(5, "server SIGSTOP, SIGCONT", "1012, another name, nothing under the old one", _stopped_server),
    Row(45, "server SIGSTOP while 20 arrive", "each connect that ran has its one disconnect", _arrived),
    Row(5, "worker SIGSTOP, SIGCONT", "another name, nothing lost, nothing twice", _stopped_worker),
]
