"""The client that sent a message: its sessions and its user, each loaded on first use."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from django.contrib.sessions.backends.base import SessionBase

from dbchannels import codec, conf, names
from dbchannels.auth import users
from dbchannels.auth.sessions import ChannelSession, close_session, open_session, save_session, session_key
from dbchannels.exceptions import LoginEnded, NoClient, WebSocketCloseException
from dbchannels.layers import channel_layers
from dbchannels.layers.operations import Record, session_digest
from dbchannels.protocol import GOING_AWAY

#: The server makes all of these messages; other messages may contain text that a client has written.
WITH_HEADERS = ("http.request", "websocket.connect")


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
        users.check_installed()
        user = users.session_user(self.http_session)
        if self._channel in WITH_HEADERS:
            return user
        recorded = self._record.login
        if not recorded.startswith(users.LOGGED_IN) or users.login_label(user) == recorded:
            return user
        if (
            self._channel == "websocket.disconnect"
        ):  # a logout has closed the connection: its user is the one who left
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
