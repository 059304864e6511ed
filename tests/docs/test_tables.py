"""The tables that the reference makes from the code have all of it, each once."""

from __future__ import annotations

from collections import Counter

import pytest
from django.core.management import load_command_class

from dbchannels import conf
from docs import tables
from tests.docs import pages

DIRECTIVES = [words for page in pages.names() for words in pages.generated(page)]
OURS = [
    "runchannels",
    "runserver",
    "runworker",
    "showchannels",
    "replay",
    "channels_cancel",
    "channels_deploy",
    "channels_doctor",
    "channels_pause",
    "channels_purge",
    "channels_resume",
    "channels_send",
    "channels_status",
]
#: The options of Django's own command.
DJANGO = {"runserver": ["addrport", "--ipv6", "--nothreading", "--noreload", "--insecure", "--nostatic"]}


@pytest.mark.parametrize("command", OURS)
def test_each_option_is_in_one_table(command):
    shown = Counter(
        row for kind, *words in DIRECTIVES if words[:1] == [command] for row in tables.options(*words)[1:]
    )
    all_of_them = tables.options(command, "*")[1:]
    hidden = [row for row in all_of_them if row[2].startswith("Set by runchannels")]
    hidden += [row for row in all_of_them if row[0].strip("`") in DJANGO.get(command, [])]
    if command == "channels_deploy":
        server = {row[0] for row in tables.options("runchannels", "--*")}
        hidden += [row for row in all_of_them if row[0] in server]
    assert len(all_of_them) > len(hidden)
    assert shown == Counter(row for row in all_of_them if row not in hidden)


def test_the_default_of_an_option_is_the_one_that_its_help_names():
    parser = load_command_class("dbchannels", "runchannels").create_parser("manage.py", "runchannels")
    rows = {row[0].strip("`").split()[0]: row[1] for row in tables.options("runchannels", "*")[1:]}
    numbers = [
        one for one in parser._actions if type(one.default) in (int, float) and one.dest != "verbosity"
    ]
    assert len(numbers) > 30
    units = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    for action in numbers:
        number, _, unit = rows[action.option_strings[0]].partition(" ")
        assert float(number.replace(",", "")) * units[unit] == action.default, action.dest
        if unit:
            assert f"({action.default:,})" in action.help


@pytest.mark.parametrize("command", OURS)
def test_a_help_text_ends_with_one_full_stop(command):
    meanings = [row[2] for row in tables.options(command, "*")[1:]]
    assert [text for text in meanings if not text.endswith(".") or text.endswith("..")] == []


def test_options_are_in_the_order_of_the_page():
    rows = tables.options("runchannels", "--ws-max-size", "*PORT", "--ws-max-*")[1:]
    assert [row[0].strip("`").split()[0] for row in rows][:3] == [
        "--ws-max-size",
        "[ADDR:]PORT",
        "--ws-max-fragments",
    ]
    assert len(rows) == 5
    assert rows[0][1] == "1 MiB"


def test_an_option_is_shown_as_code_wherever_it_is_named():
    (row,) = tables.options("runchannels", "--threads")[1:]
    assert row == ("``--threads N``", "16", "Threads for views, with ``--http=direct``.")
    (row,) = tables.options("runworker", "--only")[1:]
    assert row[1:] == ("all", "Read only these channels, such as ``http.*``; can be given more than once.")


def test_the_settings_page_has_each_option_and_backend():
    assert ["settings"] in pages.generated("settings")
    assert [row[0].strip("`") for row in tables.settings()[1:]] == list(conf.OPTIONS)
    assert all(f'``"{name}"``' in pages.text("settings") for name in conf.SHORT_BACKENDS)


def test_the_page_of_the_checks_has_their_table():
    assert ["checks"] in pages.generated("checks")
    assert "``E001``" in pages.text("checks")


def test_a_page_is_read_with_its_tables():
    assert "``--max-body BYTES``" in pages.text("server")
