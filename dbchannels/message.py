"""``Message``: the argument of a consumer, with the sessions and the user of the client that sent it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.sessions.backends.base import SessionBase
from django.utils.datastructures import CaseInsensitiveMapping

from dbchannels import codec, conf, names, other_libraries
from dbchannels.auth import users
from dbchannels.auth.sessions import (
    ChannelSession,
    close_session,
    open_session,
    read_cookies,
    save_session,
    session_key,
)
from dbchannels.channel import received_channel
from dbchannels.exceptions import LoginEnded, NoClient, WebSocketCloseException
from dbchannels.layers import channel_layers
from dbchannels.layers.operations import Record, session_digest
from dbchannels.protocol import GOING_AWAY

#: The server makes all of these messages; other messages may contain text that a client has written.
WITH_HEADERS = ("http.request", "websocket.connect")


class Message(other_libraries.ForeignNames):
    """One message: its fields by key, its ``channel``, and its ``reply_channel``, or None.

    ``http_session``, ``channel_session`` and ``user`` belong to the client that sent it. ``attempt`` counts from 1 for
    messages on the site's own channels, and is 0 for protocol messages. ``worker`` is the name of the worker that runs
    the consumer.
    """

    _place = "message"

    def __init__(
        self,
        channel: str,
        content: dict[str, Any],
        *,
        attempt: int = 0,
        layer: str = "default",
        worker: str = "",
    ) -> None:
        self.channel = received_channel(channel, layer)
        self.content = content
        self.attempt = attempt
        self.worker = worker
        self._layer = layer
        reply_channel = content.get("reply_channel")
        self.reply_channel = received_channel(reply_channel, layer) if reply_channel else None

    @property
    def layer(self) -> str:
        """The alias of the message's layer."""
        return self._layer

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

    # What the client sent with its request or handshake.

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """The headers, by name in any case, as ``request.headers``; ``message["headers"]`` has the bytes.

        The values of a repeated header are joined by commas. A name with an underscore is left out, because a client
        may send ``X_User`` where a proxy sets ``X-User``. These three are there in ``http.request`` and
        ``websocket.connect``, and raise NoClient for every other message.
        """
        joined: dict[str, str] = {}
        for name, value in self._of_request("headers"):
            if b"_" in name:
                continue
            text, key = value.decode("latin-1"), name.decode("latin-1").title()
            joiner = "; " if key == "Cookie" else ","
            joined[key] = f"{joined[key]}{joiner}{text}" if key in joined else text
        return CaseInsensitiveMapping(joined)

    @cached_property
    def cookies(self) -> dict[str, str]:
        """The cookies, as ``request.COOKIES``."""
        return read_cookies(self.headers.get("Cookie", "").encode("latin-1").decode("utf-8", "replace"))

    @property
    def client_address(self) -> str:
        """The client's address, as REMOTE_ADDR: behind a trusted proxy the one that the proxy names.

        It is empty for a client on a Unix socket.
        """
        return str(self._of_request("client")[0])

    def _of_request(self, key: str) -> Any:
        if self.channel.name not in WITH_HEADERS:
            raise NoClient(
                f"A message on {self.channel} has no {key}: read them in websocket.connect, and keep what you need in "
                "message.channel_session."
            )
        return self.content[key]

    # The client that sent it; loaded on first use.

    @property
    def http_session(self) -> SessionBase:
        """The Django session of the client's cookie, for ``http.request`` and ``websocket.*``.

        Changes are saved when the consumer returns. Raises NoClient for every other message.
        """
        return self._client.http_session

    @property
    def channel_session(self) -> ChannelSession:
        """Data that consumers keep with this WebSocket until it ends. Raises NoClient for other messages."""
        return self._client.channel_session

    @property
    def user(self) -> Any:
        """The logged-in user, as ``request.user``, or an AnonymousUser.

        Once a connection had a user, ``message.user`` never becomes anonymous: it raises LoginEnded. Raises NoClient
        for a message without a client.
        """
        return self._client.user

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
        if "_client" in self.__dict__:
            self._client.save()

    @cached_property
    def _client(self) -> ClientContext:
        return ClientContext(self.channel.name, self.content, self._layer)

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


class ClientContext:
    """The sessions and the user of a message. The key of a frame's session is in the record of its connection."""

    def __init__(self, channel: str, content: dict[str, Any], layer: str) -> None:
        self._channel, self._content, self._layer = channel, content, channel_layers[layer]

    @cached_property
    def _record(self) -> Record:
        """The record of the WebSocket; an empty one when it has ended."""
        if self._channel not in names.WEBSOCKET:
            raise NoClient(
                f"A message on {self._channel} belongs to no WebSocket: put the data that its consumer needs into it."
            )
        reply_channel = self._content.get("reply_channel") or ""
        if self._channel == "websocket.disconnect" and "session" in self._content:  # its server was killed
            return Record(reply_channel, **codec.decode(self._content["session"]))
        found = self._layer.connections(reply_channel=[reply_channel])
        if not found and self._channel != "websocket.disconnect":
            # A frame left over from a closed connection: its user must not appear to be anonymous.
            raise WebSocketCloseException(GOING_AWAY)
        return found[0] if found else Record(reply_channel)

    @cached_property
    def _session_key(self) -> str:
        if self._channel in WITH_HEADERS:
            return session_key(self._content.get("headers") or ())
        return self._record.session_key

    @cached_property
    def http_session(self) -> SessionBase:
        return open_session(self._session_key)

    @cached_property
    def channel_session(self) -> ChannelSession:
        return ChannelSession(self._record.session)

    @cached_property
    def user(self) -> Any:
        user = users.session_user(self.http_session)
        if self._channel in WITH_HEADERS:
            return user
        recorded = self._record.login
        if not recorded.startswith(users.LOGGED_IN) or users.login_label(user) == recorded:
            return user
        # A logout has closed the connection: its user is the one who left.
        if self._channel == "websocket.disconnect":
            return users.login_user(recorded)
        raise LoginEnded

    def save(self) -> None:
        """Save changed sessions, and record the logged-in user, so that a logout finds the connection."""
        loaded = self.__dict__
        if "http_session" in loaded and save_session(self.http_session, self._session_key):
            for alias in conf.layer_aliases():
                close_session(alias, session_digest(self._session_key))
        kept: dict[str, Any] = {}
        if "channel_session" in loaded and self.channel_session.modified:
            kept["session"] = self.channel_session.payload(self._layer.options["max_message_size"])
        if "user" in loaded and self._channel in names.WEBSOCKET and self.user.is_authenticated:
            known = "_record" in loaded and self._record.login.startswith(users.LOGGED_IN)
            if not known and (login := users.login_label(self.user)):
                kept["login"] = login
        if kept:
            self._layer.keep(self._content["reply_channel"], **kept)
