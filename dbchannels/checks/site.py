"""Checks of the site's settings, of the layers' databases, and of the sources of the site's apps."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core import checks
from django.core.management import get_commands
from django.db import DatabaseError, connections

from dbchannels import conf, other_libraries
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.layers import layer_class
from dbchannels.layers.addresses import addresses
from dbchannels.layers.database import mysql
from dbchannels.tasks import channels_backends

_CONSUMER = re.compile(
    r"^(?:@(?:dbchannels\.)?(?:consumer|route_class)\(|"
    r"class \w+\((?:dbchannels\.)?(?:(?:Json)?WebsocketConsumer|Demultiplexer)\))",
    re.MULTILINE,
)
_ROUTES = re.compile(
    rf"^(?:routes|{'|'.join(other_libraries.NAMES['routing'])})\s*(?::[^=]*)?=", re.MULTILINE
)
_BINDING = re.compile(r"^class \w+\((?:dbchannels\.)?Binding\)", re.MULTILINE)
_NOT_ITS_OWN = {"site-packages", "dist-packages"}
_ELSEWHERE = {"migrations", "tests", "management", "node_modules"}
_LARGEST = 1_000_000  # bytes; larger files have no consumers

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
def check_tasks(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """E006: ``TASKS`` names the backend of dbchannels, but there is no task framework, or an option or a queue that
    cannot be used. Install django-tasks, or write what the message says.
    """
    if not settings.is_overridden("TASKS"):
        return []
    from dbchannels.tasks import framework

    sentences: list[str] = []
    if not framework.AVAILABLE:
        backends = [entry.get("BACKEND") for entry in settings.TASKS.values()]
        if any("dbchannels" in str(backend) for backend in backends):
            advice = "update to Django 6.0, or run pip install 'dbchannels[tasks]'"
            sentences = [f"TASKS needs a task framework: {advice}."]
    elif not conf.problems():
        sentences = [problem for backend in channels_backends() for problem in backend.problems()]
    return [checks.Error(sentence, id="dbchannels.E006") for sentence in sentences]


@checks.register("dbchannels")
def check_channel_layers(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """E007: ``CHANNEL_LAYERS`` names dbchannels' channel layer with a ``CONFIG`` that it does not take, or another name
    in dbchannels. Write what the message says.
    """
    sentences: list[str] = []
    layers = getattr(settings, "CHANNEL_LAYERS", None)
    for alias, entry in layers.items() if isinstance(layers, dict) else ():
        where = f"CHANNEL_LAYERS[{alias!r}]"
        backend = entry.get("BACKEND") if isinstance(entry, dict) else entry
        if backend == conf.CHANNEL_LAYER_BACKEND and isinstance(entry, dict):
            sentences += conf.channel_layer_problems(f"{where}['CONFIG']", entry.get("CONFIG", {}))
        elif str(backend).startswith("dbchannels"):
            advice = f"write {{'BACKEND': {conf.CHANNEL_LAYER_BACKEND!r}}}"
            sentences.append(
                f"{where} names {backend!r}, which is not a channel layer of Channels: {advice}."
            )
    return [checks.Error(sentence, id="dbchannels.E007") for sentence in sentences]


@checks.register("dbchannels")
def check_leftovers(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """W017: ``CHANNEL_LAYERS``, ``ASGI_APPLICATION`` or a ``CELERY_...`` setting is left over from Channels or Celery,
    which the site does not import, or the name of ``DBCHANNELS`` is misspelled. Write what replaces it, and remove the
    setting.
    """
    channels, found = _runs_channels() or "channels" in sys.modules, []
    for name in sorted(dir(settings)):
        if name.startswith("CELERY") and name.isupper() and "celery" not in sys.modules:  # it is no app
            library = "Celery"
        elif name in ("CHANNEL_LAYERS", "ASGI_APPLICATION") and not channels:
            library = "Channels"
        elif name != "DBCHANNELS" and difflib.get_close_matches(name, ["DBCHANNELS"], cutoff=0.9):
            found.append(
                checks.Warning(
                    f"Nothing reads the setting {name}.", hint="Write DBCHANNELS.", id="dbchannels.W017"
                )
            )
            continue
        else:
            continue
        told = other_libraries.advice("setting", name) or "remove it"
        found.append(
            checks.Warning(
                f"{name} is a setting of {library}, which dbchannels does not read.",
                hint=f"{told[0].upper()}{told[1:]}.",
                id="dbchannels.W017",
            )
        )
    return found


def _runs_channels() -> bool:
    """Whether this is a site of Channels, though the process that checks need not import the library."""
    # Daphne reads ASGI_APPLICATION, and is the only app that Channels' tutorial lists.
    installed = any(map(apps.is_installed, ("channels", "daphne")))
    return installed or conf.CHANNEL_LAYER_BACKEND in str(getattr(settings, "CHANNEL_LAYERS", ""))


@checks.register("dbchannels", checks.Tags.staticfiles)
def check_order(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """W003: ``dbchannels`` is listed below ``django.contrib.staticfiles`` in INSTALLED_APPS, so ``runserver`` is
    Django's, which opens no WebSocket. Move it up.
    """
    static = "django.contrib.staticfiles"
    if get_commands().get("runserver") != static:  # daphne has a runserver, too
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


@checks.register("dbchannels", checks.Tags.database)
def check_mysql(app_configs: Any, databases: Any = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """W023: A layer is on MySQL or MariaDB, and a setting of the server or the session does not fit: the isolation
    level, ``CONN_MAX_AGE``, ``max_allowed_packet``, the storage engine or the version. Write what the message says.
    """
    found = []
    for one in _layers():
        connection: Any = connections[one.database]
        if connection.vendor == "mysql" and one.database in (databases or []):
            with suppress(DatabaseError):  # others report that they cannot connect
                found += [
                    checks.Warning(
                        f"The layer {one.alias!r} is on the database {one.database!r}. {sentence}",
                        id="dbchannels.W023",
                    )
                    for sentence in mysql.problems(connection, one.options["max_message_size"])
                ]
    return found


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


@checks.register("dbchannels")
def check_addresses(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """W022: ``HOST`` of a database names several addresses, and its ``OPTIONS`` do not say how long a connection waits
    for each, or that it wants the primary. Write the options that the message names.
    """
    wanted = {"target_session_attrs": "read-write", "connect_timeout": 2, "tcp_user_timeout": 10_000}
    return [
        checks.Warning(
            f"HOST of the database {alias!r} names several addresses, and OPTIONS has no {' and no '.join(missing)}: a "
            "connection may wait for minutes for a host that is gone, or end at a standby.",
            hint="Add " + ", ".join(f"{name!r}: {wanted[name]!r}" for name in missing) + " to its OPTIONS.",
            id="dbchannels.W022",
        )
        for alias in sorted(connections.settings)
        if connections[alias].vendor == "postgresql" and addresses(connections[alias].settings_dict)
        if (missing := [name for name in wanted if name not in connections[alias].settings_dict["OPTIONS"]])
    ]


# Consumers and bindings in the sources of apps, that nothing imports.


def unimported_modules() -> Iterator[checks.CheckMessage]:
    """W009: A module of an app has a consumer or a binding, and nothing imports it. Import it in the app's
    ``consumers.py``, or a binding's in ``AppConfig.ready()``.
    """
    for config in filter(is_of_the_site, apps.get_app_configs()):
        root = Path(config.path)
        for path in sorted([*root.glob("*.py"), *root.glob("*/*.py")]):
            module = ".".join([config.name, *path.relative_to(root).with_suffix("").parts])
            its_own = apps.get_containing_app_config(module) is config  # not that of a nested app
            if not its_own or module in sys.modules or _is_elsewhere(path.relative_to(root)):
                continue
            text = _source(path)
            if _CONSUMER.search(text) and "from channels." not in text:
                what, hint = (
                    "consumers, and nothing imports it, so no worker runs them",
                    f"Import it in {config.name}.consumers, or list its consumers in the routing module.",
                )
            elif _BINDING.search(text):
                what, hint = (
                    "bindings, and nothing imports it, so they send nothing",
                    f"Import it in the ready() of {config.name}'s AppConfig, as with signals.",
                )
            else:
                continue
            yield checks.Warning(f"{module} has {what}.", hint=hint, id="dbchannels.W009")


def unnamed_modules() -> Iterator[checks.CheckMessage]:
    """W018: A ``routing.py``, or a ``consumers.py`` beside the settings, has routes, and nothing imports it. Name it
    in ``DBCHANNELS["default"]["ROUTING"]``, or import it in your routing module.
    """
    if _runs_channels():  # the modules may belong to Channels
        return
    places = {config.name: Path(config.path) for config in apps.get_app_configs() if is_of_the_site(config)}
    wanted = [(f"{name}.routing", root / "routing.py") for name, root in places.items()]
    project = (settings.SETTINGS_MODULE or "").rpartition(".")[0]  # "" after settings.configure()
    if project not in places and (file := getattr(sys.modules.get(project), "__file__", None)):
        wanted += [
            (f"{project}.{name}", Path(file).parent / f"{name}.py") for name in ("routing", "consumers")
        ]
    for module, path in wanted:
        text = _source(path)
        if module not in sys.modules and (_ROUTES.search(text) or _CONSUMER.search(text)):
            yield checks.Warning(
                f"{module} has routes or consumers, and nothing imports it, so no message reaches them.",
                hint=f"Set DBCHANNELS = {{'default': {{'ROUTING': {module!r}}}}}, or import it in your routing module.",
                id="dbchannels.W018",
            )


def _source(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() and path.stat().st_size < _LARGEST else ""


def is_of_the_site(config: AppConfig, module: str = "") -> bool:
    """Whether an app, and a module of it, are the site's own: not an installed package, dbchannels, or tests."""
    inside = Path(*module.removeprefix(config.name).strip(".").split("."), "")
    own = config.name != "dbchannels" and _NOT_ITS_OWN.isdisjoint(Path(config.path).parts)
    return own and not (module and _is_elsewhere(inside))


def _is_elsewhere(path: Path) -> bool:
    return path.name.startswith(("test", "conftest", "__")) or not _ELSEWHERE.isdisjoint(path.parts)
