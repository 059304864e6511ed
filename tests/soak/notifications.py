"""Faults 8 and 36: notifications that never come, and strangers' notifications that do."""

from __future__ import annotations

import time
from typing import NamedTuple

from tests.harness import LiveSite, until
from tests.soak.row import Row, Seen, p99
from tests.soak.sites import on_postgresql, options, scaled

LONGEST = 7_999  # bytes of a payload: PostgreSQL takes no more
SENDING = """
import random, time
from dbchannels import Channel
for number in range({0}):
    Channel("timed").send({{"text": str(number), "sent": time.time()}})
    time.sleep(random.uniform(0, 0.5))
"""


def unheard(site: LiveSite, number: int) -> list[float]:
    """Send where no NOTIFY is sent, to a worker that waits for one; return each message's seconds until it ran."""
    site.work("--only", "timed")
    done = site.manage(
        "shell", "--verbosity", "0", "-c", SENDING.format(number), settings=options(wakeups=False)
    )
    assert done.returncode == 0, done.stderr
    until(lambda: len(site.entries()) >= number, "all have run")
    return sorted(float(text.split()[1]) for text in site.entries())


class Flood(NamedTuple):
    """What became of echoes while a stranger notified the channel that we listen at."""

    before: float  # their p99 in seconds
    meanwhile: float
    wrong: int
    seconds: float  # that the flood took
    lag: float  # of the queue of notifications that was left, from 0 to 1


def flood(site: LiveSite, number: int) -> Flood:
    """Send so many of the longest garbage, 100 in a transaction, and frames between them."""
    served = site.serve("--workers", "2")
    socket = served.socket("/echo/")
    wrong = 0

    def echo(times: int) -> list[float]:
        nonlocal wrong
        spent = []
        for one in range(times):
            started = time.monotonic()
            wrong += socket.ask(f"frame {one}") != f"frame {one}"
            spent.append(time.monotonic() - started)
        return spent

    rounds = max(1, number // 100)
    before = echo(500)
    started, meanwhile = time.monotonic(), []
    for one in range(rounds):
        site.rows(
            f"SELECT pg_notify('dbchannels', rpad('{one} ' || g, {LONGEST}, 'x')) FROM generate_series(1, 100) AS g"
        )
        meanwhile += echo(5)
    seconds = time.monotonic() - started
    ((lag,),) = site.rows("SELECT pg_notification_queue_usage()")
    return Flood(p99(before), p99(meanwhile), wrong, seconds, lag)


def _unheard(scale: float) -> Seen:
    with on_postgresql() as (site, _):
        spent = unheard(site, scaled(100, scale, 5))
    text = f"{len(spent)} messages: p50 {spent[len(spent) // 2]:.2f} s, the slowest {spent[-1]:.2f} s"
    return Seen(text, spent[-1] <= 1.2)


def _flood(scale: float) -> Seen:
    number = scaled(10_000, scale, 500)
    with on_postgresql() as (site, _):
        found = flood(site, number)
    text = (
        f"{number:,} of {LONGEST:,} bytes in {found.seconds:.1f} s: echo p99 {1000 * found.meanwhile:.1f} ms "
        f"(before {1000 * found.before:.1f}), {found.wrong} wrong, queue {100 * found.lag:.1f} % full after it"
    )
    return Seen(text, found.wrong == 0 and found.meanwhile < 0.2 and found.lag < 0.1)


ROWS = [
    Row(8, "no NOTIFY is sent", "delivery <= 1.2 s", _unheard),
    Row(36, "10,000 strange notifications", "a wakeup and no more: no echo wrong, p99 < 200 ms", _flood),
]
