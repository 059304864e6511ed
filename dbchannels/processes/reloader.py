"""The reload of ``runserver``: a child imports the site, checks it, and ends when its code has changed.

The server imports no code of the site, so it does not know its files. The child (``manage.py watchcode``) does. It uses
Django's own reloader, and reports through a pipe: ``ready``, ``broken``, ``changed PATH``. After a change a new child
takes its place; the server keeps its sockets, and its workers start again.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from django.apps import apps
from django.utils import autoreload

from dbchannels.processes.supervisor import manage_command

log = logging.getLogger("dbchannels.supervisor")

CHANGED = 3  # the exit status of Django's reloader after a change
LOOK_EVERY = 0.5  # seconds
STANDARD = Path(sysconfig.get_path("stdlib"))
NO_CODE = {"__pycache__", "locale", "media", "node_modules", "static", "templates"}

# In a worker.


class CodeChanges:
    """Whether a file of the site that this process has imported was saved after ``since`` (of ``time.time``).

    A file that was replaced by an older one counts too, as ``cp -p`` and ``rsync -t`` keep the time of the last save.
    Installed packages are left out: a worker asks before each message, and packages have thousands of files.
    """

    def __init__(self, since: float) -> None:
        self._since = since
        self._modules = 0
        self._files: dict[Path, float | None] = {}  # when each was saved, at first sight
        self()

    def __call__(self) -> bool:
        if len(sys.modules) != self._modules:
            self._modules = len(sys.modules)
            found = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
            paths = [Path(file) for file in found if file and is_own(Path(file))]
            self._files = {path: self._files.get(path, saved_at(path)) for path in paths}
        now = time.time()
        times = ((saved_at(path), before) for path, before in self._files.items())
        return any(saved and (saved != before or self._since < saved <= now) for saved, before in times)


def is_own(path: Path) -> bool:
    """Whether a file belongs to the site itself, not to an installed package or to Python."""
    return not ({"site-packages", "dist-packages"} & set(path.parts) or STANDARD in path.parents)


# In the child.


class Reloader(autoreload.StatReloader):
    """Django's reloader, which also sees new files of the apps, files that were replaced by older ones, and files saved
    while the site was imported.
    """

    SLEEP_TIME = LOOK_EVERY  # type: ignore[assignment]

    def __init__(self, since: float) -> None:
        super().__init__()
        self._since = since
        self._seen: dict[Path, tuple[float, int]] = {}

    def snapshot_files(self) -> Iterator[tuple[Path, int]]:
        """Yield each file with a number that grows at each change; a time may go back."""
        for path, mtime in super().snapshot_files():
            before, number = self._seen.get(path, (mtime, 0))
            self._seen[path] = mtime, number + (mtime != before)
            yield path, self._seen[path][1]

    def watched_files(self, include_globs: bool = True) -> Iterator[Path]:
        yield from super().watched_files(include_globs)
        yield from app_files()

    def tick(self) -> Iterator[None]:
        known = set(app_files())
        ticker = super().tick()
        next(ticker)  # from here on it sees every change, but none before
        for path in changed_since(self._since, [path for path, _ in self.snapshot_files()]):
            self.notify_file_changed(path)
        for _ in ticker:
            for path in set(app_files()) - known:
                self.notify_file_changed(path)
            yield


def watch(main: Callable[[], Any], since: float, report: Callable[[str], Any]) -> None:
    """Run ``main`` in a thread, and exit with status 3 when code has changed after ``since`` (of ``time.time``)."""
    changed = [""]

    def note(file_path: Path, **kwargs: Any) -> None:
        changed[0] = str(file_path)
        if file_path.suffix == ".mo":  # Django would read it again in this process; the workers have to
            autoreload.trigger_reload(str(file_path))

    autoreload.file_changed.connect(note)
    autoreload.autoreload_started.connect(_watch_apps)
    found = autoreload.get_reloader()
    try:
        autoreload.start_django(
            Reloader(since) if isinstance(found, autoreload.StatReloader) else found, main
        )
    except SystemExit:
        report(f"changed {changed[0]}")
        raise


def _watch_apps(sender: Any, **kwargs: Any) -> None:
    if not isinstance(sender, Reloader):  # Watchman looks by itself
        for folder in app_folders():
            sender.watch_dir(folder, "**/*.py")


def app_folders() -> list[Path]:
    """Return the folders of the site's own apps."""
    return [folder for config in apps.get_app_configs() if is_own(folder := Path(config.path))]


def app_files() -> Iterator[Path]:
    """Yield the Python files of these apps, without trees of other files that may be in an app's folder."""
    for top in app_folders():
        for folder, inner, files in os.walk(top):
            inner[:] = [name for name in inner if name not in NO_CODE and not name.startswith(".")]
            yield from (Path(folder, name) for name in files if name.endswith(".py"))


def changed_since(moment: float, paths: Iterable[Path]) -> list[Path]:
    """Return the paths that were changed after a moment, but not in the future."""
    now = time.time()
    return [path for path in paths if (saved := saved_at(path)) and moment < saved <= now]


def saved_at(path: Path) -> float | None:
    """Return when a file was saved; None if it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


# In the server.


class Observer(Protocol):
    """What the child reports to, in the thread that reads the reports."""

    def ready(self) -> None:
        """The site was imported and checked."""

    def broken(self) -> None:
        """The site could not be imported or checked; the child has printed why."""

    def changed(self, path: str) -> None:
        """A file was changed, and the child ends."""


class CodeWatch:
    """Runs one child after another; with ``once`` only the first, which ends when the site was checked."""

    def __init__(self, arguments: Iterable[str], observer: Observer, *, once: bool) -> None:
        self._arguments = [*arguments, *(["--once"] if once else [])]
        self._observer = observer
        self._once = once
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="code watch", daemon=True)

    def start(self) -> None:
        """Start the first child."""
        self._thread.start()

    def stop(self) -> None:
        """End the child; after the return there are no more reports."""
        with self._lock:
            self._stopping.set()
            if self._process is not None:
                self._process.kill()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            since = time.time()
            try:
                status = self._listen(since)
            except OSError as error:  # no memory, or too many processes
                log.error("The site cannot be watched (%s).", error)
                status = 1
            if status != CHANGED and not self._stopping.is_set():
                if status:  # the child could not even begin
                    self._observer.broken()
                if self._once:
                    return
                # Watch the files that this process has imported, because the child could not begin.
                while not self._stopping.wait(LOOK_EVERY):
                    files = [*autoreload.iter_all_python_module_files(), *app_files()]
                    if found := changed_since(since, files):
                        autoreload.logger.info("%s changed, reloading.", found[0])
                        self._observer.changed(str(found[0]))
                        break

    def _listen(self, since: float) -> int:
        """Start a child, pass on its reports, and return its exit status."""
        reader, writer = os.pipe()
        command = [*manage_command(), "watchcode", "--report", str(writer), "--since", repr(since)]
        with open(reader) as lines:
            try:
                with self._lock:
                    if self._stopping.is_set():
                        return 0
                    process = self._process = subprocess.Popen(
                        [*command, *self._arguments],
                        stdin=subprocess.PIPE,  # its end tells the child that this process has died
                        pass_fds=[writer],
                        start_new_session=True,  # Ctrl-C in the terminal reaches only this process
                    )
            finally:
                os.close(writer)
            for line in lines:
                word, _, path = line.rstrip("\n").partition(" ")
                if self._stopping.is_set():
                    continue
                if word == "changed":
                    self._observer.changed(path)
                elif word == "ready":
                    self._observer.ready()
                elif word == "broken":
                    self._observer.broken()
        status = process.wait()
        if process.stdin:
            process.stdin.close()
        return status
