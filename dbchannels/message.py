"""``Message``: what a consumer is given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async

from dbchannels import foreign
from dbchannels.auth.client import ClientContext
from dbchannels.channel import Channel

if TYPE_CHECKING:
    from django.contrib.sessions.backends.base import SessionBase

    from dbchannels.auth.sessions import ChannelSession


class Message:
    """One message: its fields by key, its ``channel``, and the ``reply_channel`` to answer on, if it has one.

    ``http_session``, ``channel_session`` and ``user`` say which client it comes from. ``attempt`` counts from 1 for
    messages on the site's own channels, and is 0 for protocol messages.
    """

    def __init__(
        self, channel: str, content: dict[str, Any], *, attempt: int = 0, layer: str = "default"
    ) -> None:
        self.channel = Channel(channel, layer=layer)
        self.content = content
        self.attempt = attempt
        self._layer = layer
        self._client: ClientContext | None = None
        reply_channel = content.get("reply_channel")
        self.reply_channel = Channel(reply_channel, layer=layer) if reply_channel else None

    @property
    def layer(self) -> str:
        """The alias of its layer."""
        return self._layer

    if not TYPE_CHECKING:  # or no type checker would find a name that is not there

        def __getattr__(self, name: str) -> Any:
            return foreign.missing_attribute("message", self, name)

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

    # The client that it comes from, as far as anybody asks.

    @property
    def http_session(self) -> SessionBase:
        """The session of Django's that the client's cookie names; of ``http.request`` and ``websocket.*``.

        What a consumer changes is saved when it ends well. Raises NoClient for every other message.
        """
        return self._context().http_session

    @property
    def channel_session(self) -> ChannelSession:
        """What consumers keep with this WebSocket until it ends. Raises NoClient for what is none."""
        return self._context().channel_session

    @property
    def user(self) -> Any:
        """Who is logged in, as ``request.user``. Raises NoClient where no client is, LoginEnded after a logout."""
        return self._context().user

    async def ahttp_session(self) -> SessionBase:
        """Return ``http_session`` to an async consumer."""
        return await sync_to_async(lambda: self.http_session)()

    async def achannel_session(self) -> ChannelSession:
        """Return ``channel_session`` to an async consumer."""
        return await sync_to_async(lambda: self.channel_session)()

    async def auser(self) -> Any:
        """Return ``user`` to an async consumer."""
        return await sync_to_async(lambda: self.user)()

    def save_sessions(self) -> None:
        """Save what was changed; the worker does it when the consumer has ended well."""
        if self._client is not None:
            self._client.save()

    def _context(self) -> ClientContext:
        if self._client is None:
            self._client = ClientContext(self.channel.name, self.content, self._layer)
        return self._client

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
