"""Who is in which group, and whose socket it is, in a test."""

from __future__ import annotations

from dbchannels.testing.transactions import Cell, Mark

FOREVER = float("inf")


class Members:
    """Groups and the users of open sockets; what is written in a transaction is undone with it."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, Cell]] = {}  # by name: each channel, and when it leaves
        self._users: dict[str, Cell] = {}  # by the reply channel of each open socket, "" for nobody known
        self._kept: set[str] = set()  # the channels of sockets whose server is alive
        self._servers: set[str] = set()  # the names of these

    def add(self, group: str, channel: str, ends: float, mark: Mark | None) -> None:
        """Put a channel in until then; one of an open socket stays."""
        cell = self._groups.setdefault(group, {}).setdefault(channel, Cell(0.0))
        cell.set(FOREVER if channel in self._kept else ends, mark)

    def discard(self, group: str, channel: str, mark: Mark | None) -> None:
        """Take a channel out."""
        self._groups.get(group, {}).get(channel, Cell()).set(0.0, mark)

    def empty(self, group: str, mark: Mark | None) -> None:
        """Take every channel out of a group."""
        for channel in self._groups.get(group, {}):
            self.discard(group, channel, mark)

    def channels(self, group: str, now: float) -> list[str]:
        """Return a group's channels, as the caller sees them."""
        return [channel for channel, ends in self._groups.get(group, {}).items() if ends.get() > now]

    def users(self, group: str, now: float) -> list[str]:
        """Return the ids of the users whose sockets are in a group."""
        users = [self._users.get(channel, Cell("")).get() for channel in self.channels(group, now)]
        return sorted({user for user in users if user})

    def register(self, server: str) -> None:
        """Note a server that is alive."""
        self._servers.add(server)

    def connect(self, channel: str, server: str) -> None:
        """Note an open socket."""
        self._users.setdefault(channel, Cell(""))
        if server in self._servers:
            self._kept.add(channel)

    def identify(self, channel: str, user_id: str, mark: Mark | None) -> None:
        """Note whose it is."""
        self._users.get(channel, Cell()).set(user_id, mark)

    def disconnect(self, channel: str) -> None:
        """Forget a socket."""
        self._users.pop(channel, None)
        self._kept.discard(channel)
        self.leave_all(channel)

    def leave_all(self, channel: str) -> None:
        """Take a channel that nobody reads out of all groups; one of an open socket stays."""
        if "!" in channel and channel not in self._kept:
            for members in self._groups.values():
                members.pop(channel, None)

    def clear(self) -> None:
        """Forget all groups."""
        self._groups.clear()
