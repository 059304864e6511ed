"""Checks of the site's settings."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.conf import settings
from django.core import checks

from dbchannels import conf

#: Caches that processes do not share, or that store nothing.
OWN_CACHES = ("django.core.cache.backends.locmem.LocMemCache", "django.core.cache.backends.dummy.DummyCache")
CACHED_SESSIONS = ("django.contrib.sessions.backends.cache", "django.contrib.sessions.backends.cached_db")


@checks.register("dbchannels")
def check_settings(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """E001: the DBCHANNELS setting is invalid."""
    return [checks.Error(sentence, id="dbchannels.E001") for sentence in conf.problems()]


@checks.register("dbchannels")
def check_leftovers(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """W017: a setting of Channels is left over."""
    if not hasattr(settings, "CHANNEL_LAYERS") or apps.is_installed("channels"):
        return []
    return [
        checks.Warning(
            "CHANNEL_LAYERS is a setting of Channels, which dbchannels does not read.",
            hint="Remove it: the layer is in the site's database, and DBCHANNELS has all its settings.",
            id="dbchannels.W017",
        )
    ]


@checks.register("dbchannels", checks.Tags.staticfiles)
def check_order(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """W003: staticfiles is listed above dbchannels, so its ``runserver`` command is used."""
    names = [config.name for config in apps.get_app_configs()]
    static = "django.contrib.staticfiles"
    if static not in names or names.index("dbchannels") < names.index(static):
        return []
    return [
        checks.Warning(
            f"'dbchannels' is listed below {static!r} in INSTALLED_APPS, so 'manage.py runserver' is Django's, which "
            "opens no WebSocket and runs no consumer.",
            hint=f"Move 'dbchannels' above {static!r}, or silence dbchannels.W003 if you want Django's command.",
            id="dbchannels.W003",
        )
    ]


@checks.register("dbchannels")
def check_sessions(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """W011: sessions are in a cache that workers do not share."""
    backend = settings.CACHES.get(settings.SESSION_CACHE_ALIAS, {}).get("BACKEND")
    if settings.SESSION_ENGINE not in CACHED_SESSIONS or backend not in OWN_CACHES:
        return []
    return [
        checks.Warning(
            f"Sessions are in the cache {settings.SESSION_CACHE_ALIAS!r}, which workers do not share, so a user who "
            "has logged in is unknown to the next worker.",
            hint="Set SESSION_ENGINE to 'django.contrib.sessions.backends.db', or use a cache that all workers share.",
            id="dbchannels.W011",
        )
    ]


@checks.register("dbchannels")
def check_hosts(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """W013: ALLOWED_HOSTS is empty with DEBUG off. W020: it contains ``*``."""
    if settings.DEBUG or (settings.ALLOWED_HOSTS and "*" not in settings.ALLOWED_HOSTS):
        return []
    if settings.ALLOWED_HOSTS:
        return [
            checks.Warning(
                "ALLOWED_HOSTS contains '*', so pages of any host name that points to this server may open WebSockets.",
                hint="List the site's hosts in ALLOWED_HOSTS, and other sites whose pages may open WebSockets, such as "
                "'https://app.example.com', in CSRF_TRUSTED_ORIGINS.",
                id="dbchannels.W020",
            )
        ]
    return [
        checks.Warning(
            "DEBUG is False and ALLOWED_HOSTS is empty, so every request and every WebSocket is refused.",
            hint="List the site's hosts, such as ALLOWED_HOSTS = ['example.com'].",
            id="dbchannels.W013",
        )
    ]
