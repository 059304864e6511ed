"""Who is in which group, and what is on record of each open socket, in a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dbchannels.layers.operations import NOBODY, UNKNOWN, Connect, Identify, Keep, Record
from dbchannels.testing.transactions import Cell, Mark

FOREVER = float("inf")


class Members:
    """Groups and the records of open sockets; what is written in a transaction is undone with it."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, Cell]] = {}  # by name: each channel, and when it leaves
        self._records: dict[str, dict[str, Cell]] = {}  # by the reply channel of each open socket: its fields
        self._servers: set[str] = set()  # those that are alive

    def add(self, group: str, channel: str, ends: float, mark: Mark | None) -> None:
        """Put a channel in until then; one of an open socket stays."""
        cell = self._groups.setdefault(group, {}).setdefault(channel, Cell(0.0))
        cell.set(FOREVER if self._is_alive(channel) else ends, mark)

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
        records = [self._records.get(channel, {}) for channel in self.channels(group, now)]
        return sorted({record["user_id"].get() for record in records if record} - {""})

    def register(self, server: str) -> None:
        """Note a server that is alive."""
        self._servers.add(server)

    def connect(self, operation: Connect) -> None:
        """Note an open socket."""
        fields = {"user_id": "", "session": b"", **operation.fields()}
        self._records.setdefault(
            operation.reply_channel, {name: Cell(value) for name, value in fields.items()}
        )

    def change(self, operation: Identify | Keep, mark: Mark | None) -> None:
        """Change what is on record of a socket; None leaves a field as it was, and so does a socket that has gone."""
        record = self._records.get(operation.reply_channel, {})
        for name, value in operation._asdict().items():
            known = name != "login" or value != NOBODY or record.get(name, Cell("")).get() == UNKNOWN
            if name in record and value is not None and known:
                record[name].set(value, mark)

    def records(self, after: str, watched: bool, fields: Mapping[str, Sequence[str]]) -> list[Record]:
        """Return what is on record of the sockets with these fields; see ``BaseLayer.connections``."""
        found = []
        for channel, cells in sorted(self._records.items()):
            row = {name: cell.get() for name, cell in cells.items()} | {"reply_channel": channel}
            wanted = channel > after and not (watched and row["login"] == NOBODY)
            if wanted and all(row[name] in values for name, values in fields.items()):
                found.append(Record(channel, row["session_key"], row["login"], row["session"]))
        return found

    def disconnect(self, channel: str) -> None:
        """Forget a socket."""
        self._records.pop(channel, None)
        self.leave_all(channel)

    def _is_alive(self, channel: str) -> bool:
        return channel in self._records and self._records[channel]["server"].get() in self._servers

    def leave_all(self, channel: str) -> None:
        """Take a channel that nobody reads out of all groups; one of an open socket stays."""
        if "!" in channel and not self._is_alive(channel):
            for members in self._groups.values():
                members.pop(channel, None)

    def clear(self) -> None:
        """Forget all groups."""
        self._groups.clear()
