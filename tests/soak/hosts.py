"""Fault 48: servers A and B and workers C on hosts of their own, which are cut off, or vanish."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tests.clusters import NAME, Cluster, entry
from tests.harness import OPENED, LiveSite, Served, Socket, children, client_frame, close_all, gather, until
from tests.namespaces import PORT, Host, Network
from tests.sender import sender
from tests.soak.outages import streaming
from tests.soak.row import Row, Seen
from tests.soak.servers import NAME_OF, resigned
from tests.soak.sites import scaled
from tests.soak.standby import seconds_until
from tests.soak.tally import Tally, drained, numbered, tally

CLIENTS = 10  # on each server
PONG = 10  # an opcode
LEASE = 15  # seconds
NOTICED = 15.0  # seconds after which a standby is promoted when its primary is silent
CLAIMED = "SELECT claimed_by FROM dbchannels_durablemessage WHERE claimed_by IS NOT NULL"


class HostsSite(LiveSite):
    """A site whose database is on a host of its own."""

    def __init__(self, database: dict[str, Any], folder: Path, at: Host) -> None:
        super().__init__(database, folder)
        self.at = at

    def connect(self) -> Any:
        with self.at.inside():
            return super().connect()

    def manage(self, *arguments: str, settings: Any = None) -> subprocess.CompletedProcess[str]:
        command = [*self.at.prefix, sys.executable, str(self.manage_py), *arguments]
        environment = self.environment(settings)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def start(self, host: Host, *arguments: str, ready: str) -> Served:
        """Start a command of manage.py on a host."""
        program = [*host.prefix, sys.executable, str(self.manage_py)]
        self.processes.append(Served(self, list(arguments), None, program))
        self.processes[-1].wait_for_line(ready, 60)
        return self.processes[-1]


class Site(NamedTuple):
    """The hosts, and what runs there: a server without workers on A, one with two on B, two workers on C."""

    site: HostsSite
    a: Host
    b: Host
    c: Host
    server_a: Served
    server_b: Served
    workers: list[Served]

    def pids(self, host: Host) -> list[int]:
        """Return the processes on a host."""
        started = {self.a: [self.server_a], self.b: [self.server_b], self.c: self.workers}[host]
        return [pid for one in started for pid in (one.process.pid, *children(one.process.pid))]


@contextmanager
def site_on_hosts() -> Iterator[Site]:
    """Lend a site on four hosts, one of them for the database."""
    network = Network()
    with tempfile.TemporaryDirectory(prefix="dbchannels-soak-") as folder:
        try:
            data, a, b, c = (network.host(name) for name in ("db", "a", "b", "c"))
            cluster = Cluster(data.address, data.prefix)
            site = HostsSite(entry(cluster), Path(folder), data)
            try:
                cluster.make().start()
                with data.inside():
                    cluster.rows(f"CREATE DATABASE {NAME}")
                done = site.manage("migrate", "--verbosity", "0")
                assert done.returncode == 0, done.stderr
                serve = ["runchannels", f"0.0.0.0:{PORT}", "--workers"]
                first = site.start(a, *serve, "0", ready="CONTROL-C")
                second = site.start(b, *serve, "2", ready="CONTROL-C")
                crew = [site.start(c, "runworker", ready="reads") for _ in range(2)]
                until(lambda: site.count("process") == 6, "all are on record")
                yield Site(site, a, b, c, first, second, crew)
            finally:
                site.end()
                close_all()
                cluster.end()
        finally:
            network.close()


def dial(host: Host) -> socket.socket:
    """Connect to the server on a host, from that host: its clients stay with it when it is cut off."""
    with host.inside():
        OPENED.append(socket.create_connection((host.address, PORT), timeout=90))
    return OPENED[-1]


def members(host: Host, prefix: str) -> list[Socket]:
    """Open sockets that are members of a group."""
    found = [
        Socket(PORT, f"/member/g/{prefix}{number}/", {}, dial(host)).handshake() for number in range(CLIENTS)
    ]
    assert {one.status for one in found} == {101}
    return found


def get(host: Host, path: str) -> int:
    """GET a page of a server; return the status."""
    raw = dial(host)
    raw.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    return int(b"".join(iter(lambda: raw.recv(65_536), b"")).split()[1])


# Broadcasts.


def broadcasts(at: Site, lines: int) -> tuple[int, int]:
    """Let a client of each server talk in one room; return the lines that somebody missed, and inversions."""
    rooms = [
        Socket(PORT, "/room/tea/", {}, dial(host)).handshake()
        for host in (at.a, at.b)
        for _ in range(CLIENTS)
    ]
    until(lambda: at.site.count("membership") == 2 * CLIENTS, "all are members")
    for number in range(lines):
        for talker, who in ((rooms[0], "a"), (rooms[-1], "b")):
            talker.send(f"{who} {number:06}")
    heard = gather(rooms, 2 * lines, 120)
    expected = {f"{who} {number:06}" for who in "ab" for number in range(lines)}
    missed = sum(len(expected - set(one)) for one in heard)
    inversions = 0
    for one in heard:
        for who in "ab":
            own = [line for line in one if line.startswith(who)]
            inversions += sum(left > right for left, right in pairwise(own))
    return missed, inversions


# A host of workers.


class Workers(NamedTuple):
    """What became of the messages of workers that were cut off, or had vanished."""

    again: float  # seconds until a durable message that one of them held had run
    effects: int  # of that message, in the end
    status: int  # of a request that one of them held
    answered: float  # seconds until then
    served: float  # seconds that another request took meanwhile
    lost: int  # of the messages that were sent meanwhile
    back: float  # seconds after the cut until the hosts' workers are on record; 0: they do not come back


def without_workers(at: Site, seconds: float) -> Workers:
    """Cut the host of workers off for so long; 0: for ever, and kill what runs there."""
    site = at.site
    with sender(site, at.site.at.prefix) as one, ThreadPoolExecutor(4) as pool:
        others = at.pids(at.b)[1:]
        stop(others, signal.SIGSTOP)  # so that C takes the next ones
        one.send("booked", [{"text": "held", "sleep": 3.0}])
        until(lambda: site.rows(CLAIMED), "C has the message")
        asked = pool.submit(timed, lambda: get(at.a, "/sleep/3000"))
        until(lambda: site.count("inflight", "messages LIKE '%http.request %'"), "C has the request")
        at.c.cut()
        started = time.monotonic()
        if not seconds:
            stop(at.pids(at.c), signal.SIGKILL)
        stop(others, signal.SIGCONT)
        _, served = timed(lambda: get(at.b, "/"))
        texts = [str(number) for number in range(200)]
        for text in texts:
            one.send("stream", [{"text": text}])
        ran = pool.submit(timed, lambda: until(lambda: "held" in site.entries(), "it has run", 120))
        if seconds:
            time.sleep(max(0.0, started + seconds - time.monotonic()))
            at.c.mend()
            mended = time.monotonic()
        (_, again), (status, answered) = ran.result(), asked.result()
        back = 0.0
        if seconds:
            pids = {worker.process.pid for worker in at.workers}
            query = "SELECT pid FROM dbchannels_process WHERE lease_until > now()"
            until(lambda: pids <= {pid for (pid,) in site.rows(query)}, "C is back", 60)
            back = time.monotonic() - mended
        until(lambda: not site.count("durablemessage"), "all have run", 120)
        entries = site.entries()
        return Workers(
            again, entries.count("held"), status, answered, served, len(set(texts) - set(entries)), back
        )


# A host of a server.


class Server(NamedTuple):
    """What became of the clients of a server that was cut off, or had vanished."""

    ended: (
        float  # seconds until the disconnect consumers of all its clients had run elsewhere; 0: they need not
    )
    codes: set[int | None]  # with which its sockets were closed after the cut; None: they are open
    missing: int  # clients whose disconnect consumers have not run, of those whose sockets were closed
    repeated: int
    heard: int  # of its clients got the broadcast of the meantime
    back: float  # seconds after the cut until a new client has been served; 0: it does not come back
    left: int  # rows of the dead one


def without_server(at: Site, seconds: float) -> Server:
    """Cut server A off for so long; 0: for ever, and kill it."""
    site, sockets = at.site, members(at.a, "c")
    other = members(at.b, "o")[0]
    until(lambda: site.count("membership") == 2 * CLIENTS, "all are members")
    ((name,),) = site.rows(NAME_OF.format(at.server_a.process.pid))
    at.a.cut()
    started = time.monotonic()
    if not seconds:
        stop(at.pids(at.a), signal.SIGKILL)
    assert other.ask("alone") == "alone"
    with sender(site, site.at.prefix) as one:
        one.send("shout", [{"group": "members-g", "text": "meanwhile"}])
    assert other.receive() == "meanwhile"
    ended, back, codes, heard = 0.0, 0.0, set[int | None](), 0
    if seconds == 0 or seconds > LEASE:
        until(lambda: resigned(site, CLIENTS)[0] == 0, "all disconnect consumers have run", 120)
        ended = time.monotonic() - started
    while time.monotonic() < started + seconds:
        for one in sockets:  # who is silent for too long is left
            one.raw.sendall(client_frame(PONG, b""))
        time.sleep(1)
    if seconds:
        at.a.mend()
        mended = time.monotonic()
        until(lambda: get(at.a, "/") == 200, "A serves", 60, every=0.1)
        back = time.monotonic() - mended
    for one in sockets if seconds else []:
        said = one.receive()
        heard += said == "meanwhile"
        codes.add(None if said and one.ask("still here") == "still here" else one.closed())
    missing, repeated, _ = resigned(site, CLIENTS) if ended else (0, 0, set())
    left = site.count("connection", f"server = '{name}'") if ended else 0
    return Server(ended, codes, missing, repeated, heard, back, left)


# The host of the primary database.


class Failover(NamedTuple):
    """What clients saw when the primary's host had vanished; times are in seconds from the standby's promotion."""

    tally: Tally
    page: float
    echo: float
    message: float
    codes: set[int | None]  # with which sockets were closed; None: they are open


def failover(network: Network, folder: Path, noticed: float) -> Failover:
    """Cut off the primary's host, with no word to anybody, and promote the standby so many seconds later."""
    first, second, a = (network.host(name) for name in ("db1", "db2", "a"))
    primary, standby = Cluster(first.address, first.prefix), Cluster(second.address, second.prefix)
    site = HostsSite(entry(primary, standby), folder, a)
    try:
        primary.make().start()
        with a.inside():
            primary.rows(f"CREATE DATABASE {NAME}")
            assert site.manage("migrate", "--verbosity", "0").returncode == 0
            standby.follow(primary, synchronous=True)
        site.start(a, "runchannels", f"0.0.0.0:{PORT}", "--workers", "2", ready="CONTROL-C")
        sockets = members(a, "c")
        with streaming(site, "stream", a.prefix) as stream, ThreadPoolExecutor(4) as pool:
            until(lambda: stream.sent > 200, "messages flow", 60)
            first.cut()
            time.sleep(noticed)
            standby.promote()
            started, sent, ran = time.monotonic(), stream.sent, len(site.entries())
            page = pool.submit(seconds_until, lambda: get(a, "/") == 200, started)
            echo = pool.submit(seconds_until, lambda: sockets[0].ask("after") == "after", started)
            message = seconds_until(lambda: len(site.entries()) > ran, started)
            until(lambda: stream.sent > sent + 200, "messages flow again", 60)
        drained(site, 60)
        codes = {None if one.ask("last") == "last" else one.close_code for one in sockets}
        return Failover(tally(site, numbered(0, stream.sent)), page.result(), echo.result(), message, codes)
    finally:
        site.end()
        close_all()
        standby.end()
        primary.end()


def stop(pids: Sequence[int], number: int) -> None:
    """Send a signal to processes."""
    for pid in pids:
        os.kill(pid, number)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call gives, and the seconds that it took."""
    started = time.monotonic()
    return call(), time.monotonic() - started


def _broadcasts(scale: float) -> Seen:
    with site_on_hosts() as at:
        lines = scaled(500, scale, 20)
        missed, inversions = broadcasts(at, lines)
    text = f"{2 * lines} lines to {2 * CLIENTS} sockets: {missed} missed, {inversions} inversions"
    return Seen(text, missed == inversions == 0)


def _workers(seconds: float) -> Callable[[float], Seen]:
    def measure(scale: float) -> Seen:
        with site_on_hosts() as at:
            found = without_workers(at, seconds)
        text = (
            f"the message has run after {found.again:.1f} s, the request is answered {found.status} after "
            f"{found.answered:.1f} s, another one in {found.served:.2f} s; {found.lost} lost"
        )
        if seconds:
            text += f"; on record again {found.back:.1f} s after the cut"
        return Seen(text, found.effects == 1 and found.lost == 0 and found.again < 20)

    return measure


def _server(seconds: float) -> Callable[[float], Seen]:
    def measure(scale: float) -> Seen:
        with site_on_hosts() as at:
            found = without_server(at, seconds)
        text = f"{found.missing} disconnects missing, {found.repeated} repeated, {found.left} rows left"
        if found.ended:
            text += f"; all disconnect consumers have run after {found.ended:.1f} s"
        if seconds:
            closed = "/".join(str(code or "open") for code in found.codes)
            text += f"; sockets {closed}, {found.heard} heard the broadcast, serves {found.back:.1f} s after the cut"
        return Seen(text, found.missing == found.repeated == found.left == 0 and found.ended < 20)

    return measure


def _failover(scale: float) -> Seen:
    network = Network()
    try:
        with tempfile.TemporaryDirectory(prefix="dbchannels-soak-") as folder:
            found = failover(network, Path(folder), NOTICED)
    finally:
        network.close()
    text = (
        f"{found.tally}; after the promotion a page in {found.page:.1f} s, a frame in {found.echo:.1f} s, a message "
        f"in {found.message:.1f} s; sockets {'/'.join(str(code or 'open') for code in found.codes)}"
    )
    back = max(found.page, found.echo, found.message) < 5
    return Seen(text, back and found.tally.lost == 0 and found.codes == {None})


ROWS = [
    Row(
        48,
        "broadcasts between two servers, workers on both and elsewhere",
        "0 missed, 0 inversions",
        _broadcasts,
    ),
    Row(48, "the host of workers is cut off for 10 s", "0 lost, each effect once", _workers(10)),
    Row(48, "the host of workers is cut off for 60 s", "0 lost, each effect once", _workers(60)),
    Row(48, "the host of workers vanishes", "0 lost, each effect once", _workers(0)),
    Row(48, "the host of a server is cut off for 10 s", "each disconnect once, no row left", _server(10)),
    Row(48, "the host of a server is cut off for 60 s", "each disconnect once, no row left", _server(60)),
    Row(48, "the host of a server vanishes", "each disconnect once, no row left", _server(0)),
    Row(
        47,
        "the primary's host vanishes, a synchronous standby is promoted",
        "0 lost, all back in < 5 s",
        _failover,
    ),
]
