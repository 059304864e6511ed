"""The system checks: each by its number, with the sentence that says what is wrong and the hint what to do."""

from __future__ import annotations

import pytest
from django.core import checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections

from dbchannels import checks as our_checks
from dbchannels import conf, consumer, include, route, routing


def one(message):
    """A consumer."""


def other(message):
    """Another."""


ROUTES = [route("own", one), route("own", other), route("own", one, kind="a")]
TWICE = [route("own", one, kind="a"), include([route("own", one, kind="a")]), route("own", one, kind="a")]
NONE = 7


@pytest.fixture(autouse=True)
def decorated(monkeypatch):
    """The decorators' list, empty, for this test alone."""
    monkeypatch.setattr(routing, "_decorated", [])


@pytest.fixture
def configured(settings):
    """Set DBCHANNELS for this test: ``configured(ROUTING=...)`` makes the default layer of it."""

    def use(whole=None, **entry):
        settings.DBCHANNELS = {"default": entry} if whole is None else whole

    return use


def found(databases=None, besides=("dbchannels.W002",)):
    """Return what the checks of dbchannels say, as Django runs them; without those of these numbers."""
    said = checks.run_checks(tags=["dbchannels"], databases=databases)
    return [message for message in said if message.id not in besides]


def only(databases=None):
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
        ([], "DBCHANNELS is a dict of dicts, {'default': {...}}, in the manner of CACHES."),
        (
            {"default": "memory"},
            "DBCHANNELS is a dict of dicts, {'default': {...}}, in the manner of CACHES.",
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
            "DBCHANNELS['other']['DATABASE'] names 'nowhere', which DATABASES does not hold: "
            "name one of its aliases.",
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
    configured(ROUTING=[ROUTES[0], ROUTES[1], route("own", one)])
    assert only() == (
        "dbchannels.E003",
        f"{__name__}.one is routed twice for own with the same filters.",
        "Take one of the two away: the second can never match.",
    )


def test_e003_counts_each_one_after_the_first(configured):
    configured(ROUTING=[*ROUTES, *ROUTES])
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
        f"The layer {alias!r} is on the database 'sqlite': what is sent inside a transaction on 'default' is "
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


# The numbers.


def test_each_check_says_its_numbers_in_its_docstring():
    documented = " ".join(
        check.__doc__
        for check in (
            our_checks.check_settings,
            our_checks.check_routing,
            our_checks.check_sqlite,
            our_checks.check_other_database,
        )
    )
    numbers = ["E001", "E002", "E003", "W001", "W002"]
    assert [number for number in numbers if number in documented] == numbers
    assert conf.problems() == []


def test_below_static_files_another_runserver_is_run(settings):
    apps = [app for app in settings.INSTALLED_APPS if app != "dbchannels"]
    assert found() == []
    settings.INSTALLED_APPS = [*apps, "dbchannels"]
    number, sentence, hint = only()
    assert number == "dbchannels.W003"
    assert sentence.startswith("'dbchannels' stands below 'django.contrib.staticfiles' in INSTALLED_APPS, ")
    assert hint.startswith("Put 'dbchannels' above 'django.contrib.staticfiles', or silence dbchannels.W003")


def test_without_static_files_the_order_is_all_the_same(settings):
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if not app.endswith("staticfiles")]
    assert found() == []
