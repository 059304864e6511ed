"""Fault 19: clients that send a message in a great many tiny fragments, and clients that send nothing but pings."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

from tests.harness import Served, client_frame
from tests.soak.row import Row, Seen, p99
from tests.soak.sites import on_postgresql, scaled

SIZE = 64  # bytes of a fragment
MEBIBYTES = 4
CHUNK = 16_384  # bytes
TEXT, CONTINUATION, PING = 1, 0, 9


def _fragment(opcode: int) -> bytes:
    frame = client_frame(opcode, b"x" * SIZE)
    return bytes([frame[0] & 0x7F]) + frame[1:]  # another one follows


FRAGMENTS = _fragment(TEXT) + _fragment(CONTINUATION) * (MEBIBYTES * 1_048_576 // SIZE - 1)
PINGS = client_frame(PING, b"") * 100_000


class Tiny(NamedTuple):
    """What bad clients were told, and what a good one saw beside them."""

    codes: Counter[int | None]
    echoes: int  # of the good client
    wrong: int
    p99: float  # of its echoes, in seconds
    before: float  # the same without the others


def tiny_frames(served: Served, rounds: int) -> Tiny:
    """Let two bad clients of each kind send at once, so often, beside a good one."""
    good, codes = served.socket("/echo/"), Counter[int | None]()
    wrong = 0

    def echo() -> float:
        nonlocal wrong
        started = time.monotonic()
        wrong += good.ask("hello") != "hello"
        return time.monotonic() - started

    before, meanwhile = [echo() for _ in range(200)], []
    with ThreadPoolExecutor(4) as crowd:
        for _ in range(rounds):
            bad = [crowd.submit(_flood, served, data) for data in (FRAGMENTS, PINGS) * 2]
            while not all(one.done() for one in bad):
                meanwhile.append(echo())
            codes += Counter(one.result() for one in bad)
    return Tiny(codes, len(meanwhile), wrong, p99(meanwhile), p99(before))


def _flood(served: Served, data: bytes) -> int | None:
    """Send as much of it as the server takes; return the code with which it closed."""
    bad = served.socket("/echo/")
    with suppress(ConnectionError, TimeoutError):
        for start in range(0, len(data), CHUNK):
            bad.raw.settimeout(20)
            bad.raw.sendall(data[start : start + CHUNK])
            with suppress(TimeoutError):
                if bad.receive(0.001) is None:
                    break
    return bad.closed()


def _tiny_frames(scale: float) -> Seen:
    rounds = scaled(200, scale)
    with on_postgresql(fsync="off") as (site, _):
        # A message of that many bytes may be: what is refused is the number of its parts.
        served = site.serve("--workers", "2", "--ws-max-size", str(2 * MEBIBYTES * 1_048_576))
        found = tiny_frames(served, rounds)
        left = site.count("protocolmessage", "channel = 'websocket.receive'")
        sound = "Traceback" not in served.output()
    codes = ", ".join(f"{number} x {code}" for code, number in sorted(found.codes.items(), key=str))
    text = (
        f"{codes}; a good client's echo p99 {1000 * found.p99:.0f} ms of {found.echoes:,} "
        f"(before {1000 * found.before:.0f}), {found.wrong} wrong; {left} rows left, no traceback {sound}"
    )
    right = found.codes == {1009: 2 * rounds, 1008: 2 * rounds} and not found.wrong
    return Seen(text, right and found.p99 < 0.2 and not left and sound)


ROWS = [
    Row(
        19,
        "4 MiB in 64-byte frames; 100,000 pings; 200 times",
        "1009, 1008; a good client's p99 < 200 ms",
        _tiny_frames,
    )
]
