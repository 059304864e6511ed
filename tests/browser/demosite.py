"""The examples as a visitor meets them: ``examples/manage.py demo`` on a database of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.harness import HOST, SiteDatabase, until

MANAGE = Path(__file__).parents[2] / "examples" / "manage.py"
#: What the examples' processes must not inherit: the test run's own choices.
OURS = ("DBCHANNELS", "DJANGO", "DATABASE_URL", "ALLOWED_HOSTS", "DEBUG", "TZ")


def database_url(entry: dict[str, Any]) -> str:
    """Return an entry of DATABASES as DATABASE_URL has it; a socket's folder stands in the host's place."""
    if entry["ENGINE"].endswith("sqlite3"):
        return f"sqlite:///{entry['NAME']}"
    if entry["ENGINE"].endswith("mysql"):
        return f"mysql://{entry['USER']}@/{entry['NAME']}?unix_socket={quote(entry['HOST'], safe='')}"
    user, password, host = (quote(str(entry[key]), safe="") for key in ("USER", "PASSWORD", "HOST"))
    return f"postgres://{user}:{password}@{host}:{entry['PORT']}/{entry['NAME']}"


def environment(entry: dict[str, Any]) -> dict[str, str]:
    """Return what the examples' processes find in their environment: this database, and nothing of the test run."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(OURS)},
        "DATABASE_URL": database_url(entry),
        "DJANGO_SECRET_KEY": "only for the tests",
        "PYTHONUNBUFFERED": "1",
    }


class DemoSite(SiteDatabase):
    """A database, and the processes of ``manage.py`` that use it."""

    def __init__(self, entry: dict[str, Any], folder: Path) -> None:
        super().__init__(entry)
        self.folder = folder
        self.commands: list[Command] = []
        self.forgiven: list[str] = []  # parts of lines of the log that had to go wrong
        self.environment = environment(entry)

    def start(self, *arguments: str, says: str = "") -> Command:
        """Start a command; wait until it says that it is ready."""
        self.commands.append(Command(self, arguments))
        self.commands[-1].wait_for(says)
        return self.commands[-1]

    def demo(self, *arguments: str, port: int = 0) -> Command:
        """Start the examples, on a free port unless one is named."""
        return self.start("demo", f"{HOST}:{port}", *arguments, says="quit with")

    def end(self) -> None:
        """End what still runs, the servers with their workers."""
        for command in self.commands:
            command.end()
        self.disconnect()

    # Workers.

    def workers(self) -> set[int]:
        """Return the process ids of the workers at work."""
        return {pid for (pid,) in self.rows("SELECT pid FROM dbchannels_process WHERE kind = 'worker'")}

    def holder(self, channel: str) -> int | None:
        """Return the process id of a worker that holds a message of the channel; None when nobody does."""
        held = (
            "SELECT pid FROM dbchannels_process JOIN dbchannels_inflight ON worker = name WHERE messages LIKE"
        )
        return next((pid for (pid,) in self.rows(f"{held} '{channel} %'")), None)

    def waiting(self, channel: str) -> int:
        """Return how many messages wait on a protocol channel."""
        return self.rows(f"SELECT count(*) FROM dbchannels_protocolmessage WHERE channel = '{channel}'")[0][0]

    def restart_workers(self) -> None:
        """Stop all workers, as a deploy does, and wait for as many new ones."""
        old = self.workers()
        for pid in old:
            os.kill(pid, signal.SIGTERM)
        until(
            lambda: len(self.workers()) == len(old) and not self.workers() & old, "other workers than before"
        )


class Command:
    """One command of ``manage.py``, with all that it starts."""

    def __init__(self, site: DemoSite, arguments: tuple[str, ...]) -> None:
        self.log = site.folder / f"{len(site.commands)}-{arguments[0]}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(MANAGE), *arguments],
                env=site.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        """Return everything that it has printed."""
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        """Wait until it has printed a text."""
        until(lambda: text in self.output() or self.process.poll() is not None, f"{text!r} of {self.log}")
        assert text in self.output(), self.output()

    @property
    def port(self) -> int:
        """The port that it serves."""
        return int(re.findall(rf"http://{re.escape(HOST)}:(\d+)/", self.output())[-1])

    @property
    def url(self) -> str:
        """Where it serves, without the path."""
        return f"http://{HOST}:{self.port}"

    def stop(self) -> None:
        """Ask it to end, as Ctrl-C does, and wait until it has."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(60) in (0, -signal.SIGINT), self.output()

    def end(self) -> None:
        """Stop it if it runs; kill it if it does not want to. Its workers end with it."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)
