"""What workers and servers measure: counters that add and subtract.

Each worker counts for each channel what became of its messages, how long they had waited, and how long their consumers
ran. Every ten seconds it writes the difference since the last time into the database, see ``samples``. The parent of
the process reads the counters from a file, see `read_report`.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeVar

#: Upper bounds of the buckets of all histograms, in seconds; one more bucket holds what took longer. All processes
#: have the same bounds, so that their histograms add up.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0)
BUCKETS = len(BOUNDS) + 1

# The numbers of a channel, by position: messages whose consumers were started, and then returned, raised, or raised for
# the last time; the sums of seconds; and the messages in each bucket.
STARTED, DONE, FAILED, DEAD, WAITED, RAN = range(6)
WAITS, RUNS = slice(6, 6 + BUCKETS), slice(6 + BUCKETS, 6 + 2 * BUCKETS)
SIZE = RUNS.stop

MOST = 1_000  # channels that are counted by name
OTHERS = "(others)"  # the rest

Counts = dict[str, list[float]]  # by channel, see STARTED to RUNS
Counted = tuple[Counts, dict[str, int]]  # with the events that are counted: ``outages``, ``renewals``


def add(total: Counts, counts: Mapping[str, Sequence[float]]) -> None:
    """Add counters to others."""
    for channel, numbers in counts.items():
        if channel not in total and len(total) >= MOST:
            channel = OTHERS
        total[channel] = [a + b for a, b in zip(total.get(channel, [0] * SIZE), numbers, strict=True)]


def since(counts: Counts, before: Counts) -> Counts:
    """Return by how much counters have grown, without channels on which nothing has happened."""
    grown = {
        channel: [a - b for a, b in zip(numbers, before.get(channel, [0] * SIZE), strict=True)]
        for channel, numbers in counts.items()
    }
    return {channel: numbers for channel, numbers in grown.items() if any(numbers)}


def to_json(counts: Counts) -> dict[str, list[float]]:
    """Return counters for compact JSON: without the zeros at the end, and rounded to microseconds."""
    short = {}
    for channel, numbers in counts.items():
        used = max((position for position, number in enumerate(numbers, 1) if number), default=0)
        short[channel] = [round(number, 6) for number in numbers[:used]]
    return short


def from_json(counts: Any, size: int = SIZE) -> Counts:
    """Return counters that `to_json` has written, with ``size`` numbers each. Raises ValueError."""
    if not isinstance(counts, dict):
        raise ValueError("These are no counters of a worker.")
    found: Counts = {}
    for channel, numbers in counts.items():
        if not (isinstance(numbers, list) and len(numbers) <= size and all(map(is_number, numbers))):
            raise ValueError("These are no counters of a worker.")
        found[channel] = [*numbers, *[0] * (size - len(numbers))]
    return found


def is_number(value: Any) -> bool:
    return (
        type(value) in (int, float) and abs(value) < 1e15
    )  # no bool, no NaN, and none that sums make infinite


def quantile(buckets: Sequence[float], q: float) -> float | None:
    """Estimate below how many seconds the fraction ``q`` of a histogram lies; None for an empty one.

    Inside a bucket the values count as evenly spread. What took longer than the last bound counts as that bound.
    """
    total = sum(buckets)
    if total <= 0:
        return None
    rank = q * total
    for position, below in enumerate(accumulate(buckets)):
        if below >= rank and buckets[position] > 0:
            if position == len(BOUNDS):
                return BOUNDS[-1]
            low = BOUNDS[position - 1] if position else 0.0
            part = (rank - (below - buckets[position])) / buckets[position]
            return low + (BOUNDS[position] - low) * part
    return BOUNDS[-1]


# From a worker's process to its parent, without the database: a line of JSON with the events, and one for each channel.

HEADER = struct.Struct("<II")  # the length of what follows, and its checksum
LONGEST_REPORT = 16_777_216  # bytes
AT_ONCE = 50  # channels that are parsed in about half a millisecond
ADDED_AT_ONCE = 200  # channels that are added up in about as long

Item = TypeVar("Item")
Pause = Callable[[], object] | None  # what lets the rest of a hub run; None where there is no hub


def with_pauses(items: Iterable[Item], pause: Pause, at_once: int = AT_ONCE) -> Iterator[Item]:
    """Yield the items, and pause after every few."""
    for number, item in enumerate(items, 1):
        yield item
        if pause and number % at_once == 0:
            pause()


def new_report() -> int:
    """Return the descriptor of a file without a name, in which a child leaves its counters."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("dbchannels-report")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def write_report(descriptor: int, data: bytes) -> None:
    """Replace what is in a report."""
    os.pwrite(descriptor, HEADER.pack(len(data), zlib.crc32(data)) + data, 0)


def read_report(descriptor: int) -> bytes:
    """Return what a child has left; nothing if there is none, or if it is writing just now."""
    length, checksum = HEADER.unpack(os.pread(descriptor, HEADER.size, 0) or bytes(HEADER.size))
    data = os.pread(descriptor, min(length, LONGEST_REPORT), HEADER.size)
    return data if len(data) == length and zlib.crc32(data) == checksum else b""


def report(counts: Counts, events: Mapping[str, int]) -> bytes:
    """Return the report of counters and events."""
    encode = json.JSONEncoder(separators=(",", ":")).encode
    return "\n".join(
        [encode(events), *(encode({one: numbers}) for one, numbers in to_json(counts).items())]
    ).encode()


def parse_report(data: bytes, pause: Pause = None) -> Counted:
    """Return the counters and events of a report; none if it is broken: workers run the code of the site."""
    counts: Counts = {}
    first, *lines = data.split(b"\n")
    try:
        events = {name: int(number) for name, number in json.loads(first or b"{}").items()}
        for line in with_pauses(lines, pause):
            counts |= from_json(json.loads(line))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}, {}
    return counts, events


def total(reports: Iterable[Counted], pause: Pause = None) -> Counted:
    """Return the sum of counters and events."""
    counts: Counts = {}
    events: dict[str, int] = {}
    for some, happened in reports:
        for channel, numbers in with_pauses(some.items(), pause, ADDED_AT_ONCE):
            add(counts, {channel: numbers})
        for name, number in happened.items():
            events[name] = events.get(name, 0) + number
    return counts, events


OTHER = "other"  # the label of what a server does not count by name


class ServerCounts:
    """What the server counts since its start; ``server.metrics`` shows it."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()  # messages, by channel, see `relay`
        self.requests: Counter[int] = Counter()  # HTTP requests, by status
        self.handshakes: Counter[int] = Counter()  # of WebSockets, by status: 101 has accepted
        self.closes: Counter[int] = Counter()  # of WebSockets, by code
        self.dropped_events = 0  # of groups, for WebSockets; no worker took them in time
        self.wakeups = 0  # that the reader received
        self.renewals = 0  # of the lease
