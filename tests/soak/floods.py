"""Faults 18, 22 and 23: what is too large, clients that hold connections for nothing, and heads that are none."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import NamedTuple

from tests.endtoend.test_http import LIMIT
from tests.harness import HOST, LiveSite, Served, ask, client_frame, connect, until
from tests.server.hostile import BODIES, HEADS
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled

MEBIBYTE = 1_048_576
TOO_LARGE = (
    "from dbchannels import Channel, Group, MessageTooLarge\n"
    "def refused(send):\n"
    "    try:\n"
    "        send()\n"
    "    except MessageTooLarge:\n"
    "        return True\n"
    f"large = {{'text': 'x' * {MEBIBYTE + 1}}}\n"
    "print(refused(lambda: Channel('stream').send(large)), refused(lambda: Group('g').send(large)))"
)

HALF = [
    f"GET / HTTP/1.1\r\nHost: {HOST}\r\nX: ".encode(),
    f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100\r\n\r\nhalf".encode(),
    f"POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe".encode(),
    b"",
]
HOSTILE = {**HEADS, **BODIES}


# Fault 18.


class Sizes(NamedTuple):
    """What became of payloads as large as may be, and a byte larger."""

    body: tuple[int, int]  # statuses of requests
    frame: tuple[bool, int | None]  # echoed, and the code
    sends: str  # whether a channel and a group refused one
    rows: int  # that are left in the end


def sizes(site: LiveSite, served: Served) -> Sizes:
    """Try each way in once."""
    taken = served.request("POST", "/hash", b"x" * LIMIT)
    refused = served.request("POST", "/hash", b"x" * (LIMIT + 1))
    text = "x" * MEBIBYTE
    client = served.socket("/echo/")
    member = served.socket("/room/sizes/")  # whose words go through a group
    echoed = client.ask(text) == text and member.ask(text) == text
    member.close()
    client.raw.sendall(client_frame(1, bytes(MEBIBYTE + 1))[:14])
    said = site.shell(TOO_LARGE)
    until(lambda: not site.count("connection"), "the disconnect consumer has run")
    rows = sum(site.count(table) for table in ("protocolmessage", "durablemessage", "audience"))
    return Sizes((taken.status, refused.status), (echoed, client.closed()), said, rows)


def _sizes(scale: float) -> Seen:
    with on_postgresql(fsync="off") as (site, _):
        served = site.serve("--workers", "2", "--max-body", str(LIMIT))
        rounds = [sizes(site, served) for _ in range(scaled(20, scale))]
        sound = "Traceback" not in served.output()
    good = Sizes((200, 413), (True, 1009), "True True", 0)
    right = sum(one == good for one in rounds)
    text = f"{right} of {len(rounds)} rounds: {rounds[-1]}, no traceback {sound}"
    return Seen(text, right == len(rounds) and sound)


# Fault 22.


class Flood(NamedTuple):
    """What a good client, and those that were not, have seen."""

    p99: float  # of the good client's requests, in milliseconds
    requests: int  # of the good client
    statuses: Counter[str]  # of the others, "" for a plain close


def flood(served: Served, number: int) -> Flood:
    """Hold so many half requests until each was rejected or given up, beside a good client."""
    with served.connection() as kept:
        assert ask(kept, "GET", "/").text == "hello"
        # A process of their own: what they cost is not to slow down the good client.
        crowd = [sys.executable, "-m", "tests.soak.floods", str(served.port), str(number)]
        others = subprocess.Popen(crowd, stdout=subprocess.PIPE, text=True)
        spent = []
        while others.poll() is None:
            started = time.perf_counter()
            assert ask(kept, "GET", "/").text == "hello"
            spent.append(time.perf_counter() - started)
            time.sleep(0.01)
        statuses = Counter(json.loads(others.communicate()[0]))
    until(lambda: served.get("/").status == 200, "there is room for a newcomer")
    return Flood(1000 * sorted(spent)[len(spent) * 99 // 100], len(spent), statuses)


def held(port: int, number: int) -> list[str]:
    """Begin so many requests and end none; return the status that each got in the end."""
    begun = []
    for index in range(number):
        raw = socket.create_connection((HOST, port), timeout=60)
        raw.sendall(HALF[index % len(HALF)])
        begun.append(raw)
    return [_status(raw) for raw in begun]


def _status(raw: socket.socket) -> str:
    data = b""
    with raw, suppress(ConnectionError):
        while more := raw.recv(65_536):
            data += more
    return data[9:12].decode()


def _flood(scale: float) -> Seen:
    number = scaled(5_000, scale, 200)
    cap = number * 4 // 5
    with on_postgresql(fsync="off") as (site, _):
        limits = ("--max-connections", str(cap), "--head-timeout", "10", "--body-timeout", "10")
        served = site.serve("--workers", "2", *limits)
        found = flood(served, number)
        sound = "Traceback" not in served.output() and served.output().count("Rejected") < 20
    statuses = ", ".join(f"{count:,} x {status or 'closed'}" for status, count in found.statuses.items())
    text = f"{number:,} with a cap of {cap:,}: {statuses}; good client p99 {found.p99:.0f} ms of {found.requests}"
    bounded = found.statuses.keys() <= {"408", "503", ""} and found.statuses.total() == number
    return Seen(text, found.p99 < 200 and bounded and sound)


# Fault 23.


def hostile(served: Served, rounds: int) -> list[str]:
    """Send every hostile request so often, with a good one behind it; return what is wrong about the answers."""
    wrong = []
    for _ in range(rounds):
        for name, (data, status) in HOSTILE.items():
            answer = _answer(served.port, data)
            if not answer.startswith(b"HTTP/1.1 %d " % status) or answer.count(b"\r\n\r\n") != 1:
                wrong.append(f"{name}: {answer[:60]!r}")
    return wrong


def _answer(port: int, data: bytes) -> bytes:
    raw = connect(port)
    answer = b""
    with raw, suppress(ConnectionError):
        raw.sendall(data + f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        while more := raw.recv(65_536):
            answer += more
    return answer


def _hostile(scale: float) -> Seen:
    rounds = scaled(20, scale)
    with on_postgresql(fsync="off") as (site, _):
        served = site.serve("--workers", "1")
        wrong = hostile(served, rounds)
        sent = rounds * len(HOSTILE)
        until(lambda: lines(served) >= sent, lambda: f"{lines(served)} of {sent} lines are logged")
        logged, alive = lines(served), served.get("/").text == "hello"
        sound = "Traceback" not in served.output()
    text = (
        f"{sent - len(wrong):,} of {sent:,} refused once, {logged:,} lines, no traceback {sound}; {wrong[:3]}"
    )
    return Seen(text, not wrong and logged == sent and alive and sound)


def lines(served: Served) -> int:
    """Return how many lines the access log has."""
    return sum(line.startswith(HOST) for line in served.output().splitlines())


ROWS = [
    Row(
        18, "the limit and a byte more, 20 rounds", "200 and 413, echo and 1009, refused; no row left", _sizes
    ),
    Row(22, "5,000 half requests", "408, 503 or closed; a good client's p99 < 200 ms", _flood),
    Row(23, f"{len(HOSTILE)} hostile requests, 20 times", "one refusal and one line for each", _hostile),
]


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(json.dumps(held(int(sys.argv[1]), int(sys.argv[2]))))
