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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from dbchannels import names
from dbchannels.backoff import Backoff
from dbchannels.waiting import wait_readable
from dbchannels.wakeup import Doorbell

log = logging.getLogger("dbchannels.supervisor")

STEADY = 2.0  # seconds after which a worker that was ready counts as started well: its delays begin anew
SOON = 1.0  # seconds at most until another takes the place of one that worked: what it held waits for that
READY_WITHIN = 60.0  # seconds in which a new worker must have imported the site
KILL_AFTER = 5.0  # seconds beyond the workers' own graceful time-out
GIVE_BACK = 1.0  # seconds before it is killed in which a worker gives back what it runs, at a second SIGTERM


class Task(NamedTuple):
    """What one worker is to do."""

    arguments: tuple[str, ...]  # of runworker
    bells: Mapping[
        str, Doorbell
    ]  # by what it takes: ``h`` for http.*, ``w`` for websocket.*, ``d`` for the rest
    doors: tuple[tuple[str, Doorbell], ...] = ()  # of readers that it rings for itself, by their queue
    files: tuple[str, int] | None = None  # the queue of a reader, and the socket it takes files from
    threads: int = 1  # each takes messages by itself, under a name of its own
    reloads: bool = False  # it takes no message once the code that it runs was changed


class Child:
    """One worker process. It says through a pipe that it is on record and takes messages."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], reader: int) -> None:
        self.name, self.process = name, process
        self.names = [name]  # of all its threads
        self.kinds: frozenset[str] = frozenset()  # of what it takes, see Task.bells
        self.started_at = time.monotonic()
        self._reader = reader  # the end of what it may say: one byte
        self._ready = False
        self._reading = threading.Lock()
        os.set_blocking(reader, False)

    def is_ready(self, timeout: float = 0.0) -> bool:
        """Whether it has said so, at the latest after so many seconds; False at once when it has ended."""
        if not self._ready and wait_readable([self._reader], timeout):
            with self._reading, suppress(BlockingIOError):  # another thread may have read it just now
                self._ready = os.read(self._reader, 1) == b"!" or self._ready
        return self._ready

    def wait(self) -> int:
        """Return its exit status, once it has ended."""
        return self.process.wait()

    def close(self) -> None:
        """Let go of what belongs to a process that has ended."""
        os.close(self._reader)
        if self.process.stdin:
            self.process.stdin.close()


class Post:
    """What one worker is for, whoever it is now."""

    def __init__(self, number: int, task: Task) -> None:
        self.number, self.task = number, task
        self.child: Child | None = None


class Supervisor:
    """One thread for each worker. ``on_death`` is told the name of a worker that ended before it was asked to."""

    def __init__(
        self, tasks: Sequence[Task], on_death: Callable[[str], None], graceful_timeout: float
    ) -> None:
        self._on_death = on_death
        self._graceful_timeout = graceful_timeout
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._restarting = threading.Lock()
        self._had_ready = False
        self._children: list[Child] = []  # all that run, those among them that are about to take over
        self._posts = [Post(number, task) for number, task in enumerate(tasks, 1)]
        self._threads = [
            threading.Thread(target=self._keep, args=(post,), name=f"worker {post.number}", daemon=True)
            for post in self._posts
        ]

    def start(self) -> None:
        """Start the workers."""
        for thread in self._threads:
            thread.start()

    def pids(self) -> list[int]:
        """Return the process ids of the workers that run now."""
        with self._lock:
            return [child.process.pid for child in self._children]

    def has_ready(self) -> bool:
        """Whether workers take what clients send, requests and frames; it answers at once."""
        if self._lock.acquire(blocking=False):  # the hub asks, and it must not wait for a process to start
            try:
                taken = {kind for child in self._children if child.is_ready() for kind in child.kinds}
                self._had_ready = taken >= {"h", "w"}
            finally:
                self._lock.release()
        return self._had_ready

    def ready_names(self) -> set[str]:
        """Return the names of the workers that take messages."""
        with self._lock:
            return {name for child in self._children if child.is_ready() for name in child.names}

    def stop(self, within: float | None = None) -> None:
        """Ask the workers to finish; those that do not within so many seconds give back what they run, or are killed.

        Returns when all have ended.
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
        with self._restarting:  # it ends those that it had started
            return

    def kill(self) -> None:
        """End all workers now."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with self._lock:
            for child in self._children:
                child.process.send_signal(number)

    # Keeping one worker.

    def _keep(self, post: Post) -> None:
        delays = Backoff(0.1, 10.0)
        while post.child is not None or not self.stopping.is_set():
            try:
                child = post.child or self._start(post)
            except OSError as error:  # no memory, or too many processes: later there may be room
                log.error("Worker %d cannot be started (%s); trying again.", post.number, error)
                self.stopping.wait(delays.delay())
                continue
            if child is None:
                return
            status = child.wait()
            was_ready = child.is_ready()
            steady = was_ready and time.monotonic() - child.started_at > STEADY
            replaced = self._end(post, child)
            if status == 0 and (replaced or self.stopping.is_set()):
                continue
            for name in child.names:
                self._on_death(name)
            if replaced:
                continue
            if steady:
                delays = Backoff(0.1, 10.0)
            delay = delays.delay()
            if was_ready:
                delay = min(delay, SOON)
            if not self.stopping.is_set():
                log.warning("Worker %d %s; starting another in %.1f s.", post.number, _ending(status), delay)
            self.stopping.wait(delay)

    def _start(self, post: Post) -> Child | None:
        """Start a worker for a post; None when all are about to end."""
        with self._lock:
            if self.stopping.is_set():
                return None
            post.child = post.child or self._launch(post)
            return post.child

    def _launch(self, post: Post) -> Child:
        child = start_worker(f"worker-{post.number}-{names.random_part()}", post.task)
        child.names = names.worker_names(child.name, post.task.threads)
        child.kinds = frozenset(post.task.bells)
        self._children.append(child)
        return child

    def _end(self, post: Post, child: Child) -> bool:
        """Note that a worker has ended; return whether another one had taken over from it."""
        with self._lock:
            self._children.remove(child)
            child.close()
            replaced = post.child is not child
            if not replaced:
                post.child = None
            return replaced

    # Restarting.

    def restart(self) -> bool:
        """Replace the workers, one after another; False, and the others stay, when a new one does not get ready."""
        with self._restarting:
            for post in self._posts:
                if not self._replace(post):
                    return False
        log.info("The workers run the new code.")
        return True

    def _replace(self, post: Post) -> bool:
        """Start another worker for a post; when it takes messages ask the old one to end, and wait until it has."""
        try:
            with self._lock:
                if self.stopping.is_set():
                    return False
                new = self._launch(post)
        except OSError as error:
            log.error("A new worker cannot be started (%s), so the old ones go on.", error)
            return False
        if not new.is_ready(READY_WITHIN) or not self._take_over(post, new):
            self._discard(post, new)
            return False
        return True

    def _take_over(self, post: Post, new: Child) -> bool:
        """Put a worker in another one's place; False when all are about to end."""
        with self._lock:
            if self.stopping.is_set():
                return False
            old, post.child = post.child, new
            if old is not None:
                old.process.send_signal(signal.SIGTERM)
        if old is not None:
            try:
                old.process.wait(self._graceful_timeout + KILL_AFTER)
            except subprocess.TimeoutExpired:
                old.process.kill()
        return True

    def _discard(self, post: Post, new: Child) -> None:
        """End a new worker that is not wanted; if it did not get ready, say so."""
        ended: int | None = None
        try:
            ended = new.process.wait(1.0)  # its pipe ends a moment before it does
        except subprocess.TimeoutExpired:
            new.process.kill()
            new.wait()
        self._end(post, new)
        if not self.stopping.is_set():
            why = f"did not get ready within {READY_WITHIN:.0f} s" if ended is None else _ending(ended)
            log.error("The new worker %d %s, so the old ones go on: correct the code.", post.number, why)


def start_worker(name: str, task: Task) -> Child:
    """Start ``runworker``. Its standard input is a pipe that ends when this process dies, however it dies."""
    bells = [text for bell in task.bells.values() for text in ("--bell", str(bell))]
    doors = [text for queue, door in task.doors for text in ("--door", f"{queue}={door}")]
    reader, writer = os.pipe()
    command = [
        *manage_command(),
        "runworker",
        "--child",
        name,
        "--ready",
        str(writer),
        *bells,
        *doors,
        *(["--files", f"{task.files[0]}={task.files[1]}"] if task.files else []),
        *([f"--threads={task.threads}"] if task.threads > 1 else []),
        *([f"--since={time.time()!r}"] if task.reloads else []),
        *task.arguments,
    ]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            pass_fds=[
                writer,
                *(task.files[1:] if task.files else ()),
                *(end for pipe in (*task.bells.values(), *(door for _, door in task.doors)) for end in pipe),
            ],
            # A session of its own: Ctrl-C in the terminal reaches us alone, and we tell the workers in good order.
            start_new_session=True,
        )
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return Child(name, process, reader)


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
