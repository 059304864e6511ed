"""Keeps worker processes running: starts them, sees them die, says so, and starts them again.

They are exec'ed as ``manage.py runworker``, never forked: this process has threads, and no code of the site.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dbchannels import names
from dbchannels.backoff import Backoff
from dbchannels.doorbell import Doorbell

log = logging.getLogger("dbchannels.supervisor")

STEADY = 2.0  # seconds after which a worker counts as started well: its next death starts the delays anew
KILL_AFTER = 5.0  # seconds beyond the workers' own graceful time-out


class Task(NamedTuple):
    """What one worker is to do."""

    arguments: tuple[str, ...]  # of runworker
    bells: tuple[Doorbell, ...]


class Supervisor:
    """One thread for each worker. ``on_death`` is told the name of a worker that ended before it was asked to."""

    def __init__(
        self, tasks: Sequence[Task], on_death: Callable[[str], None], graceful_timeout: float
    ) -> None:
        self._on_death = on_death
        self._graceful_timeout = graceful_timeout
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._threads = [
            threading.Thread(target=self._keep, args=(number, task), name=f"worker {number}", daemon=True)
            for number, task in enumerate(tasks, 1)
        ]

    def start(self) -> None:
        """Start the workers."""
        for thread in self._threads:
            thread.start()

    def pids(self) -> list[int]:
        """Return the process ids of the workers that run now."""
        with self._lock:
            return [process.pid for process in self._processes.values()]

    def stop(self) -> None:
        """Ask the workers to finish; kill those that do not within the time. Returns when all have ended."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + self._graceful_timeout + KILL_AFTER
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._signal(signal.SIGKILL)
        for thread in self._threads:
            thread.join()

    def _signal(self, number: int) -> None:
        with self._lock:
            for process in self._processes.values():
                process.send_signal(number)

    def _keep(self, number: int, task: Task) -> None:
        delays = Backoff(0.1, 10.0)
        while not self._stopping.is_set():
            name = f"worker-{number}-{names.random_part()}"
            started = time.monotonic()
            try:
                status = self._run(name, task)
            except OSError as error:  # no memory, or too many processes: later there may be room
                log.error("Worker %d cannot be started (%s); trying again.", number, error)
                self._stopping.wait(delays.delay())
                continue
            if self._stopping.is_set() and status == 0:
                return
            self._on_death(name)
            if time.monotonic() - started > STEADY:
                delays = Backoff(0.1, 10.0)
            delay = delays.delay()
            if not self._stopping.is_set():
                log.warning("Worker %d %s; starting another in %.1f s.", number, _ending(status), delay)
            self._stopping.wait(delay)

    def _run(self, name: str, task: Task) -> int:
        with self._lock:
            if self._stopping.is_set():
                return 0
            process = self._processes[name] = start_worker(name, task)
        try:
            return process.wait()
        finally:
            with self._lock:
                del self._processes[name]
            if process.stdin:
                process.stdin.close()


def start_worker(name: str, task: Task) -> subprocess.Popen[bytes]:
    """Start ``runworker``. Its standard input is a pipe that ends when this process dies, however it dies."""
    bells = [text for bell in task.bells for text in ("--bell", str(bell))]
    command = [*manage_command(), "runworker", "--child", name, *bells, *task.arguments]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        pass_fds=[descriptor for bell in task.bells for descriptor in bell],
        # A session of its own: Ctrl-C in the terminal reaches us alone, and we tell the workers in good order.
        start_new_session=True,
    )


def manage_command() -> list[str]:
    """Return the command line of this very ``manage.py``, without its arguments."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name not in (None, "__main__"):
        module = spec.name.removesuffix(".__main__")
        return [sys.executable, "-m", module]
    return [sys.executable, os.path.abspath(sys.argv[0])]


def _ending(status: int) -> str:
    if status < 0:
        known = -status in list(signal.Signals)  # not all of the real-time ones have a name
        return f"was killed by {signal.Signals(-status).name if known else f'signal {-status}'}"
    return f"ended with status {status}"
