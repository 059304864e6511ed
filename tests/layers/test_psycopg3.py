"""A site may use psycopg 3: what it sends goes by that, and the layer's own connections stay psycopg2's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.postgresql, pytest.mark.psycopg3]

ROOT = Path(__file__).parents[2]
FOLDER = os.environ.get("DBCHANNELS_PSYCOPG3", "")
IS_3 = "from django.db.backends.postgresql.psycopg_any import is_psycopg3; print(is_psycopg3)"
CONTRACT = ["tests/layers/test_contract.py::TestPostgreSQLLayer", "tests/layers/test_transactions.py"]
#: Those of the contract's that have the most to do with what a site does on Django's connection.
CHOICE = "test_transactions or group or member or unique or priority or delayed or full or letter or user"


@pytest.fixture
def environment():
    """That of a process of its own, with databases of its own."""
    if not os.path.isdir(os.path.join(FOLDER, "psycopg")):
        pytest.skip(
            "no psycopg 3: pip install --target FOLDER 'psycopg[binary,pool]', and set DBCHANNELS_PSYCOPG3=FOLDER"
        )
    ours = ("DBCHANNELS_TEST_", "PYTEST_")
    given = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**given, "PYTHONPATH": FOLDER}


def run(environment, *arguments):
    """Run Python to its end; return what it printed."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


@pytest.mark.parametrize("binding", ["client", "server"])
def test_the_contract_holds_on_connections_of_psycopg_3(environment, binding):
    assert run(environment, "-c", IS_3) == "True\n"
    environment["DBCHANNELS_TEST_BINDING"] = binding
    chosen = f"({CHOICE}) and not sqlite and not polling or test_database_connections"
    assert passed(environment, "-k", chosen, *CONTRACT, "tests/worker/test_database_connections.py") > 90


def passed(environment, *arguments):
    """Run tests; return how many have passed, which is all of them."""
    said = run(environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)
    assert "skipped" not in said
    return int(re.search(r"(\d+) passed", said)[1])
