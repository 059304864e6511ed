"""Close WebSockets when the login that opened them ends.

Django's signals report a logout, and a user who was saved or deleted. Other endings send no signal: a deleted session
row, ``QuerySet.update(is_active=False)``, a session that expires. So each server has the logins of its connections
checked once a minute. Both checks are messages on ``websocket.logins``, which a worker consumes, because a server runs
no code of the site.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
MOST_FAILED = 3  # lookups in one page, after which the other logins stay as they are: a failure may take long
PAGE = 200  # connections checked by one message: some 20 ms, so that other messages do not wait long


def connect_signals() -> None:
    """Connect the receivers; a proxy of the user model sends signals of its own."""
    user_logged_out.connect(on_logged_out, dispatch_uid="dbchannels")
    user_logged_in.connect(on_logged_in, dispatch_uid="dbchannels")
    for model in apps.get_models():
        if issubclass(model, get_user_model()):
            post_save.connect(on_user_saved, sender=model, dispatch_uid="dbchannels")
            post_delete.connect(on_user_deleted, sender=model, dispatch_uid="dbchannels")


def on_logged_out(request: Any, **kwargs: Any) -> None:
    """Close the session's WebSockets in the transaction of the logout, and after its commit those opened meanwhile.

    Django sends the signal before it deletes the session. A page that reconnected then would still be let in, so the
    WebSockets are closed by the session's ``flush``, as soon as the session is gone.
    """
    session: Any = getattr(request, "session", None)
    key = getattr(session, "session_key", None) or ""
    if not hasattr(session, "flush"):
        _end_session(key)
        return
    flush, aflush = session.flush, session.aflush

    def restore() -> None:
        for name in ("flush", "aflush"):  # a second logout has wrapped them twice
            vars(session).pop(name, None)

    def flushed() -> None:
        restore()
        try:
            flush()
        finally:
            _end_session(key)

    async def aflushed() -> None:
        restore()
        try:
            await aflush()
        finally:
            await sync_to_async(_end_session)(key)

    session.flush, session.aflush = flushed, aflushed


def on_logged_in(request: Any, **kwargs: Any) -> None:
    """Close the WebSockets of the user that this browser was logged in as before; anonymous ones stay open."""
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
        except Exception:  # the logout goes on
            log.exception("The WebSockets of a session that has ended could not be closed now.")
        if layer.in_transaction():
            # Not a partial: Django logs the name of a callback that fails, and a partial has none.
            transaction.on_commit(
                lambda alias=alias: close_session(alias, digest, strangers),  # type: ignore[misc]
                using=layer.database,
                robust=True,
            )


def on_user_saved(
    instance: Any, created: bool, raw: bool, update_fields: Any, using: str, **kwargs: Any
) -> None:
    """Check the user's WebSockets after the commit, unless only the date of the last login has changed."""
    if not (created or raw or (update_fields and set(update_fields) <= {"last_login"})):
        on_user_deleted(instance, using)


def on_user_deleted(instance: Any, using: str, **kwargs: Any) -> None:
    """Check the user's WebSockets after the commit; an error of the layer does not affect the change of the user."""
    login = users.login_label(instance)

    def send_check() -> None:
        for alias in conf.layer_aliases():
            if channel_layers[alias].connections(limit=1, login=[login, UNKNOWN]):
                Channel(CHANNEL, layer=alias).send({"user": login})

    transaction.on_commit(send_check, using=using, robust=True)


def close_stale(message: Message) -> None:
    """Consume ``{"user": login}`` or ``{"server": name}``: close the WebSockets whose login has ended.

    The logins found for the other connections are recorded, so that a later check skips connections without a user.
    """
    if not (installed() and apps.is_installed("django.contrib.auth")):
        return
    layer = channel_layers[message.layer]
    asked = message.get("user", "")
    criteria = {"login": [asked, UNKNOWN]} if "user" in message else {"server": [message["server"]]}
    page = layer.connections(message.get("after", ""), PAGE, watched=True, **criteria)
    ended = []
    for record, login in zip(page, _known_logins(page, asked), strict=True):
        if login is None:
            ended.append(record.reply_channel)
        elif login != record.login:
            layer.keep(record.reply_channel, login=login)
    layer.close_connections(ended, LOGGED_OUT)
    if len(page) == PAGE:
        message.channel.send({**message.content, "after": page[-1].reply_channel})


def _known_logins(page: Sequence[Record], asked: str) -> list[str | None]:
    """As ``current_logins``, but logins that the site's backend cannot look up stay as recorded."""
    try:
        return current_logins(page, asked)
    except Error:  # of the database: the next check will find the login
        raise
    except Exception:
        log.exception("Some users of WebSockets could not be looked up; the others are, one by one.")
    found, failed = list[str | None](), 0
    for one in page:
        try:
            found += current_logins([one], asked) if failed < MOST_FAILED else [one.login]
        except Exception:
            failed += 1
            found.append(one.login)
    return found


def current_logins(records: Sequence[Record], asked: str) -> list[str | None]:
    """Return the login to record for each connection; None for a login that has ended.

    ``asked`` is the login whose user has changed, or "" for a server's own check.
    """
    stored = stored_sessions([one.session_key for one in records])
    sessions = [stored.get(one.session_key, {}) for one in records]
    found: list[str | None] = []
    for record, session, user in zip(records, sessions, users.session_users(sessions), strict=True):
        login, claimed = users.login_label(user), users.claimed_login(session)
        if record.login.startswith(users.LOGGED_IN):
            found.append(login if login == record.login else None)
        elif login:
            found.append(login)
        elif not asked or not claimed:
            found.append(NOBODY)  # the login had ended before the first check
        else:
            # Another user may have changed a moment ago too; the message about that one is on its way.
            found.append(None if claimed == asked else record.login)
    return found
