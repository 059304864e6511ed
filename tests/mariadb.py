"""A MariaDB of the machine's own programs on a Unix socket, and PyMySQL in the place of mysqlclient."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examples.embedded_postgres.binaries import server_user
from examples.embedded_postgres.supervisor import run_as
from tests.harness import until

try:
    import pymysql
except ImportError:
    pymysql = None
else:
    pymysql.install_as_MySQLdb()

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
PROGRAM, INSTALL = shutil.which("mariadbd", path=PATH), shutil.which("mariadb-install-db", path=PATH)
#: Why there is none; "" where there is one.
MISSING = "" if PROGRAM and INSTALL and pymysql else "needs mariadb-server and PyMySQL"


class MariaDB:
    """A server in a folder of its own, which ``mariadb`` ends."""

    def __init__(self, folder: Path) -> None:
        self.socket, self._folder, self._user = folder / "socket", folder, server_user(folder)
        folder.chmod(0o755)
        if self._user:
            os.chown(folder, *self._user)
        made = subprocess.run(
            [
                INSTALL,
                "--no-defaults",
                f"--datadir={folder}/data",
                "--auth-root-authentication-method=normal",
            ],
            cwd="/",
            capture_output=True,
            text=True,
            **run_as(self._user),
        )
        assert made.returncode == 0, made.stdout + made.stderr
        self.start()

    def start(self, *options: str) -> None:
        """Start the server, and wait until it takes connections."""
        command = [PROGRAM, "--no-defaults", f"--datadir={self._folder}/data", f"--socket={self.socket}"]
        quick = ["--skip-networking", "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=32M"]
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *quick, *options], stdout=log, stderr=log, cwd="/", **run_as(self._user)
            )
        until(lambda: self._answers() or self.process.poll() is not None, "MariaDB answers")
        assert self.process.poll() is None, (self._folder / "log").read_text()

    def stop(self) -> None:
        """End the server, as a restart does."""
        self.process.terminate()
        self.process.wait(30)

    def database(self, name: str, options: str = "") -> dict[str, Any]:
        """Make a database, in the server's character set unless the options say otherwise; return its entry."""
        self.execute(f"CREATE DATABASE {name} {options}")
        return {
            "ENGINE": "django.db.backends.mysql",
            "NAME": name,
            "USER": "root",
            "HOST": str(self.socket),
        }

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement in a session of its own; return its rows."""
        with pymysql.connect(unix_socket=str(self.socket), user="root", autocommit=True) as connection:
            cursor = connection.cursor()
            cursor.execute(statement)
            return list(cursor.fetchall())

    def _answers(self) -> bool:
        with socket.socket(
            socket.AF_UNIX
        ) as probe:  # PyMySQL would leave the socket of a failed connection open
            if probe.connect_ex(str(self.socket)):
                return False
        return bool(self.execute("SELECT 1"))


@contextmanager
def mariadb() -> Iterator[MariaDB]:
    """Run a server during the block."""
    folder = Path(tempfile.mkdtemp(prefix="mariadb-"))
    server = None
    try:
        server = MariaDB(folder)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
