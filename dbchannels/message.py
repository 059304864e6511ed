"""``Message``: what a consumer is given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dbchannels.channel import Channel


class Message:
    """One message: its fields by key, its ``channel``, and the ``reply_channel`` to answer on, if it has one.

    ``attempt`` counts from 1 for messages on the site's own channels, and is 0 for protocol messages.
    """

    def __init__(
        self, channel: str, content: dict[str, Any], *, attempt: int = 0, layer: str = "default"
    ) -> None:
        self.channel = Channel(channel, layer=layer)
        self.content = content
        self.attempt = attempt
        reply_channel = content.get("reply_channel")
        self.reply_channel = Channel(reply_channel, layer=layer) if reply_channel else None

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def get(self, key: str, default: Any = None) -> Any:
        """Return the field ``key``, or ``default`` when the message has none."""
        return self.content.get(key, default)

    def keys(self) -> Iterator[str]:
        """Return the names of the fields."""
        return iter(self.content)

    def __contains__(self, key: object) -> bool:
        return key in self.content

    def __repr__(self) -> str:
        return f"<Message on {self.channel}: {', '.join(self.content) or 'empty'}>"

    def as_keywords(self) -> dict[str, Any]:
        """Return the fields as the 2015 post's consumers take them.

        They are the message's own keys, overridden by what the server says: ``channel`` and ``send_channel``
        (names), ``path``, and the data as ``content`` with ``binary``.
        """
        data = self.get("text") if self.get("bytes") is None else self["bytes"]
        return {
            **self.content,
            "channel": self.channel.name,
            "send_channel": self.reply_channel.name if self.reply_channel else None,
            "path": self.get("path"),
            "content": self.get("content", data),
            "binary": self.get("binary", self.get("bytes") is not None),
        }
