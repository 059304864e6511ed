"""``/metrics`` on the probes' port, in Prometheus' text format.

Counters and histograms are of this server and its workers, since its start. The gauges ``dbchannels_site_*`` are of the
whole site: a worker counts them for its samples, and the housekeeper reads them. So nothing here waits for the database
or for a worker, and several servers of one site show the same gauges.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, Protocol

import gevent

from dbchannels.measures import (
    BOUNDS,
    DEAD,
    DONE,
    FAILED,
    OTHER,
    RAN,
    RUNS,
    STARTED,
    WAITED,
    WAITS,
    Counted,
    Counts,
    ServerCounts,
    parse_report,
    total,
    with_pauses,
)
from dbchannels.samples import GAUGES, read_sample

STALE = 900.0  # seconds after which nobody seems to count the site any more, and its gauges are left out
MOST = 100  # values of a label of the server's own counters
PIECE = 50_000  # characters of the text that are made in about half a millisecond
Values = Iterable[tuple[str, float]]  # (value of the label, value)


class Source(Protocol):
    """What the metrics are made of. The hub calls every method, and none blocks."""

    @property
    def counts(self) -> ServerCounts:
        """Return the server's own counters."""

    def counted(self) -> tuple[Counted, Sequence[bytes]]:
        """Return what workers of this process tree have counted, and the reports of others, see ``parse_report``."""

    def state(self) -> dict[str, float]:
        """Return the numbers of the moment: ``websockets``, ``connections``, ``connections_limit``, ``workers``."""

    def budgets(self) -> dict[str, tuple[int, int]]:
        """Return the bytes that are used, and the limit, by the budget's name."""

    def outages(self) -> int:
        """Return how often this server could not use the layer."""

    def site(self) -> tuple[str, Mapping[str, int]]:
        """Return the newest sample of the site, "" for none, and the number of workers that take each channel."""


COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
#: (name, kind, label or "", help). The table in docs/metrics.rst has the same.
METRICS: tuple[tuple[str, str, str, str], ...] = (
    ("messages_sent", COUNTER, "channel", "Messages that this server sent to the layer"),
    (
        "messages_started",
        COUNTER,
        "channel",
        "Messages whose consumers were started by this server's workers",
    ),
    ("messages_done", COUNTER, "channel", "Messages whose consumers returned"),
    ("messages_failed", COUNTER, "channel", "Messages whose consumers raised, for the last time too"),
    ("messages_dead", COUNTER, "channel", "Messages that became dead letters"),
    (
        "message_wait_seconds",
        HISTOGRAM,
        "channel",
        "How long messages waited until their consumers started",
    ),
    ("message_run_seconds", HISTOGRAM, "channel", "How long consumers ran"),
    ("http_requests", COUNTER, "status", "HTTP requests that this server answered; 499: the client left"),
    ("websocket_handshakes", COUNTER, "status", "WebSocket handshakes; 101: accepted"),
    ("websocket_closes", COUNTER, "code", "WebSockets that ended"),
    ("dropped_events", COUNTER, "", "Events of groups that WebSockets did not get, as they waited too long"),
    ("websockets", GAUGE, "", "WebSockets that are open at this server"),
    ("connections", GAUGE, "", "Connections that are open at this server, WebSockets among them"),
    ("connections_limit", GAUGE, "", "Connections that may be open at this server"),
    ("workers_ready", GAUGE, "", "Workers of this server that take messages"),
    ("budget_bytes", GAUGE, "budget", "Bytes that clients make this server hold"),
    ("budget_limit_bytes", GAUGE, "budget", "Bytes that clients may make this server hold"),
    ("layer_outages", COUNTER, "", "How often this server or one of its workers could not use the layer"),
    ("wakeups", COUNTER, "", "Wakeups that this server received"),
    ("lease_renewals", COUNTER, "", "Lease renewals of this server and its workers"),
    ("site_ready", GAUGE, "channel", "Messages of the whole site that are ready"),
    ("site_delayed", GAUGE, "channel", "Messages of the whole site that are not due yet"),
    ("site_running", GAUGE, "channel", "Durable messages of the whole site that a worker has claimed"),
    (
        "site_oldest_seconds",
        GAUGE,
        "channel",
        "For how long the oldest ready message of the whole site has waited",
    ),
    ("site_dead_letters", GAUGE, "channel", "Dead letters of the whole site"),
    ("site_takers", GAUGE, "channel", "Workers of the whole site that take messages of the channel"),
    ("site_websockets", GAUGE, "", "WebSockets of the whole site"),
    ("site_servers", GAUGE, "", "Interface servers of the whole site"),
    ("site_workers", GAUGE, "", "Workers of the whole site"),
    (
        "site_counted_timestamp_seconds",
        GAUGE,
        "",
        "When the whole site was last counted, in seconds since 1970",
    ),
)


#: Of which numbers a counter of messages is the sum: a message dies when its consumer has raised for the last time.
COUNTED = {"started": (STARTED,), "done": (DONE,), "failed": (FAILED, DEAD), "dead": (DEAD,)}
#: Which numbers are the buckets of a histogram, and which one is the sum.
HISTOGRAMS = {"message_wait_seconds": (WAITS, WAITED), "message_run_seconds": (RUNS, RAN)}
_BOUNDS = (*map(str, map(float, BOUNDS)), "+Inf")


class Metrics:
    """Makes the text, at most once a second, and so seldom that it takes 5 % of a processor at most.

    With a thousand channels that is a tenth of a second, in which the hub must not stand still: so every millisecond
    other greenlets have their turns. A native thread would wait for the interpreter after each of its pauses, half a
    minute in all beside a hub that never rests.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._text: Sequence[bytes] = ()
        self.good_until = 0.0  # time.monotonic()
        self._spent = 0.0  # seconds of the processor for the text that is being made
        self._since = 0.0  # time.thread_time() at which the current slice began

    def text(self) -> Sequence[bytes]:
        """Return the text, in pieces. Call it in a greenlet, and in one at a time."""
        if time.monotonic() >= self.good_until:
            self._spent, self._since = 0.0, time.thread_time()
            self._text = list(with_pauses(self._pieces(), self._pause, 1))
            self.good_until = time.monotonic() + max(1.0, 20 * self._spent)
        return self._text

    def _pause(self) -> None:
        self._spent += time.thread_time() - self._since
        gevent.sleep(
            0.0001
        )  # after a sleep of 0 this greenlet would go on before the hub has looked at its sockets
        self._since = time.thread_time()

    def _pieces(self) -> Iterator[bytes]:
        some, size = list[str](), 0
        for lines in self._lines():
            some.append(lines)
            size += len(lines)
            if size >= PIECE:
                yield "".join(some).encode(errors="replace")
                some, size = [], 0
        yield "".join(some).encode(errors="replace")

    def _lines(self) -> Iterator[str]:
        """Yield the text, a few lines at once."""
        ended, reports = self._source.counted()
        counts, events = total(
            chain([ended], (parse_report(one, self._pause) for one in reports)), self._pause
        )
        values: dict[str, Values] = {**self._of_server(events), **self._of_site()}
        for name, positions in COUNTED.items():
            values[f"messages_{name}"] = _of_channels(counts, *positions)
        for short, kind, label, text in METRICS:
            name = f"dbchannels_{short}" + "_total" * (kind == COUNTER)
            yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
            if kind == HISTOGRAM:
                yield from _histogram(name, counts, *HISTOGRAMS[short])
            for value, number in values.get(short, ()):
                yield f"{name}{{{_pair(label, value)}}} {number}\n" if label else f"{name} {number}\n"

    def _of_server(self, events: Mapping[str, int]) -> dict[str, Values]:
        own, state, budgets = self._source.counts, self._source.state(), self._source.budgets()
        return {
            "messages_sent": _by(own.sent),
            "http_requests": _by(own.requests),
            "websocket_handshakes": _by(own.handshakes),
            "websocket_closes": _by(own.closes),
            "dropped_events": [("", own.dropped_events)],
            "budget_bytes": [(name, used) for name, (used, _) in budgets.items()],
            "budget_limit_bytes": [(name, limit) for name, (_, limit) in budgets.items()],
            "layer_outages": [("", self._source.outages() + events.get("outages", 0))],
            "wakeups": [("", own.wakeups)],
            "lease_renewals": [("", own.renewals + events.get("renewals", 0))],
            **{name: [("", number)] for name, number in state.items()},
        }

    def _of_site(self) -> dict[str, Values]:
        sample, takers = self._source.site()
        found: dict[str, Values] = {"site_takers": [(channel, number) for channel, number in takers.items()]}
        read = read_sample("", sample, pause=self._pause)
        if read is None or time.time() - read["t"] > STALE:
            return found
        names = {"oldest": "oldest_seconds", "dead": "dead_letters"}
        for position, gauge in enumerate(GAUGES):
            found[f"site_{names.get(gauge, gauge)}"] = _of_channels(read.get("channels", {}), position)
        for gauge, name in (("sockets", "websockets"), ("servers", "servers"), ("workers", "workers")):
            if gauge in read:
                found[f"site_{name}"] = [("", read[gauge])]
        return {**found, "site_counted_timestamp_seconds": [("", read["t"])]}


def _of_channels(counts: Counts, *positions: int) -> Values:
    return ((channel, sum([numbers[one] for one in positions])) for channel, numbers in counts.items())


def _by(counter: Mapping[Any, float]) -> Values:
    """Return the values of a label: only the first ones by name, because clients, consumers and views choose them."""
    found = [(str(value), number) for value, number in dict(counter).items()]
    if rest := found[MOST:]:
        found[MOST:] = [(OTHER, sum(number for _, number in rest))]
    return found


def _histogram(name: str, counts: Counts, part: slice, total: int) -> Iterator[str]:
    for channel, numbers in counts.items():
        pair, buckets = _pair("channel", channel), list(accumulate(numbers[part]))
        lines = [
            f'{name}_bucket{{{pair},le="{bound}"}} {below}\n'
            for bound, below in zip(_BOUNDS, buckets, strict=True)
        ]
        yield (
            "".join(lines) + f"{name}_count{{{pair}}} {buckets[-1]}\n{name}_sum{{{pair}}} {numbers[total]}\n"
        )


def _pair(label: str, value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{label}="{escaped}"'
