"""The page about several hosts: its settings reach libpq, and its commands can be given."""

from __future__ import annotations

import copy
from typing import Any

from django.core.management import load_command_class
from django.db.backends.postgresql.base import DatabaseWrapper
from psycopg2.extensions import make_dsn

from dbchannels.layers.postgresql.session import connection_parameters
from tests.docs import pages

PAGE = "several-hosts"


def settings(*captions: str) -> dict[str, Any]:
    """Return the names that these blocks define, one after another."""
    names: dict[str, Any] = {}
    for caption in captions:
        (code,) = (one.code for one in pages.blocks(PAGE) if one.caption == f"mysite/settings.py: {caption}")
        exec(code, names)
    return names


def test_every_address_reaches_libpq_from_django_and_from_the_layer() -> None:
    entry = settings("a primary and a standby")["DATABASES"]["default"]
    django = DatabaseWrapper({**entry, "PASSWORD": "", "TIME_ZONE": None}).get_connection_params()
    ours = connection_parameters(copy.deepcopy(entry), "name")
    for parameters in (django, ours):
        assert (parameters["host"], parameters["port"]) == ("db1.example,db2.example", "5432,5432")
        known = {key: value for key, value in parameters.items() if key in entry["OPTIONS"]}
        assert known == entry["OPTIONS"]
        make_dsn(**known)  # raises for what libpq does not know


def test_the_other_five_options_are_what_the_layer_sets_by_itself() -> None:
    entry = settings("a primary and a standby")["DATABASES"]["default"]
    given = connection_parameters(entry, "name")
    del entry["OPTIONS"]
    assert {**connection_parameters(entry, "name"), "target_session_attrs": "read-write"} == given


def test_the_layer_may_have_a_database_of_its_own() -> None:
    names = settings("a primary and a standby", "another server for the layer")
    assert names["DBCHANNELS"]["default"]["DATABASE"] in names["DATABASES"]
    assert set(names["DBCHANNELS"]["default"]) <= {"BACKEND", "DATABASE", "ROUTING", "OPTIONS"}


def test_the_commands_can_be_given_like_this() -> None:
    lines = [line for one in pages.blocks(PAGE, "console") for line in one.code.splitlines()]
    given = [line.split()[3:] for line in lines if line.startswith("$ python manage.py run")]
    assert len(given) == 2
    for command, *arguments in given:
        load_command_class("dbchannels", command).create_parser("manage.py", command).parse_args(arguments)
