"""PostgreSQL clusters on TCP ports: a primary and its standby, on this host or in a network namespace."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg2

from examples.embedded_postgres import binaries
from tests.harness import children, until

USER = NAME = "dbchannels"


class Cluster:
    """One cluster in a folder of its own; ``prefix`` is a command that starts its programs elsewhere."""

    def __init__(self, host: str, prefix: Sequence[str] = ()) -> None:
        self.host, self.port, self._prefix = host, free_port(), prefix
        self.folder = Path(tempfile.mkdtemp(prefix="dbchannels-cluster-", dir="/tmp"))
        self.data = self.folder / "data"
        user = binaries.server_user(str(self.data))
        self.programs = Path(binaries.readable_by(user, next(binaries.find())).folder)
        ids = [f"--reuid={user[0]}", f"--regid={user[1]}", "--clear-groups"] if user else []
        # The cluster ends with this process, even if that is killed.
        self._run = [*prefix, "setpriv", *ids, "--pdeathsig", "INT"]
        if user:
            os.chown(self.folder, *user)
        self.process: subprocess.Popen[bytes] | None = None

    def make(self) -> Cluster:
        """Make the data; every address may connect without a password."""
        self.command("initdb", "-D", self.data, "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync")
        with (self.data / "pg_hba.conf").open("a") as file:
            file.write("host all all all trust\nhost replication all all trust\n")
        return self

    def follow(self, primary: Cluster, synchronous: bool) -> None:
        """Start as the standby of a running primary, as a copy of its data; wait until it has everything."""
        source = f"host={primary.host} port={primary.port} user={USER} application_name=standby"
        self.command("pg_basebackup", "-D", self.data, "-d", source, "-R", "-X", "stream", "-c", "fast")
        self.start()
        if synchronous:
            primary.rows("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            primary.rows("SELECT pg_reload_conf()")
        state = "sync" if synchronous else "async"
        query = f"SELECT 1 FROM pg_stat_replication WHERE sync_state = '{state}' AND state = 'streaming'"
        until(lambda: primary.rows(query), "the standby follows", 60)

    def command(self, program: str, *arguments: Any) -> None:
        """Run one of PostgreSQL's programs to its end."""
        command = [*self._run, str(self.programs / program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=120)
        assert done.returncode == 0, done.stderr

    def start(self, **settings: str) -> Cluster:
        """Start the server; wait until it takes connections."""
        own = {"listen_addresses": self.host, "port": str(self.port), "unix_socket_directories": ""}
        options = [part for name, value in {**own, **settings}.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._run, str(self.programs / "postgres"), "-D", str(self.data), *options],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self.is_ready, lambda: (self.folder / "log").read_text(), 60)
        return self

    def is_ready(self) -> bool:
        """Whether the server takes connections."""
        try:
            return (self.data / "postmaster.pid").read_text().split("\n")[7].strip() == "ready"
        except (FileNotFoundError, IndexError):
            return False

    def rows(self, query: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement on this cluster, whatever its role."""
        connection = psycopg2.connect(host=self.host, port=self.port, user=USER, dbname=database)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def promote(self) -> None:
        """Make the standby the primary; return when it takes writes."""
        self.command("pg_ctl", "promote", "-w", "-D", self.data)

    def kill(self) -> None:
        """Kill all processes of the server at once, as if its host had lost power."""
        if self.process is None:
            return
        pids = [self.process.pid, *children(self.process.pid)]
        for pid in pids:  # nobody may clean up after another
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        for pid in [*pids, *children(self.process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        self.process = None

    def end(self) -> None:
        """Kill the server and delete its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port() -> int:
    """Return a port of the loopback that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def entry(*clusters: Cluster) -> dict[str, Any]:
    """Return the entry of DATABASES for clusters of which one takes writes."""
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": NAME,
        "USER": USER,
        "HOST": ",".join(one.host for one in clusters),
        "PORT": ",".join(str(one.port) for one in clusters),
        "OPTIONS": {"target_session_attrs": "read-write", "connect_timeout": 2, "tcp_user_timeout": 10_000},
    }
