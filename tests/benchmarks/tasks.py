"""Background tasks beside Celery on Redis, procrastinate and django-tasks-db, each in processes of its own.

``--against PYTHON`` names the interpreter of an environment with ``celery[redis] procrastinate django-tasks
django-tasks-db psycopg[binary] psycopg2-binary``, and Redis must be installed. Without it only ours is measured. The
systems take turns. Each has one worker process, keeps its results, and enqueues one task per transaction; the server
syncs.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from examples.embedded_postgres import EmbeddedPostgres
from tests.benchmarks.measure import beside_others

ROUNDS = 5
#: How many tasks each system has in a round: about three seconds' work.
TASKS = {"dbchannels": 6000, "celery": 2000, "procrastinate": 1000, "django-tasks-db": 300}
WAKES = 40
OURS = "dbchannels"
#: What ours is to reach beside the best of the others, and whether more is better.
TARGETS = {"enqueue /s": (1.2, True), "drain /s": (4.0, True), "wake ms": (1.0, False)}

Numbers = dict[str, float]


class System:
    """One system in its own database, or in Redis."""

    def __init__(self, name: str, python: str, server: EmbeddedPostgres, redis: str, folder: Path) -> None:
        database = {**server.settings(), "NAME": f"bench_{name.replace('-', '_')}"}
        server.create(database["NAME"])
        self.name, self._python, self.ticks = name, python, folder / f"{name}.ticks"
        self.ticks.touch()
        self._environment = {
            **os.environ,
            "BENCH_SYSTEM": name,
            "BENCH_DATABASE": json.dumps(database, default=str),
            "BENCH_CONNINFO": " ".join(
                f"{key}={database[field]}"
                for key, field in {"host": "HOST", "port": "PORT", "user": "USER", "dbname": "NAME"}.items()
                if database.get(field)
            ),
            "BENCH_REDIS": redis,
            "BENCH_TICKS": str(self.ticks),
            "DJANGO_SETTINGS_MODULE": "tests.benchmarks.task_systems",
            "PYTHONPATH": os.getcwd(),
        }

    def _start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        program = [self._python, "-m", "tests.benchmarks.task_systems", *command]
        return subprocess.Popen(program, env=self._environment, text=True, **options)

    def run(self, *command: str) -> str:
        """Run a command to its end; return what it prints."""
        process = self._start(*command, stdout=subprocess.PIPE)
        output, _ = process.communicate(timeout=120)
        if process.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(command)} failed")
        return output

    @contextmanager
    def worker(self) -> Iterator[None]:
        """Run a worker during the block."""
        process = self._start("worker", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)

    def _wait(self, number: int) -> list[float]:
        """Return the moments at which tasks ran, when so many have."""
        until = time.monotonic() + 120
        while self.ticks.stat().st_size < 8 * number:
            if time.monotonic() > until:
                raise RuntimeError(f"{self.name} ran {self.ticks.stat().st_size // 8} of {number} tasks")
            time.sleep(0.05)
        return [one for (one,) in struct.iter_unpack("d", self.ticks.read_bytes())]

    def round(self, number: int) -> Numbers:
        """Enqueue, drain and wake once."""
        self.ticks.write_bytes(b"")
        enqueued = float(self.run("enqueue", str(number)))
        with self.worker():
            # The first tenth belongs to the start of the worker.
            moments = sorted(self._wait(number))[number // 10 :]
            drained = (len(moments) - 1) / (moments[-1] - moments[0])
            time.sleep(1.0)
            woken = float(self.run("wake", str(WAKES)))
        return {"enqueue /s": enqueued, "drain /s": drained, "wake ms": woken}


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Run Redis on a free port of the loopback; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [
        str(shutil.which("redis-server")),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
    ]
    process = subprocess.Popen([*program, "--save", ""], stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


def figures(quick: bool, against: str = "") -> Iterator[str]:
    """Yield the lines of the table."""
    rounds, share = (1, 5) if quick else (ROUNDS, 1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        server = stack.enter_context(EmbeddedPostgres.start())
        redis = stack.enter_context(redis_server(folder)) if against else ""
        pythons = {name: sys.executable if name == OURS else against for name in TASKS}
        systems = [System(name, python, server, redis, folder) for name, python in pythons.items() if python]
        for one in systems:
            one.run("setup")
        found: dict[str, list[Numbers]] = {one.name: [] for one in systems}
        for _ in range(rounds):
            for one in systems:
                found[one.name].append(one.round(TASKS[one.name] // share))
    yield from beside_others("", found, TARGETS)
