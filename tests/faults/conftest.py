"""A live site on a PostgreSQL server of its own, which a test may break."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings

from examples.embedded_postgres import EmbeddedPostgres
from tests.endtoend.conftest import (
    _close_sockets,
    migrated,
    postgresql_database,
    quiet,
    sqlite_database,
)
from tests.harness import LiveSite

__all__ = ["_close_sockets"]


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedPostgres]:
    """The server: its data is lost by nothing that a test does, but by a crash of the machine."""
    with EmbeddedPostgres.start(settings={"fsync": "off"}) as server:
        yield server


@pytest.fixture(scope="session")
def fragile_site(server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> LiveSite:
    """A site on that server."""
    return migrated(server.settings(), tmp_path_factory.mktemp("fragile"))


@pytest.fixture
def site(fragile_site: LiveSite) -> Iterator[LiveSite]:
    """That site, all quiet, its tables empty."""
    yield from quiet(fragile_site)


@pytest.fixture
def sqlite_site(tmp_path: Path) -> Iterator[LiveSite]:
    """A site on a SQLite file."""
    yield from quiet(migrated(sqlite_database(tmp_path), tmp_path))


@pytest.fixture
def silent_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """A site on a database that takes every NOTIFY and tells nobody."""
    yield from hooked_site("pg_notify(text, text) RETURNS void LANGUAGE sql AS 'SELECT'", tmp_path_factory)


@pytest.fixture
def filling_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """A site whose queue of notifications is as full as its table ``usage`` says: at first 12 %.

    To fill 8 GB in earnest would take longer than all tests together.
    """
    hook = "pg_notification_queue_usage() RETURNS float LANGUAGE sql AS 'SELECT max(share) FROM public.usage'"
    yield from hooked_site(
        hook, tmp_path_factory, "CREATE TABLE public.usage AS SELECT 0.12::float AS share; "
    )


def hooked_site(
    function: str, tmp_path_factory: pytest.TempPathFactory, before: str = ""
) -> Iterator[LiveSite]:
    """Lend a site on a database with a function in place of one of PostgreSQL's."""
    name = str(postgresql_database("dbchannels_hooked")["NAME"])
    entry = {**settings.DATABASES["default"], "NAME": name}
    keys = ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT")
    site = migrated({key: entry.get(key, "") for key in keys}, tmp_path_factory.mktemp("hooked"))
    # Ours are looked for nowhere else than in pg_catalog.
    taken = function.partition(")")[0] + ")"
    site.rows(
        f"{before}SET allow_system_table_mods = on; ALTER FUNCTION pg_catalog.{taken} RENAME TO replaced; "
        f"CREATE FUNCTION pg_catalog.{function}"
    )
    yield from quiet(site)
