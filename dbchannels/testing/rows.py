"""The messages that wait in a test's layer. Times are seconds by its clock."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from dbchannels.layers.operations import Delivery, Send
from dbchannels.layers.store.rows import sent_row
from dbchannels.testing.transactions import Mark, State


@dataclass(eq=False)
class Row:
    """A message."""

    number: int
    send: Send
    delivery: Delivery
    due: float  # it is not taken before this
    end: float  # nor after this
    sent: float
    mark: Mark | None  # the transactions it was sent in

    @property
    def state(self) -> State:
        """Whether it was sent."""
        return State.KEPT if self.mark is None else self.mark.state


class Rows:
    """What was sent and not yet taken."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._rows: list[Row] = []

    def put(self, send: Send, now: float, mark: Mark | None) -> None:
        """Add a message, unless one with its unique key waits."""
        number = next(self._numbers)
        row = sent_row(send, number, now)
        delivery = row.delivery()
        if send.unique and any(row.send.unique == send.unique for row in self._of(delivery.channel)):
            return
        self._rows.append(Row(number, send, delivery, row.due, row.end, now, mark))

    def put_back(self, row: Row, due: float) -> None:
        """Add a message that was taken; nothing can undo that it was sent."""
        row.due, row.mark = due, None
        self._rows.append(row)

    def withdraw(self, channel: str, reply_channel: str) -> None:
        """Drop what waits on a channel with this reply channel."""
        sought = channel, reply_channel
        self._rows = [row for row in self._rows if (row.send.channel, row.send.reply_channel) != sought]

    def settle(self, now: float) -> list[str]:
        """Drop what was rolled back or has expired; return the channels of the expired ones."""
        expired = [row.send.channel for row in self._rows if row.end <= now]
        self._rows = [row for row in self._rows if row.state is not State.UNDONE and row.end > now]
        return expired

    def count(self, queue: str) -> int:
        """Return how many messages a queue has."""
        return len(self._of(queue))

    def held_back(self) -> int:
        """Return how many are in transactions that are still open."""
        return sum(row.state is State.OPEN for row in self._rows)

    def visible(self, queue: str = "") -> list[Row]:
        """Return those that readers see, of one queue or of all: the highest priority first, then the oldest."""
        rows = [row for row in self._of(queue) if row.state is State.KEPT]
        return sorted(rows, key=lambda row: (-row.send.priority, row.number))

    def take(self, queue: str, limit: int, now: float) -> list[Row]:
        """Take messages that are due; of several with one unique key the oldest goes, and takes the others along."""
        due = [row for row in self.visible(queue) if row.due <= now]
        first: dict[object, Row] = {}
        for row in sorted(due, key=lambda row: row.number):
            first.setdefault(row.send.unique or row, row)
        taken = [row for row in due if first[row.send.unique or row] is row][:limit]
        gone = {row.send.unique or row for row in taken}
        self._rows = [
            row for row in self._rows if row.delivery.channel != queue or (row.send.unique or row) not in gone
        ]
        return taken

    def clear(self) -> None:
        """Drop all."""
        self._rows.clear()

    def _of(self, queue: str) -> list[Row]:
        return [row for row in self._rows if queue in ("", row.delivery.channel)]
