"""Sites to break: each on a database of its own, all of it gone at the end of the block."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examples.embedded_postgres import EmbeddedPostgres
from tests.harness import LiveSite, close_all


def options(**given: Any) -> dict[str, Any]:
    """Return the settings for these OPTIONS of the layer."""
    return {"DBCHANNELS": {"default": {"OPTIONS": given}}}


@contextmanager
def on_postgresql(**settings: str) -> Iterator[tuple[LiveSite, EmbeddedPostgres]]:
    """Lend a site on a PostgreSQL server of its own, with these settings, which keeps what it has acknowledged."""
    with (
        tempfile.TemporaryDirectory(prefix="dbchannels-soak-") as folder,
        EmbeddedPostgres.start(settings=settings) as server,
        _migrated(LiveSite(server.settings(), Path(folder))) as site,
    ):
        yield site, server


@contextmanager
def on_sqlite() -> Iterator[LiveSite]:
    """Lend a site on a SQLite file."""
    pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL"
    given = {"timeout": 20, "transaction_mode": "IMMEDIATE", "init_command": pragmas}
    with tempfile.TemporaryDirectory(prefix="dbchannels-soak-") as folder:
        entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{folder}/site.sqlite3", "OPTIONS": given}
        with _migrated(LiveSite(entry, Path(folder))) as site:
            yield site


@contextmanager
def _migrated(site: LiveSite) -> Iterator[LiveSite]:
    done = site.manage("migrate", "--verbosity", "0")
    assert done.returncode == 0, done.stderr
    try:
        yield site
    finally:
        site.end()
        close_all()


def scaled(full: int, scale: float, least: int = 1) -> int:
    """Return how many of something a run of this scale takes."""
    return max(least, round(full * scale))
