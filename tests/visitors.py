"""A client of the site as the layer sees it: its cookie, its WebSocket, what it sends, and what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.db import connections

from dbchannels.layers.base import BaseLayer
from dbchannels.layers.link import Link
from dbchannels.layers.operations import Connect, Disconnect
from dbchannels.testing.contract.case import drain


class Visitor:
    """One WebSocket of a client that has a session, or none."""

    def __init__(self, layer: BaseLayer, link: Link, key: str = "", local: str = "c1") -> None:
        self.layer, self.link, self.key = layer, link, key
        self.channel = f"reply.v1!{local}"
        self.order = 0

    def headers(self) -> list[list[bytes]]:
        """Return what its requests have."""
        cookie = [[b"cookie", f"a=b; {settings.SESSION_COOKIE_NAME}={self.key}".encode()]] if self.key else []
        return [[b"host", b"testserver"], *cookie]

    def opens(self, path: str = "/") -> Visitor:
        """Put it on record, and send the connect message."""
        self.link.apply([Connect(self.channel, "v1", path, self.key)])
        self._sends("websocket.connect", path, headers=self.headers(), query_string=b"sessionid=forged-key")
        return self

    def says(self, data: str | bytes, path: str = "/", **fields: Any) -> Visitor:
        """Send one frame."""
        self.order += 1
        self._sends(
            "websocket.receive", path, **{"text" if isinstance(data, str) else "bytes": data}, **fields
        )
        return self

    def leaves(self, path: str = "/", code: int = 1000) -> Visitor:
        """Send the disconnect."""
        self.order += 1
        self._sends("websocket.disconnect", path, code=code)
        return self

    def ends(self) -> None:
        """Take it off the record."""
        self.link.apply([Disconnect(self.channel)])

    def _sends(self, channel: str, path: str, **fields: Any) -> None:
        self.layer.send(channel, {"reply_channel": self.channel, "path": path, "order": self.order, **fields})

    def told(self) -> list[dict[str, Any]]:
        """Return what its server was told, but that frames are finished."""
        queue = self.channel.partition("!")[0] + "!"
        told = [{key: one[key] for key in one if key != "finished"} for one in drain(self.layer, queue)]
        return [one for one in told if one]


def new_session(user: Any = None, **content: Any) -> Any:
    """Return a saved session, of a user who is logged in."""
    session = import_module(settings.SESSION_ENGINE).SessionStore()
    session.update(content)
    if user is not None:
        session[SESSION_KEY] = user._meta.pk.value_to_string(user)
        session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
        session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.save()
    return session


def new_user(name: str = "anna", **fields: Any) -> Any:
    """Return a user with the password ``secret``."""
    return get_user_model().objects.create_user(name, password="secret", **fields)


#: Tables that are read only when a consumer asks who its client is.
OF_CLIENTS = ("dbchannels_connection", "django_session", "auth_user")


@contextmanager
def statements_about(*tables: str, alias: str = "default") -> Iterator[list[str]]:
    """Collect the statements on Django's connection that name one of these tables."""
    found: list[str] = []

    def look(execute: Any, sql: str, *arguments: Any) -> Any:
        found.extend(table for table in tables if table in sql)
        return execute(sql, *arguments)

    with connections[alias].execute_wrapper(look):
        yield found
