"""What the interface server counts of its own work, pure; ``metrics`` shows it."""

from __future__ import annotations

from collections import Counter

from dbchannels import names

OTHER = "other"
#: The channels that are counted by name: those of bodies and their flow have a name for each request.
COUNTED = frozenset((*names.WEBSOCKET, "http.request", "http.disconnect"))


class ServerCounts:
    """Counters since the start of the server."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()  # messages, by channel, see COUNTED
        self.requests: Counter[int] = Counter()  # HTTP requests, by status
        self.handshakes: Counter[int] = Counter()  # of WebSockets, by status: 101 has accepted
        self.closes: Counter[int] = Counter()  # of WebSockets, by code
        self.dropped_events = 0  # of groups, for WebSockets; no worker took them in time
        self.wakeups = 0  # that the reader received
        self.renewals = 0  # of the lease
