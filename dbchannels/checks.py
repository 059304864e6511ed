"""System checks: what is likely meant otherwise, each with what to do."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.db import connections

from dbchannels import conf, routing
from dbchannels.exceptions import DBChannelsError


@checks.register("dbchannels")
def check_settings(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """E001: the DBCHANNELS setting holds something that cannot be meant."""
    return [checks.Error(sentence, id="dbchannels.E001") for sentence in conf.problems()]


@checks.register("dbchannels")
def check_routing(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """E002: the routing cannot be made. E003: a route stands there twice."""
    if conf.problems():
        return []
    try:
        table = routing.load_routing(conf.layer_settings().routing)
    except DBChannelsError as error:
        return [checks.Error(str(error), id="dbchannels.E002")]
    return [
        checks.Error(
            f"{route.name} is routed twice for {route.channel} with the same filters.",
            hint="Take one of the two away: the second can never match.",
            id="dbchannels.E003",
        )
        for route in table.duplicates()
    ]


@checks.register("dbchannels", checks.Tags.database)
def check_sqlite(app_configs: Any, databases: Any = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """W001: on SQLite a transaction that reads first and then writes fails at once, unless it begins IMMEDIATE."""
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
    """W002: a layer is on another database than ``default``: no transaction spans what is saved and what is sent."""
    if conf.problems() or connections["default"].settings_dict["ENGINE"] == "django.db.backends.dummy":
        return []
    layers = [conf.layer_settings(alias) for alias in getattr(settings, "DBCHANNELS", {})]
    return [
        checks.Warning(
            f"The layer {one.alias!r} is on the database {one.database!r}: what is sent inside a transaction on "
            "'default' is written after its commit, and lost if the process dies between the two.",
            hint="Put the layer on the database of your models, by DBCHANNELS[...]['DATABASE'], or silence "
            "dbchannels.W002 where such a loss is bearable; atomic=True covers the layer's database alone.",
            id="dbchannels.W002",
        )
        for one in layers
        if one.database != "default" and one.backend != conf.SHORT_BACKENDS["memory"]
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
