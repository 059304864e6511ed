"""The life of a server: new code at SIGHUP, probes, and its end in each of the ways that there are."""

from __future__ import annotations

import http.client
import os
import pty
import re
import secrets
import signal
import socket
import sys
from contextlib import closing

import pytest

from tests.harness import HOST, MANAGE, LiveSite, Served, is_running, until

CODE = """
from dbchannels import consumer

@consumer("websocket.receive", path=r"^/deployed/$")
def answer(message):
    message.reply_channel.send({"text": "%s"})
"""


@pytest.fixture(scope="module")
def installed(postgresql_site):
    """The site's INSTALLED_APPS."""
    return postgresql_site.shell("from django.conf import settings; print(*settings.INSTALLED_APPS)").split()


@pytest.fixture
def deployed(site, tmp_path, installed):
    """A site with one app more, whose code a test may change: ``deployed.write("second")``."""
    return Deployed(site, tmp_path, [*installed, "deployed"])


class Deployed:
    """The app's folder, and the server that runs it."""

    def __init__(self, site: LiveSite, folder, installed: list[str]) -> None:
        self.site, self.folder, self.installed = site, folder / "deployed", installed
        self.folder.mkdir()
        (self.folder / "__init__.py").touch()
        self.write("first")

    def write(self, version: str, code: str = CODE) -> None:
        """Let the app answer with this word."""
        (self.folder / "consumers.py").write_text(code % version if "%s" in code else code)

    def serve(self, *arguments: str) -> Served:
        """Start the server; wait until all workers are there."""
        served = self.site.serve(
            *("--workers", "2", f"--pythonpath={self.folder.parent}", *arguments),
            settings={"INSTALLED_APPS": self.installed},
            checks=True,
        )
        until(lambda: len(self.workers(served)) == 2, "both workers are there")
        return served

    def workers(self, served: Served) -> set[int]:
        """Return the process ids of the workers that are on record."""
        rows = self.site.rows("SELECT pid FROM dbchannels_process WHERE kind = 'worker'")
        return {pid for (pid,) in rows} & set(served.workers())


# SIGHUP.


def test_workers_run_new_code_after_sighup_and_no_socket_notices(deployed):
    served = deployed.serve()
    client, other = served.socket("/deployed/"), served.socket("/echo/")
    assert client.ask("?") == "first"
    before = deployed.workers(served)
    deployed.write("second")
    served.process.send_signal(signal.SIGHUP)
    while "The workers run the new code." not in served.output():
        assert client.ask("?") in ("first", "second")  # there is always somebody who answers
        assert served.process.poll() is None
    assert client.ask("?") == "second"
    assert other.ask("still here") == "still here"
    after = deployed.workers(served)
    assert len(after) == 2 and not before & after
    assert not any(is_running(pid) for pid in before)
    served.process.send_signal(signal.SIGTERM)
    assert (client.closed(), other.closed(), served.process.wait(60)) == (1001, 1001, 0)


def test_new_code_that_is_broken_leaves_the_old_at_work_and_a_stop_goes_before_new_code(deployed):
    served = deployed.serve()
    client, before = served.socket("/deployed/"), deployed.workers(served)
    broken = "The new code is broken, so the old workers keep running"
    for number, (code, words) in enumerate(
        [
            ("def (", "SyntaxError: "),
            ("import no_such_module", "ModuleNotFoundError: No module named 'no_such"),
        ]
    ):
        deployed.write("second", code)
        served.process.send_signal(signal.SIGHUP)
        until(lambda number=number: served.output().count(broken) > number, served.output)
        line = [line for line in served.output().splitlines() if broken in line][number]
        assert words in line
        assert "Traceback" not in served.output()
        assert deployed.workers(served) == before
        assert client.ask("?") == "first"
    deployed.write("third, and mended")
    served.process.send_signal(signal.SIGHUP)
    served.wait_for_line("The workers run the new code.", 60)
    assert client.ask("?") == "third, and mended"
    served.process.send_signal(signal.SIGHUP)
    served.process.send_signal(signal.SIGTERM)
    assert (client.closed(), served.process.wait(60)) == (1001, 0)
    assert served.workers() == []
    assert deployed.site.count("process") == 0


def test_a_new_worker_that_dies_at_once_leaves_the_old_ones_at_work(site):
    served = site.serve("--workers", "1")
    client = served.socket("/echo/")
    assert client.ask("tea") == "tea"
    before = served.workers()
    (site.folder / "broken").touch()
    try:
        served.process.send_signal(signal.SIGHUP)
        served.wait_for_line(
            "The new worker 1 ended with status 3, so the old ones keep running: correct the code."
        )
    finally:
        (site.folder / "broken").unlink()
    assert served.workers() == before
    assert client.ask("more") == "more"


def test_a_terminal_that_is_closed_ends_the_server(site):
    command = [sys.executable, str(MANAGE), "runchannels", f"{HOST}:0", "--workers", "1"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, command, site.environment())
    said = b""
    while b"quit with CONTROL-C" not in said:
        said += os.read(terminal, 65_536)
    os.kill(pid, signal.SIGHUP)  # somebody sends it, and the terminal is there
    while b"The workers run the new code." not in said:
        said += os.read(terminal, 65_536)
    os.close(terminal)
    until(lambda: os.waitpid(pid, os.WNOHANG)[0], "it has ended")
    until(lambda: not site.count("process"), "nothing is left on record")


def test_a_failed_check_leaves_no_socket_behind(site, tmp_path):
    (tmp_path / "no_urls.py").write_text("urlpatterns = 7")
    path = tmp_path / "s"
    done = site.manage(
        *("runchannels", "--bind", f"unix:{path}", f"--pythonpath={tmp_path}"),
        settings={"ROOT_URLCONF": "no_urls"},
    )
    assert done.returncode == 1
    assert "correct them, and start again." in done.stderr
    assert not path.exists()


# Probes.


def asked(port: int, path: str) -> tuple[int, str]:
    """Ask the probes."""
    with closing(http.client.HTTPConnection(HOST, port, timeout=60)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def probes_of(served: Served) -> int:
    """Return the port of a server's probes, from its banner."""
    found = re.search(r"Probes: +/healthz and /readyz at 127\.0\.0\.1:(\d+)$", served.output(), re.M)
    assert found, served.output()
    return int(found[1])


def test_a_server_is_ready_with_its_first_worker_and_until_it_stops(site):
    served = site.serve("--workers", "1", "--probe-port", "0")
    port = probes_of(served)
    assert asked(port, "/healthz") == (200, "This process is alive.\n")
    until(lambda: asked(port, "/readyz") == (200, "Ready.\n"), "it is ready")
    (site.folder / "broken").touch()
    try:
        os.kill(served.workers(1)[0], signal.SIGKILL)
        until(lambda: asked(port, "/readyz") == (503, "Not ready: no worker is ready.\n"), "it is not")
    finally:
        (site.folder / "broken").unlink()
    until(lambda: asked(port, "/readyz")[0] == 200, "it is ready again", 60)
    with served.connection() as connection:
        connection.request("GET", "/sleep/1000")
        until(lambda: site.count("inflight", "messages LIKE 'http.request %'"), "the view runs")
        served.process.terminate()
        until(lambda: asked(port, "/readyz") == (503, "Not ready: stopping.\n"), "it is not ready any more")
        assert asked(port, "/healthz")[0] == 200
        assert connection.getresponse().read() == b"slept"
    assert served.process.wait(60) == 0


def test_a_server_without_workers_is_ready_with_those_elsewhere(site):
    options = {"DBCHANNELS": {"default": {"OPTIONS": {"lease": 3}}}}
    served = site.serve("--workers", "0", "--probe-port", "0", settings=options)
    port = probes_of(served)
    nobody = (503, "Not ready: no worker is ready.\n")
    until(lambda: asked(port, "/readyz") == nobody, "it is not")
    other = site.work("--exclude", "http.*", settings=options)
    worker = site.work("--only", "http.*", settings=options)
    until(lambda: asked(port, "/readyz") == (200, "Ready.\n"), "it is")
    assert worker.terminate() == 0
    until(lambda: asked(port, "/readyz") == nobody, "it is not any more")
    assert other.process.poll() is None


def test_a_busy_port_for_probes_is_one_sentence(site):
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        done = site.manage("runchannels", f"{HOST}:0", "--probe-port", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"CommandError: {HOST}:{port} cannot be used (Address already in use): "
        "stop what listens there, or name another port.\n"
    )


# The end.


def test_before_a_restart_sockets_are_closed_1012_and_without_an_access_log_no_line_tells(site):
    served = site.serve("--workers", "1", "--no-access-log")
    assert served.get("/").text == "hello"
    clients = [served.socket("/room/tea/") for _ in range(3)]
    served.process.send_signal(signal.SIGUSR1)
    assert [client.closed() for client in clients] == [1012] * 3
    assert served.process.wait(60) == 0
    assert site.entries() == ["left tea 1012"] * 3
    assert "HTTP/1.1" not in served.output()


def test_a_connection_that_is_kept_alive_does_not_keep_the_server_alive(site):
    served = site.serve("--workers", "1")
    with served.connection() as idle, served.connection() as busy:
        idle.request("GET", "/")
        assert idle.getresponse().read() == b"hello"
        busy.request("GET", "/sleep/500")
        until(lambda: site.count("inflight", "messages LIKE 'http.request %'"), "the view runs")
        served.process.terminate()
        served.wait_for_line("Stopping.")
        answer = busy.getresponse()
        assert (answer.read(), answer.getheader("Connection")) == (b"slept", "close")
    assert served.process.wait(60) == 0


@pytest.mark.parametrize("graceful", ["0.2", "1"])
def test_what_does_not_end_ends_with_its_worker_and_is_asked_for_or_given_back_at_once(site, graceful):
    """The client of a view is asked to come again; a consumer's message is given back without an attempt."""
    served = site.serve("--workers", "2", "--graceful-timeout", graceful)
    site.send("stream", {"text": "long", "sleep": 3600})
    until(lambda: "long" in site.entries(), "it runs")
    with served.connection() as connection:
        connection.request("GET", "/sleep/60000")
        until(lambda: site.count("inflight", "messages LIKE 'http.request %'"), "the view runs")
        workers = served.workers()
        assert served.terminate() == 0
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Retry-After"), answer.getheader("Connection")) == (
            503,
            "5",
            "close",
        )
    assert not any(map(is_running, workers))
    rows = site.rows("SELECT claimed_by, attempts, alone FROM dbchannels_durablemessage")
    assert rows == [(None, 0, False)]
    assert site.count("process") == site.count("inflight") == 0


def test_a_second_signal_ends_all_now_and_what_runs_is_given_back(site):
    served = site.serve("--workers", "2", "--graceful-timeout", "600")
    site.send("stream", {"text": "long", "sleep": 3600})
    until(lambda: "long" in site.entries(), "it runs")
    workers = served.workers(2)
    served.process.terminate()
    served.wait_for_line("Stopping.")
    assert served.terminate() == 1
    assert not any(map(is_running, workers))
    rows = site.rows("SELECT claimed_by, attempts, alone FROM dbchannels_durablemessage")
    assert rows == [(None, 0, False)]


def test_a_worker_whose_parent_is_killed_finishes_what_it_runs_and_ends(site):
    served = site.serve("--workers", "1")
    site.send("stream", {"text": "a while", "sleep": 1})
    until(lambda: "a while" in site.entries(), "it runs")
    (worker,) = served.workers(1)
    served.process.kill()
    until(lambda: not is_running(worker), "the worker has ended")
    assert site.count("durablemessage") == 0


def test_an_access_log_of_streams_and_websockets(served):
    name = secrets.token_hex(4)
    served.site.note(name)
    assert served.get(f"/stream/{name}").content == b"first\nsecond\n"
    client = served.socket(f"/echo/?token=abc&from={name}")
    client.close(4000)
    client.closed()
    lines = [
        r'127\.0\.0\.1 - - \[.*\] "GET /stream/NAME HTTP/1\.1" 200 13 "-" "-" \d+ ms',
        r'127\.0\.0\.1 - - \[.*\] "WSCONNECT /echo/\?token=\*\*\*&from=NAME HTTP/1\.1" - - "-" "-" 0 ms',
        r'127\.0\.0\.1 - - \[.*\] "GET /echo/\?token=\*\*\*&from=NAME HTTP/1\.1" 101 0 "-" "-" \d+ ms',
        r'127\.0\.0\.1 - - \[.*\] "WSDISCONNECT /echo/\?token=\*\*\*&from=NAME HTTP/1\.1" 4000 - "-" "-" \d+ ms',
    ]

    def logged() -> list[str]:
        return [line.replace(name, "NAME") for line in served.output().splitlines() if name in line]

    until(lambda: len(logged()) >= 4, "all is logged")
    assert len(logged()) == 4
    assert all(re.fullmatch(line, found) for line, found in zip(lines, logged(), strict=True)), logged()
