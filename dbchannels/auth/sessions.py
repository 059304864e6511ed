"""Sessions: Django's own, by the key in a client's cookie, and the one that lasts as long as a WebSocket."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.auth import HASH_SESSION_KEY
from django.contrib.sessions.backends.base import SessionBase, UpdateError
from django.contrib.sessions.backends.db import SessionStore as DatabaseStore
from django.contrib.sessions.backends.signed_cookies import SessionStore as CookieStore
from django.utils import timezone

from dbchannels import codec
from dbchannels.auth import users
from dbchannels.exceptions import InvalidMessage, LoginEnded, NoClient
from dbchannels.layers import channel_layers
from dbchannels.layers.operations import session_digest
from dbchannels.protocol import LOGGED_OUT

log = logging.getLogger("dbchannels.worker")

# Django's keys have 32 letters and digits; a session in a cookie has up to 4 KiB of printable ASCII.
_KEY = re.compile(r"\A[!-~]{8,4096}\Z")
# In a quoted value: an octal number, or the character itself.
_QUOTED = re.compile(r"\\(?:([0-3][0-7][0-7])|(.))")


def session_key(headers: Iterable[Sequence[bytes]]) -> str:
    """Return the session's key from a request's headers, (lower-case name, value); "" if there is no valid key."""
    cookies = "; ".join(value.decode("latin-1") for name, value in headers if name == b"cookie")
    key = read_cookies(cookies).get(settings.SESSION_COOKIE_NAME, "")
    return key if _KEY.match(key) else ""


def read_cookies(text: str) -> dict[str, str]:
    """Return the cookies of a header, as Django's ``parse_cookie`` does.

    That function asks Python's to unquote the values, which takes seconds for 32 kB of backslashes in Python 3.11.9,
    3.12.5 and before (CVE-2024-7592). The interface server, which serves all clients in one thread, calls this one.
    """
    found = {}
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        name, value = (name.strip(), value.strip()) if equals else ("", part.strip())
        if not (name or value):
            continue
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = _QUOTED.sub(lambda match: chr(int(match[1], 8)) if match[1] else match[2], value[1:-1])
        found[name] = value
    return found


class ChannelSession(MutableMapping[str, Any]):
    """Data that consumers keep with one WebSocket: a dict with the types of a message, deleted with the connection.

    It is saved when a consumer that has set or deleted a key returns. After changing a list or dict inside it, set
    ``message.channel_session.modified = True``, as with Django's sessions.
    """

    def __init__(self, payload: bytes = b"") -> None:
        self._content: dict[str, Any] = codec.decode(payload) if payload else {}
        self.modified = False

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._content[key] = value
        self.modified = True

    def __delitem__(self, key: str) -> None:
        del self._content[key]
        self.modified = True

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def __repr__(self) -> str:
        return f"<ChannelSession: {', '.join(self) or 'empty'}>"

    def payload(self, limit: int) -> bytes:
        """Return the encoded session; raises InvalidMessage or MessageTooLarge."""
        try:
            return codec.encode(self._content, limit)
        except InvalidMessage as error:
            raise InvalidMessage(str(error).replace("message", "channel_session", 1)) from None


def open_session(key: str) -> SessionBase:
    """Return the HTTP session with this key, loaded on first use. Raises NoClient."""
    if not installed():
        raise NoClient("The site has no sessions: put 'django.contrib.sessions' into INSTALLED_APPS.")
    return _store_class()(key or None)  # type: ignore[no-any-return]


def installed() -> bool:
    """Whether the site has sessions; sessions outside the database need no application."""
    return apps.is_installed("django.contrib.sessions") or not issubclass(_store_class(), DatabaseStore)


def session_identity(session: SessionBase) -> str:
    """Return a digest that a session has for as long as it lasts, and no other session; "" for no session.

    The key of a session that is stored in its cookie changes whenever it is saved. There the digest is that of its
    login, so that visitors without a login have none.
    """
    login_hash = session.get(HASH_SESSION_KEY) or ""  # loads the session: a key that leads to none is dropped
    return session_digest(login_hash if isinstance(session, CookieStore) else session.session_key or "")


def save_session(session: SessionBase, key: str) -> bool:
    """Save a session that was opened by the key, if it has changed; return whether its key has changed.

    No cookie can be set over an open WebSocket. So a new session, or one stored in its cookie, is not saved, and the
    log says so. Raises LoginEnded if the session was deleted meanwhile.
    """
    if not session.modified:
        return False
    if session.is_empty():  # flushed
        return bool(key)
    saved_as = session.session_key
    if saved_as is None:
        _warn("it has no session, and no cookie can be set here")
        return False
    try:
        session.save()
    except UpdateError:
        raise LoginEnded from None
    if session.session_key != saved_as:
        _warn("its session is stored in its cookie, which cannot be changed here")
    return bool(key) and saved_as != key


@cache
def _warn(why: str) -> None:
    """Log it once, or a client could fill the log."""
    log.warning(
        "A consumer's change of message.http_session is lost, as the client's cookie does not lead to it (%s): "
        "change the session in a view, or use message.channel_session.",
        why,
    )


def close_session(alias: str, digest: str, strangers: bool = True) -> None:
    """Close the WebSockets that the session with this ``session_digest`` opened, or only those of known users."""
    layer, after = channel_layers[alias], ""
    while page := layer.connections(after, session_digest=[digest]):
        ended = [one for one in page if strangers or one.login.startswith(users.LOGGED_IN)]
        layer.close_connections([one.reply_channel for one in ended], LOGGED_OUT)
        after = page[-1].reply_channel


def stored_sessions(keys: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return the stored sessions by key; sessions that have ended are missing or empty."""
    store = _store_class()
    if not issubclass(store, DatabaseStore):
        return {key: store(key).load() for key in keys}
    rows = store.get_model_class().objects.filter(session_key__in=keys, expire_date__gt=timezone.now())
    return {row.session_key: row.get_decoded() for row in rows}


def _store_class() -> Any:
    return import_module(settings.SESSION_ENGINE).SessionStore
