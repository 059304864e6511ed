"""Checks of the site's settings."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.conf import settings
from django.core import checks

from dbchannels import conf

#: Caches that each process has for itself, or that keep nothing.
OWN_CACHES = (
    "django.core.cache.backends.locmem.LocMemCache",
    "django.core.cache.backends.dummy.DummyCache",
)
CACHED_SESSIONS = (
    "django.contrib.sessions.backends.cache",
    "django.contrib.sessions.backends.cached_db",
)


@checks.register("dbchannels")
def check_settings(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """E001: the DBCHANNELS setting holds something that cannot be meant."""
    return [checks.Error(sentence, id="dbchannels.E001") for sentence in conf.problems()]


@checks.register("dbchannels")
def check_leftovers(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """W017: a setting of Channels is there, and Channels is not."""
    if not hasattr(settings, "CHANNEL_LAYERS") or apps.is_installed("channels"):
        return []
    return [
        checks.Warning(
            "CHANNEL_LAYERS is a setting of Channels, which nothing here reads.",
            hint="Take it away: the layer is in the site's database, and DBCHANNELS says what else there is to say.",
            id="dbchannels.W017",
        )
    ]


@checks.register("dbchannels", checks.Tags.staticfiles)
def check_order(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """W003: the app with Django's own ``runserver`` for static files stands above dbchannels, so that one is run."""
    names = [config.name for config in apps.get_app_configs()]
    static = "django.contrib.staticfiles"
    if static not in names or names.index("dbchannels") < names.index(static):
        return []
    return [
        checks.Warning(
            f"'dbchannels' stands below {static!r} in INSTALLED_APPS, so 'manage.py runserver' is Django's, which "
            "opens no WebSocket and runs no consumer.",
            hint=f"Put 'dbchannels' above {static!r}, or silence dbchannels.W003 if you want Django's.",
            id="dbchannels.W003",
        )
    ]


@checks.register("dbchannels")
def check_sessions(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """W011: sessions are in a cache that each process has for itself, and a site has several workers."""
    backend = settings.CACHES.get(settings.SESSION_CACHE_ALIAS, {}).get("BACKEND")
    if settings.SESSION_ENGINE not in CACHED_SESSIONS or backend not in OWN_CACHES:
        return []
    return [
        checks.Warning(
            f"Sessions are in the cache {settings.SESSION_CACHE_ALIAS!r}, which each worker has for itself, so a user "
            "who has logged in is unknown to the next worker.",
            hint="Take 'django.contrib.sessions.backends.db' as SESSION_ENGINE, or a cache that all processes share.",
            id="dbchannels.W011",
        )
    ]


@checks.register("dbchannels")
def check_hosts(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """W013: with DEBUG off and no ALLOWED_HOSTS all is refused. W020: with ``*`` any name is one of the site's."""
    if settings.DEBUG or (settings.ALLOWED_HOSTS and "*" not in settings.ALLOWED_HOSTS):
        return []
    if settings.ALLOWED_HOSTS:
        return [
            checks.Warning(
                "ALLOWED_HOSTS holds '*', so a page of any name that is pointed at this server passes for the site's "
                "own and may open WebSockets.",
                hint="Name the site's hosts in ALLOWED_HOSTS; pages of other sites that may open WebSockets, such as "
                "'https://app.example.com', belong in CSRF_TRUSTED_ORIGINS.",
                id="dbchannels.W020",
            )
        ]
    return [
        checks.Warning(
            "DEBUG is False and ALLOWED_HOSTS is empty, so every request and every WebSocket is refused.",
            hint="Name the site's hosts, such as ALLOWED_HOSTS = ['example.com']; WebSockets come from their pages.",
            id="dbchannels.W013",
        )
    ]
