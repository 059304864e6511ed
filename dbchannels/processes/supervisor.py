"""Keeps worker processes running: starts them, logs when one dies, and starts another.

A worker is a new ``manage.py runworker``, never a fork: this process has threads, and imports no code of the site.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from django.core.management import get_commands

from dbchannels import names
from dbchannels.measures import Counted, new_report, parse_report, read_report, total
from dbchannels.protocol import HTTP, WEBSOCKET
from dbchannels.wakeup import Backoff, WakeupPipe, wait_readable

log = logging.getLogger("dbchannels.supervisor")

STEADY = 2.0  # seconds after which a worker that was ready counts as well started: the back-off is reset
SOON = (
    1.0  # seconds at most until a worker that was ready is replaced: the messages that it held wait for that
)
READY_WITHIN = 60.0  # seconds in which a new worker must have imported the site
KILL_AFTER = 5.0  # seconds beyond the workers' own graceful time-out
REPLACED = (
    79  # exit status of a worker that has ended in good order and wants a successor: none of sysexits.h
)
GIVE_BACK = 1.0  # seconds between a second SIGTERM, at which a worker gives back its messages, and SIGKILL


class Task(NamedTuple):
    """What one worker is to do."""

    arguments: tuple[str, ...]  # of runworker
    wakeups: Mapping[str, WakeupPipe]  # that wake it, by the KINDS of ``protocol``
    local_wakeups: tuple[tuple[str, WakeupPipe], ...] = ()  # (queue, pipe) of readers that it wakes itself
    files: tuple[str, int] | None = None  # the queue of a reader, and the socket on which that takes files
    threads: int = 1  # each takes messages under a name of its own
    reloads: bool = False  # whether it takes no more messages once its code has changed


class WorkerProcess:
    """A running worker. It writes a byte into a pipe when it is registered and takes messages."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], reader: int, report: int) -> None:
        self.name, self.process = name, process
        self.names = [name]  # of all its threads
        self.kinds: frozenset[str] = frozenset()  # of the messages that it takes, see Task.wakeups
        self.started_at = time.monotonic()
        self._reader = reader  # of the pipe
        self._report = report  # the file in which it leaves what it has counted
        self._last_report = b""
        self._ready = False
        self._reading = threading.Lock()
        os.set_blocking(reader, False)

    def is_ready(self, timeout: float = 0.0) -> bool:
        """Whether the worker takes messages; wait up to ``timeout`` seconds for it, unless it ends before."""
        if not self._ready and wait_readable([self._reader], timeout):
            with self._reading, suppress(BlockingIOError):  # another thread may have read it just now
                self._ready = os.read(self._reader, 1) == b"!" or self._ready
        return self._ready

    def report(self) -> bytes:
        """Return what the worker had counted about a second ago, for ``parse_report``."""
        self._last_report = read_report(self._report) or self._last_report
        return self._last_report

    def close(self) -> None:
        """Close the pipes of a process that has ended."""
        os.close(self._reader)
        os.close(self._report)
        if self.process.stdin:
            self.process.stdin.close()


class Slot:
    """A place for one worker: the task, and the process that does it at the moment."""

    def __init__(self, number: int, task: Task) -> None:
        self.number, self.task = number, task
        self.worker: WorkerProcess | None = None


class Supervisor:
    """Runs one thread for each worker. ``on_death`` is called with the name of a worker that died."""

    def __init__(
        self, tasks: Sequence[Task], on_death: Callable[[str], None], graceful_timeout: float
    ) -> None:
        self._on_death = on_death
        self._graceful_timeout = graceful_timeout
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._restarting = threading.Lock()
        self.unready_end = ""  # how the last worker ended that had not got ready
        self._had_ready = False
        self._processes: list[WorkerProcess] = []  # all that run, with those that are about to take over
        self._ended: Counted = {}, {}  # what those counted that have ended
        self._counted: tuple[Counted, Sequence[bytes]] = self._ended, ()
        self._slots = [Slot(number, task) for number, task in enumerate(tasks, 1)]
        self._threads = [
            threading.Thread(target=self._keep, args=(slot,), name=f"worker {slot.number}", daemon=True)
            for slot in self._slots
        ]

    def start(self) -> None:
        """Start the workers."""
        for thread in self._threads:
            thread.start()

    def has_ready(self) -> bool:
        """Whether workers take both requests and frames; never blocks."""
        if self._lock.acquire(blocking=False):  # the hub calls this, and must not wait for a process to start
            try:
                taken = {kind for worker in self._processes if worker.is_ready() for kind in worker.kinds}
                self._had_ready = taken >= {HTTP, WEBSOCKET}
            finally:
                self._lock.release()
        return self._had_ready

    def counted(self) -> tuple[Counted, Sequence[bytes]]:
        """Return what workers that have ended counted since this process began, and the reports of those that run.

        This never blocks: while a worker is started or ends, it is what it was before.
        """
        if self._lock.acquire(blocking=False):
            try:
                self._counted = self._ended, [worker.report() for worker in self._processes]
            finally:
                self._lock.release()
        return self._counted

    def ready_names(self) -> set[str]:
        """Return the names of the workers that take messages."""
        with self._lock:
            return {name for worker in self._processes if worker.is_ready() for name in worker.names}

    def stop(self, within: float | None = None) -> None:
        """Ask the workers to end, and return when they have.

        A worker that is still running after ``within`` seconds gives back its messages, or is killed.
        """
        self.stopping.set()
        deadline = time.monotonic() + (self._graceful_timeout + KILL_AFTER if within is None else within)
        for ends_at in (deadline - GIVE_BACK, deadline):
            self._signal(signal.SIGTERM)
            for thread in self._threads:
                thread.join(max(0.0, ends_at - time.monotonic()))
        self.kill()
        for thread in self._threads:
            thread.join()
        with self._restarting:  # a restart ends the workers that it has started
            return

    def stop_now(self) -> None:
        """End the workers within a second; what they run is given back, unless a consumer prevents even that."""
        self.stopping.set()
        # A worker that gets two signals waits for nothing; of one kind the kernel may pass on only one.
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGINT)
        ends_at = time.monotonic() + GIVE_BACK
        for thread in self._threads:
            thread.join(max(0.0, ends_at - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """End all workers now."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with self._lock:
            for worker in self._processes:
                worker.process.send_signal(number)

    # Keeping one worker.

    def _keep(self, slot: Slot) -> None:
        delays = Backoff(0.1, 10.0)
        while slot.worker is not None or not self.stopping.is_set():
            try:
                with self._lock:
                    if slot.worker is None and self.stopping.is_set():
                        return
                    worker = slot.worker = slot.worker or self._launch(slot)
            except OSError as error:  # no memory, or too many processes: this may pass
                log.error("Worker %d cannot be started (%s); trying again.", slot.number, error)
                self.stopping.wait(delays.delay())
                continue
            status = worker.process.wait()
            was_ready = worker.is_ready()
            if not was_ready:
                self.unready_end = f"worker {slot.number} {_ending(status)}"
            steady = was_ready and time.monotonic() - worker.started_at > STEADY
            replaced = self._end(slot, worker)
            if status == REPLACED or (status == 0 and (replaced or self.stopping.is_set())):
                continue  # it has left no record behind
            for name in worker.names:
                self._on_death(name)
            if replaced:
                continue
            if steady:
                delays = Backoff(0.1, 10.0)
            delay = delays.delay()
            if was_ready:
                delay = min(delay, SOON)
            if not self.stopping.is_set():
                log.warning("Worker %d %s; starting another in %.1f s.", slot.number, _ending(status), delay)
            self.stopping.wait(delay)

    def _launch(self, slot: Slot) -> WorkerProcess:
        worker = start_worker(f"worker-{slot.number}-{names.random_part()}", slot.task)
        worker.names = names.worker_names(worker.name, slot.task.threads)
        worker.kinds = frozenset(slot.task.wakeups)
        self._processes.append(worker)
        return worker

    def _end(self, slot: Slot, worker: WorkerProcess) -> bool:
        """Remove a worker that has ended; return whether another one had taken over from it."""
        with self._lock:
            self._processes.remove(worker)
            self._ended = total([self._ended, parse_report(worker.report())])
            worker.close()
            replaced = slot.worker is not worker
            if not replaced:
                slot.worker = None
            return replaced

    # Restarting.

    def restart(self) -> bool:
        """Replace the workers one after another; stop and return False when a new one does not get ready."""
        with self._restarting:
            for slot in self._slots:
                if not self._replace(slot):
                    return False
        log.info("The workers run the new code.")
        return True

    def _replace(self, slot: Slot) -> bool:
        """Start another worker for a slot; once it takes messages, end the old one. Otherwise end the new one."""
        try:
            with self._lock:
                if self.stopping.is_set():
                    return False
                new = self._launch(slot)
        except OSError as error:
            log.error("A new worker cannot be started (%s), so the old ones keep running.", error)
            return False
        if new.is_ready(READY_WITHIN) and self._take_over(slot, new):
            return True
        ended: int | None = None
        try:
            ended = new.process.wait(1.0)  # its pipe closes a moment before it ends
        except subprocess.TimeoutExpired:
            new.process.kill()
            new.process.wait()
        self._end(slot, new)
        if not self.stopping.is_set():
            why = f"did not get ready within {READY_WITHIN:.0f} s" if ended is None else _ending(ended)
            log.error(
                "The new worker %d %s, so the old ones keep running: correct the code.", slot.number, why
            )
        return False

    def _take_over(self, slot: Slot, new: WorkerProcess) -> bool:
        """Put a worker into a slot and end the old one; return False when the supervisor stops."""
        with self._lock:
            if self.stopping.is_set():
                return False
            old, slot.worker = slot.worker, new
            if old is not None:
                old.process.send_signal(signal.SIGTERM)
        if old is not None:
            try:
                old.process.wait(self._graceful_timeout + KILL_AFTER)
            except subprocess.TimeoutExpired:
                old.process.kill()
        return True


def worker_command() -> str:
    """Return the name of our ``runworker``: Channels has a command of that name, and may be listed above dbchannels."""
    return "channels_runworker" if get_commands()["runworker"] == "channels" else "runworker"


def start_worker(name: str, task: Task) -> WorkerProcess:
    """Start a worker. Its standard input is a pipe, which closes when this process dies in any way."""
    pipes, local_pipes = task.wakeups.values(), dict(task.local_wakeups)
    reader, writer = os.pipe()
    report = new_report()
    command = [
        *manage_command(),
        worker_command(),
        f"--child={name}",
        f"--ready={writer}",
        f"--report={report}",
        *(f"--wakeup-fd={pipe}" for pipe in pipes),
        *(f"--local-wakeup={queue}={pipe}" for queue, pipe in local_pipes.items()),
        *([f"--files={task.files[0]}={task.files[1]}"] if task.files else []),
        *([f"--threads={task.threads}"] if task.threads > 1 else []),
        *([f"--since={time.time()!r}"] if task.reloads else []),
        *task.arguments,
    ]
    inherited = [end for pipe in (*pipes, *local_pipes.values()) for end in pipe]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            pass_fds=[writer, report, *inherited, *(task.files[1:] if task.files else ())],
            # A session of its own: Ctrl-C in the terminal reaches only this process, which then ends the workers.
            start_new_session=True,
        )
    except OSError:
        os.close(reader)
        os.close(report)
        raise
    finally:
        os.close(writer)
    return WorkerProcess(name, process, reader, report)


def manage_command() -> list[str]:
    """Return the command line of this very ``manage.py``, without its arguments."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name not in (None, "__main__"):
        module = spec.name.removesuffix(".__main__")
        return [sys.executable, "-m", module]
    return [sys.executable, os.path.abspath(sys.argv[0])]


def has_terminal() -> bool:
    """Whether this process has a terminal that is still open."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _ending(status: int) -> str:
    if status < 0:
        known = -status in list(signal.Signals)  # not all of the real-time ones have a name
        return f"was killed by {signal.Signals(-status).name if known else f'signal {-status}'}"
    return f"ended with status {status}"
