"""A PostgreSQL server of one's own for examples and tests: no installation, no port, no password.

`database(folder, sqlite=...)` is the line for a settings module; `EmbeddedPostgres.start()` is for tests that
break the server. Processes that name the same folder share one server. It stops with the last of them,
however that ends, because what keeps it running is a file lock, which the kernel takes back.
"""

from __future__ import annotations

import os
import sys

from examples.embedded_postgres.server import NAME, EmbeddedPostgres, PostgresMissing, say
from examples.embedded_postgres.supervisor import PostgresUnavailable

__all__ = ["EmbeddedPostgres", "PostgresUnavailable", "database", "describe", "start"]

CHOICE = "DBCHANNELS_POSTGRES"  # system, wheel or sqlite; goes before everything else, DATABASE_URL included
JOIN = "DBCHANNELS_POSTGRES_JOIN"  # set for child processes: the folders whose server a parent holds
PARENT = "DBCHANNELS_POSTGRES_PARENT"  # the process id of that parent

start = EmbeddedPostgres.start

_held = {}  # by folder: the servers that `database` holds until this process ends


def database(folder, sqlite, name=NAME, settings=None):
    """Returns DATABASES["default"]: from DATABASE_URL, else PostgreSQL in `folder`, else SQLite at `sqlite`.

    `folder` and `sqlite` are paths; `settings` are those of `EmbeddedPostgres.start`. The environment variable
    DBCHANNELS_POSTGRES = system, wheel or sqlite allows that one only. The server is held until this process
    ends. Child processes evaluate the same settings: they join the server, and never start another while their
    parent is on its way out. What cannot be done ends the process with one sentence: Django prints a traceback
    for an exception in the settings.
    """
    choice = os.environ.get(CHOICE, "")
    try:
        if choice not in ("", "system", "wheel", "sqlite"):
            raise PostgresUnavailable(f"{CHOICE}={choice} is unknown: use system, wheel or sqlite.")
        if not choice and os.environ.get("DATABASE_URL"):
            return _from_url(os.environ["DATABASE_URL"])
        if choice != "sqlite" and (server := _hold(os.path.realpath(folder), choice or None, settings)):
            return server.settings(name)
    except PostgresUnavailable as problem:
        sys.exit(f"dbchannels: {problem}")
    return _sqlite(sqlite)


def _hold(folder, kind, settings):
    """The server of `folder`, or None where SQLite is to be used."""
    server = _held.get(folder)
    if server and kind in (None, server.source):
        return server
    joined = os.environ.get(JOIN, "").split(os.pathsep)
    # A process that has replaced itself, as `runserver` does, is its own parent, and may start the server again.
    if folder in joined and os.environ.get(PARENT) != str(os.getpid()):
        _held[folder] = EmbeddedPostgres.join(folder)
        return _held[folder]
    try:
        _held[folder] = start(folder, binaries=kind, settings=settings)
    except PostgresUnavailable as problem:
        if kind:
            raise
        if not isinstance(problem, PostgresMissing):
            say(f"SQLite is used, for this reason: {problem}")
        return None
    os.environ[JOIN] = os.pathsep.join([*filter(None, joined), folder])
    os.environ[PARENT] = str(os.getpid())
    return _held[folder]


def _from_url(url):
    try:
        import dj_database_url  # not needed by those who set no DATABASE_URL
    except ImportError:
        reason = "DATABASE_URL needs dj-database-url: run pip install dj-database-url, or unset DATABASE_URL."
        raise PostgresUnavailable(reason) from None
    try:
        entry = dj_database_url.parse(url)
    except ValueError as error:
        reason = str(error).partition(". ")[0]
        raise PostgresUnavailable(f"DATABASE_URL names no database ({reason}): correct it.") from None
    if entry["ENGINE"].endswith("sqlite3"):
        # What the URL says of an option goes first.
        return {**entry, "OPTIONS": {**_sqlite(entry["NAME"])["OPTIONS"], **entry.get("OPTIONS", {})}}
    return entry


def _sqlite(path):
    # IMMEDIATE: a deferred transaction that reads first and then writes fails at once with BUSY.
    options = {
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        "timeout": 20,
    }
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": path, "OPTIONS": options}


def describe(entry):
    """What an entry of DATABASES is, in a few words for a banner."""
    name, host = entry.get("NAME"), entry.get("HOST") or entry.get("OPTIONS", {}).get("host")
    if entry["ENGINE"].endswith("sqlite3"):
        return f"SQLite at {name}"
    for server in _held.values():
        if server.socket == host:
            return str(server)
    engine = "PostgreSQL" if entry["ENGINE"].endswith("postgresql") else entry["ENGINE"].rpartition(".")[2]
    return f"{engine} {name} at {host or 'this machine'}"
