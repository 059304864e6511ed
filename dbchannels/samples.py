"""Samples: what each worker measured in ten seconds, what waited in the whole site at their end, and series of both.

A sample is a text. Its first line is a JSON object with the numbers of the moment, and of all channels together. Each
further line has the numbers of one channel: ``"thumbnails":[3,0,1]``. So whoever wants the site, or one channel, reads
nothing of the others, of which there may be a thousand.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from dbchannels.measures import (
    DEAD,
    DONE,
    FAILED,
    RUNS,
    SIZE,
    WAITS,
    Counts,
    Pause,
    from_json,
    is_number,
    quantile,
    to_json,
    with_pauses,
)
from dbchannels.names import is_protocol

PERIOD = 10  # seconds between two samples
KEPT = 3_600  # seconds for which samples are kept
LINE = 1_000  # characters, of which no line has more

# Of a channel, and of all channels together:
#: Messages that are ready, that are delayed, and that a worker has claimed; for how many seconds the oldest ready one
#: has waited, 0 if there is none; and dead letters.
GAUGES = ("ready", "delayed", "running", "oldest", "dead")
OLDEST = GAUGES.index("oldest")
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

Sample = Mapping[str, Any]  # as `read_sample` returns it


def sample(moment: int, counts: Counts, seconds: float) -> str:
    """Return a worker's sample: what happened within so many seconds before a moment."""
    left = sum(_left(name, numbers) for name, numbers in counts.items())
    head = {"t": moment, "seconds": round(seconds, 1), "left": left}
    return _text(head, counts, _sum(counts.values(), SIZE))


def site_sample(moment: int, took: float, gauges: Mapping[str, Any] | None) -> str:
    """Return the site's sample, see ``Link.gauges``; ``took`` is how many seconds it took to count."""
    head = {"t": moment, "took": round(took, 4), **(gauges or {})}
    channels = head.pop("channels", None)
    if channels is None:
        return _text(head, {}, None)
    total = _sum(channels.values(), len(GAUGES))
    total[OLDEST] = max((one[OLDEST] for one in channels.values()), default=0)
    return _text(head, channels, total)


def _text(head: Mapping[str, Any], channels: Counts, total: list[float] | None) -> str:
    whole = {**head, "all": to_json({"": total})[""]} if total is not None else head
    lines = [json.dumps(whole, separators=(",", ":"))]
    for name, numbers in to_json(channels).items():
        lines.append(line_start(name) + json.dumps(numbers, separators=(",", ":")))
    return "\n".join(lines)


def line_start(channel: str) -> str:
    """Return how the line of a channel begins."""
    return f"{json.dumps(channel)}:"


def read_sample(
    source: str, text: str, channels: Collection[str] | None = None, pause: Pause = None
) -> dict[str, Any] | None:
    """Return a sample, or None for one that is not complete or cannot be read.

    ``source`` is the worker's name, or "" for the site. The result has the numbers of the first line, of which ``all``
    are those of all channels together, ``source``, and the numbers of ``channels`` (None: of each) by name.
    """
    size = SIZE if source else len(GAUGES)
    try:
        head, *lines = text.splitlines()
        read: dict[str, Any] = {**json.loads(head), "source": source}
        if channels is not None:
            starts = {line_start(name) for name in channels}
            lines = [line for line in lines if line[: line.find('":') + 2] in starts]
        found: Counts = {}
        for line in with_pauses(lines, pause):
            found |= from_json(json.loads(f"{{{line}}}"), size)
        read["channels"] = found
        if source or "all" in read:
            read["all"] = from_json({"": read["all"]}, size)[""]
        numbers = (
            [read["seconds"], read["left"]] if source else [read.get(key, 0) for key in ("took", *PROCESSES)]
        )
        return read if isinstance(read["t"], int) and all(map(is_number, [read["t"], *numbers])) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _left(channel: str, numbers: Sequence[float]) -> float:
    """Return how many messages left the channel. A durable message that has failed waits again."""
    return numbers[DONE] + numbers[DEAD] + numbers[FAILED] * is_protocol(channel)


def _sum(vectors: Iterable[Sequence[float]], size: int) -> list[float]:
    return [sum(column) for column in zip([0] * size, *vectors, strict=True)]


class _Moments:
    """What samples tell of a channel, or of all channels together ("") at each moment."""

    def __init__(self, samples: Iterable[Sample], channel: str) -> None:
        self.sites: dict[int, Sample] = {}
        self.counts: dict[int, list[float]] = {}  # a second, by moment
        self.left: dict[int, float] = {}  # messages that left the queue, a second
        self.queues: dict[int, list[float]] = {}  # see GAUGES
        for one in samples:
            moment = one["t"]
            counts = self.counts.setdefault(moment, [0.0] * SIZE)
            numbers = one["channels"].get(channel) if channel else one.get("all")
            if not one["source"]:
                self.sites[moment] = one
                if "all" in one:
                    self.queues[moment] = numbers or [0] * len(GAUGES)
            elif numbers is not None:
                span = max(PERIOD, one["seconds"])
                left = _left(channel, numbers) if channel else one["left"]
                self.left[moment] = self.left.get(moment, 0.0) + left / span
                self.counts[moment] = [a + b / span for a, b in zip(counts, numbers, strict=True)]
        self.moments = sorted(self.counts)

    def sizes(self) -> list[tuple[int, float]]:
        """Return the moments whose queue was counted, and how long it was."""
        return [(moment, sum(self.queues[moment][:3])) for moment in self.moments if moment in self.queues]


def summarize(samples: Iterable[Sample], channel: str = "") -> dict[str, Any]:
    """Return what samples tell of a channel or, for "", of all channels together, for JSON::

        {
            "moments": [1764400000, ...],  # Unix time: the ends of the ten seconds, in order
            "values": {"ready": [3, ...], "out": [2.5, ...], ...},
        }

    ``layer.samples(channels=[channel])`` returns the samples. Each series, see GAUGES to PROCESSES, has a value for
    each moment, None where it is not known.
    """
    read = _Moments(samples, channel)
    counts = [read.counts[moment] for moment in read.moments]
    queues = [read.queues.get(moment) for moment in read.moments]
    found: dict[str, list[Any]] = {
        key: [None if one is None else one[position] for one in queues] for position, key in enumerate(GAUGES)
    }
    came = dict.fromkeys(read.moments)
    sizes = read.sizes()
    for (before, old), (moment, size) in pairwise(sizes):
        came[moment] = max(0.0, read.left.get(moment, 0.0) + (size - old) / (moment - before))
    found["in"] = list(came.values())
    found["out"] = [one[DONE] + one[FAILED] + one[DEAD] for one in counts]
    found["failures"] = [one[FAILED] + one[DEAD] for one in counts]
    for key, (part, q) in QUANTILES.items():
        found[key] = [quantile(one[part], q) for one in counts]
    for key in () if channel else PROCESSES:
        found[key] = [read.sites.get(moment, {}).get(key) for moment in read.moments]
    return {"moments": read.moments, "values": found}


def average(samples: Iterable[Sample], channel: str) -> dict[str, float | None]:
    """Return ``in``, ``out`` and QUANTILES of a channel over the whole time of the samples, None where not known."""
    read = _Moments(samples, channel)
    number, sizes = len(read.moments), read.sizes()
    total = _sum(read.counts.values(), SIZE)
    came = None
    if len(sizes) > 1:
        (since, before), (until, size) = sizes[0], sizes[-1]
        left = sum(one for moment, one in read.left.items() if since < moment <= until) * PERIOD
        came = max(0.0, (left + size - before) / (until - since))
    return {
        "in": came,
        "out": (total[DONE] + total[FAILED] + total[DEAD]) / number if number else None,
        **{key: quantile(total[part], q) for key, (part, q) in QUANTILES.items()},
    }
