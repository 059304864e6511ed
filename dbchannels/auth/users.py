"""Who is logged in to a session: as ``django.contrib.auth`` says it, without a request, and without a change.

``django.contrib.auth.get_user`` gives a session a new key, or empties it, when the user's secret has changed. Here that
is left to the next request: a browser whose WebSocket is open cannot be told of a new key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.auth import (
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
    get_user_model,
    load_backend,
)
from django.core.exceptions import ValidationError
from django.utils.crypto import constant_time_compare

from dbchannels.exceptions import NoClient
from dbchannels.names import MAX_LOGIN

LOGGED_IN = "+"  # in front of the text of a user's primary key, in the record of a connection


def check_installed() -> None:
    """Raise NoClient where the site has no users."""
    if not apps.is_installed("django.contrib.auth"):
        raise NoClient("The site has no users: put 'django.contrib.auth' into INSTALLED_APPS.")


def session_user(session: Any) -> Any:
    """Return the user who is logged in to a session, or an AnonymousUser."""
    from django.contrib.auth.models import AnonymousUser

    return session_users([session])[0] or AnonymousUser()


def session_users(sessions: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Return, for each session, who is logged in; None for nobody. Users of Django's own backend take one query."""
    sessions = list(sessions)
    wanted: dict[str, set[Any]] = {}
    for session in sessions:
        if (path := _backend(session)) is not None and (key := _primary_key(session)) is not None:
            wanted.setdefault(path, set()).add(key)
    found = {path: _load(load_backend(path), keys) for path, keys in wanted.items()}
    return [_verified(session, found.get(_backend(session) or "", {})) for session in sessions]


def _load(backend: Any, keys: set[Any]) -> dict[Any, Any]:
    # By its name: the module cannot be imported before the models are there.
    if type(backend).get_user.__qualname__ != "ModelBackend.get_user" or len(keys) == 1:
        return {key: backend.get_user(key) for key in keys}
    users = get_user_model()._default_manager.in_bulk(keys)
    return {key: user for key, user in users.items() if backend.user_can_authenticate(user)}


def _verified(session: Mapping[str, Any], users: dict[Any, Any]) -> Any:
    """Return the session's user when the session was made with the user's present secret, or a fallback of it."""
    user = users.get(_primary_key(session)) if users else None
    if user is None or not hasattr(user, "get_session_auth_hash"):
        return user
    given = session.get(HASH_SESSION_KEY) or ""
    hashes = [user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()]
    return user if given and any(constant_time_compare(given, one) for one in hashes) else None


def _backend(session: Mapping[str, Any]) -> str | None:
    path = session.get(BACKEND_SESSION_KEY) if SESSION_KEY in session else None
    return path if path in settings.AUTHENTICATION_BACKENDS else None


def _primary_key(session: Mapping[str, Any]) -> Any:
    """Return the key of a session's user; None for what is none, as after a change of AUTH_USER_MODEL."""
    try:
        return get_user_model()._meta.pk.to_python(session[SESSION_KEY])
    except ValidationError:  # it is one of many that are looked at, and ends nobody else's
        return None


# In the record of a connection.


def login_label(user: Any) -> str:
    """Return how a record names a user; "" where that would be too long, and for nobody."""
    if user is None or user.pk is None:
        return ""
    login = LOGGED_IN + user._meta.pk.value_to_string(user)
    return login if len(login) <= MAX_LOGIN else ""


def claimed_login(session: Mapping[str, Any]) -> str:
    """Return how a record would name whom a session says that it is of, verified or not."""
    return LOGGED_IN + session[SESSION_KEY] if SESSION_KEY in session else ""


def login_user(login: str) -> Any:
    """Return the user whom a record names, able to log in or not, or an AnonymousUser."""
    from django.contrib.auth.models import AnonymousUser

    users = get_user_model()._base_manager.filter(pk=login.removeprefix(LOGGED_IN))
    return users.first() or AnonymousUser()
