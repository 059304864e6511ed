"""``Message``: the argument of a consumer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async

from dbchannels import foreign
from dbchannels.auth.client import ClientContext
from dbchannels.channel import received_channel

if TYPE_CHECKING:
    from django.contrib.sessions.backends.base import SessionBase

    from dbchannels.auth.sessions import ChannelSession


class Message:
    """One message: its fields by key, its ``channel``, and its ``reply_channel``, or None.

    ``http_session``, ``channel_session`` and ``user`` belong to the client that sent it. ``attempt`` counts from 1 for
    messages on the site's own channels, and is 0 for protocol messages.
    """

    def __init__(
        self, channel: str, content: dict[str, Any], *, attempt: int = 0, layer: str = "default"
    ) -> None:
        self.channel = received_channel(channel, layer)
        self.content = content
        self.attempt = attempt
        self._layer = layer
        self._client: ClientContext | None = None
        reply_channel = content.get("reply_channel")
        self.reply_channel = received_channel(reply_channel, layer) if reply_channel else None

    @property
    def layer(self) -> str:
        """The alias of the message's layer."""
        return self._layer

    if not TYPE_CHECKING:  # or no type checker would find a name that is not there

        def __getattr__(self, name: str) -> Any:
            return foreign.missing_attribute("message", self, name)

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def get(self, key: str, default: Any = None) -> Any:
        """Return the field ``key``, or ``default`` if the message does not have it."""
        return self.content.get(key, default)

    def keys(self) -> Iterator[str]:
        """Return the names of the fields."""
        return iter(self.content)

    def __contains__(self, key: object) -> bool:
        return key in self.content

    def __repr__(self) -> str:
        return f"<Message on {self.channel}: {', '.join(self.content) or 'empty'}>"

    # The client that sent it; loaded on first use.

    @property
    def http_session(self) -> SessionBase:
        """The Django session of the client's cookie, for ``http.request`` and ``websocket.*``.

        Changes are saved when the consumer returns. Raises NoClient for every other message.
        """
        return self._context().http_session

    @property
    def channel_session(self) -> ChannelSession:
        """Data that consumers keep with this WebSocket until it ends. Raises NoClient for other messages."""
        return self._context().channel_session

    @property
    def user(self) -> Any:
        """The logged-in user, as ``request.user``, or an AnonymousUser.

        Once a connection had a user, ``message.user`` never becomes anonymous: it raises LoginEnded. Raises NoClient
        for a message without a client.
        """
        return self._context().user

    async def ahttp_session(self) -> SessionBase:
        """Return ``http_session`` in an async consumer."""
        return await sync_to_async(lambda: self.http_session)()

    async def achannel_session(self) -> ChannelSession:
        """Return ``channel_session`` in an async consumer."""
        return await sync_to_async(lambda: self.channel_session)()

    async def auser(self) -> Any:
        """Return ``user`` in an async consumer."""
        return await sync_to_async(lambda: self.user)()

    def save_sessions(self) -> None:
        """Save changed sessions; the worker does this when the consumer has returned."""
        if self._client is not None:
            self._client.save()

    def _context(self) -> ClientContext:
        if self._client is None:
            self._client = ClientContext(self.channel.name, self.content, self._layer)
        return self._client

    def as_keywords(self) -> dict[str, Any]:
        """Return the fields as keywords for consumers in the form of the 2015 post.

        These are the message's own keys, overridden by the server's: ``channel`` and ``send_channel`` (names),
        ``path``, and the data as ``content`` with ``binary``.
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
