"""A live site on a database of its own for each kind; its processes end with each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from django.conf import settings

from tests.harness import LiveSite, Served, close_all, until
from tests.settings import WORKER

#: Fixtures that are a site on PostgreSQL; those on each database mark their own parameters.
ON_POSTGRESQL = {"site", "served", "large"}
LARGE = str(64 * 1_048_576)  # bytes, as --max-body takes them


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    for item in items:
        if item.path.parent.name == "endtoend" and ON_POSTGRESQL & set(item.fixturenames):
            item.add_marker(pytest.mark.postgresql)


def administer(database: dict[str, Any], *statements: str) -> None:
    """Execute statements on the server of an entry of DATABASES, beside all of its databases."""
    keys = {"USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    given = {name: database[key] for key, name in keys.items() if database[key]}
    with closing(psycopg2.connect(dbname="postgres", **given)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)


def postgresql_database(name: str) -> dict[str, Any]:
    """Create a database on the test run's server; return its entry of DATABASES."""
    keys = ("ENGINE", "USER", "PASSWORD", "HOST", "PORT")
    entry = {key: settings.DATABASES["default"].get(key, "") for key in keys}
    name = "_".join(filter(None, [name, WORKER]))
    administer(entry, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name}")
    return {**entry, "NAME": name}


def sqlite_database(folder: Path) -> dict[str, Any]:
    """Return an entry of DATABASES for a new file."""
    pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL"
    options = {"timeout": 20, "transaction_mode": "IMMEDIATE", "init_command": pragmas}
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "site.sqlite3"), "OPTIONS": options}


#: By server, None for SQLite: the name of a database, or the content of a file, that the migrations have made.
MIGRATED: dict[str | None, Any] = {}


def migrated(database: dict[str, Any], folder: Path) -> LiveSite:
    """Return a site whose tables are there: the migrations run once on each server, and what they made is copied."""
    site, name, server = LiveSite(database, folder), str(database["NAME"]), database.get("HOST")
    known = server in MIGRATED
    if not known:
        done = site.manage("migrate", "--verbosity", "0")
        assert done.returncode == 0, done.stderr
    if server is None:
        if known:
            Path(name).write_bytes(MIGRATED[server])
        MIGRATED[server] = Path(name).read_bytes()
    elif known:
        administer(database, f"DROP DATABASE {name}", f"CREATE DATABASE {name} TEMPLATE {MIGRATED[server]}")
    else:
        MIGRATED[server] = f"{name}_migrated"
        administer(
            database,
            f"DROP DATABASE IF EXISTS {MIGRATED[server]}",
            f"CREATE DATABASE {MIGRATED[server]} TEMPLATE {name}",
        )
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
        yield site.serve("--workers", "2", "--max-body", "1114112", checks=True)
    finally:
        site.end()


@pytest.fixture(scope="session")
def served_on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The like on SQLite; it takes bodies of 64 MiB."""
    folder = tmp_path_factory.mktemp("served-on-sqlite")
    site = migrated(sqlite_database(folder), folder)
    try:
        yield site.serve("--workers", "2", "--max-body", LARGE, checks=True)
    finally:
        site.end()


@pytest.fixture(params=[pytest.param("served", marks=pytest.mark.postgresql), "served_on_sqlite"])
def any_served(request: pytest.FixtureRequest) -> Served:
    """The server of `served` on each database in turn, without connections and entries of earlier tests."""
    return emptied(request.getfixturevalue(request.param))


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with one worker that takes bodies of 64 MiB; the lease decides nothing while tests run."""
    settings = {"DBCHANNELS": {"default": {"OPTIONS": {"lease": 600}}}}
    site = migrated(postgresql_database("dbchannels_large"), tmp_path_factory.mktemp("large"))
    try:
        yield site.serve("--workers", "1", "--max-body", LARGE, settings=settings, checks=True)
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


def emptied(served: Served) -> Served:
    """Wait until the clients of earlier tests have left a server that goes on; delete the entries."""
    left = [f"(SELECT count(*) FROM dbchannels_{table})" for table in ("connection", "durablemessage")]
    until(lambda: served.site.rows(f"SELECT {' + '.join(left)}") == [(0,)], "all have left")
    served.site.rows("DELETE FROM livesite_entry")
    return served


def quiet(site: LiveSite) -> Iterator[LiveSite]:
    """Empty the tables, lend the site, and end what still runs."""
    site.empty()
    try:
        yield site
    finally:
        site.end()
