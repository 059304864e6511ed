"""The messages that a test's site has sent, and the failure when one is missing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, overload

from dbchannels import codec
from dbchannels.channel import Channel, Group
from dbchannels.exceptions import InvalidMessage, safe_repr
from dbchannels.layers.operations import Send, SendGroup
from dbchannels.protocol import FINISHED
from dbchannels.testing.transactions import Mark, State

SHOWN = 10  # messages in a failure


@dataclass(frozen=True)
class SentMessage:
    """One message that was sent to a channel, or to a group."""

    channel: str  # "" when it was sent to a group
    content: dict[str, Any]
    group: str = ""  # "" when it was sent to a channel
    delay: timedelta = timedelta(0)
    deliver_at: datetime | None = None
    priority: int = 0
    unique: str = ""
    layer: str = "default"

    @classmethod
    def of(cls, operation: Send | SendGroup, layer: str) -> SentMessage | None:
        """Return the message that the site's code sent; None for a reply of dbchannels' own."""
        content = codec.decode(operation.payload)
        if isinstance(operation, SendGroup):
            return cls("", content, operation.group, layer=layer)
        if "!" in operation.channel and FINISHED in content:
            del content[FINISHED]
            if not content or content.keys() == {"accept", "status"}:
                return None
        return cls(
            operation.channel,
            content,
            delay=timedelta(seconds=operation.delay),
            deliver_at=operation.due_at,
            priority=operation.priority,
            unique=operation.unique,
            layer=layer,
        )

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def get(self, key: str, default: Any = None) -> Any:
        """Return the field ``key``, or ``default`` if the message has none."""
        return self.content.get(key, default)

    def __str__(self) -> str:
        target = f"group {self.group}" if self.group else self.channel
        options = {
            "delay": self.delay or "",
            "deliver_at": self.deliver_at or "",
            "priority": self.priority or "",
            "unique": self.unique,
        }
        said = [f"{key} {value}" for key, value in options.items() if value != ""]
        return ", ".join([f"{target} {safe_repr(self.content, 200)}", *said])


@dataclass(frozen=True)
class Record:
    """A message, and the transactions it was sent in."""

    message: SentMessage
    mark: Mark | None

    @property
    def state(self) -> State:
        """Whether it was sent."""
        return State.KEPT if self.mark is None else self.mark.state


class SentMessages(Sequence[SentMessage]):
    """Sent messages in order: a list that grows until ``end``, without what was rolled back."""

    def __init__(self, records: list[Record]) -> None:
        self._records = records
        self._start, self._stop = len(records), None

    def end(self) -> None:
        """Stop growing."""
        self._stop = len(self._records)  # type: ignore[assignment]

    def _sent(self) -> list[SentMessage]:
        records = self._records[self._start : self._stop]
        return [record.message for record in records if record.state is State.KEPT]

    @overload
    def __getitem__(self, index: int) -> SentMessage: ...
    @overload
    def __getitem__(self, index: slice) -> list[SentMessage]: ...
    def __getitem__(self, index: Any) -> Any:
        return self._sent()[index]

    def __iter__(self) -> Iterator[SentMessage]:
        return iter(self._sent())

    def __len__(self) -> int:
        return len(self._sent())

    def __repr__(self) -> str:
        return repr(self._sent())


class Wanted:
    """What ``assertSent`` looks for: a channel or a group, and fields with their values."""

    def __init__(self, target: Channel | Group | str, fields: Mapping[str, Any]) -> None:
        self.is_group = isinstance(target, Group)
        self.name = target if isinstance(target, str) else target.name
        # As a message carries them, a tuple as a list; other values, such as mock.ANY, are left as they are.
        self.fields = dict(fields)
        for key, value in fields.items():
            with suppress(InvalidMessage):
                self.fields[key] = codec.decode(codec.encode({"value": value}))["value"]

    def find(self, messages: Iterable[SentMessage]) -> SentMessage | None:
        """Return the first matching message."""
        return next((one for one in messages if self._is_for_it(one) and not self._misfits(one)), None)

    def __str__(self) -> str:
        target = f"the group {self.name}" if self.is_group else self.name
        fields = ", ".join(f"{key}={safe_repr(value)}" for key, value in self.fields.items())
        return f"{target} with {fields}" if fields else target

    def missing(self, records: Sequence[Record]) -> str:
        """Return the failure: what was sent instead, the nearest first."""
        sent = [record.message for record in records if record.state is State.KEPT]
        held = sum(record.state is State.OPEN for record in records)
        lines = [f"No message was sent to {self}."]
        if held:
            lines.append(f"{_messages(held)} will be sent when an open atomic() block ends.")
        if not sent:
            return "\n".join([*lines, "Nothing was sent."])
        lines.append(f"{_messages(len(sent))} went elsewhere or said something else, the nearest first:")
        nearest = sorted(sent, key=self._nearness, reverse=True)
        for message in nearest[:SHOWN]:
            wrong = [
                f"{key} is {safe_repr(message.content[key])}"
                if key in message.content
                else f"{key} is missing"
                for key in (self._misfits(message) if self._is_for_it(message) else ())
            ]
            lines.append(f"  {message}" + (f"  ({'; '.join(wrong)})" if wrong else ""))
        if len(sent) > SHOWN:
            lines.append(f"  and {len(sent) - SHOWN} more")
        return "\n".join(lines)

    def _is_for_it(self, message: SentMessage) -> bool:
        return bool(message.group) == self.is_group and self.name in (message.channel, message.group)

    def _misfits(self, message: SentMessage) -> list[str]:
        return [
            key
            for key, value in self.fields.items()
            if key not in message.content or not value == message.content[key]  # noqa: SIM201 (mock.ANY is first)
        ]

    def _nearness(self, message: SentMessage) -> tuple[bool, int, float]:
        name = message.group or message.channel
        alike = difflib.SequenceMatcher(None, name, self.name).ratio()
        return self._is_for_it(message), -len(self._misfits(message)), alike


def _messages(number: int) -> str:
    return "1 message" if number == 1 else f"{number} messages"
