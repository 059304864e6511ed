"""Checks of the site's settings, and of the layers' databases."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.db import DatabaseError, connections

from dbchannels import conf
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.layers import layer_class

#: Caches that processes do not share, or that store nothing.
OWN_CACHES = ("django.core.cache.backends.locmem.LocMemCache", "django.core.cache.backends.dummy.DummyCache")
POOLER_PORT = "6432"  # pgbouncer's default
CACHED_SESSIONS = ("django.contrib.sessions.backends.cache", "django.contrib.sessions.backends.cached_db")


@checks.register("dbchannels")
def check_settings(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """E001: The DBCHANNELS setting has an unknown key, a value of the wrong type or range, or a layer that cannot be
    used. Write what the message says.
    """
    sentences = conf.problems()
    for alias in [] if sentences else conf.layer_aliases():
        try:
            layer_class(conf.layer_settings(alias))
        except InvalidConfiguration as error:
            sentences.append(str(error))
    return [checks.Error(sentence, id="dbchannels.E001") for sentence in sentences]


@checks.register("dbchannels")
def check_leftovers(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """W017: ``CHANNEL_LAYERS``, a setting of Channels, is left over. Remove it: dbchannels does not read it."""
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
    """W003: ``dbchannels`` is listed below ``django.contrib.staticfiles`` in INSTALLED_APPS, so ``runserver`` is
    Django's, which opens no WebSocket. Move it up.
    """
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
    """W011: Sessions are in a cache that workers do not share, so a login is unknown to the next worker. Store
    sessions in the database, or use a shared cache.
    """
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
    """W013: ``DEBUG`` is False and ``ALLOWED_HOSTS`` is empty, so every request and every WebSocket is refused. List
    the site's hosts.

    W020: ``DEBUG`` is False and ``ALLOWED_HOSTS`` contains ``"*"``, so pages of any host name that points to this
    server may open WebSockets. List the site's hosts.
    """
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


# The layers' databases.


def _layers() -> Iterator[conf.LayerSettings]:
    """Yield the settings of each layer on a database; nothing if the setting is invalid (E001)."""
    if conf.problems():
        return
    for alias in conf.layer_aliases():
        layer = conf.layer_settings(alias)
        if layer.backend != conf.SHORT_BACKENDS["memory"]:
            yield layer


@checks.register("dbchannels", checks.Tags.database)
def check_sqlite(app_configs: Any, databases: Any = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """W001: The layer is on SQLite, and transactions do not begin IMMEDIATE, so some sends fail with "database is
    locked". Set ``"transaction_mode": "IMMEDIATE"`` in the database's ``OPTIONS``.
    """
    if conf.problems():
        return []
    alias = conf.layer_settings().database
    connection = connections[alias]
    if connection.vendor != "sqlite" or alias not in (databases or []):
        return []
    if connection.settings_dict["OPTIONS"].get("transaction_mode") == "IMMEDIATE":
        return []
    return [
        checks.Warning(
            f"The layer is on the SQLite database {alias!r}, whose transactions do not begin IMMEDIATE.",
            hint="Set 'transaction_mode': 'IMMEDIATE' in its OPTIONS, or some sends fail with 'database is locked'.",
            id="dbchannels.W001",
        )
    ]


@checks.register("dbchannels")
def check_other_database(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """W002: A layer is on another database than ``default``, so a send may be lost between the two commits. Put it on
    the database of your models.
    """
    if connections["default"].settings_dict["ENGINE"] == "django.db.backends.dummy":
        return []
    return [
        checks.Warning(
            f"The layer {one.alias!r} is on the database {one.database!r}: messages sent in a transaction on 'default' "
            "are written after its commit, and lost if the process dies between the two.",
            hint="Put the layer on the database of your models, by DBCHANNELS[...]['DATABASE'], or silence "
            "dbchannels.W002 if such a loss is acceptable; atomic=True covers the layer's database alone.",
            id="dbchannels.W002",
        )
        for one in _layers()
        if one.database != "default"
    ]


@checks.register("dbchannels", checks.Tags.database)
def check_tables(app_configs: Any, databases: Any = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """W010: The database of a layer has no tables for it yet. Run ``manage.py migrate``."""
    if "migrate" in sys.argv[1:2]:  # it runs these checks before it creates the tables
        return []
    wanted = {one.database for one in _layers()} & set(databases or [])
    return [
        checks.Warning(
            f"The database {alias!r} has no table {missing[0]!r}, so no message can be sent.",
            hint=f"Run 'manage.py migrate --database {alias}'.",
            id="dbchannels.W010",
        )
        for alias in sorted(wanted)
        if (missing := _missing_tables(alias))
    ]


def _missing_tables(alias: str) -> list[str]:
    try:
        present = set(connections[alias].introspection.table_names())
    except DatabaseError:  # others report that they cannot connect
        return []
    wanted = [model._meta.db_table for model in apps.get_app_config("dbchannels").get_models()]
    return [table for table in wanted if table not in present]


@checks.register("dbchannels")
def check_pooler(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """W012: A layer seems to connect through a transaction pooler, where no NOTIFY arrives. Bypass the pooler with
    ``OPTIONS["direct"]``.
    """
    return [
        checks.Warning(
            f"The database {one.database!r} seems to be behind a transaction pooler, where no NOTIFY arrives: messages "
            "wait for the next poll.",
            hint=f"Let the layer bypass it by DBCHANNELS[{one.alias!r}]['OPTIONS']['direct'] = {{'PORT': 5432}}, or "
            "silence dbchannels.W012.",
            id="dbchannels.W012",
        )
        for one in _layers()
        if connections[one.database].vendor == "postgresql"
        and (
            connections[one.database].settings_dict.get("DISABLE_SERVER_SIDE_CURSORS")
            or str(connections[one.database].settings_dict.get("PORT")) == POOLER_PORT
        )
        and one.options["wakeups"]
        and not one.options["direct"]
    ]
