"""Real processes for the end-to-end tests: a site served by ``runchannels``, and clients on raw sockets."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import secrets
import select
import selectors
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg2

MANAGE = Path(__file__).parent / "live" / "manage.py"
HOST = "127.0.0.1"
TEXT, BINARY, CLOSE = 1, 2, 8
TABLES = (
    "dbchannels_protocolmessage",
    "dbchannels_audience",
    "dbchannels_durablemessage",
    "dbchannels_deadletter",
    "dbchannels_membership",
    "dbchannels_process",
    "dbchannels_inflight",
    "dbchannels_connection",
    "dbchannels_schedule",
    "dbchannels_taskresult",
    "livesite_entry",
    "livesite_document",
)

#: Runs each line, (code, file) in JSON, in a fork that prints into the file, and answers with its exit status.
FORKS = """
import gc, json, os, sys
gc.freeze()
for line in sys.stdin:
    code, path = json.loads(line)
    if not os.fork():
        output = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1), os.dup2(output, 2)
        exec(code)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""

OPENED: list[socket.socket] = []
#: Whether the test that runs is marked ``slow``: only such a test may start a server. See tests/conftest.py.
may_serve = True


def until(
    condition: Callable[[], Any], what: str | Callable[[], str], deadline: float = 60.0, every: float = 0.01
) -> Any:
    """Return what the condition gives as soon as it is true; fail with ``what`` after the deadline, in seconds."""
    end = time.monotonic() + deadline
    while not (result := condition()):
        if time.monotonic() > end:
            raise AssertionError(
                f"After {deadline:g} s still not: {what if isinstance(what, str) else what()}"
            )
        time.sleep(every)
    return result


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children."""
    return [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if _state(stat)[1] == pid]


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not only what it left for its parent to read."""
    return _state(Path(f"/proc/{pid}/stat"))[0] not in ("", "Z")


def _state(stat: Path) -> tuple[str, int]:
    """Return (state, parent's process id); the name before them is in brackets and may hold anything."""
    try:
        state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
    except OSError:  # it has ended
        return "", 0
    return state, int(parent)


class SiteDatabase:
    """The database of a site, an entry of DATABASES, beside the site's own processes."""

    def __init__(self, database: dict[str, Any]) -> None:
        self.database = {key: str(value) if key == "NAME" else value for key, value in database.items()}
        self._kept: dict[int, Any] = {}  # the connection of `rows` by thread

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Run a statement; return its rows, of an UPDATE or DELETE none.

        Each thread keeps a connection until ``disconnect``: to open one costs more than most statements. One that was
        lost meanwhile is opened again.
        """
        thread = threading.get_ident()
        if thread in self._kept:
            try:
                return _executed(self._kept[thread], query)
            except psycopg2.Error as error:
                if error.pgcode:  # the server has answered
                    raise
        self._kept[thread] = self.connect()
        return _executed(self._kept[thread], query)

    def connect(self) -> Any:
        """Open a connection, in autocommit."""
        if self.database["ENGINE"].endswith("sqlite3"):
            name = self.database["NAME"]
            return sqlite3.connect(name, timeout=60, isolation_level=None, check_same_thread=False)
        keys = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
        given = {name: self.database[key] for key, name in keys.items() if self.database.get(key)}
        connection = psycopg2.connect(**given, **self.database.get("OPTIONS", {}))
        connection.autocommit = True
        return connection

    def disconnect(self) -> None:
        """Close the connections of ``rows``."""
        while self._kept:
            self._kept.popitem()[1].close()


def _executed(connection: Any, query: str) -> list[tuple[Any, ...]]:
    with closing(connection.cursor()) as cursor:
        cursor.execute(query)
        return list(cursor.fetchall()) if cursor.description else []


class LiveSite(SiteDatabase):
    """The site under tests/live on one database, and the processes that serve it."""

    def __init__(self, database: dict[str, Any], folder: Path, manage: Path = MANAGE) -> None:
        super().__init__(database)
        self.manage_py = manage
        self.changes = manage != MANAGE  # whether its code does
        self.folder = folder
        self.processes: list[Served] = []
        self.forks: subprocess.Popen[str] | None = None  # the process whose forks run `shell`

    def environment(self, settings: dict[str, Any] | None = None) -> dict[str, str]:
        """Return what the site's processes find in their environment."""
        return {
            **{
                key: value
                for key, value in os.environ.items()
                if not key.startswith(("DBCHANNELS", "DJANGO"))
            },
            "LIVESITE_DATABASE": json.dumps(self.database, default=str),
            "LIVESITE_SETTINGS": json.dumps(settings or {}),
            "LIVESITE_FOLDER": str(self.folder),
            "PYTHONPATH": str(MANAGE.parents[2]),  # this tree's dbchannels, for a copy of the site too
        }

    def manage(
        self, *arguments: str, settings: dict[str, Any] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of manage.py to its end."""
        return subprocess.run(
            [sys.executable, str(self.manage_py), *arguments],
            env=self.environment(settings),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def shell(self, code: str) -> str:
        """Run a line of Python in the site's shell; return what it printed.

        If its code does not change, Django starts once: each line runs in a fork of that process, which has no
        connection to the database.
        """
        if self.changes:
            done = self.manage("shell", "--verbosity", "0", "-c", code)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()
        if self.forks is None:
            command = [sys.executable, str(self.manage_py), "shell", "--verbosity", "0", "-c", FORKS]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.forks = subprocess.Popen(
                command, env=self.environment(), start_new_session=True, bufsize=1, **pipes
            )
            weakref.finalize(self, self.forks.communicate)
        assert self.forks.stdin and self.forks.stdout
        printed = self.folder / f"shell-{secrets.token_hex(4)}.log"
        self.forks.stdin.write(json.dumps([code, str(printed)]) + "\n")
        assert select.select([self.forks.stdout], [], [], 120)[0], printed.read_text()
        status = self.forks.stdout.readline().strip()
        assert status == "0", f"{status}: {printed.read_text()}"
        return printed.read_text().strip()

    def count(self, table: str, where: str = "true") -> int:
        """Return the number of rows of one of our tables: ``count("membership")``."""
        ((number,),) = self.rows(f"SELECT count(*) FROM dbchannels_{table} WHERE {where}")
        return int(number)

    def entries(self) -> list[str]:
        """Return what consumers wrote down, in order."""
        return [text for (text,) in self.rows("SELECT text FROM livesite_entry ORDER BY id")]

    def importers(self, module: str) -> set[int]:
        """Return the ids of the processes that have imported a module of the site."""
        lines = (self.folder / "imported").read_text().splitlines()
        return {int(pid) for pid, name in map(str.split, lines) if name == module}

    def note(self, text: str) -> None:
        """Write an entry: a view may wait for it."""
        self.rows(f"INSERT INTO livesite_entry (text, pid) VALUES ('{text}', 0)")

    def empty(self) -> None:
        """Delete what tests leave."""
        for table in TABLES:
            self.rows(f"DELETE FROM {table}")

    def send(self, channel: str, *messages: dict[str, Any]) -> None:
        """Send messages from a process of its own, which ends."""
        self.shell(f"from dbchannels import Channel\nfor one in {messages!r}: Channel({channel!r}).send(one)")

    def serve(
        self,
        *arguments: str,
        settings: dict[str, Any] | None = None,
        ready: bool = True,
        bind: str = f"{HOST}:0",
        checks: bool = False,
    ) -> Served:
        """Start ``runchannels`` on a free port, or where the arguments say; wait until it serves.

        The system check, a process of its own that takes a quarter of the start, ends at once without ``checks``.
        """
        served = Served(self, ["runchannels", *filter(None, [bind]), *arguments], settings, checks=checks)
        self.processes.append(served)
        if ready:
            served.wait_ready()
        return served

    def develop(
        self, *arguments: str, port: int = 0, settings: dict[str, Any] | None = None, ready: bool = True
    ) -> Served:
        """Start ``runserver``; wait until it serves."""
        served = Served(self, ["runserver", str(port), *arguments], settings)
        self.processes.append(served)
        if ready:
            served.wait_ready("Quit the server")
        return served

    def work(self, *arguments: str, settings: dict[str, Any] | None = None) -> Served:
        """Start ``runworker``; wait until it reads."""
        return self.crew(1, *arguments, settings=settings)[0]

    def crew(self, number: int, *arguments: str, settings: dict[str, Any] | None = None) -> list[Served]:
        """Start several ``runworker`` at once; wait until all read."""
        started = [Served(self, ["runworker", *arguments], settings) for _ in range(number)]
        self.processes += started
        for served in started:
            served.wait_for_line("reads", 60)
        return started

    def end(self) -> None:
        """End what still runs."""
        for served in self.processes:
            served.end()
        self.processes.clear()
        self.disconnect()


class Served:
    """One process, of ``manage.py`` or another program, with all that it starts."""

    def __init__(
        self,
        site: LiveSite,
        arguments: list[str],
        settings: dict[str, Any] | None,
        program: Sequence[str] = (),
        checks: bool = True,
    ) -> None:
        assert may_serve, "Only a slow test may start a server: add its file to SLOW in tests/conftest.py."
        self.site = site
        self.log = site.folder / f"{arguments[0]}-{secrets.token_hex(4)}.log"
        self.port = 0
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*(program or (sys.executable, str(site.manage_py))), *arguments],
                env={**site.environment(settings), **({} if checks else {"LIVESITE_UNCHECKED": "1"})},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def output(self) -> str:
        """Return everything that it has printed."""
        return self.log.read_text(errors="replace")

    def wait_for_line(self, text: str, deadline: float = 60.0) -> None:
        """Wait until a text was printed."""
        until(
            lambda: text in self.output() or self.process.poll() is not None,
            lambda: f"{text!r} in {self.output()}",
            deadline,
        )
        assert text in self.output(), self.output()

    def wait_ready(self, text: str = "quit with CONTROL-C") -> None:
        """Wait for the banner, and learn the port from it."""
        self.wait_for_line(text, 60)
        if found := re.search(r"http://127\.0\.0\.1:(\d+)\b", self.output()):
            self.port = int(found[1])  # else it is on Unix sockets alone

    def workers(self, number: int = 0) -> list[int]:
        """Return the process ids of its children that are workers, once there are ``number`` of them.

        A server may say that it is ready before its workers have been started.
        """
        if number:
            until(lambda: len(self.workers()) >= number, lambda: f"{number} workers in {self.output()}")
        found = []
        for pid in children(self.process.pid):
            with suppress(OSError):  # it has ended
                if b"runworker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def terminate(self, number: int = signal.SIGTERM, deadline: float = 60.0) -> int:
        """Send a signal, and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(deadline)

    def end(self) -> None:
        """Kill it and its workers."""
        workers = self.workers()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        for pid in workers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    # Clients.

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Send one HTTP request; return its answer."""
        with self.connection() as connection:
            return ask(connection, method, path, body, headers)

    @contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        """Open a connection for one request after another."""
        with closing(http.client.HTTPConnection(HOST, self.port, timeout=60)) as connection:
            yield connection

    def exchange(self, data: bytes) -> bytes:
        """Send bytes as they are; return all that comes until the server closes."""
        raw = connect(self.port)
        raw.sendall(data)
        return b"".join(iter(lambda: raw.recv(65_536), b""))

    def get(self, path: str, **headers: str) -> Answer:
        """GET a path."""
        return self.request("GET", path, headers=headers)

    def socket(self, path: str, **headers: str) -> Socket:
        """Open a WebSocket; its ``status`` says whether it was accepted."""
        return Socket(self.port, path, headers).handshake()


def connect(port: int) -> socket.socket:
    """Open a connection that is closed when the test has ended."""
    raw = socket.create_connection((HOST, port), timeout=60)
    OPENED.append(raw)
    return raw


def connect_slow(port: int) -> socket.socket:
    """Open a connection for which the kernel holds some 100 kB; with the segments of a loopback it is megabytes."""
    raw = socket.socket()
    OPENED.append(raw)
    raw.settimeout(60)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((HOST, port))
    return raw


def reset(raw: socket.socket) -> None:
    """Leave at once; after a plain close a request is still answered for a while."""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


def close_all() -> None:
    """Close what `connect` opened."""
    while OPENED:
        OPENED.pop().close()


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Send a request on an open connection; return its answer."""
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    return Answer(response.status, response.getheaders(), response.read())


class Answer:
    """The answer to an HTTP request."""

    def __init__(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.status, self.headers, self.content = status, headers, content

    @property
    def text(self) -> str:
        """The content as text."""
        return self.content.decode()

    def json(self) -> Any:
        """Return the content decoded."""
        return json.loads(self.content)

    def header(self, name: str) -> str | None:
        """Return a header's first value."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def cookies(self) -> dict[str, str]:
        """Return the cookies that it sets."""
        pairs = [value.partition(";")[0].partition("=") for key, value in self.headers if key == "Set-Cookie"]
        return {name: value for name, _, value in pairs}


class Socket:
    """A WebSocket client on a raw socket: as good, or as bad, as a test wants it."""

    def __init__(
        self, port: int, path: str, headers: dict[str, str], raw: socket.socket | None = None
    ) -> None:
        self.raw = raw or connect(port)
        self.status = 0
        self.head = b""
        self.close_code: int | None = None
        self.frames: list[Any] = []
        self._buffer = b""
        self._after_head = b""
        given = {"Host": f"{HOST}:{port}", "Upgrade": "websocket", "Connection": "Upgrade"}
        given |= {"Sec-WebSocket-Key": base64.b64encode(secrets.token_bytes(16)).decode()}
        given |= {"Sec-WebSocket-Version": "13"} | {
            key.replace("_", "-"): value for key, value in headers.items()
        }
        lines = [f"GET {path} HTTP/1.1", *(f"{key}: {value}" for key, value in given.items()), "", ""]
        self.raw.sendall("\r\n".join(lines).encode("latin-1"))

    def handshake(self) -> Socket:
        """Read the answer's head."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = self.raw.recv(65_536)
            assert more, f"The server closed in the handshake, after {data!r}."
            data += more
        self.head, _, self._after_head = data.partition(b"\r\n\r\n")
        self.status = int(self.head.split()[1])
        if self.status == 101:
            self.feed(self._after_head)
        return self

    def rest(self) -> str:
        """Return the body of a refusal."""
        return b"".join([self._after_head, *iter(lambda: self.raw.recv(65_536), b"")]).decode()

    def send(self, text: str | bytes) -> None:
        """Send one message."""
        opcode = 1 if isinstance(text, str) else 2
        self.raw.sendall(client_frame(opcode, text.encode() if isinstance(text, str) else text))

    def close(self, code: int = 1000) -> None:
        """Send a close frame."""
        self.raw.sendall(client_frame(CLOSE, code.to_bytes(2, "big")))

    def ask(self, text: str | bytes) -> str | bytes | None:
        """Send one message and return the next one that comes."""
        self.send(text)
        return self.receive()

    def closed(self) -> int | None:
        """Wait until the server closes, whatever it still says; return the code."""
        while self.receive() is not None:
            continue
        return self.close_code

    def receive(self, timeout: float = 60.0) -> str | bytes | None:
        """Return the next message; None when the connection was closed, see ``close_code``."""
        self.raw.settimeout(timeout)
        while not self.frames and self.close_code is None:
            try:
                data = self.raw.recv(65_536)
            except ConnectionResetError:
                data = b""
            if not data:
                self.close_code = 1006
            self.feed(data)
        return self.frames.pop(0) if self.frames else None

    def nothing_for(self, seconds: float) -> bool:
        """Whether no message comes for so long."""
        try:
            self.receive(seconds)
        except TimeoutError:
            return True
        return False

    def is_open(self) -> bool:
        """Whether the server has neither closed it nor sent anything."""
        return self.nothing_for(0.05)

    def feed(self, data: bytes) -> None:
        """Take bytes of the server."""
        self._buffer += data
        while (frame := server_frame(self._buffer)) is not None:
            opcode, payload, self._buffer = frame
            if opcode == CLOSE:
                self.close_code = int.from_bytes(payload[:2], "big") if payload else 1005
                with suppress(OSError):
                    self.raw.sendall(client_frame(CLOSE, payload))
            elif opcode in (TEXT, BINARY):
                self.frames.append(payload.decode() if opcode == TEXT else payload)


def client_frame(opcode: int, payload: bytes) -> bytes:
    """Return a masked frame; the mask is zero, which is a mask all the same."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65_536:
        length = bytes([0x80 | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([0x80 | 127]) + size.to_bytes(8, "big")
    return bytes([0x80 | opcode]) + length + bytes(4) + payload


def server_frame(data: bytes) -> tuple[int, bytes, bytes] | None:
    """Take one whole, unmasked frame off the front: (opcode, payload, what follows)."""
    if len(data) < 2:
        return None
    assert data[0] & 0x80, "The server fragments nothing."
    assert not data[1] & 0x80, "The server masks nothing."
    extra = {126: 2, 127: 8}.get(data[1], 0)
    start = 2 + extra
    size = int.from_bytes(data[2:start], "big") if extra else data[1]
    if len(data) < start + size:
        return None
    return data[0] & 0x0F, data[start : start + size], data[start + size :]


def gather(sockets: Sequence[Socket], count: int, deadline: float = 60.0) -> list[list[Any]]:
    """Read all sockets at once until each has so many messages; return the messages of each."""
    end = time.monotonic() + deadline
    with selectors.DefaultSelector() as selector:
        for one in sockets:
            selector.register(one.raw, selectors.EVENT_READ, one)
        while (missing := sum(len(one.frames) < count for one in sockets)) and time.monotonic() < end:
            for key, _ in selector.select(1.0):
                data = key.fileobj.recv(262_144)  # type: ignore[union-attr]
                assert data, f"The server closed one of {len(sockets)} sockets."
                key.data.feed(data)
    assert not missing, f"After {deadline:g} s, {missing} of {len(sockets)} lack messages."
    return [one.frames for one in sockets]
