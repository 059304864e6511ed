"""Fault 47: clients come back to a group's history while servers, workers, connections and the database are killed."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle, pairwise
from typing import Any, NamedTuple

import psycopg2

from dbchannels import codec
from examples.embedded_postgres import EmbeddedPostgres
from tests.harness import LiveSite, Served, until
from tests.returning import ReturningEvents, ReturningSocket
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled

SEND = """
SELECT dbchannels_keep_group('room-hall', %s, 60, ARRAY['']::text[], ARRAY[NULL]::int[], true, '{}', NULL, 86400)
"""
WRITTEN = "SELECT count(*) FROM dbchannels_history WHERE payload = %s"
PAUSE = 1.0  # seconds between two kills


class Speaker(threading.Thread):
    """Says each number once: what was not acknowledged is looked up, and said again if it was not written."""

    def __init__(self, site: LiveSite, number: int, rate: float) -> None:
        super().__init__(daemon=True)
        self._site, self._number, self._rate = site, number, rate
        self.said = 0

    def run(self) -> None:
        started, connection, is_sure = time.monotonic(), None, True
        while self.said < self._number:
            payload = psycopg2.Binary(codec.encode({"text": str(self.said)}))
            try:
                connection = connection or self._site.connect()
                with connection.cursor() as cursor:
                    cursor.execute(WRITTEN, [payload])
                    if is_sure or cursor.fetchone() == (0,):
                        cursor.execute(SEND, [payload])
                self.said, is_sure = self.said + 1, True
            except psycopg2.Error:
                connection, is_sure = None, False
                time.sleep(0.1)
            time.sleep(max(0.0, started + self.said / self._rate - time.monotonic()))


class Listener(threading.Thread):
    """Keeps a client connected, and cuts it off now and then."""

    def __init__(self, client: ReturningSocket, number: int) -> None:
        super().__init__(daemon=True)
        self.client, self._number = client, number
        self.connections = 0
        self.stopping = threading.Event()

    def run(self) -> None:
        chance = random.Random(self._number)
        while len(self.client.heard) < self._number and not self.stopping.is_set():
            with suppress(OSError, AssertionError, ValueError):
                if self.client.connect():
                    self.connections += 1
                    until_cut = len(self.client.heard) + chance.randrange(50, 1_000)
                    while len(self.client.heard) < min(until_cut, self._number) and self.client.hear(20.0):
                        pass
            self.client.cut()
            time.sleep(0.1)


class Heard(NamedTuple):
    """What came of it, over all clients."""

    wanted: int
    missed: int
    doubled: int
    inversions: int
    gaps: int
    connections: int
    kills: int

    def __str__(self) -> str:
        return (
            f"{self.missed} of {self.wanted:,} missed, {self.doubled} doubled, {self.inversions} out of order, "
            f"{self.gaps} gaps; {self.connections} connections, {self.kills} kills"
        )


def kills(site: LiveSite, server: EmbeddedPostgres, number: int, rate: float, faults: Sequence[str]) -> Heard:
    """Say numbers to four clients, and kill in turn until all is said."""
    served: list[Served] = [site.serve("--workers", "2")]
    kinds: list[Any] = [(ReturningSocket, "/room/hall/"), (ReturningEvents, "/room-events/hall")] * 2
    listeners = [Listener(kind(lambda: served[-1].port, path), number) for kind, path in kinds]
    for one in listeners:
        one.start()
    until(lambda: all(one.client.last_id for one in listeners), "all clients have begun")
    speaker, killed = Speaker(site, number, rate), 0
    speaker.start()
    for fault in cycle(faults):
        time.sleep(PAUSE)
        if not speaker.is_alive():
            break
        killed += 1
        if fault == "server":
            served[-1].end()
            served.append(site.serve("--workers", "2"))
        elif fault == "worker":
            for pid in served[-1].workers()[:1]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        else:
            server.restart(fault)
    with suppress(AssertionError):
        until(lambda: not any(one.is_alive() for one in listeners), "all have heard everything", 120)
    for one in listeners:
        one.stopping.set()
    heard = [list(map(int, one.client.heard)) for one in listeners]
    return Heard(
        number * len(heard),
        sum(number - len(set(one)) for one in heard),
        sum(len(one) - len(set(one)) for one in heard),
        sum(earlier > later for one in heard for earlier, later in pairwise(one)),
        sum(one.client.gaps for one in listeners),
        sum(one.connections for one in listeners),
        killed,
    )


FAULTS = ("server", "worker", "kill", "worker", "immediate", "server", "fast")


def _kills(scale: float) -> Seen:
    with on_postgresql() as (site, server):
        found = kills(site, server, scaled(25_000, scale, 500), 250, FAULTS)
    return Seen(str(found), found.missed == found.doubled == found.inversions == found.gaps == 0)


ROWS = [
    Row(
        47,
        "4 clients hear 25,000 messages each, while servers, workers, connections and the database are killed",
        "0 of 100,000 missed, doubled or out of order",
        _kills,
    )
]
