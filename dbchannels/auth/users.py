"""The user who is logged in to a session, found as by ``django.contrib.auth``, but without changing the session.

When the user's secret has changed, ``django.contrib.auth.get_user`` gives the session a new key, or empties it. Here
that is left to the next request, because a browser cannot be sent a new key over an open WebSocket.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

LOGGED_IN = "+"  # the record of a connection has it before the text of the user's primary key


def session_user(session: Any) -> Any:
    """Return the user who is logged in to a session, or an AnonymousUser. Raises NoClient if the site has no users."""
    if not apps.is_installed("django.contrib.auth"):
        raise NoClient("The site has no users: put 'django.contrib.auth' into INSTALLED_APPS.")
    from django.contrib.auth.models import AnonymousUser

    return session_users([session])[0] or AnonymousUser()


def session_users(sessions: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the logged-in user of each session, or None. All users of Django's own backend take one query."""
    claims = [_claim(session) for session in sessions]
    wanted: dict[str, set[Any]] = {}
    for path, key in claims:
        if key is not None:
            wanted.setdefault(path, set()).add(key)
    found: dict[str, dict[Any, Any]] = {}
    for path, keys in wanted.items():
        backend: Any = load_backend(path)
        # By its name, as its module cannot be imported before the models are loaded.
        if type(backend).get_user.__qualname__ == "ModelBackend.get_user" and len(keys) > 1:
            stored = get_user_model()._default_manager.in_bulk(keys)
            found[path] = {key: one for key, one in stored.items() if backend.user_can_authenticate(one)}
        else:
            found[path] = {key: backend.get_user(key) for key in keys}
    users = []
    for session, (path, key) in zip(sessions, claims, strict=True):
        user: Any = found.get(path, {}).get(key)
        # The session must have been made with the user's present secret.
        if hasattr(user, "get_session_auth_hash"):
            given = session.get(HASH_SESSION_KEY) or ""
            hashes = [user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()]
            if not (given and any(constant_time_compare(given, one) for one in hashes)):
                user = None
        users.append(user)
    return users


def _claim(session: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the backend and the key of the user that a session names; ("", None) if it names none."""
    path = session.get(BACKEND_SESSION_KEY, "")
    if SESSION_KEY not in session or path not in settings.AUTHENTICATION_BACKENDS:
        return "", None
    try:
        return path, get_user_model()._meta.pk.to_python(session[SESSION_KEY])
    except ValidationError:
        # As after a change of AUTH_USER_MODEL; the other sessions are looked up all the same.
        return "", None


# In the record of a connection.


def login_label(user: Any) -> str:
    """Return the login in a record for a user; "" for no user, and for a key that is too long."""
    if user is None or user.pk is None:
        return ""
    login = LOGGED_IN + user._meta.pk.value_to_string(user)
    return login if len(login) <= MAX_LOGIN else ""


def claimed_login(session: Mapping[str, Any]) -> str:
    """Return the login in a record for the user that a session names, verified or not."""
    return LOGGED_IN + session[SESSION_KEY] if SESSION_KEY in session else ""


def login_user(login: str) -> Any:
    """Return the user of a login in a record, active or not, or an AnonymousUser."""
    from django.contrib.auth.models import AnonymousUser

    users = get_user_model()._base_manager.filter(pk=login.removeprefix(LOGGED_IN))
    return users.first() or AnonymousUser()
