"""What workers measure: counters that add and subtract, and what they tell of the last hour.

Each worker counts for each channel what became of its messages, how long they had waited, and how long their consumers
ran. Every ten seconds it writes the difference since the last time as a `Sample`, and one of the workers adds what
waits in the whole site. `summarize` makes series of these samples, for charts. The parent of the process reads the
counters from a file, see `read_report`.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from dbchannels.names import is_protocol

#: Upper bounds of the buckets of all histograms, in seconds; one more bucket holds what took longer. All processes
#: have the same bounds, so that their histograms add up.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0)
BUCKETS = len(BOUNDS) + 1

# The numbers of a channel, by position: messages whose consumers were started, and then returned, raised, or raised for
# the last time; the sums of seconds; and the messages in each bucket.
TAKEN, DONE, FAILED, DEAD, WAITED, RAN = range(6)
WAITS, RUNS = slice(6, 6 + BUCKETS), slice(6 + BUCKETS, 6 + 2 * BUCKETS)
SIZE = RUNS.stop

MOST = 1_000  # channels that are counted by name
OTHERS = "(others)"  # the rest
PERIOD = 10  # seconds between two samples
KEPT = 3_600  # seconds for which samples are kept

Counts = dict[str, list[float]]  # by channel, see TAKEN to RUNS


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
    """Return counters that `to_json` has written, with ``size`` numbers each. Raises ValueError for anything else."""
    if not isinstance(counts, dict) or not all(
        isinstance(numbers, list) and len(numbers) <= size and all(map(_is_number, numbers))
        for numbers in counts.values()
    ):
        raise ValueError("These are no counters of a worker.")
    return {channel: [*numbers, *[0] * (size - len(numbers))] for channel, numbers in counts.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e15  # not NaN, nor one that sums make infinite


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


# The samples, as series.

# Of a channel, and of all channels together:
#: Messages that wait, that are not due, and that a worker has claimed; for how many seconds the message that was sent
#: first could have been taken, 0 if none waits; and dead letters.
GAUGES = ("ready", "delayed", "running", "oldest", "dead")
# ``in``, ``out`` and ``failures``: messages a second that came, that ended (done, failed or dead), and that failed or
# died. What came is worked out from what ended and from how the queue grew.
#: Seconds, estimated from histograms.
QUANTILES = {
    "wait_p50": (WAITS, 0.5),
    "wait_p95": (WAITS, 0.95),
    "wait_p99": (WAITS, 0.99),
    "run_p50": (RUNS, 0.5),
    "run_p95": (RUNS, 0.95),
}
PROCESSES = ("sockets", "servers", "workers")  # of the site alone


def summarize(samples: Iterable[Mapping[str, Any]], only: Collection[str] | None = None) -> dict[str, Any]:
    """Return what samples tell, as ``layer.samples()`` returns them, for JSON::

        {
            "moments": [1764400000, ...],        # Unix time: the ends of the ten seconds, in order
            "site": {"ready": [3, ...], "sockets": [120, ...], ...},
            "channels": {"thumbnails": {"ready": [3, ...], ...}, ...},
        }

    Each series, see GAUGES to PROCESSES, has a value for each moment, None where it is not known. ``only`` names the
    channels that are wanted beside the site; without it there are all.
    """
    sites: dict[int, Mapping[str, Any]] = {}
    counts: dict[int, Counts] = {}  # a second
    for sample in samples:
        moment = sample["t"]
        counts.setdefault(moment, {})
        if not sample["source"]:
            sites[moment] = sample
            continue
        span = max(PERIOD, sample["seconds"])
        rates = {name: [one / span for one in numbers] for name, numbers in sample["counts"].items()}
        add(counts[moment], rates)
    moments = sorted(counts)
    gauges = {moment: site["channels"] for moment, site in sites.items() if "channels" in site}
    channels = {name for found in (*counts.values(), *gauges.values()) for name in found}
    series = {}
    for name in sorted(channels if only is None else channels.intersection(only)):
        numbers = [counts[moment].get(name) or [0.0] * SIZE for moment in moments]
        queue = [gauges[one].get(name, [0] * 5) if one in gauges else None for one in moments]
        series[name] = _series(moments, numbers, queue, [_left(name, one) for one in numbers])
    every_count = [_sum(counts[moment].values(), SIZE) for moment in moments]
    every_queue = [_total(gauges[moment]) if moment in gauges else None for moment in moments]
    left = [sum(_left(*one) for one in counts[moment].items()) for moment in moments]
    site: dict[str, Any] = _series(moments, every_count, every_queue, left)
    for key in PROCESSES:
        site[key] = [sites.get(moment, {}).get(key) for moment in moments]
    return {"moments": moments, "site": site, "channels": series}


def _left(channel: str, numbers: Sequence[float]) -> float:
    """Return how many messages left the channel. A durable message that has failed waits again."""
    return numbers[DONE] + numbers[DEAD] + numbers[FAILED] * is_protocol(channel)


def _series(
    moments: Sequence[int],
    counts: Sequence[Sequence[float]],
    queue: Sequence[Sequence[float] | None],
    left: Sequence[float],
) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for position, key in enumerate(GAUGES):
        found[key] = [None if one is None else one[position] for one in queue]
    found["out"] = [one[DONE] + one[FAILED] + one[DEAD] for one in counts]
    found["failures"] = [one[FAILED] + one[DEAD] for one in counts]
    sizes = [None if one is None else sum(one[:3]) for one in queue]
    found["in"] = [None] * len(moments)
    known: tuple[int, float] | None = None  # the last moment whose queue was counted, and how long it was
    for at, (moment, size) in enumerate(zip(moments, sizes, strict=True)):
        if size is None:
            continue
        if known is not None:
            found["in"][at] = max(0.0, left[at] + (size - known[1]) / (moment - known[0]))
        known = moment, size
    for key, (part, q) in QUANTILES.items():
        found[key] = [quantile(one[part], q) for one in counts]
    return found


def _sum(vectors: Iterable[Sequence[float]], size: int) -> list[float]:
    return [sum(column) for column in zip([0] * size, *vectors, strict=True)]


def _total(channels: Mapping[str, Sequence[float]]) -> list[float]:
    """Return the gauges of all channels together: the sums, and the greatest age."""
    total = _sum(channels.values(), len(GAUGES))
    total[GAUGES.index("oldest")] = max((one[GAUGES.index("oldest")] for one in channels.values()), default=0)
    return total


def sample(moment: int, counts: Counts, seconds: float) -> str:
    """Return a worker's sample: what happened within so many seconds before a moment."""
    return json.dumps(
        {"t": moment, "seconds": round(seconds, 1), "counts": to_json(counts)}, separators=(",", ":")
    )


def site_sample(moment: int, took: float, gauges: Mapping[str, Any] | None) -> str:
    """Return the site's sample, see ``Link.gauges``; ``took`` is how many seconds it took to count."""
    return json.dumps({"t": moment, "took": round(took, 4), **(gauges or {})}, separators=(",", ":"))


def read_sample(source: str, data: str) -> dict[str, Any] | None:
    """Return a stored sample as `summarize` takes it; None for one that is not complete, or cannot be read."""
    try:
        read: dict[str, Any] = {**json.loads(data), "source": source}
        if source:
            read["counts"] = from_json(read["counts"])
        elif "channels" in read:
            read["channels"] = from_json(read["channels"], len(GAUGES))
        numbers = [read["seconds"]] if source else [read.get(key, 0) for key in ("took", *PROCESSES)]
        return read if isinstance(read["t"], int) and all(map(_is_number, [read["t"], *numbers])) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


# From a worker's process to its parent, without the database.

HEADER = struct.Struct("<II")  # the length of what follows, and its checksum
LONGEST_REPORT = 16_777_216  # bytes


def new_report() -> int:
    """Return the descriptor of a file without a name, in which a child leaves its counters."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("dbchannels-report")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def read_report(descriptor: int) -> tuple[Counts, dict[str, int]] | None:
    """Return the counters and events of a child; None if there are none, or if it is writing them just now."""
    length, checksum = HEADER.unpack(os.pread(descriptor, HEADER.size, 0) or bytes(HEADER.size))
    data = os.pread(descriptor, min(length, LONGEST_REPORT), HEADER.size)
    if not length or len(data) != length or zlib.crc32(data) != checksum:
        return None
    try:
        read = json.loads(data)
        return from_json(read["counts"]), {name: int(number) for name, number in read["events"].items()}
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ):  # a worker runs the code of the site, which may write there
        return None


def total(reports: Iterable[tuple[Counts, Mapping[str, int]]]) -> tuple[Counts, dict[str, int]]:
    """Return the sum of counters and events."""
    counts: Counts = {}
    events: dict[str, int] = {}
    for some, happened in reports:
        add(counts, some)
        for name, number in happened.items():
            events[name] = events.get(name, 0) + number
    return counts, events
