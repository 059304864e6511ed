"""Fault 39: clients that have the server hold as much as they can: tiny frames, unfinished messages, bombs, answers."""

from __future__ import annotations

import re
import selectors
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.harness import Served, Socket, client_frame, connect_slow
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled

MEBIBYTE = 1_048_576
SLOW = "/slow/" + "x" * 7_494  # its consumers take 50 ms
TINY = client_frame(1, b"x") * (65_536 // 7)
FRAGMENT = b"\x02" + client_frame(2, bytes(65_000))[1:]
LARGE = client_frame(2, bytes(MEBIBYTE))
UNFINISHED = FRAGMENT + (b"\x00" + FRAGMENT[1:]) * 15


def _bomb() -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = (stream.compress(bytes(MEBIBYTE)) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
    frame = client_frame(2, content)
    return bytes([frame[0] | 0x40]) + frame[1:]


BOMBS = _bomb() * 62
#: MiB of the server's memory; unread answers fill both directions, and more of them are under way from the layer.
GROWTH = {"tiny frames": 32, "unfinished": 64, "unread": 256, "bombs": 64}
# Asks until its input ends, then says how long the slowest answer took: a process, so that nobody here holds it up.
PROBE = """
import select, socket, sys, time
worst = 0.0
while not select.select([sys.stdin], [], [], 0.002)[0]:
    asked = time.monotonic()
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 60) as raw:
        raw.sendall(b"GET /healthz HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
        while raw.recv(1000):
            pass
    worst = max(worst, time.monotonic() - asked)
print(worst)
"""


class Hoard(NamedTuple):
    """What one kind of attack cost."""

    growth: float  # MiB of the server's memory, at its highest
    silence: float  # of the hub, in seconds: the slowest answer to a probe
    without: float  # the same without the attack, after it: what the machine's other work makes of it
    codes: Counter[int | None]  # with which the bad clients were closed; None: still open at the end

    def __str__(self) -> str:
        codes = ", ".join(f"{number} x {code}" for code, number in sorted(self.codes.items(), key=str))
        silence = f"{1000 * self.silence:.0f} ms ({1000 * self.without:.0f} without)"
        return f"+{self.growth:.0f} MiB, hub silent for {silence}, {codes}"


def hoard(served: Served, path: str, data: bytes, number: int, seconds: float, **headers: str) -> Hoard:
    """Let so many clients send the same at once, and wait for so long until all are closed; then they leave."""
    bad = [served.socket(path, **headers) for _ in range(number)]
    started = time.monotonic()
    memory = _memory(served, "VmRSS")
    Path(f"/proc/{served.process.pid}/clear_refs").write_text("5")  # the highest so far is that of now
    with _probe(served) as silence:
        codes = _flood(bad, data, seconds)
    growth = (_memory(served, "VmHWM") - memory) / 1024
    for one in bad:
        one.raw.close()
    with _probe(served) as without:
        time.sleep(min(5, time.monotonic() - started))
    return Hoard(growth, silence[0], without[0], codes)


def unread(served: Served, number: int, dropped: int, seconds: float) -> Hoard:
    """Let so many clients send 1 MiB to a consumer that sends it back, unread, until ``dropped`` were dropped."""
    before, started = _codes(served), time.monotonic()
    bad = [Socket(served.port, "/echo/", {}, connect_slow(served.port)).handshake() for _ in range(number)]
    memory = _memory(served, "VmRSS")
    Path(f"/proc/{served.process.pid}/clear_refs").write_text("5")
    with _probe(served) as silence:
        _send_all(bad, LARGE)
        # Who reads nothing does not see that it was closed: the log says so.
        while (codes := _codes(served) - before).total() < dropped and time.monotonic() < started + seconds:
            time.sleep(0.1)
    growth = (_memory(served, "VmHWM") - memory) / 1024
    for one in bad:
        one.raw.close()
    with _probe(served) as without:
        time.sleep(min(5, time.monotonic() - started))
    codes[None] = number - codes.total()
    return Hoard(growth, silence[0], without[0], +codes)


def _codes(served: Served) -> Counter[int | None]:
    """Return with which codes clients of the echo were closed, by the log."""
    return Counter(map(int, re.findall(r'"WSDISCONNECT /echo/ HTTP/1.1" (\d+)', served.output())))


@contextmanager
def _probe(served: Served) -> Iterator[list[float]]:
    """Ask for the health meanwhile; the list has the slowest answer at the end."""
    found = re.search(r"/readyz at .*:(\d+)", served.output())
    assert found, served.output()
    worst: list[float] = []
    command = [sys.executable, "-c", PROBE, found[1]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as probe:
        yield worst
        worst.append(float(probe.communicate()[0]))


def _flood(bad: Sequence[Socket], data: bytes, seconds: float) -> Counter[int | None]:
    left, end = {one: memoryview(data) for one in bad}, time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for one in bad:
            one.raw.setblocking(False)
            selector.register(one.raw, selectors.EVENT_READ | selectors.EVENT_WRITE, one)
        while left and time.monotonic() < end:
            for key, ready in selector.select(0.1):
                one = key.data
                with suppress(BlockingIOError):
                    if ready & selectors.EVENT_READ:
                        _read(one)
                    if one.close_code is not None:
                        selector.unregister(one.raw)
                        del left[one]
                    elif left[one]:
                        left[one] = left[one][one.raw.send(left[one]) :]
                    else:
                        selector.modify(one.raw, selectors.EVENT_READ, one)
    return Counter(one.close_code for one in bad)


def _send_all(bad: Sequence[Socket], data: bytes) -> None:
    """Send to all at once, without reading."""
    left = {one: memoryview(data) for one in bad}
    with selectors.DefaultSelector() as selector:
        for one in bad:
            one.raw.setblocking(False)
            selector.register(one.raw, selectors.EVENT_WRITE, one)
        while left:
            for key, _ in selector.select():
                one = key.data
                with suppress(BlockingIOError):
                    left[one] = left[one][one.raw.send(left[one]) :]
                if not left[one]:
                    del left[one]
                    selector.unregister(one.raw)


def _read(one: Socket) -> None:
    try:
        data = one.raw.recv(65_536)
    except ConnectionError:
        data = b""
    if not data:
        one.close_code = one.close_code or 1006
    one.feed(data)


def _memory(served: Served, name: str) -> int:
    """Return a figure of the server's process, in KiB."""
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    return int(re.findall(rf"{name}:\s+(\d+) kB", status)[0])


def _hoards(scale: float) -> Seen:
    with on_postgresql(fsync="off") as (site, _):
        served = site.serve("--workers", "2", "--ws-compression", "--probe-port", "0")
        kinds = {
            "tiny frames": hoard(served, SLOW, TINY, scaled(20, scale), 10),
            "unfinished": hoard(served, "/echo/", UNFINISHED, scaled(300, scale), 60),
            "unread": unread(served, scaled(300, scale), scaled(300, scale), 60),
            "bombs": hoard(
                served, SLOW, BOMBS, scaled(30, scale), 30, Sec_WebSocket_Extensions="permessage-deflate"
            ),
        }
        good = served.socket("/echo/").ask("hello") == "hello"
        sound = "Traceback" not in served.output()
    text = (
        "; ".join(f"{name}: {found}" for name, found in kinds.items())
        + f"; echo {good}, no traceback {sound}"
    )
    silence = max(one.silence for one in kinds.values())
    return Seen(
        text,
        all(kinds[name].growth <= most for name, most in GROWTH.items())
        and silence <= 0.05
        and good
        and sound,
    )


ROWS = [
    Row(
        39,
        "20 x 64 KiB of one-byte frames, 300 unfinished messages of 1 MiB, 300 unread answers of 1 MiB, "
        "30 x 62 bombs of 1 MiB",
        f"growth <= {', '.join(map(str, GROWTH.values()))} MiB, hub never silent > 50 ms",
        _hoards,
    )
]
