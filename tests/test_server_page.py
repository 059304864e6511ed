"""docs/server.rst and the command say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.core.management.base import BaseCommand

from dbchannels.management.commands.runchannels import Command
from dbchannels.redaction import SECRET_WORDS
from dbchannels.server.proxy_headers import LOOPBACK

PAGE = (Path(__file__).parents[1] / "docs" / "server.rst").read_text()
OWN = {action.dest for action in BaseCommand().create_parser("manage.py", "other")._actions}
OPTIONS = [
    action
    for action in Command().create_parser("manage.py", "runchannels")._actions
    if action.dest not in OWN and action.option_strings
]


TABLE = PAGE[PAGE.index("=====  =====") : PAGE.index("Where it listens")].splitlines()


def default_of(action):
    """Return an option's default as the table has it; empty where that takes words."""
    if isinstance(action.default, float):
        return f"{action.default:g}"
    return action.default if isinstance(action.default, str) else ""


@pytest.mark.parametrize("action", OPTIONS, ids=lambda action: action.dest)
def test_each_option_has_a_row_with_its_default(action):
    rows = [line for line in TABLE if re.match(rf"``({'|'.join(action.option_strings)})[` ]", line)]
    assert len(rows) == 1, action.option_strings
    assert default_of(action) in rows[0]


def test_the_page_names_whom_the_server_believes_by_default():
    for word in LOOPBACK:
        assert word in PAGE


def test_the_words_that_it_calls_secret_are():
    for word in re.findall(
        r"``(\w+)``", PAGE[PAGE.index("with one of the words") : PAGE.index("and a few like")]
    ):
        assert word in SECRET_WORDS
