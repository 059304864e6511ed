"""A PgBouncer before a database on a Unix socket: each transaction gets a session of its few."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2

from examples.embedded_postgres.binaries import server_user
from examples.embedded_postgres.supervisor import run_as
from tests.harness import until

PORT = "6432"  # of the name of its socket; nothing listens on TCP
PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
CONFIGURATION = """
[databases]
{NAME} = host={HOST} port={PORT} dbname={NAME} user={USER}
[pgbouncer]
listen_addr =
unix_socket_dir = {folder}
listen_port = {port}
auth_type = any
pool_mode = transaction
default_pool_size = 5
ignore_startup_parameters = extra_float_digits
"""


@contextmanager
def pooled(database: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Lend the entry of DATABASES that leads through a pooler in transaction mode; it ends with the block."""
    folder = Path(tempfile.mkdtemp(prefix="pooler-"))
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(CONFIGURATION.format(**database, folder=folder, port=PORT))
    user = server_user(folder)  # it refuses to run as root, and must reach the database's socket
    folder.chmod(0o755)
    if user:
        os.chown(folder, *user)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(PROGRAM), str(configuration)], stdout=log, stderr=log, cwd="/", **run_as(user)
        )
    through = {**database, "HOST": str(folder), "PORT": PORT}
    try:
        until(lambda: _answers(through) or process.poll() is not None, "the pooler answers")
        assert process.poll() is None, (folder / "log").read_text()
        yield through
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)


def _answers(database: dict[str, Any]) -> bool:
    keys = {"NAME": "dbname", "USER": "user", "HOST": "host", "PORT": "port"}
    try:
        psycopg2.connect(**{keyword: database[key] for key, keyword in keys.items()}).close()
    except psycopg2.OperationalError:
        return False
    return True
