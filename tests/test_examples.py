"""The examples as a site of their own: its tests, run as its developer would, and its settings."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from tests.browser.demosite import MANAGE, environment
from tests.endtoend.conftest import sqlite_database


def manage(entry: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the examples on a database, to its end."""
    command = [sys.executable, str(MANAGE), *arguments]
    return subprocess.run(command, env=environment(entry), capture_output=True, text=True, timeout=120)


APPS = ("chat", "demo", "liveblog", "longpoll", "post2015", "rooms", "thumbnails")


def own_tests(entry: dict[str, Any]) -> tuple[int, str]:
    """Run the examples' own tests; return how many ran, and the verdict, after they have passed."""
    done = manage(entry, "test", "--noinput", *APPS)
    assert done.returncode == 0, done.stderr
    ran = re.search(r"^Ran (\d+) tests? in .*\n\n(OK.*)$", done.stderr, re.MULTILINE)
    assert ran, done.stderr
    return int(ran[1]), ran[2]


@pytest.mark.postgresql
def test_the_examples_own_tests_pass_on_postgresql(django_db_setup: None) -> None:
    number, verdict = own_tests({**settings.DATABASES["default"], "NAME": "dbchannels_examples"})
    assert number > 30
    assert verdict == "OK"


def test_the_examples_own_tests_pass_on_sqlite(tmp_path: Path) -> None:
    number, verdict = own_tests(sqlite_database(tmp_path))
    assert number > 30
    assert verdict == "OK (skipped=1)"  # what only databases with SELECT FOR UPDATE can show


def test_sqlite_named_by_a_url_is_set_as_a_site_needs_it(tmp_path: Path) -> None:
    code = (
        "from django.db import connection, transaction\n"
        "with transaction.atomic(), connection.cursor() as cursor:\n"
        "    cursor.execute('PRAGMA journal_mode')\n"
        "    print(cursor.fetchone()[0], connection.transaction_mode, connection.settings_dict['NAME'])\n"
    )
    done = manage(sqlite_database(tmp_path), "shell", "--no-imports", "-c", code)
    assert done.stdout.split() == ["wal", "IMMEDIATE", str(tmp_path / "site.sqlite3")], done.stderr
