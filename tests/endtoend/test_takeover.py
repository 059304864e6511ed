"""One server takes over from another: no connection is refused, no request cut, each WebSocket closed with 1012."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.endtoend.conftest import migrated, postgresql_database
from tests.endtoend.test_life import asked, probes_of
from tests.harness import HOST, MANAGE, Served, is_running, until
from tests.settings import WORKER

WORKERS = ("--workers", "1")
#: The first line of a server that takes over from the fixture ``running``.
DATABASE = "_".join(filter(None, ["dbchannels_takeover", WORKER]))  # as postgresql_database names it
ASKS = b'{"version": 1, "site": ["livesite.settings", "%s"]}\n' % DATABASE.encode()


@pytest.fixture
def control(tmp_path):
    """The path of a control socket."""
    return str(tmp_path / "control")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A server, and its control socket, in a folder that other users can enter."""
    site = migrated(postgresql_database("dbchannels_takeover"), tmp_path_factory.mktemp("takeover"))
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        control = f"{folder}/control"
        try:
            yield site.serve("--control", control, *WORKERS), control
        finally:
            site.end()


@pytest.fixture
def lasting(running):
    """The same (server, control), for a test after which it serves as before, with the same socket open."""
    old, control = running
    client = old.socket("/echo/")
    try:
        yield old, control
    finally:
        for name in ("broken", "hesitates"):
            (old.site.folder / name).unlink(missing_ok=True)
    assert client.ask("still here") == "still here"
    assert old.get("/").text == "hello"
    assert "Traceback" not in old.output()


class Visitors:
    """Clients that ask one thing after another, each in a thread, until `stop`; ``failures`` should stay empty."""

    def __init__(self, connect) -> None:
        self._connect = connect
        self.answered, self.failures = Counter(), []
        self._over = threading.Event()
        kinds = [self.stay, self.stay, self.come_anew, self.come_anew, self.ask_slowly, self.upload]
        self._threads = [threading.Thread(target=self._run, args=(kind,)) for kind in kinds]
        for thread in self._threads:
            thread.start()

    def connection(self):
        found = http.client.HTTPConnection(HOST, timeout=60)
        found.sock = self._connect()
        return found

    def _run(self, kind) -> None:
        try:
            while not self._over.is_set():
                kind()
        except Exception as error:
            self.failures.append(f"{kind.__name__}: {error!r}")

    def ask(self, connection, method, path, body=None):
        """Ask one thing; return the response's content, and whether the connection stays."""
        connection.request(method, path, body)
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            self.failures.append(f"{path}: {response.status} {content[:100]!r}")
        self.answered[path.split("/")[1]] += 1
        return content, not response.will_close

    def stay(self) -> None:
        with closing(self.connection()) as connection:
            while not self._over.is_set():
                if not self.ask(connection, "GET", "/")[1]:
                    return

    def come_anew(self) -> None:
        with closing(self.connection()) as connection:
            self.ask(connection, "GET", "/")

    def ask_slowly(self) -> None:
        with closing(self.connection()) as connection:
            self.ask(connection, "GET", "/sleep/300")

    def upload(self) -> None:
        def parts():
            for _ in range(20):
                time.sleep(0.05)
                yield b"x" * 10_000

        with closing(self.connection()) as connection:
            digest, _ = self.ask(connection, "POST", "/hash", parts())
            if hashlib.sha256(b"x" * 200_000).hexdigest().encode() not in digest:
                self.failures.append(f"hash: {digest[:100]!r}")

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)


def has_taken_over(new: Served, old: Served) -> None:
    """Wait until the new server serves and the old one has ended."""
    new.wait_for_line("This server has taken over", 60)
    new.wait_ready()
    assert old.process.wait(60) == 0, old.output()


def tcp(port):
    return lambda: socket.create_connection((HOST, port), timeout=60)


def unix(path):
    def connect():
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(30)
        sock.connect(str(path))
        return sock

    return connect


def takes_over_under_load(old: Served, start, *connects) -> Served:
    """Start the new server while visitors come, who notice nothing, and go on; return it."""
    visitors = [Visitors(connect) for connect in connects]

    def all_see(what: str, number) -> None:
        until(
            lambda: all(one.failures or number(one) for one in visitors),
            lambda: f"{what}: {[one.answered for one in visitors]}",
            60,
        )

    try:
        all_see("all kinds are answered", lambda one: len(one.answered) == 3)
        new = start()
        has_taken_over(new, old)
        before = {one: one.answered.copy() for one in visitors}
        all_see(
            "all kinds are answered by the new one",
            lambda one: all(one.answered[kind] > before[one][kind] + 1 for kind in before[one]),
        )
    finally:
        for one in visitors:
            one.stop()
    assert [one.failures for one in visitors] == [[]] * len(visitors)
    return new


def test_nobody_notices_a_takeover_under_load(site, control, tmp_path):
    path = tmp_path / "s"
    arguments = ("--control", control, "--workers", "2", "--bind", f"unix:{path}")
    old = site.serve(*arguments)
    new = takes_over_under_load(
        old,
        lambda: site.serve(*arguments, "--takeover", bind=f"{HOST}:{old.port}", ready=False),
        tcp(old.port),
        unix(path),
    )
    assert new.port == old.port
    assert site.count("process") == 3
    assert path.exists()
    assert new.terminate() == 0
    assert not path.exists()
    assert site.count("process") == 0


def goes_on_through_a_takeover(site, *arguments):
    """Let a server take over from another under load: requests are answered, and WebSockets come back."""
    old = site.serve(*arguments)
    talker = old.socket("/echo/")
    new = takes_over_under_load(
        old, lambda: site.serve(*arguments, "--takeover", bind="", ready=False), tcp(old.port)
    )
    assert talker.closed() == 1012
    assert new.socket("/echo/").ask("hello") == "hello"


def test_views_in_the_server_go_on_through_a_takeover(site, control):
    goes_on_through_a_takeover(site, "--control", control, *WORKERS, "--http", "direct")


def test_workers_that_others_have_started_stay_through_a_takeover(site, control):
    worker = Served(site, ["runworker"], None)
    site.processes.append(worker)
    worker.wait_for_line("reads", 60)
    goes_on_through_a_takeover(site, "--control", control, "--workers", "0")
    assert worker.process.poll() is None
    assert site.count("process") == 2


def test_each_websocket_is_closed_with_1012_and_not_all_at_once(site, control):
    arguments = ("--control", control, *WORKERS)
    old = site.serve(*arguments, "--drain-websockets", "3")
    clients = [old.socket("/echo/") for _ in range(100)]
    new = site.serve(*arguments, "--takeover", ready=False, bind=f"{HOST}:{old.port}")
    closed, _, _ = select.select([client.raw for client in clients], [], [], 60)
    assert 1 <= len(closed) < 100  # they go one by one
    assert Counter(client.closed() for client in clients) == {1012: 100}
    has_taken_over(new, old)
    assert new.socket("/echo/").ask("hello") == "hello"


def test_websockets_may_stay_with_the_old_server_and_idle_connections_get_one_more_response(site, control):
    arguments = ("--control", control, *WORKERS)
    old = site.serve(*arguments, "--drain-websockets", "86400")
    room = [old.socket("/room/tea/") for _ in range(2)]
    workers = set(old.workers(1))
    with old.connection() as idle, old.connection() as silent:
        for connection in (idle, silent):
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"hello"
        new = site.serve(*arguments, "--takeover", ready=False, bind=f"{HOST}:{old.port}")
        old.wait_for_line("Another server has taken over", 60)
        idle.request("GET", "/")
        response = idle.getresponse()
        assert (response.read(), response.getheader("Connection")) == (b"hello", "close")
        new.wait_for_line("This server has taken over", 60)
        new.wait_ready()
        until(lambda: not any(map(is_running, workers)), "the old workers have ended", 60)
        newcomer = new.socket("/room/tea/")
        newcomer.send("to all")
        assert [client.receive() for client in (*room, newcomer)] == ["to all"] * 3
        assert silent.sock.recv(1) == b""  # closed, after a while
    assert old.process.poll() is None
    old.process.send_signal(signal.SIGTERM)  # now it stops, and closes them at once
    assert [client.closed() for client in room] == [1012, 1012]
    assert old.process.wait(60) == 0
    assert newcomer.is_open()


def test_everything_works_in_the_new_server_and_in_the_one_after_it(site, control, tmp_path):
    """The second one names no address, so it listens where the first did; the third names its own, but no probes'."""
    arguments = ("--control", control, *WORKERS)
    both = ("--bind", f"unix:{tmp_path}/both")
    old = site.serve(*arguments, "--bind", f"unix:{tmp_path}/old", *both, "--probe-port", "0")
    port = probes_of(old)
    new = site.serve(*arguments, "--takeover", "--probe-port", "0", ready=False, bind="")
    has_taken_over(new, old)
    assert (new.port, probes_of(new)) == (old.port, port)
    assert asked(port, "/readyz") == (200, "Ready.\n")
    before = new.workers(1)
    new.process.send_signal(signal.SIGHUP)
    new.wait_for_line("The workers run the new code.", 60)
    assert not set(before) & set(new.workers(1))
    assert {one.name for one in tmp_path.iterdir()} == {"old", "both", "control"}
    third = site.serve(
        *arguments, "--takeover", *both, "--bind", f"unix:{tmp_path}/new", bind="", ready=False
    )
    has_taken_over(third, new)
    assert f"taken over from process {new.process.pid}." in third.output()
    assert {one.name for one in tmp_path.iterdir()} == {"new", "both", "control"}
    for name in ("both", "new"):
        with closing(http.client.HTTPConnection(HOST)) as connection:
            connection.sock = unix(tmp_path / name)()
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"hello"
    with pytest.raises(ConnectionRefusedError):
        tcp(old.port)()
    assert asked(port, "/readyz") == (200, "Ready.\n")
    assert third.terminate() == 0
    assert list(tmp_path.iterdir()) == []
    assert site.count("process") == 0


# When it fails.


def says_again(old: Served, text: str):
    """Return a function that waits until the server has said something once more than now."""
    before = old.output().count(text)
    return lambda: until(lambda: old.output().count(text) > before, lambda: f"{text!r} in {old.output()}", 60)


def test_a_new_version_that_is_broken_changes_nothing(lasting, tmp_path):
    old, control = lasting
    again = ("runchannels", "--control", control, "--takeover", *WORKERS)
    (tmp_path / "no_urls.py").write_text("urlpatterns = 7")
    goes_on = says_again(old, "has ended before it took over, so this server goes on.")
    done = old.site.manage(*again, f"--pythonpath={tmp_path}", settings={"ROOT_URLCONF": "no_urls"})
    assert done.returncode == 1
    assert "correct them, and start again." in done.stderr
    goes_on()
    (old.site.folder / "broken").touch()
    done = old.site.manage(*again)
    assert done.returncode == 1
    sentence = (
        r"Of the new workers, worker \d ended with status 3, so the running server goes on: correct the code."
    )
    assert re.search(f"CommandError: {sentence}$", done.stderr.strip()), done.stderr
    away = {"ENGINE": "django.db.backends.postgresql", "HOST": HOST, "PORT": "1", "NAME": "site"}
    done = old.site.manage(*again, "--wait-for-database", "0", settings={"DATABASES": {"default": away}})
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "connection refused" in done.stderr.lower()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_new_server_that_ends_too_soon_leaves_the_old_one_at_work(lasting, number):
    old, control = lasting
    (old.site.folder / "hesitates").touch()
    new = old.site.serve("--control", control, "--takeover", *WORKERS, bind="", ready=False)
    old.wait_for_line(f"Process {new.process.pid} gets ready to take over", 60)
    # -number before it handles signals, 1 while it waits for its workers
    assert new.terminate(number) in (-number, 1)
    old.wait_for_line(f"Process {new.process.pid} has ended before it took over, so this server goes on.", 60)


def test_a_second_server_does_not_take_the_control_socket_by_accident(lasting):
    old, control = lasting
    done = old.site.manage("runchannels", f"{HOST}:0", "--control", control, *WORKERS)
    assert (done.returncode, "Address already in use" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr


def test_what_comes_to_the_control_socket_cannot_harm(lasting):
    old, control = lasting
    assert os.stat(control).st_mode & 0o777 == 0o600
    with closing(unix(control)()) as sock:
        for _ in range(3):  # more descriptors than one message may carry
            socket.send_fds(sock, [b"x"], [sock.fileno()] * 100)
        old.wait_for_line("descriptors were too long")
    for data in (
        b"",
        b"hello\n",
        b"{}\n",
        b"[1]\n",
        b"\xff" * 70_000,
        b'{"version": 99}\n',
        b'{"version": 1}\n',
        b'{"version": 1, "site": ["other.settings", "other"]}\n',
        b"[" * 60_000 + b"\n",
    ):
        with closing(unix(control)()) as sock, suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            said = b"".join(iter(lambda: sock.recv(65_536), b""))
            assert not said or "refused" in json.loads(said)
    for answer in (b"", b"{}\n", b'{"kept": [99], "workers": []}\n', b'{"kept": 1}\n'):
        with closing(unix(control)()) as sock:
            sock.sendall(ASKS)
            line, descriptors, _, _ = socket.recv_fds(sock, 65_536, 10)
            assert (b"listeners" in line, len(descriptors)) == (True, 2)
            for one in descriptors:
                os.close(one)
            sock.sendall(answer)
            sock.shutdown(socket.SHUT_WR)
            assert "refused" in json.loads(b"".join(iter(lambda: sock.recv(65_536), b"")))


def test_another_user_is_refused(lasting):
    if os.geteuid():
        pytest.skip("Only root can be another user.")
    old, control = lasting
    refused = says_again(old, "A takeover was refused: ")
    os.chmod(control, 0o666)
    code = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.sendall(b'{\"version\": 1}\\n'); print(s.recv(65536).decode())"
    )
    try:
        command = [sys.executable, "-c", code, control]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        os.chmod(control, 0o600)
    sentence = "The processes at the control socket must be of one user: 65534 is not 0."
    assert sentence in done.stdout, done.stderr
    refused()


def test_only_one_can_take_over_at_once_and_it_does_so_after_another_one_has_failed(site, control):
    old = site.serve("--control", control, *WORKERS)
    again = ("runchannels", "--control", control, "--takeover", *WORKERS)
    done = site.manage(*again, "--bind", "192.0.2.1:80")  # not an address of this machine
    assert (done.returncode, "192.0.2.1:80 cannot be used" in done.stderr) == (1, True)
    (site.folder / "hesitates").touch()
    try:
        new = site.serve(*again[1:], bind="", ready=False)
        old.wait_for_line(f"Process {new.process.pid} gets ready to take over", 60)
        done = site.manage(*again)
    finally:
        (site.folder / "hesitates").unlink()
    sentence = f"Process {new.process.pid} takes over already: wait until it is done."
    assert (done.returncode, done.stderr) == (1, f"CommandError: {sentence}\n")
    has_taken_over(new, old)


#: Runs manage.py with a new server that waits one second for the running one, not ten.
IMPATIENT = """
import runpy, sys
from dbchannels.processes import handover
handover.ANSWER_WITHIN = 1.0
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def hesitant(site, control):
    """A server, and another one that asks to take over but whose workers do not start: (old, new)."""
    old = site.serve("--control", control, *WORKERS)
    (site.folder / "hesitates").touch()
    try:
        arguments = ["runchannels", "--control", control, "--takeover", *WORKERS]
        new = Served(site, arguments, None, [sys.executable, "-c", IMPATIENT, str(MANAGE)])
        site.processes.append(new)
        old.wait_for_line("gets ready to take over", 60)
        yield old, new
    finally:
        (site.folder / "hesitates").unlink(missing_ok=True)


def test_the_new_server_goes_on_when_the_old_one_dies(site, control, hesitant):
    old, new = hesitant
    old.end()
    waiting = tcp(old.port)()  # nobody accepts yet, and nobody refuses
    waiting.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    (site.folder / "hesitates").unlink()
    new.wait_ready()
    assert b"".join(iter(lambda: waiting.recv(65_536), b"")).endswith(b"hello")
    waiting.close()
    new.end()  # what it leaves is in nobody's way
    assert os.path.exists(control)
    third = site.serve("--control", control, "--takeover", *WORKERS)
    assert f"No server is at {control}, so there is nothing to take over." in third.output()
    assert third.get("/").text == "hello"


def test_the_new_server_ends_when_the_old_one_is_told_to_stop(site, control, hesitant):
    old, new = hesitant
    assert old.terminate() == 0
    assert new.process.wait(60) == 1
    assert new.output().endswith(
        "CommandError: The running server was told to stop, so this one stops too.\n"
    )
    assert not os.path.exists(control)
    until(lambda: not site.count("process"), "nothing is left on record")


def test_a_server_that_stands_still_is_not_waited_for(site, hesitant):
    old, new = hesitant
    os.kill(old.process.pid, signal.SIGSTOP)
    (site.folder / "hesitates").unlink()
    try:
        new.wait_for_line("has not confirmed that this server takes over", 60)
        new.wait_ready()
        assert new.get("/").text == "hello"
    finally:
        os.kill(old.process.pid, signal.SIGCONT)
    assert old.process.wait(60) == 0
    assert new.get("/").text == "hello"


# In the background, as ExecReload= of systemd does it.

DETACHED = ("--takeover", "--detach", *WORKERS)


def test_a_detached_server_serves_once_the_command_has_ended(site, control):
    old = site.serve("--control", control, *WORKERS)
    log = site.folder / "detached.log"
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, str(MANAGE), "runchannels", "--control", control, *DETACHED],
            env=site.environment(),
            stdout=file,
            stderr=file,
            timeout=120,
        )
    pid = 0
    try:
        assert done.returncode == 0, log.read_text()
        assert old.process.wait(60) == 0
        ((pid,),) = site.rows("SELECT pid FROM dbchannels_process WHERE kind = 'server'")
        assert pid != old.process.pid
        assert old.get("/").text == "hello"
    finally:
        if pid:
            os.kill(pid, signal.SIGTERM)
            until(lambda: not is_running(pid), "it has ended", 60)
    assert site.count("process") == 0


def test_a_detached_server_that_cannot_start_is_an_error_of_the_command(lasting, tmp_path):
    old, control = lasting
    (tmp_path / "no_urls.py").write_text("urlpatterns = 7")
    done = old.site.manage(
        *("runchannels", "--control", control, *DETACHED, f"--pythonpath={tmp_path}"),
        settings={"ROOT_URLCONF": "no_urls"},
    )
    assert done.returncode == 1
    assert "correct them, and start again." in done.stderr


def test_a_detached_server_ends_with_a_command_that_was_killed(lasting):
    old, control = lasting
    (old.site.folder / "hesitates").touch()
    asks, goes_on = (
        says_again(old, "gets ready to take over"),
        says_again(old, "has ended before it took over"),
    )
    command = old.site.serve("--control", control, *DETACHED, bind="", ready=False)
    asks()
    command.process.kill()
    command.process.wait()
    goes_on()
    command.wait_for_line(
        "The command that started this server has ended, so the running server goes on.", 60
    )


def test_a_detached_server_that_finds_none_to_take_over_ends(site, control):
    done = site.manage("runchannels", "--control", control, *DETACHED)
    sentence = "CommandError: There is no server to take over from: start one without --detach.\n"
    assert (done.returncode, done.stderr.endswith(sentence)) == (1, True), done.stderr
    assert site.count("process") == 0


# Socket activation.

#: Listens as systemd does for a .socket unit, and becomes the server: sockets are "name=path" or ports.
ACTIVATE = """
import os, socket, sys
names = sys.argv[1].split(",")
for number, name in enumerate(names, 3):
    sock = socket.create_server(("127.0.0.1", 0))
    print(name, sock.getsockname()[1], flush=True)
    os.dup2(sock.detach(), number + 100)
for number in range(3, 3 + len(names)):
    os.dup2(number + 100, number)
    os.set_inheritable(number, True)
os.environ |= {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names), "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def activate(site, names, *arguments):
    """Start a server with sockets of these names; return it, and their ports."""
    program = [sys.executable, "-c", ACTIVATE, names, str(MANAGE)]
    served = Served(site, ["runchannels", *arguments], None, program)
    site.processes.append(served)
    count = len(names.split(","))
    until(lambda: served.output().count("\n") >= count, served.output)
    return served, [int(line.split()[1]) for line in served.output().splitlines()[:count]]


def test_a_server_listens_at_the_sockets_of_systemd(site, control):
    old, (port, probes, other) = activate(site, "http,probe,more", "--control", control, *WORKERS)
    old.wait_ready()
    for one in (port, other):
        with closing(http.client.HTTPConnection(HOST, one, timeout=60)) as connection:
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"hello"
    until(lambda: asked(probes, "/readyz")[0] == 200, "it is ready")
    for pid in old.workers(1):
        assert b"LISTEN_" not in Path(f"/proc/{pid}/environ").read_bytes()
    new = takes_over_under_load(
        old,
        lambda: site.serve("--control", control, "--takeover", *WORKERS, bind="", ready=False),
        tcp(port),
    )
    assert asked(probes, "/readyz")[0] == 200
    assert new.get("/").text == "hello"
    third, _ = activate(site, "http", "--control", control, "--takeover", *WORKERS)
    assert third.process.wait(60) == 1
    assert (
        "CommandError: This server has sockets of its own (LISTEN_FDS), so it can take over none."
        in third.output()
    )
    assert new.get("/").text == "hello"


def test_addresses_beside_the_sockets_of_systemd_are_refused(site):
    served, _ = activate(site, "http", "--bind", "8000", *WORKERS)
    assert served.process.wait(60) == 1
    assert served.output().endswith("the command line names addresses: leave out either.\n")


def test_systemds_own_program_starts_a_server(site, tmp_path):
    program = shutil.which("systemd-socket-activate")
    if program is None:
        pytest.skip("There is no systemd-socket-activate.")
    path = tmp_path / "s"
    environment = [f"--setenv={name}" for name in site.environment()]
    served = Served(
        site,
        ["runchannels", *WORKERS],
        None,
        [program, f"--listen={path}", *environment, sys.executable, str(MANAGE)],
    )
    site.processes.append(served)
    until(path.exists, served.output)
    with closing(http.client.HTTPConnection(HOST)) as connection:
        connection.sock = unix(path)()  # it starts the server
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"hello"
    assert f"Serving unix:{path}" in served.output()
    assert served.terminate() == 0
    assert path.exists()  # it is systemd's


# What systemd is told.


@pytest.fixture
def notified(tmp_path, monkeypatch):
    """The socket of a service manager, and a function that returns what it was told until a line comes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "n"))
        sock.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))

        def read(end):
            told = []
            while not any(one.startswith(end) for one in told):
                told += sock.recv(4096).decode().splitlines()
            return [one for one in told if one != "WATCHDOG=1" or end == one]

        yield read


def test_systemd_is_told_of_each_step(site, control, notified, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    arguments = ("--control", control, *WORKERS)
    old = site.serve(*arguments)
    assert notified("READY=1")[:1] == ["READY=1"]
    assert notified("WATCHDOG=1")
    old.process.send_signal(signal.SIGHUP)
    assert notified("MONOTONIC_USEC=")[-2] == "RELOADING=1"
    assert notified("READY=1") == ["READY=1"]
    monkeypatch.delenv("WATCHDOG_USEC")
    new = site.serve(*arguments, "--takeover", ready=False, bind="")
    assert notified("MAINPID=") == [f"MAINPID={new.process.pid}"]
    assert notified("READY=1") == ["READY=1", "STATUS=Serving"]
    has_taken_over(new, old)
    assert "WATCHDOG=1" in notified("WATCHDOG=1")  # it goes on as before
    new.process.send_signal(signal.SIGTERM)
    assert "STOPPING=1" in notified("STOPPING=1")
    assert new.process.wait(60) == 0


def test_the_printed_unit_works_without_systemd(site, control, notified, monkeypatch):
    """The test does what systemd does: it starts the commands of the unit, and believes the last MAINPID."""
    options = (
        "--name",
        "site",
        "--user",
        "site",
        "--bind",
        f"{HOST}:0",
        "--probe-port",
        "0",
        "--workers",
        "1",
    )
    unit = site.manage("channels_deploy", "systemd", *options, "--control", control).stdout
    start, again = (
        shlex.split(re.findall(f"^{name}=(.+)$", unit, re.M)[0]) for name in ("ExecStart", "ExecReload")
    )
    old = Served(site, start[2:], None)
    site.processes.append(old)
    assert notified("READY=1") == ["READY=1", "STATUS=Serving"]
    monkeypatch.setenv("MAINPID", str(old.process.pid))
    with (site.folder / "reload.log").open("w") as log:
        reload = subprocess.run(
            again, cwd=MANAGE.parent, env=site.environment(), stdout=log, stderr=log, timeout=120
        )
    pid = 0
    try:
        assert reload.returncode == 0, (site.folder / "reload.log").read_text()
        (line,) = notified("MAINPID=")
        pid = int(line.partition("=")[2])
        assert pid != old.process.pid
        assert notified("READY=1") == ["READY=1", "STATUS=Serving"]
        assert old.process.wait(60) == 0
        old.port = int(re.findall(rf"http://{HOST}:(\d+)", (site.folder / "reload.log").read_text())[0])
        assert old.get("/").text == "hello"
    finally:
        if pid:
            os.kill(pid, signal.SIGTERM)
            until(lambda: not is_running(pid), "it has ended", 60)
    assert "STOPPING=1" in notified("STOPPING=1")
    assert site.count("process") == 0
