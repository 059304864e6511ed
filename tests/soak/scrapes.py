"""No fault: for how long a server's hub stands still while somebody reads the metrics of a thousand channels."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import gevent
from gevent import subprocess

from dbchannels.measures import DONE, MOST, Counted, ServerCounts, new_report, read_report
from dbchannels.samples import GAUGES, site_sample
from dbchannels.server.health import HealthServer
from dbchannels.server.listeners import Address, SocketPermissions, listen
from dbchannels.server.metrics import Metrics
from dbchannels.worker.batch import Measures
from dbchannels.worker.sampler import Report
from tests.harness import HOST
from tests.soak.row import Row, Seen
from tests.soak.sites import scaled

WORKERS = 4
SCRAPE = """
import sys, time, urllib.request
began = time.monotonic()
print(len(urllib.request.urlopen(sys.argv[1], timeout=60).read()), time.monotonic() - began)
"""


class Source:
    """What a server shows whose workers have each run messages of so many channels."""

    def __init__(self, channels: int = MOST) -> None:
        self.counts = ServerCounts()
        self._reports = [new_report() for _ in range(WORKERS)]
        for descriptor in self._reports:
            counters, report = Measures(), Report(descriptor)
            for number in range(channels):
                for ran in (0.003, 0.3, 30.0):
                    counters.started(f"shop.orders.{number}", ran)
                    counters.ended(f"shop.orders.{number}", DONE, ran)
            report.add(counters)
            report.write()
        gauges = {f"shop.orders.{number}": [number] * len(GAUGES) for number in range(channels)}
        self._site = (
            site_sample(int(time.time()), 0.01, {"channels": gauges}),
            dict.fromkeys(gauges, 2),
        )

    def counted(self) -> tuple[Counted, list[bytes]]:
        return ({}, {}), [read_report(one) for one in self._reports]

    def state(self) -> dict[str, float]:
        return {}

    def budgets(self) -> dict[str, tuple[int, int]]:
        return {}

    def outages(self) -> int:
        return 0

    def site(self) -> tuple[str, dict[str, int]]:
        return self._site


def longest_turn(over: Callable[[], bool]) -> float:
    """Return for how long a busy hub had no turn at most, in milliseconds."""
    longest, last = 0.0, time.perf_counter()
    while not over():
        gevent.sleep(0)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return 1000 * longest


def standstills(number: int) -> tuple[list[float], list[float], int, float]:
    """Return the longest standstill during each of so many scrapes, and without any; the bytes and seconds of one."""
    metrics = Metrics(Source())
    health = HealthServer(listen(Address(HOST, 0), SocketPermissions()), lambda: "", metrics)
    health.start()
    url = f"http://{health.listener.address}/metrics"
    during, beside, size, longest = list[float](), list[float](), 0.0, 0.0
    try:
        for _ in range(number):
            metrics.good_until = 0.0
            client = subprocess.Popen([sys.executable, "-c", SCRAPE, url], stdout=subprocess.PIPE)
            during.append(longest_turn(lambda client=client: client.poll() is not None))
            size, seconds = (float(one) for one in client.stdout.read().split())
            longest = max(longest, seconds)
            ends_at = time.perf_counter() + 1.0
            beside.append(longest_turn(lambda ends_at=ends_at: time.perf_counter() > ends_at))
    finally:
        health.stop()
    return sorted(during), sorted(beside), int(size), longest


def _standstills(scale: float) -> Seen:
    during, beside, size, longest = standstills(scaled(20, scale, 3))
    middle = len(during) // 2
    text = (
        f"{during[middle]:.1f} ms at most in the median scrape of {size:,} bytes, {during[-1]:.1f} in the worst; "
        f"without one {beside[middle]:.1f} and {beside[-1]:.1f}; the slowest answer after {longest:.1f} s"
    )
    return Seen(text, during[middle] < 5 and longest < 5)


ROWS = [
    Row(
        0,
        "a busy hub while the metrics of 1,000 channels are read",
        "stands still for < 5 ms, and answers in < 5 s",
        _standstills,
    )
]
