"""WebSockets end with the login that they were opened by: their sessions and users are looked at again.

Django's signals say of a logout, and of a user who was saved or deleted. Of what sends no signal (a session's row that
is deleted, ``QuerySet.update(is_active=False)``, a session that expires) each server has its connections looked at once
a minute. Both come as messages on ``websocket.logins``, which a worker consumes: a server runs no code of the site.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.db import Error, transaction
from django.db.models.signals import post_delete, post_save

from dbchannels import conf
from dbchannels.auth import users
from dbchannels.auth.sessions import close_session, installed, stored_sessions
from dbchannels.channel import Channel
from dbchannels.layers import channel_layers
from dbchannels.layers.operations import NOBODY, UNKNOWN, Record, session_digest
from dbchannels.protocol import LOGGED_OUT

if TYPE_CHECKING:
    from dbchannels.message import Message

log = logging.getLogger("dbchannels.logins")

CHANNEL = "websocket.logins"
MOST_FAILED = 3  # of these, after which the others stay as they are: what fails may take long
PAGE = 200  # connections that one message looks at: some 20 ms, so that nobody waits long behind it


def connect_signals() -> None:
    """Hear of logouts and users; a proxy of the user model sends signals of its own."""
    user_logged_out.connect(on_logged_out, dispatch_uid="dbchannels")
    user_logged_in.connect(on_logged_in, dispatch_uid="dbchannels")
    for model in apps.get_models():
        if issubclass(model, get_user_model()):
            post_save.connect(on_user_saved, sender=model, dispatch_uid="dbchannels")
            post_delete.connect(on_user_deleted, sender=model, dispatch_uid="dbchannels")


def on_logged_out(request: Any, **kwargs: Any) -> None:
    """Close the session's WebSockets in the transaction of the logout, and after its commit any opened meanwhile.

    Django sends the signal before it deletes the session: a page that came back at once would still be let in. So it is
    done as soon as the session is gone.
    """
    session: Any = getattr(request, "session", None)
    key = getattr(session, "session_key", None) or ""
    if hasattr(session, "flush"):
        _after_flush(session, key)
    else:
        _end_session(key)


def _after_flush(session: Any, key: str) -> None:
    """Have the WebSockets of a session closed once it is flushed, in the one way or the other."""
    flush, aflush = session.flush, session.aflush

    def flushed() -> None:
        _restore(session)
        try:
            flush()
        finally:
            _end_session(key)

    async def aflushed() -> None:
        _restore(session)
        try:
            await aflush()
        finally:
            await sync_to_async(_end_session)(key)

    session.flush, session.aflush = flushed, aflushed


def _restore(session: Any) -> None:
    for name in ("flush", "aflush"):  # who logs out twice has covered them twice
        vars(session).pop(name, None)


def on_logged_in(request: Any, **kwargs: Any) -> None:
    """Close the WebSockets of somebody else whom a browser was logged in as: it has another session now.

    Those that it has opened as a stranger go on.
    """
    before = getattr(request, "COOKIES", {}).get(settings.SESSION_COOKIE_NAME, "")
    if before != getattr(getattr(request, "session", None), "session_key", None):
        _end_session(before, strangers=False)


def _end_session(key: str, strangers: bool = True) -> None:
    digest = session_digest(key)
    for alias in conf.layer_aliases() if digest else ():
        layer = channel_layers[alias]
        try:
            with transaction.atomic(using=layer.database):
                close_session(alias, digest, strangers)
        except Exception:  # nobody stays logged in because of it
            log.exception("The WebSockets of a session that has ended could not be closed now.")
        if layer.in_transaction():
            transaction.on_commit(_closing(alias, digest, strangers), using=layer.database, robust=True)


def _closing(alias: str, digest: str, strangers: bool) -> Callable[[], None]:
    # No partial: Django logs the name of one that fails, and a partial has none.
    return lambda: close_session(alias, digest, strangers)


def on_user_saved(
    instance: Any, created: bool, raw: bool, update_fields: Any, using: str, **kwargs: Any
) -> None:
    """Look at the user's WebSockets after the commit. The last login says nothing of the present one."""
    if not (created or raw or (update_fields and set(update_fields) <= {"last_login"})):
        _look_at(instance, using)


def on_user_deleted(instance: Any, using: str, **kwargs: Any) -> None:
    """Look at the user's WebSockets after the commit."""
    _look_at(instance, using)


def _look_at(user: Any, using: str) -> None:
    login = users.login_label(user)
    # Robust, and after the commit: what becomes of a user does not depend on the layer.
    transaction.on_commit(lambda: _send_for_user(login), using=using, robust=True)


def _send_for_user(login: str) -> None:
    for alias in conf.layer_aliases():
        if channel_layers[alias].connections(limit=1, login=[login, UNKNOWN]):
            Channel(CHANNEL, layer=alias).send({"user": login})


def close_stale(message: Message) -> None:
    """Consume ``{"user": login}`` or ``{"server": name}``: close the WebSockets whose login has ended.

    What is found out of the others is noted: by the server's own look, nobody is looked at twice who is not logged in.
    """
    if not (installed() and apps.is_installed("django.contrib.auth")):
        return
    layer = channel_layers[message.layer]
    page = layer.connections(message.get("after", ""), PAGE, watched=True, **_criteria(message))
    ended = []
    for record, login in zip(page, _looked_up(page, message.get("user", "")), strict=True):
        if login is None:
            ended.append(record.reply_channel)
        elif login != record.login:
            layer.keep(record.reply_channel, login=login)
    layer.close_connections(ended, LOGGED_OUT)
    if len(page) == PAGE:
        message.channel.send({**message.content, "after": page[-1].reply_channel})


def _criteria(message: Message) -> dict[str, Sequence[str]]:
    if "user" in message:
        return {"login": [message["user"], UNKNOWN]}
    return {"server": [message["server"]]}


def _looked_up(page: Sequence[Record], asked: str) -> list[str | None]:
    """As ``_current_logins``; whom the site's backend cannot look up stays as recorded, and is in nobody's way."""
    try:
        return _current_logins(page, asked)
    except Error:  # the database's: the next look finds it back
        raise
    except Exception:
        log.exception("Some users of WebSockets could not be looked up; the others are, one by one.")
    found, failed = list[str | None](), 0
    for one in page:
        try:
            found += _current_logins([one], asked) if failed < MOST_FAILED else [one.login]
        except Exception:
            failed += 1
            found.append(one.login)
    return found


def _current_logins(records: Sequence[Record], asked: str) -> list[str | None]:
    """Return what each record is to say of who is logged in; None for a login that has ended."""
    stored = stored_sessions([one.session_key for one in records])
    sessions = [stored.get(one.session_key, {}) for one in records]
    return [
        _login(record, session, users.login_label(user), asked)
        for record, session, user in zip(records, sessions, users.session_users(sessions), strict=True)
    ]


def _login(record: Record, session: Mapping[str, Any], login: str, asked: str) -> str | None:
    if record.login.startswith(users.LOGGED_IN):
        return login if login == record.login else None
    if login:
        return login
    claimed = users.claimed_login(session)
    if not asked or not claimed:
        return NOBODY  # a login that had ended before anybody asked is none
    # Another than the one who was asked for may have changed a moment ago too: the word about that is under way.
    return None if claimed == asked else record.login
