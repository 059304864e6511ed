"""What the interface server counts of its own work, pure; ``metrics`` shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from dbchannels import names

MOST = 100  # values of each label; clients and consumers choose close codes, and views choose statuses
OTHER = "other"

_SENT = frozenset((*names.WEBSOCKET, "http.request", "http.disconnect"))


class ServerCounts:
    """Counters since the start of the server."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()  # messages, by channel
        self.requests: Counter[int | str] = Counter()  # HTTP requests, by status
        self.handshakes: Counter[int | str] = Counter()  # of WebSockets, by status: 101 has accepted
        self.closes: Counter[int | str] = Counter()  # of WebSockets, by code
        self.wakeups = 0  # that the reader received
        self.renewals = 0  # of the lease

    def count_sent(self, channels: Iterable[str]) -> None:
        """Count messages to the layer; those that carry bodies and their flow have no name of their own."""
        for channel in channels:
            self.sent[channel if channel in _SENT else OTHER] += 1


def count(counter: Counter[int | str], value: int) -> None:
    """Count a value, by its name as long as there are not too many of them."""
    counter[value if value in counter or len(counter) < MOST else OTHER] += 1
