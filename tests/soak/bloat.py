"""Fault 35: an hour of messages leaves no table that has grown, and none that is slow."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import closing
from typing import NamedTuple

from tests.harness import LiveSite
from tests.sender import Sender, sender
from tests.soak.row import Row, Seen, p99
from tests.soak.sites import on_postgresql
from tests.soak.tally import drained

MINUTES = 60.0  # at scale 1
RATE = 500  # messages a second, half of them durable
PERIOD = 0.02  # seconds between two sends
TABLES = (
    "dbchannels_protocolmessage",
    "dbchannels_durablemessage",
    "dbchannels_inflight",
    "dbchannels_process",
)
SIZES = "SELECT " + " + ".join(f"pg_total_relation_size('{table}')" for table in TABLES)


class Bloat(NamedTuple):
    """How large the tables were at most, and how long messages took."""

    megabytes: float
    rate: float  # messages a second
    p99_start: float  # milliseconds from a send to its consumer, in the first tenth of the time
    p99_end: float  # ... and in the last


class Traffic(threading.Thread):
    """Sends to a channel at a rate, on time or as soon after it as the layer takes it."""

    def __init__(self, one: Sender, channel: str, rate: float, until: float) -> None:
        super().__init__(daemon=True)
        self._sender, self._channel, self._rate, self._until = one, channel, rate, until
        self.sent = 0

    def run(self) -> None:
        started = time.monotonic()
        for turn in itertools.count(1):
            time.sleep(max(0.0, started + turn * PERIOD - time.monotonic()))
            if time.monotonic() > self._until:
                return
            number = round(turn * PERIOD * self._rate) - self.sent
            first = {"text": str(self.sent), "sent": time.time()}  # the only one that is timed
            self._sender.send(self._channel, [first, *({"text": ""} for _ in range(1, number))])
            self.sent += number


def bloat(site: LiveSite, minutes: float) -> Bloat:
    """Send at the rate for so many minutes; protocol messages go to ``http.paced``, durable ones to ``paced``."""
    site.crew(2, "--only", "*paced")
    end = time.monotonic() + minutes * 60
    largest = 0.0
    with sender(site) as one, sender(site) as other, closing(site.connect()) as connection:
        traffic = [Traffic(one, "paced", RATE / 2, end), Traffic(other, "http.paced", RATE / 2, end)]
        started = time.monotonic()
        for thread in traffic:
            thread.start()
        cursor = connection.cursor()
        while any(thread.is_alive() for thread in traffic):
            cursor.execute(SIZES)
            largest = max(largest, cursor.fetchone()[0] / 1_048_576)
            time.sleep(0.5)
        rate = sum(thread.sent for thread in traffic) / (time.monotonic() - started)
    drained(site)
    times = [float(text.split()[1]) * 1000 for text in site.entries()]
    tenth = max(1, len(times) // 10)
    return Bloat(largest, rate, p99(times[:tenth]), p99(times[-tenth:]))


def _bloat(scale: float) -> Seen:
    minutes = MINUTES * scale
    with on_postgresql() as (site, _):
        found = bloat(site, minutes)
    text = (
        f"{minutes:g} min at {found.rate:.0f} messages/s: tables {found.megabytes:.0f} MB at most, p99 "
        f"{found.p99_start:.0f} ms at the start and {found.p99_end:.0f} at the end"
    )
    return Seen(text, found.megabytes <= 50 and found.p99_end <= 1.5 * found.p99_start)


ROWS = [Row(35, "500 messages/s for an hour", "tables <= 50 MB, p99 at the end <= 1.5 x the start", _bloat)]
