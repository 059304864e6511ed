"""A live site on a database of its own for each kind; its processes end with each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from django.conf import settings

from tests.harness import LiveSite, Served, close_all

#: Fixtures that are a site on PostgreSQL; those on each database mark their own parameters.
ON_POSTGRESQL = {"site", "served"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    for item in items:
        if item.path.parent.name == "endtoend" and ON_POSTGRESQL & set(item.fixturenames):
            item.add_marker(pytest.mark.postgresql)


def postgresql_database(name: str) -> dict[str, Any]:
    """Create a database on the test run's server; return its entry of DATABASES."""
    entry = {
        key: settings.DATABASES["default"].get(key, "")
        for key in ("ENGINE", "USER", "PASSWORD", "HOST", "PORT")
    }
    parameters = {
        "user": entry["USER"],
        "password": entry["PASSWORD"],
        "host": entry["HOST"],
        "port": entry["PORT"],
    }
    connection = psycopg2.connect(
        dbname="postgres", **{key: value for key, value in parameters.items() if value}
    )
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        cursor.execute(f"CREATE DATABASE {name}")
    connection.close()
    return {**entry, "NAME": name}


def sqlite_database(folder: Path) -> dict[str, Any]:
    """Return an entry of DATABASES for a new file."""
    pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL"
    options = {"timeout": 20, "transaction_mode": "IMMEDIATE", "init_command": pragmas}
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "site.sqlite3"), "OPTIONS": options}


def migrated(database: dict[str, Any], folder: Path) -> LiveSite:
    """Return a site whose tables are there."""
    site = LiveSite(database, folder)
    done = site.manage("migrate", "--verbosity", "0")
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture(scope="session")
def postgresql_site(tmp_path_factory: pytest.TempPathFactory) -> LiveSite:
    """A site on the test run's PostgreSQL."""
    return migrated(postgresql_database("dbchannels_live"), tmp_path_factory.mktemp("live"))


@pytest.fixture(scope="session")
def sqlite_site(tmp_path_factory: pytest.TempPathFactory) -> LiveSite:
    """A site on SQLite."""
    folder = tmp_path_factory.mktemp("live-sqlite")
    return migrated(sqlite_database(folder), folder)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with two workers for all tests that leave it as it was; DEBUG is off."""
    site = migrated(postgresql_database("dbchannels_served"), tmp_path_factory.mktemp("served"))
    try:
        yield site.serve("--workers", "2", "--max-body", "1114112")
    finally:
        site.end()


@pytest.fixture(autouse=True)
def _close_sockets() -> Iterator[None]:
    """Close what a test leaves open."""
    yield
    close_all()


@pytest.fixture
def site(postgresql_site: LiveSite) -> Iterator[LiveSite]:
    """The site on PostgreSQL, all quiet, its tables empty."""
    yield from quiet(postgresql_site)


@pytest.fixture(params=[pytest.param("postgresql", marks=pytest.mark.postgresql), "sqlite"])
def any_site(request: pytest.FixtureRequest) -> Iterator[LiveSite]:
    """The site on each database in turn."""
    yield from quiet(request.getfixturevalue(f"{request.param}_site"))


@pytest.fixture
def site_on_sqlite(sqlite_site: LiveSite) -> Iterator[LiveSite]:
    """The site on SQLite."""
    yield from quiet(sqlite_site)


def quiet(site: LiveSite) -> Iterator[LiveSite]:
    """Empty the tables, lend the site, and end what still runs."""
    site.empty()
    try:
        yield site
    finally:
        site.end()
