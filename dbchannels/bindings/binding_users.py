"""Who is in a group of a binding that asks for permission: each user has a part of the group by itself."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.utils.crypto import salted_hmac

from dbchannels.channel import Group


def present_users(group: str, layer: str) -> list[tuple[str, Any]]:
    """Return the active users whose sockets are in a group, as they are now, by key, and an anonymous one."""
    from django.contrib.auth.models import AnonymousUser

    users = get_user_model()._default_manager
    keys = []
    for key in Group(group, layer=layer).users():
        try:
            keys.append(users.model._meta.pk.to_python(key))
        except ValidationError:  # identified by something else than a user
            continue
    found = users.filter(pk__in=keys) if keys else []
    return [("", AnonymousUser()), *((str(user.pk), user) for user in found if user.is_active)]


def user_key(user: Any) -> str:
    """Return the text of a user's key, "" for an anonymous one."""
    key = getattr(user, "pk", None)
    return "" if key is None else str(key)


def users_group(group: str, key: str) -> str:
    """Return the name of one user's part of a group.

    Nobody can make it of what a client says: a site names groups by captures, and "tea.user-7" would be one.
    """
    digest = salted_hmac("dbchannels.binding_users", f"{group} {key}", algorithm="sha256")
    return f"binding.{digest.hexdigest()}"
