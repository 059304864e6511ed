"""The system checks: each by its number, with the sentence that says what is wrong and the hint what to do."""

from __future__ import annotations

import re
import sys
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from asgiref.sync import async_to_sync
from django.core import checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import OperationalError, connections, transaction

from dbchannels import JsonWebsocketConsumer, WebsocketConsumer, conf, consumer, include, route, route_class
from dbchannels import checks as our_checks
from dbchannels.checks import site
from dbchannels.checks.routes import FIELDS
from dbchannels.routing import table
from docs import tables


def one(message):
    """A consumer."""


def other(message):
    """Another."""


ROUTES = [route("own", one, kind="a"), route("own", other, kind="b"), route("own", one)]
NONE = 7


@pytest.fixture(autouse=True)
def decorated(monkeypatch):
    """The decorators' list, empty, for this test alone."""
    monkeypatch.setattr(table, "_decorated", [])
    monkeypatch.setattr(table, "_loaded", False)


@pytest.fixture(autouse=True)
def migrated(monkeypatch):
    """Look into no database: most tests ask for none; return a function that says which tables are missing."""
    missing = {}
    monkeypatch.setattr(site, "_missing_tables", lambda alias: missing.get(alias, []))
    return missing.update


@pytest.fixture
def configured(settings):
    """Set DBCHANNELS for this test: ``configured(ROUTING=...)`` makes the default layer of it."""

    def use(whole=None, **entry):
        settings.DBCHANNELS = {"default": entry} if whole is None else whole

    return use


def found(databases=(), besides=("dbchannels.W002",)):
    """Return what the checks of dbchannels say, as Django runs them; without those of these numbers."""
    said = checks.run_checks(tags=["dbchannels"], databases=databases)
    return [message for message in said if message.id not in besides]


def only(databases=()):
    """Return (id, sentence, hint) of the only finding."""
    (message,) = found(databases)
    assert message.msg.endswith(".") and "\n" not in message.msg
    return message.id, message.msg, message.hint


@pytest.fixture
def sqlite(monkeypatch):
    """The layer is on the SQLite database; return a function that sets an option of it."""
    from django.db import connections

    def use(**options):
        kept = dict(connections["sqlite"].settings_dict["OPTIONS"])
        kept.pop("transaction_mode", None)
        monkeypatch.setitem(connections["sqlite"].settings_dict, "OPTIONS", {**kept, **options})

    return use


# Nothing to say.


def test_without_a_setting_there_is_nothing_to_say():
    assert found() == []


def test_a_good_setting_is_good(configured):
    configured(ROUTING=f"{__name__}.ROUTES", OPTIONS={"capacity": 5}, DATABASE="sqlite", BACKEND="database")
    assert found() == []
    assert found(["default", "sqlite"]) == []


# E001: the setting.


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ([], "DBCHANNELS must be a dict of dicts, as CACHES is: {'default': {...}}."),
        (
            {"default": "memory"},
            "DBCHANNELS must be a dict of dicts, as CACHES is: {'default': {...}}.",
        ),
        (
            {"default": {"ROUTNG": "x"}},
            "DBCHANNELS['default'] has the unknown key 'ROUTNG': write 'ROUTING'.",
        ),
        (
            {"default": {"OPTIONS": {"expire": 5}}},
            "DBCHANNELS['default']['OPTIONS'] has the unknown key 'expire': write 'expiry'.",
        ),
        (
            {"default": {"OPTIONS": {"wakeups": "no"}}},
            "DBCHANNELS['default']['OPTIONS']['wakeups'] is 'no': write True or False.",
        ),
        (
            {"other": {"DATABASE": "nowhere"}},
            "DBCHANNELS['other']['DATABASE'] is 'nowhere': write an alias of DATABASES.",
        ),
        (
            {"default": {"BACKEND": "nowhere.Layer"}},
            "DBCHANNELS['default']['BACKEND'] names 'nowhere.Layer', which cannot be imported (No module named "
            "'nowhere'): use one of postgresql, database, memory, or the dotted name of a layer class.",
        ),
        (
            {"default": {"BACKEND": "django.urls.path"}},
            "DBCHANNELS['default']['BACKEND'] names 'django.urls.path', which is not a layer class: use one of "
            "postgresql, database, memory, or the dotted name of a layer class.",
        ),
        (
            {"default": {"BACKEND": "postgresql", "DATABASE": "sqlite"}},
            "DBCHANNELS['default']['BACKEND'] is for PostgreSQL, and the database 'sqlite' is not (its vendor is "
            "'sqlite'): leave BACKEND out, or name a PostgreSQL database in DATABASE.",
        ),
    ],
)
def test_e001_says_what_cannot_be_meant(configured, setting, sentence):
    configured(setting)
    assert only() == ("dbchannels.E001", sentence, None)
    assert only(["default", "sqlite"])[0] == "dbchannels.E001"  # and no other check falls over it


def test_e001_says_everything_at_once(configured):
    configured({"default": {"A": 1, "B": 2}, "other": {"DATABASE": "nowhere"}})
    assert [message.id for message in found()] == ["dbchannels.E001"] * 3


@pytest.mark.usefixtures("tables")  # Django 6.1 asks each database what it supports
def test_the_command_shows_it_and_fails(configured):
    configured(ROUTNG="x")
    with pytest.raises(SystemCheckError, match=r"dbchannels\.E001.*write 'ROUTING'"):
        call_command("check")


# E002: the routing.


def test_e002_says_what_cannot_be_imported(configured):
    configured(ROUTING="no.such.routing")
    number, sentence, _ = only()
    assert number == "dbchannels.E002"
    assert "'no.such.routing', which cannot be imported" in sentence


def test_e002_says_what_is_no_list(configured):
    configured(ROUTING=f"{__name__}.NONE")
    assert only()[:2] == (
        "dbchannels.E002",
        f"{__name__}.NONE has no list called 'routes': add it, or name the list itself.",
    )


# E003: duplicates.


def test_e003_says_what_is_routed_twice(configured):
    configured(ROUTING=[ROUTES[2], route("own", one)])
    assert only() == (
        "dbchannels.E003",
        f"{__name__}.one is routed twice for own with the same filters.",
        "Remove one of the two: the second can never match.",
    )


def test_e003_counts_each_one_after_the_first(configured):
    configured(ROUTING=[ROUTES[0], ROUTES[0], ROUTES[1], ROUTES[0], ROUTES[1]])
    assert [message.id for message in found()] == ["dbchannels.E003"] * 3


def test_e003_finds_a_route_that_is_decorated_as_well(configured):
    configured(ROUTING=[route("own", one, kind="a")])
    consumer("own", kind="a")(one)
    assert only()[0] == "dbchannels.E003"


# W001: SQLite.


@pytest.mark.parametrize("options", [{}, {"transaction_mode": "DEFERRED"}, {"transaction_mode": None}])
def test_w001_asks_for_immediate_transactions(configured, sqlite, options):
    configured(DATABASE="sqlite")
    sqlite(**options)
    number, sentence, hint = only(["sqlite"])
    assert (number, found(["sqlite"])[0].level) == ("dbchannels.W001", checks.WARNING)
    assert (
        sentence == "The layer is on the SQLite database 'sqlite', whose transactions do not begin IMMEDIATE."
    )
    assert hint.startswith("Set 'transaction_mode': 'IMMEDIATE' in its OPTIONS")


def test_w001_is_silent_on_immediate_transactions(configured, sqlite):
    configured(DATABASE="sqlite")
    sqlite(transaction_mode="IMMEDIATE")
    assert found(["sqlite"]) == []


def test_w001_looks_only_at_the_layers_database_and_when_databases_are_checked(configured, sqlite):
    sqlite()
    assert found(["default", "sqlite"]) == []
    configured(DATABASE="sqlite")
    assert found() == found(["default"]) == []


# W002: another database.


def other_database():
    """Return the sentences of W002."""
    return [message.msg for message in found(besides=()) if message.id == "dbchannels.W002"]


def test_w002_says_what_is_lost_between_two_databases(configured):
    configured({"default": {"DATABASE": "sqlite"}, "other": {"DATABASE": "sqlite"}, "same": {}})
    assert other_database() == [
        f"The layer {alias!r} is on the database 'sqlite': messages sent in a transaction on 'default' are "
        "written after its commit, and lost if the process dies between the two."
        for alias in ("default", "other")
    ]


def test_w002_is_silent_where_nothing_can_be_lost_between(configured, monkeypatch):
    assert other_database() == []
    configured(DATABASE="sqlite", BACKEND="memory")
    assert other_database() == []
    configured(DATABASE="sqlite")
    assert len(other_database()) == 1
    # As of a site without a database called "default".
    monkeypatch.setitem(connections["default"].settings_dict, "ENGINE", "django.db.backends.dummy")
    assert other_database() == []


def test_below_static_files_another_runserver_is_run(settings):
    apps = [app for app in settings.INSTALLED_APPS if app != "dbchannels"]
    assert found() == []
    settings.INSTALLED_APPS = [*apps, "dbchannels"]
    number, sentence, hint = only()
    assert number == "dbchannels.W003"
    assert sentence.startswith(
        "'dbchannels' is listed below 'django.contrib.staticfiles' in INSTALLED_APPS, "
    )
    assert hint.startswith("Move 'dbchannels' above 'django.contrib.staticfiles', or silence dbchannels.W003")


def test_daphne_has_a_runserver_of_its_own(settings, monkeypatch):
    apps = [app for app in settings.INSTALLED_APPS if app != "dbchannels"]
    settings.INSTALLED_APPS = [*apps, "dbchannels"]
    monkeypatch.setattr(site, "get_commands", lambda: {"runserver": "daphne"})
    assert found() == []


def test_without_static_files_the_order_is_all_the_same(settings):
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if not app.endswith("staticfiles")]
    assert found() == []


# E004: signatures.


def joins(message, room):
    """Takes one capture."""


def pages(message, room, page=1, *, size):
    """Needs more."""


@pytest.mark.parametrize(
    ("path", "consume", "call", "said", "hint"),
    [
        ("/chat/", joins, "message", "missing a required argument: 'room'", "(message)"),
        ("/<rom>/", joins, "message, rom=...", "missing a required argument: 'room'", "(message, rom)"),
        (
            "/<room>/<page>",
            joins,
            "message, room=..., page=...",
            "unexpected keyword argument 'page'",
            "(message, room, page)",
        ),
        ("/<room>/", pages, "message, room=...", "missing a required argument: 'size'", "(message, room)"),
        (
            "/<message>/",
            one,
            "message, message=...",
            "multiple values for argument 'message'",
            "",
        ),
        ("/", lambda: None, "message", "it takes fewer arguments", "(message)"),
    ],
)
def test_e004_says_what_a_consumer_cannot_be_called_with(configured, path, consume, call, said, hint):
    configured(ROUTING=[route("websocket.connect", consume, path=path)])
    number, sentence, given = only()
    assert number == "dbchannels.E004"
    assert f"cannot be called with ({call}), as by its route on websocket.connect (path={path}): " in sentence
    assert said in sentence
    let = f"Let it take {hint}, or change the captures of the route."
    assert given == (let if hint else "Rename the capture: a consumer's first argument is the message.")


class Channels1(WebsocketConsumer):
    """As in Channels 1."""

    strict_ordering = True


class Channels2(WebsocketConsumer):
    """As in Channels 2 and later."""

    def receive(self, text_data=None, bytes_data=None, **captures):
        """Take it."""


class Neither(WebsocketConsumer):
    """Would never see a frame."""

    def receive(self, message):
        """Take it."""


class InFront(JsonWebsocketConsumer):
    """As in Channels 1."""

    def receive(self, content, **captures):
        """Take it."""


class Yielding(WebsocketConsumer):
    """Would never run."""

    async def connect(self, message):
        """Yield."""
        yield


class Misspelt(JsonWebsocketConsumer):
    """Would never see a frame."""

    def recieve_json(self, content):
        """Take it."""


class NoJson(WebsocketConsumer):
    """Would never see a frame either."""

    def receive_json(self, content):
        """Take it."""


class Lettered(WebsocketConsumer):
    """Would be in a group for each letter."""

    groups = "everybody"


@pytest.mark.parametrize(
    ("consume", "said"),
    [
        (Misspelt, "Misspelt.recieve_json is never run; write receive_json"),
        (NoJson, "NoJson.receive_json is never run; subclass JsonWebsocketConsumer"),
        (
            Channels1,
            "Channels1.strict_ordering means nothing in dbchannels; remove it: the frames of a connection are",
        ),
        (Channels2, "Channels2.receive takes 'text_data': write receive(self, text=None, bytes=None)"),
        (Neither, "Neither.receive takes neither text nor bytes: write receive(self, text=None, bytes=None)"),
        (
            InFront,
            "InFront.receive overrides the one that calls receive_json: write receive_json(self, content)",
        ),
        (Yielding, "Yielding.connect is a generator, so calling it runs nothing; remove the yield"),
        (Lettered, "its groups are a str; write groups = ['everybody']"),
    ],
)
def test_e004_says_what_a_class_is_taken_for(configured, consume, said):
    configured(ROUTING=[route_class(consume, path="/")])
    sentences = [message.msg for message in found() if message.id == "dbchannels.E004"]
    assert sentences and all(said in sentence for sentence in sentences)


def test_e004_counts_what_includes_capture(configured):
    inner = [route("own", joins, path="/x")]
    configured(ROUTING=[include(inner, path="/<slug:room>")])
    assert found() == []
    configured(ROUTING=[include(inner, path="/<slug:site>")])
    assert only()[0] == "dbchannels.E004"


def test_e004_is_silent_on_consumers_that_take_what_comes(configured):
    configured(
        ROUTING=[
            route("own", lambda message, **captures: None, path="/<a>/<b>"),
            route("own", pages, path="/<room>/x/<size>"),
            route("own", lambda content: None, path="^/(?P<room>x)$"),  # the 2015 form
            route("own", print, path="/<sep>"),
        ]
    )
    assert found() == []


# W004: routes that are never reached.


def test_w004_says_which_route_stands_before(configured):
    configured(
        ROUTING=[
            route("websocket.connect", joins, path="/<slug:room>/"),
            route("websocket.connect", one, path="/new/"),
        ]
    )
    assert only() == (
        "dbchannels.W004",
        f"{__name__}.one is never run for websocket.connect (path=/new/): {__name__}.joins comes before it and matches "
        "these messages (path=/<slug:room>/).",
        "Put the route with the narrower filters first.",
    )


# W005: channels.


@pytest.mark.parametrize(
    ("channel", "hint"),
    [
        ("websocket.recieve", "Write 'websocket.receive'."),
        ("websocket_receive", "Write 'websocket.receive'."),
        ("websockets.connect", "Write 'websocket.connect'."),
        ("http.requests", "Write 'http.request'."),
    ],
)
def test_w005_says_which_channel_is_meant(configured, channel, hint):
    configured(ROUTING=[route(channel, one)])
    number, sentence, given = only()
    assert number == "dbchannels.W005"
    assert sentence == f"{__name__}.one is a consumer of {channel!r}, on which the server sends nothing."
    assert given.startswith(hint)


@pytest.mark.parametrize(
    "channel",
    [
        "websocket.keepalive",
        "http.noted",
        "websocket.receive",
        "http.disconnect",
        "own",
        "receive",
        "requests",
        "reply.x!",
    ],
)
def test_w005_is_silent_on_other_names(configured, channel):
    configured(ROUTING=[route(channel, one)])
    assert found() == []


# W006: fields.


@pytest.mark.parametrize(
    ("channel", "key", "hint"),
    [
        ("websocket.receive", "paht", "Write 'path'."),
        ("websocket.receive", "method", "They have reply_channel, path, text, order."),
        ("websocket.connect", "headers", "They have reply_channel, scheme, path, root_path, order."),
    ],
)
def test_w006_says_which_field_is_not_there(configured, channel, key, hint):
    configured(ROUTING=[route(channel, one, **{key: "x"})])
    assert only() == (
        "dbchannels.W006",
        f"{__name__}.one is never run: its route filters on {key!r}, which messages on {channel} do not have as text.",
        hint,
    )


def test_w006_leaves_the_sites_own_messages_to_the_site(configured):
    configured(ROUTING=[route("own", one, anything="x")])
    assert found() == []


def test_the_fields_are_those_of_the_documents():
    page = (Path(__file__).parents[1] / "docs" / "messages.rst").read_text()
    for channel, fields in FIELDS.items():
        (told,) = re.findall(rf"^``{channel}``\n((?:    .*\n|\n)+)", page, re.MULTILINE)
        assert set(fields) <= set(re.findall(r"``(\w+)``", told)), channel


# E008: periodic messages.


def test_e008_says_that_no_route_takes_periodic_messages(configured):
    configured(ROUTING=[route("own", one, kind="a"), route("own", other, kind="b", every="0 7 * * *")])
    assert only() == (
        "dbchannels.E008",
        "The periodic messages on own reach no consumer: they have the field 'scheduled_at' alone, and each route "
        "on own filters on others.",
        "Remove the filters, or add a route without any.",
    )


def test_e008_is_silent_when_a_route_takes_them(configured):
    every = timedelta(hours=1)
    configured(
        ROUTING=[route("own", one, kind="a", every=every), route("own", other, scheduled_at=".*T07:.*")]
    )
    assert found() == []


# W007: mixed patterns.


def test_w007_says_what_captures_nothing(configured):
    configured(ROUTING=[route("websocket.connect", one, path="^/chat/<slug:room>/$")])
    number, sentence, hint = only()
    assert (number, sentence) == (
        "dbchannels.W007",
        f"The filter path=^/chat/<slug:room>/$ of {__name__}.one is a regular expression, in which <slug:room> "
        "captures nothing.",
    )
    assert hint.startswith("Remove ^ and $, which make it a regular expression, or capture by (?P<name>...)")


# W008: paths that differ.


@pytest.mark.parametrize(
    ("connect", "receive"),
    [
        ("/chat/<slug:room>/", "/chat/<slug:room>"),
        ("/chat/<slug:room>/", "/chats/<slug:room>/"),
        (r"^/chat/(?P<room>\w+)/$", r"^/chat/(?P<room>\w+)$"),
    ],
)
@pytest.mark.parametrize("channel", ["websocket.receive", "websocket.disconnect"])
def test_w008_says_which_paths_differ(configured, connect, receive, channel):
    configured(ROUTING=[route("websocket.connect", joins, path=connect), route(channel, joins, path=receive)])
    number, sentence, hint = only()
    assert number == "dbchannels.W008"
    assert (
        f"path={receive} on {channel}, and " in sentence
        and f"path={connect} on websocket.connect" in sentence
    )
    assert hint.startswith("Give both the same path")


@pytest.mark.parametrize(
    ("connect", "receive"),
    [
        (["/chat/<slug:room>/"], ["/chat/<slug:name>/"]),
        ([r"^/chat/(?P<room>\w+)/$"], [r"^/chat/(?P<name>\w+)/$"]),
        (["/chat/<slug:a>/"], ["/news/live/"]),
        ([], ["/chat/"]),
        (["/chat/a/", "/chat/b/"], ["/chat/a/", "/chat/b/"]),
        (["/chat/a/"], ["/chat/a/", "/chat/b/"]),
    ],
)
def test_w008_is_silent_where_they_do_not_or_may(configured, connect, receive):
    def any_captures(message, **captures):
        """Takes all."""

    configured(
        ROUTING=[
            *(route("websocket.connect", any_captures, path=path) for path in connect),
            *(route("websocket.receive", any_captures, path=path) for path in receive),
        ]
    )
    assert found() == []


# W009: modules that nothing imports.

UNREAD = {
    "jobs.py": "import dbchannels\n@dbchannels.consumer('own')\ndef job(message): ...\n",
    "deep/more.py": "from dbchannels import consumer\n\n@consumer('own')\ndef job(message): ...\n",
    "hall.py": "@route_class(path='/x/')\nclass Chat(Base): ...\n",
    "inn.py": "class Chat(JsonWebsocketConsumer): ...\n",
    "channels_own.py": "from channels.generic.websocket import WebsocketConsumer\nclass A(WebsocketConsumer): ...\n",
    "live.py": "class Live(Binding):\n    model = None\n",
    "consumers.py": "",
    "tests.py": "@consumer('own')\ndef job(message): ...\n",
    "migrations/m.py": "@consumer('own')\n",
    "other.py": "# @consumer('own') would be one\n",
}


@pytest.fixture
def app(tmp_path, monkeypatch, settings):
    """An app with the files of UNREAD."""
    for name, text in {"__init__.py": "", **UNREAD}.items():
        path = tmp_path / "unread_app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "unread_app"]
    yield tmp_path / "unread_app"
    for name in [name for name in sys.modules if name.partition(".")[0] == "unread_app"]:
        del sys.modules[name]


def test_w009_says_which_modules_nothing_imports(app):
    assert [(message.id, message.msg, message.hint) for message in found()] == [
        (
            "dbchannels.W009",
            f"unread_app.{name} has consumers, and nothing imports it, so no worker runs them.",
            "Import it in unread_app.consumers, or list its consumers in the routing module.",
        )
        for name in ("deep.more", "hall", "inn", "jobs")
    ] + [
        (
            "dbchannels.W009",
            "unread_app.live has bindings, and nothing imports it, so they send nothing.",
            "Import it in the ready() of unread_app's AppConfig, as with signals.",
        )
    ]


def test_w009_is_silent_when_consumers_import_them(app):
    (app / "consumers.py").write_text("import unread_app.jobs\n")
    (app / "live.py").unlink()
    (app / "deep" / "more.py").unlink()
    (app / "hall.py").unlink()
    (app / "inn.py").unlink()
    assert found() == []


def test_w009_is_silent_when_the_routing_module_imports_them(app, configured):
    (app / "table.py").write_text("import unread_app.jobs\n\nroutes = []\n")
    configured(ROUTING="unread_app.table")
    assert "unread_app.jobs" not in sys.modules
    assert "unread_app.jobs" not in {message.msg.split()[0] for message in found()}


def test_w009_says_it_once_of_an_app_inside_of_an_app(app, settings):
    (app / "deep" / "__init__.py").write_text("")
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "unread_app.deep"]
    said = {message.msg.split()[0]: message.hint.split(",")[0] for message in found()}
    assert len(found()) == len(said) == 5
    assert said["unread_app.deep.more"] == "Import it in unread_app.deep.consumers"


def test_w009_leaves_what_is_installed_alone(app, monkeypatch):
    monkeypatch.setattr(site, "_NOT_ITS_OWN", {app.parent.name})
    assert found() == []


# W010: tables.


def test_w010_says_that_tables_are_missing(configured, migrated, monkeypatch):
    migrated({"default": ["dbchannels_process", "dbchannels_inflight"], "sqlite": ["dbchannels_inflight"]})
    assert only(["default", "sqlite"]) == (
        "dbchannels.W010",
        "The database 'default' has no table 'dbchannels_process', so no message can be sent.",
        "Run 'manage.py migrate --database default'.",
    )
    assert found() == found(["sqlite"]) == []
    monkeypatch.setattr("sys.argv", ["manage.py", "migrate"])
    assert found(["default"]) == []


def test_w010_looks_at_the_tables(tables, monkeypatch, settings):
    monkeypatch.undo()
    settings.DBCHANNELS = {"default": {"DATABASE": "sqlite"}}
    assert site._missing_tables("sqlite") == []
    with connections["sqlite"].cursor() as cursor:
        cursor.execute("ALTER TABLE dbchannels_inflight RENAME TO dbchannels_elsewhere")
        try:
            assert site._missing_tables("sqlite") == ["dbchannels_inflight"]
        finally:
            cursor.execute("ALTER TABLE dbchannels_elsewhere RENAME TO dbchannels_inflight")


def test_w010_leaves_a_database_that_is_away_to_others(monkeypatch):
    monkeypatch.undo()

    class Away:
        @property
        def introspection(self):
            raise OperationalError("as asked for")

    monkeypatch.setattr(site, "connections", {"default": Away()})
    assert site._missing_tables("default") == []


# W011: sessions.


@pytest.mark.parametrize("engine", ["cache", "cached_db"])
def test_w011_says_that_workers_do_not_share_sessions(settings, engine):
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    number, sentence, hint = only()
    assert number == "dbchannels.W011"
    assert sentence.startswith("Sessions are in the cache 'default', which workers do not share, ")
    assert hint.startswith("Set SESSION_ENGINE to 'django.contrib.sessions.backends.db'")


def test_w011_is_silent_on_sessions_that_all_share(settings):
    settings.CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
        "shared": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cache"},
    }
    assert found() == []
    settings.SESSION_ENGINE, settings.SESSION_CACHE_ALIAS = "django.contrib.sessions.backends.cache", "shared"
    assert found() == []


# W012: poolers.


@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("key", "value"), [("PORT", "6432"), ("PORT", 6432), ("DISABLE_SERVER_SIDE_CURSORS", True)]
)
def test_w012_asks_for_a_way_round_a_pooler(configured, monkeypatch, key, value):
    monkeypatch.setitem(connections["default"].settings_dict, key, value)
    number, sentence, hint = only()
    assert number == "dbchannels.W012"
    assert sentence.startswith("The database 'default' seems to be behind a transaction pooler, ")
    assert hint.startswith("Let the layer bypass it by DBCHANNELS['default']['OPTIONS']['direct'] = ")
    for options in ({"direct": {"PORT": 5432}}, {"wakeups": False}):
        configured(OPTIONS=options)
        assert found() == []


# W022: several addresses.


@pytest.mark.postgresql
def test_w022_says_what_several_addresses_need(monkeypatch):
    settings = connections["default"].settings_dict
    for key, value in (("HOST", "db1,db2"), ("PORT", "5432"), ("OPTIONS", {"connect_timeout": 3})):
        monkeypatch.setitem(settings, key, value)
    number, sentence, hint = only()
    assert number == "dbchannels.W022"
    assert sentence.startswith(
        "HOST of the database 'default' names several addresses, and OPTIONS has no target_session_attrs and no "
        "tcp_user_timeout: "
    )
    assert hint == "Add 'target_session_attrs': 'read-write', 'tcp_user_timeout': 10000 to its OPTIONS."
    settings["OPTIONS"] |= {"target_session_attrs": "primary", "tcp_user_timeout": 5_000}
    assert found() == []
    monkeypatch.setitem(settings, "OPTIONS", {})
    monkeypatch.setitem(settings, "HOST", "db1")
    assert found() == []


# W013: hosts.


def test_w013_says_that_everything_is_refused(settings):
    settings.ALLOWED_HOSTS, settings.DEBUG = [], False
    number, sentence, hint = only()
    assert number == "dbchannels.W013"
    assert (
        sentence
        == "DEBUG is False and ALLOWED_HOSTS is empty, so every request and every WebSocket is refused."
    )
    assert hint.startswith("List the site's hosts, such as ALLOWED_HOSTS = ['example.com']")
    settings.DEBUG = True
    assert found() == []


def test_w020_says_that_any_name_is_a_host_of_the_site(settings):
    settings.ALLOWED_HOSTS, settings.DEBUG = ["*"], False
    number, sentence, hint = only()
    assert number == "dbchannels.W020" and sentence.startswith("ALLOWED_HOSTS contains '*'")
    assert "CSRF_TRUSTED_ORIGINS" in hint
    settings.DEBUG = True
    assert found() == []


# W014: coroutines under decorators.


async def later(message):
    """A consumer."""


def test_w014_says_that_a_decorator_has_ended_before_a_coroutine_begins(configured):
    configured(ROUTING=[route("own", transaction.atomic(later))])
    number, sentence, hint = only()
    assert number == "dbchannels.W014"
    assert sentence.startswith(f"{__name__}.later is an async def under a decorator for plain functions, ")
    assert hint.startswith("Write @consumer(..., atomic=True) instead of @transaction.atomic")


def test_w014_is_silent_on_coroutines_that_are_run(configured):
    configured(
        ROUTING=[
            route("own", later),
            route("run", async_to_sync(later)),
            route("plain", transaction.atomic(one)),
        ]
    )
    assert found() == []


# W024: decorators above @consumer.


def stacked(message):
    """A consumer."""


routed = transaction.atomic(stacked)
atomic_twice = transaction.atomic(routed)
routed.__qualname__ = "atomic_twice"  # as if one name had been decorated twice


def test_w024_says_which_decorator_a_consumer_runs_without(configured):
    configured(ROUTING=[route("own", routed), route("other", stacked), route("third", atomic_twice)])
    number, sentence, hint = only()
    assert number == "dbchannels.W024"
    assert sentence == (
        f"{__name__}.atomic_twice has a decorator above the one that routes own to it, so it runs without that "
        "decorator."
    )
    assert hint == "Put @consumer on top."


# E005: generators.


def yields(message):
    """Would never run."""
    yield


async def streams(message):
    """Would never run."""
    yield


class Callable:
    """Would never run."""

    def __call__(self, message):
        yield

    def method(self, message):
        yield


@pytest.mark.parametrize(
    "consume",
    [
        yields,
        streams,
        Callable(),
        Callable().method,
        partial(yields),
        partial(partial(streams)),
        transaction.atomic(yields),
        transaction.atomic(partial(yields)),
    ],
)
def test_e005_says_that_a_generator_runs_nothing(configured, consume):
    configured(ROUTING=[route("own", consume)])
    number, sentence, hint = only()
    assert number == "dbchannels.E005"
    assert sentence.endswith("is a generator, so calling it for a message of own runs nothing.")
    assert hint.startswith("Remove the yield")


# W016: paths without their slash.


def takes_any(message, **captures):
    """A consumer of whatever is captured."""


@pytest.mark.parametrize(
    "text",
    [
        "^chat/$",
        r"^(?P<room>\w+)/$",
        r"[a-z]+/x",
        r"\Achat",
        "(chat)/",
        "^(?P<kind>chat|room)/",
        "^chat/|^room/",
        "ws://localhost/chat/",
        "/chat/?room=tea",
    ],
)
def test_w016_says_that_no_path_begins_so(configured, text):
    configured(ROUTING=[route("websocket.connect", takes_any, path=text)])
    assert only()[0] == "dbchannels.W016"


@pytest.mark.parametrize(
    "text",
    [
        "^/chat/$",
        "chat/<room>/",
        ".*chat",
        "[^x]chat",
        "c?/chat",
        "chat|/",
        "x*/",
        "[/a]b",
        "(chat|/room)/",
        "(a|b)?/x",
        "(a|b?)/",
        r"^/(?P<one>\w+)/(?P=one)/$",
        "/proxy/https://<path:other>",
    ],
)
def test_w016_is_silent_where_one_may(configured, text):
    configured(ROUTING=[route("websocket.connect", takes_any, path=text)])
    assert found() == []


def test_w016_looks_at_what_stands_first(configured):
    configured(ROUTING=[include([route("websocket.connect", takes_any, path="^chat/$")], path="/x/")])
    assert found() == []


def test_a_mistake_of_a_class_is_reported_once(configured):
    class Chat(WebsocketConsumer):
        """A consumer with three routes."""

    configured(ROUTING=[route_class(Chat, path="^chat/$")])
    assert only()[0] == "dbchannels.W016"


# W017: leftovers of other libraries.


@pytest.fixture(autouse=True)
def _no_channels(monkeypatch):
    """Tests of the layer for Channels import it."""
    monkeypatch.delitem(sys.modules, "channels", raising=False)


@pytest.mark.parametrize(
    ("name", "library", "hint"),
    [
        (
            "CHANNEL_LAYERS",
            "Channels",
            "Remove it: the layer is in the site's database, and DBCHANNELS has all its settings.",
        ),
        (
            "ASGI_APPLICATION",
            "Channels",
            "Remove it: runserver and runchannels serve the site's WSGI_APPLICATION.",
        ),
        ("CELERY_BEAT_SCHEDULE", "Celery", "Write @consumer(channel, every=...)."),
        ("CELERY_SOMETHING_RARE", "Celery", "Remove it."),
    ],
)
def test_w017_says_that_nothing_reads_a_setting_of_another_library(settings, name, library, hint):
    setattr(settings, name, {})
    assert only() == (
        "dbchannels.W017",
        f"{name} is a setting of {library}, which dbchannels does not read.",
        hint,
    )


@pytest.mark.parametrize("name", ["DB_CHANNELS", "DBCHANNEL"])
def test_w017_says_how_the_setting_is_called(settings, name):
    setattr(settings, name, {})
    assert only() == ("dbchannels.W017", f"Nothing reads the setting {name}.", "Write DBCHANNELS.")


def test_w017_is_silent_on_a_setting_of_the_sites_own(settings):
    settings.CHANNELS = ["mail", "post"]
    assert found() == []


def test_w017_reports_each_setting_once(settings):
    settings.CHANNEL_LAYERS = settings.CELERY_TIMEZONE = settings.CELERY_BROKER_URL = "x"
    assert [one.msg.split()[0] for one in found()] == [
        "CELERY_BROKER_URL",
        "CELERY_TIMEZONE",
        "CHANNEL_LAYERS",
    ]


@pytest.mark.parametrize("library", ["celery", "channels"])
def test_w017_is_silent_while_the_site_imports_the_library(settings, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, ModuleType(library))
    settings.CELERY_TIMEZONE = settings.ASGI_APPLICATION = "x"
    assert f" of {library.title()}," not in only()[1]


# W021: names without a path.


@pytest.mark.parametrize(
    "make", [lambda: route("own", one, name="y", kind="a"), lambda: route_class(Named, name="y")]
)
def test_w021_says_that_a_name_without_a_path_is_never_found(configured, make):
    configured(ROUTING=[make()])
    number, sentence, hint = only()
    assert number == "dbchannels.W021"
    assert sentence.endswith("has the name 'y' and no path, so reverse never finds it.")
    assert hint == "Remove the name, or add path=...; for a field called name, write filters={'name': 'y'}."


def test_w021_is_silent_where_an_include_has_the_path(configured):
    configured(ROUTING=[include([route("own", one, name="y")], path="/x/")])
    assert found() == []


class Named(WebsocketConsumer):
    """A class without methods of its own."""


# W018 and W019: what nobody names.


def test_w018_says_which_routing_nobody_names(app, configured, settings):
    for path in app.rglob("*.py"):
        path.unlink()
    (app / "__init__.py").touch()
    (app / "routing.py").write_text("from dbchannels import route\n\nroutes = []\n")
    assert only() == (
        "dbchannels.W018",
        "unread_app.routing has routes or consumers, and nothing imports it, so no message reaches them.",
        "Set DBCHANNELS = {'default': {'ROUTING': 'unread_app.routing'}}, or import it in your routing module.",
    )
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": conf.CHANNEL_LAYER_BACKEND}}
    assert found() == []  # the routing may be that of Channels
    del settings.CHANNEL_LAYERS
    configured(ROUTING="unread_app.routing")
    assert found() == []


def test_w018_is_silent_while_the_routing_cannot_be_made(app, configured):
    (app / "consumers.py").unlink(missing_ok=True)
    (app / "routing.py").write_text(
        "from dbchannels import route\n\nroutes = [route('own', 'nowhere.at_all')]\n"
    )
    configured(ROUTING="unread_app.routing")
    assert "dbchannels.W018" not in [message.id for message in found()]


def test_w018_looks_beside_the_settings(app, settings, monkeypatch):
    settings.INSTALLED_APPS = [one for one in settings.INSTALLED_APPS if one != "unread_app"]
    (app / "consumers.py").write_text(
        "from dbchannels import consumer\n\n\n@consumer('own')\ndef run(message): ...\n"
    )
    settings.SETTINGS_MODULE = "unread_app.settings"
    import_module("unread_app")
    assert only()[1].startswith("unread_app.consumers has routes or consumers, and nothing imports it")


CLASSES = """
from dbchannels import Demultiplexer, JsonWebsocketConsumer, WebsocketConsumer, route_class

class Base(WebsocketConsumer): ...
class Forgotten(Base): ...
class Inner(JsonWebsocketConsumer): ...

@route_class(path="/all/")
class All(Demultiplexer):
    consumers = {"inner": Inner}
"""


def test_w019_says_which_class_has_no_route(app):
    for name in ("hall.py", "inn.py", "jobs.py", "live.py", "deep/more.py"):
        (app / name).unlink()
    (app / "consumers.py").write_text(CLASSES)
    assert only() == (
        "dbchannels.W019",
        "unread_app.consumers.Forgotten has no route, so no WebSocket reaches it.",
        'Put @route_class(path="/...") above it, or route_class(...) into the routing module.',
    )


# The document.


def test_each_number_is_in_the_docstrings_from_which_the_page_is_made():
    source = "".join(path.read_text() for path in Path(our_checks.__file__).parent.glob("*.py"))
    raised = set(re.findall(r'id="dbchannels\.([EW]\d{3})"', source))
    listed = [first.strip("`") for first, _ in tables.checks()[1:]]
    assert listed == sorted(raised)
    assert conf.problems() == []
