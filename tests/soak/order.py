"""Fault 32: the frames of one connection are consumed in the order in which they were sent, whatever dies."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import defaultdict
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple

from tests.harness import LiveSite, Served, Socket, until
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, options, scaled


class Order(NamedTuple):
    """What consumers wrote down of all frames."""

    finished: int  # clients that got an answer to each of their frames
    consumed: int  # frames
    inversions: int  # frames consumed after a later one, or again, on one connection
    gaps: int  # frames of one connection that were left out before a later one
    kills: int
    closed: int  # sockets closed because their frame was in a killed worker's hands
    seconds: float


class Client(threading.Thread):
    """Sends numbered frames as fast as they are taken; when its socket is closed it goes on with another."""

    def __init__(self, served: Served, name: str, frames: int) -> None:
        super().__init__(daemon=True)
        self.served, self.label, self.frames = served, name, frames
        self.answered = 0
        self.codes: list[int | None] = []

    def run(self) -> None:
        while self.answered < self.frames:
            connection = self.served.socket(f"/ordered/{self.label}.{len(self.codes)}/")
            if connection.status != 101:  # every worker may be dead for a moment
                time.sleep(0.1)
                continue
            first = self.answered
            sending = threading.Thread(target=self._send, args=(connection, first), daemon=True)
            sending.start()
            while self.answered < self.frames and (text := connection.receive(120)) is not None:
                assert text == str(self.answered)
                self.answered += 1
            self.codes.append(connection.close_code)
            sending.join()

    def _send(self, connection: Socket, first: int) -> None:
        with suppress(OSError):  # the server has closed it
            for number in range(first, self.frames):
                connection.send(str(number))


def order(site: LiveSite, clients: int, frames: int, workers: int, kills: int) -> Order:
    """Let clients send their frames at once while workers are killed."""
    served = site.serve("--workers", str(workers), settings=options(lease=600))
    crowd = [Client(served, f"c{number}", frames) for number in range(clients)]
    started = time.monotonic()
    for client in crowd:
        client.start()
    killed = 0
    while killed < kills and _answered(crowd) < clients * frames:
        share = (killed + 1) * clients * frames // (kills + 1)
        until(lambda share=share: _answered(crowd) >= share, "they go on", 900)
        killed += kill_one(served)
    for client in crowd:
        client.join(900)
    seconds = time.monotonic() - started
    closed = sum(code == 1011 for client in crowd for code in client.codes)
    finished = sum(client.answered == frames for client in crowd)
    return Order(finished, *disorder(site.entries()), killed, closed, seconds)


def _answered(crowd: list[Client]) -> int:
    return sum(client.answered for client in crowd)


def kill_one(served: Served) -> int:
    """Kill a worker, whatever it does; return how many were killed."""
    pid = random.choice(until(served.workers, "a worker", 60))
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return 1
    return 0


def disorder(entries: list[str]) -> tuple[int, int, int]:
    """Return how many frames were consumed, and how many of them too late, or with one before them left out."""
    consumed: dict[str, list[int]] = defaultdict(list)
    for text in entries:
        connection, number = text.split()
        consumed[connection].append(int(number))
    pairs = [pair for one in consumed.values() for pair in pairwise(one)]
    inversions = sum(later <= earlier for earlier, later in pairs)
    gaps = sum(later > earlier + 1 for earlier, later in pairs)
    return len(entries), inversions, gaps


def _order(scale: float) -> Seen:
    clients, kills = scaled(100, scale**0.5, 10), scaled(50, scale, 5)
    with on_postgresql() as (site, _):
        found = order(site, clients, scaled(1000, scale**0.5, 100), 4, kills)
    text = (
        f"{found.inversions} inversions, {found.gaps} gaps in {found.consumed:,} frames of {clients} clients; "
        f"{found.kills} kills closed {found.closed} sockets; {found.seconds:.0f} s"
    )
    return Seen(text, found.inversions == found.gaps == 0 and found.finished == clients)


ROWS = [Row(32, "100 clients x 1,000 frames x 4 workers, 50 kills", "0 inversions", _order)]
