"""Fault 42: texts made to slow a pattern down, everywhere that a stranger can put one."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from dbchannels import codec
from dbchannels.redaction import message_text
from tests.harness import Served, Socket, ask
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled

SIZES = 8_000, 32_000  # characters
_UNITS = """?_key_ ?a=b& %25 %2525 %3Ftoken%3D token= &token ;key= aA A a. , ,, a;b= a;b="c" 127.0.0.1, [::1]:
    %E9 " \\ :// a/ ../ -_. key HTTP/ &;"""
UNITS = _UNITS.split()
HEADERS = (
    ("Referer", "User-Agent"),
    ("X-Forwarded-For", "X-Forwarded-Proto"),
    ("X-Forwarded-Host", "Cookie"),
)
HANDSHAKE = "Origin", "Sec_WebSocket_Protocol", "Sec_WebSocket_Extensions"
OPTIONS = (
    *("--workers", "1", "--proxy-headers", "--forwarded-host", "--ws-compression"),
    *("--max-line", "70000", "--max-head", "140000"),
)


class Found(NamedTuple):
    """Seconds that the longest of each place took, by size, and that all took together."""

    longest: dict[int, float]
    total: dict[int, float]
    statuses: set[int]


def _places(
    served: Served, kept: http.client.HTTPConnection, good: Socket, text: str
) -> list[Callable[[], int]]:
    """Return what puts a text into a request's line and headers, into a handshake, a message, and the admin."""
    lines = [partial(ask, kept, "GET", path) for path in (f"/?{text}", f"/{text}")]
    headers = [partial(ask, kept, "GET", "/", None, dict.fromkeys(names, text)) for names in HEADERS]
    return [
        *(lambda request=request: request().status for request in (*lines, *headers)),
        *(partial(_shaken, served, {name: text}) for name in HANDSHAKE),
        lambda: 200 if good.ask(text) == text else 500,
        partial(_admin, text),
    ]


def _shaken(served: Served, headers: dict[str, str]) -> int:
    client = served.socket("/echo/", **headers)
    client.raw.close()
    return int(client.status)


def slow_texts(served: Served, units: Sequence[str]) -> Found:
    """Put each unit, repeated to each size, into each place."""
    found = Found(dict.fromkeys(SIZES, 0.0), dict.fromkeys(SIZES, 0.0), set())
    good = served.socket("/echo/")
    with served.connection() as kept:
        for size in SIZES:
            for unit in units:
                for place in _places(served, kept, good, unit * (size // len(unit))):
                    started = time.monotonic()
                    found.statuses.add(place())
                    spent = time.monotonic() - started
                    found.longest[size] = max(found.longest[size], spent)
                    found.total[size] += spent
    return found


def _admin(text: str) -> int:
    """Do what the admin does to show a message."""
    fields = {"query_string": text, "headers": [["referer", text], [text, text]], text: [text], "text": text}
    return 200 if message_text("http.request", codec.encode(fields)) else 500


def _measure(scale: float) -> Seen:
    with on_postgresql(fsync="off") as (site, _):
        served = site.serve(*OPTIONS)
        found = slow_texts(served, UNITS[: scaled(len(UNITS), scale)])
        sound = "Traceback" not in served.output()
    small, large = SIZES
    ratio = found.total[large] / found.total[small]
    text = (
        f"longest {1000 * found.longest[small]:.0f} ms for {small:,} characters, {1000 * found.longest[large]:.0f} ms "
        f"for {large:,}; all together {found.total[small]:.1f} and {found.total[large]:.1f} s: {ratio:.1f} times; "
        f"no traceback {sound}"
    )
    return Seen(text, sound and found.longest[large] < 0.5 and ratio < 6)


ROWS = [
    Row(
        42,
        "units repeated to 8 and 32 kB in line, headers, handshake, payload and admin",
        "none > 500 ms; four times the text < 6 times the time",
        _measure,
    )
]
