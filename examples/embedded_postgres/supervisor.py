"""The supervisor: the process that is the parent of one `postgres` for as long as somebody uses it.

`server.py` starts this file as a script, with the standard library alone and without `site`, since
it is on the way of every warm start. Its session is its own, so Ctrl-C in the terminal passes it by. A
server that ends by itself is started again. What supervisor and users share is a folder:

    start.lock       held while the server is started, joined, restarted or stopped
    users.lock       shared by all users; the kernel lets go for those that were killed
    supervisor.lock  held by the supervisor as long as it lives
    server.json      what the supervisor says of its server, once that takes connections
    postgres.log     what PostgreSQL's programs print
    data-15          the data, one folder for each major version, since none reads another's
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import locale
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

SUPERUSER = "dbchannels"
PORT = "5432"  # nothing listens there: it is a part of the socket's file name
POLL_SECONDS = 0.1  # costs 0.2 % of a core, and a killed user's server is gone that much later
START_SECONDS = 60  # recovery after a crash replays all changes since the last checkpoint
LEFTOVER_SECONDS = 10
LOG_BYTES = 1 << 20  # a longer log begins anew at the next start
STOP = ((signal.SIGINT, 10), (signal.SIGQUIT, 5), (signal.SIGKILL, 5))  # fast, immediate, last resort
PR_SET_PDEATHSIG = 1  # prctl(2); Linux alone has it


class PostgresUnavailable(Exception):
    """No PostgreSQL runs; the message is one sentence that says why and what to do."""


def lock(path, how):
    """Opens and locks the file `path`; closing it lets go, and so does any end of the process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, how)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def run_as(user):
    """The arguments of Popen for `user`, a (uid, gid), or None for our own."""
    return {"user": user[0], "group": user[1], "extra_groups": []} if user else {}


class Supervisor:
    """Runs one `postgres` in `folder`.

    `binaries` is the folder of the programs, `data` that of the data; `user` is as for `run_as`; `settings`
    is a dict of postgresql.conf; a `temporary` folder is deleted at the end; `about` goes into server.json.
    """

    def __init__(self, folder, binaries, data, user, settings, temporary, about):
        self.folder, self.binaries, self.data, self.user = folder, binaries, data, user
        self.settings, self.temporary, self.about = settings, temporary, about
        self.state = os.path.join(folder, "server.json")
        self.child = self.socket = None
        self.alive = lock(os.path.join(folder, "supervisor.lock"), fcntl.LOCK_EX)
        self.log = os.open(os.path.join(folder, "postgres.log"), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        if os.fstat(self.log).st_size > LOG_BYTES:
            os.ftruncate(self.log, 0)
        self.libc = ctypes.CDLL(None)

    def launch(self):
        """Starts `postgres`, and returns when it takes connections."""
        if not os.path.isdir(self.data):
            self.initdb()
        self.end_leftover()
        self.socket = self.socket_folder()
        deadline = time.monotonic() + START_SECONDS
        while not self.starts(deadline):
            # Backends of a postmaster that was killed end with their query; until then the memory is theirs.
            time.sleep(POLL_SECONDS)
        self.tell()

    def initdb(self):
        """Makes the data, under another name first: an interrupted run leaves none that looks whole."""
        fresh = self.data + ".new"
        shutil.rmtree(fresh, ignore_errors=True)
        self.own_folder(fresh)
        options = ["-U", SUPERUSER, "-A", "trust", "-E", "UTF8", f"--locale={_utf8_locale()}", "--no-sync"]
        since = os.fstat(self.log).st_size
        if self.run("initdb", fresh, options).wait():
            shutil.rmtree(fresh, ignore_errors=True)
            raise PostgresUnavailable(f"initdb: {self.complaint(since)}")
        os.rename(fresh, self.data)

    def own_folder(self, path):
        """Makes a private folder of the server's user."""
        os.mkdir(path, 0o700)
        if self.user:
            os.chown(path, *self.user)

    def end_leftover(self):
        """Waits for a `postgres` whose supervisor was killed, and forgets one that is long gone."""
        deadline = time.monotonic() + LEFTOVER_SECONDS
        while pid := self.leftover():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT if time.monotonic() < deadline else signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        with contextlib.suppress(FileNotFoundError):
            # PostgreSQL believes this file if any process of its user has the number by now: in a container
            # that was started again, that is common.
            os.unlink(os.path.join(self.data, "postmaster.pid"))

    def leftover(self):
        """The process id of a server on our data that is not our child, or None."""
        lines = self.postmaster_file()
        pid = int(lines[0]) if lines and lines[0].isdigit() else 0
        if not pid or (self.child and pid == self.child.pid):
            return None
        try:
            return pid if os.readlink(f"/proc/{pid}/cwd") == self.data else None
        except OSError:
            if os.path.isdir("/proc/self"):
                return None
        done = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True)
        return pid if self.data in done.stdout else None

    def postmaster_file(self):
        """The lines that a running server keeps about itself; none if there is no such file."""
        try:
            with open(os.path.join(self.data, "postmaster.pid")) as file:
                return file.read().split("\n")
        except FileNotFoundError:
            return []

    def socket_folder(self):
        """A short private folder (a socket's path is 107 bytes at most); a restart takes the same again."""
        with contextlib.suppress(OSError, ValueError, KeyError), open(self.state) as file:
            path = json.load(file)["socket"]
            for name in ("", ".lock"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(path, f".s.PGSQL.{PORT}{name}"))
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(path)
            self.own_folder(path)
            return path
        base = tempfile.gettempdir()
        path = tempfile.mkdtemp(prefix="dbchannels-", dir=base if len(os.fsencode(base)) < 60 else "/tmp")
        if self.user:
            os.chown(path, *self.user)
        return path

    def starts(self, deadline):
        """Whether `postgres` came up; False means that the same may work a little later."""
        fixed = {"listen_addresses": "", "unix_socket_directories": self.socket, "port": PORT}
        options = [f"{name}={value}" for name, value in {**self.settings, **fixed}.items()]
        since = os.fstat(self.log).st_size
        self.child = self.run("postgres", self.data, [part for option in options for part in ("-c", option)])
        while self.child.poll() is None and time.monotonic() < deadline:
            lines = self.postmaster_file()  # line 8 is the status: src/include/utils/pidfile.h
            if len(lines) > 7 and lines[0] == str(self.child.pid) and lines[7].strip() == "ready":
                return True
            time.sleep(0.005)
        complaint = self.complaint(since)
        if "shared memory block" in complaint and time.monotonic() < deadline:
            return False
        raise PostgresUnavailable(complaint)

    def run(self, program, data, options):
        """Starts a program of PostgreSQL that ends when we do."""
        supervisor, here = os.getpid(), os.open(data, os.O_RDONLY)

        def end_with_parent():
            # After the change of user, which clears it; the parent's end before this line sends no signal.
            if hasattr(self.libc, "prctl"):
                self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT)
                if os.getppid() != supervisor:
                    os._exit(1)

        # Through an open folder another user reaches data inside root's home, whose parents are closed to it.
        through = self.user and os.path.isdir("/proc/self/fd")
        command = [os.path.join(self.binaries, program), "-D", f"/proc/self/fd/{here}" if through else data]
        try:
            return subprocess.Popen(
                command + options,
                cwd="/",
                env=environment(),
                preexec_fn=end_with_parent,
                pass_fds=[here],
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                **run_as(self.user),
            )
        finally:
            os.close(here)

    def complaint(self, since):
        """The last error in the log from byte `since` on."""
        text = os.pread(self.log, 1 << 20, since).decode(errors="replace")
        found = re.findall(r"(?:FATAL|PANIC|error): +(.+)", text) or text.split("\n")[-2:-1]
        return found[-1] if found else "it printed nothing"

    def tell(self):
        """Writes server.json, whole or not at all."""
        pids = {"supervisor": os.getpid(), "postmaster": self.child.pid}
        state = {name: getattr(self, name) for name in ("socket", "binaries", "temporary")}
        with open(self.state + ".new", "w") as file:
            json.dump({**self.about, **pids, **state}, file)
        os.rename(self.state + ".new", self.state)

    def watch(self):
        """Returns when the last user has gone; until then a server that ended is started again."""
        paths = (os.path.join(self.folder, name) for name in ("start.lock", "users.lock"))
        start, users = (os.open(path, os.O_RDWR) for path in paths)
        while os.fstat(users).st_nlink:  # 0: somebody deleted the folder
            self.child.poll()  # or its process id would look alive to those who wait for its end
            if _locked(start):
                if _locked(users):
                    return  # with both locks held, so that nobody joins a server that is about to stop
                if self.child.returncode is not None:
                    self.launch()
                fcntl.flock(start, fcntl.LOCK_UN)
            time.sleep(POLL_SECONDS)

    def stop(self):
        """Stops `postgres` and leaves nothing but data and log."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.state)
        for number, patience in STOP:
            if self.child and self.child.poll() is None:
                self.child.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.child.wait(patience)
        for path in filter(None, (self.socket, self.temporary and self.folder)):
            shutil.rmtree(path, ignore_errors=True)


def _locked(descriptor):
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _utf8_locale():
    for name in ("C.UTF-8", "en_US.UTF-8"):
        with contextlib.suppress(locale.Error):
            return locale.setlocale(locale.LC_CTYPE, name)
    return "C"


def environment():
    """Ours without PGDATA, PGOPTIONS and the like, and with messages in English, which `complaint` reads."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("PG")}, "LC_ALL": "C"}


def main(descriptor, arguments):
    """Supervises; `descriptor` is the caller's start.lock, held until the server takes connections or failed.

    Prints nothing when the server runs, else one sentence; the end of the output tells the caller to go on.
    """
    if os.fork():
        os._exit(0)  # the caller has waited for this process, and need not wait for the other
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    supervisor = Supervisor(**arguments)
    try:
        supervisor.launch()
        os.dup2(0, 1)  # /dev/null
        os.close(descriptor)
        supervisor.watch()
    except (PostgresUnavailable, OSError) as problem:
        supervisor.temporary = False  # its owner may try another PostgreSQL there
        print(problem, flush=True)
    finally:
        supervisor.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
