"""``runserver``: a copy of the site is edited while it is served, and a WebSocket stays open."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.endtoend.conftest import migrated, sqlite_database
from tests.endtoend.test_files import begin
from tests.harness import HOST, MANAGE, LiveSite, Served, children, connect, is_running, until
from tests.soak.downloads import files

DEBUG = {"DEBUG": True}
MEMORY = {"DEBUG": True, "DBCHANNELS": {"default": {"BACKEND": "memory"}}}
ECHO = "message.reply_channel.send({key: message[key]})"
LOUD = 'message.reply_channel.send({"text": message["text"].upper()})'


class Copy(LiveSite):
    """A site whose files may be changed."""

    def file(self, name: str) -> Path:
        """Return the path of a file of the app."""
        return self.manage_py.parent / "livesite" / name

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace a text that stands in a file once, as an editor saves it."""
        text = self.file(name).read_text()
        assert text.count(old) == 1
        self.file(name).write_text(text.replace(old, new))

    def append(self, name: str, text: str) -> None:
        """Add a line to a file, which is made when it is not there."""
        with self.file(name).open("a") as file:
            file.write(f"{text}\n")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with all tables."""
    folder = tmp_path_factory.mktemp("tables")
    migrated(sqlite_database(folder), folder)
    return folder / "site.sqlite3"


@pytest.fixture
def copy(tables: Path, tmp_path: Path) -> Iterator[Copy]:
    """A copy of the site, on a SQLite file of its own."""
    folder = tmp_path / "site"
    shutil.copytree(MANAGE.parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(tables, tmp_path / "site.sqlite3")
    site = Copy(sqlite_database(tmp_path), tmp_path, folder / MANAGE.name)
    try:
        yield site
    finally:
        # Django's reloader, where it is the parent, leaves its child when it is killed.
        for served in site.processes:
            with suppress(ProcessLookupError):
                os.killpg(served.process.pid, signal.SIGKILL)
        site.end()


def family(served: Served) -> list[int]:
    """Return the ids of a process, of its children and of theirs."""
    own = children(served.process.pid)
    return [served.process.pid, *own, *(pid for one in own for pid in children(one))]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server((HOST, 0)) as taken:
        return int(taken.getsockname()[1])


def answers(client, text: str) -> None:
    """Ask until the answer is a certain one."""
    until(lambda: client.ask("tea") == text, f"the answer is {text}")


# Reload.


def test_new_code_answers_on_the_same_socket(copy):
    served = copy.develop("--workers", "2", settings=DEBUG)
    client = served.socket("/echo/")
    assert client.ask("tea") == "tea"
    copy.edit("consumers.py", ECHO, LOUD)
    answers(client, "TEA")
    copy.edit("consumers.py", LOUD, ECHO)
    answers(client, "tea")


CACHED = """
from django.core.cache import cache
from django.http import HttpResponse
from urllib.request import urlopen

def count(request):
    cache.add("visits", 0)
    assert request.META["wsgi.multithread"] and not request.META["wsgi.multiprocess"]
    return HttpResponse(f"{os.getpid()} {cache.incr('visits')}")

def own(request):
    return HttpResponse(urlopen(request.build_absolute_uri("/count")).read())

urlpatterns += [path("count", count), path("own", own)]
"""


def test_requests_are_answered_by_one_process_that_may_ask_itself(copy):
    copy.append("urls.py", CACHED)
    served = copy.develop(settings=DEBUG)
    until(lambda: len(served.workers()) == 3, "all workers run")
    answers = [served.get("/count").text.split() for _ in range(5)] + [served.get("/own").text.split()]
    assert {pid for pid, _ in answers} <= set(map(str, served.workers()))
    assert len({pid for pid, _ in answers}) == 1
    assert [int(visits) for _, visits in answers] == [1, 2, 3, 4, 5, 6]
    assert served.socket("/echo/").ask("tea") == "tea"


def test_no_request_after_a_save_is_answered_by_old_code(copy):
    served = copy.develop("--workers", "1", settings=DEBUG)
    assert served.get("/").text == "hello"
    assert sends_files(served)
    copy.edit("urls.py", 'HttpResponse("hello")', 'HttpResponse("changed")')
    assert served.get("/").text == "changed"
    assert sends_files(served)
    assert "ended with status" not in served.output()


def sends_files(served: Served) -> bool:
    """Return whether the server reads a file itself, while its client takes nothing."""
    begin(served, "/file/24")
    return files(served) > 0


def test_on_postgresql_too(site, copy):
    there = Copy(site.database, copy.folder, copy.manage_py)
    served = there.develop("--workers", "1", settings=DEBUG)
    try:
        assert served.get("/").text == "hello"
        there.edit("urls.py", 'HttpResponse("hello")', 'HttpResponse("changed")')
        assert served.get("/").text == "changed"
        client = served.socket("/echo/")
        there.edit("consumers.py", ECHO, LOUD)
        answers(client, "TEA")
        served.process.send_signal(signal.SIGINT)
        assert (client.closed(), served.process.wait(60)) == (1001, 0)
        assert site.count("process") == site.count("connection") == 0
    finally:
        there.end()


def test_what_is_asked_of_broken_code_waits_for_the_change_that_mends_it(copy):
    served = copy.develop("--workers", "1", settings=DEBUG)
    client = served.socket("/echo/")
    copy.append("consumers.py", "(((")
    served.wait_for_line("cannot run like this")
    assert "SyntaxError: '(' was never closed" in served.output()
    until(lambda: not served.workers(), "no worker runs the old code")
    client.send("tea")
    copy.edit("consumers.py", "(((\n", "")
    assert client.receive() == "tea"


def test_a_finding_of_the_system_check_is_shown_and_waited_for(copy):
    served = copy.develop("--workers", "1", settings=DEBUG)
    client = served.socket("/echo/")
    twice = 'for _ in range(2): consumer("twice")(leave)'
    copy.append("consumers.py", twice)
    served.wait_for_line("cannot run like this")
    assert "(dbchannels.E003)" in served.output()
    assert "Traceback" not in served.output()
    copy.edit("consumers.py", f"{twice}\n", "")
    assert client.ask("tea") == "tea"


def test_a_site_that_cannot_be_imported_is_waited_for(copy):
    copy.append("models.py", "(((")
    served = copy.develop("--workers", "1", settings=DEBUG, ready=False)
    served.wait_for_line("SyntaxError")
    copy.edit("models.py", "(((\n", "")

    def is_ready() -> bool:
        # Until then the reloader is Django's, which does not see what is saved before its first look.
        os.utime(copy.file("models.py"))
        return "Quit the server" in served.output()

    until(is_ready, "the site is served", every=1.0)
    served.wait_ready("Quit the server")
    assert served.get("/").text == "hello"
    copy.append("models.py", "(((")
    served.wait_for_line("cannot run like this")
    copy.edit("models.py", "(((\n", "")
    assert served.get("/").text == "hello"


def test_a_new_file_of_an_app_is_noticed(copy):
    served = copy.develop("--workers", "1", settings=DEBUG)
    (worker,) = until(served.workers, "there is a worker")
    copy.append("fresh.py", "")
    until(lambda: served.workers() not in ([], [worker]), "there is another worker")
    assert f"{copy.file('fresh.py')} changed, reloading." in served.output()


def test_the_settings_are_the_server_s_own(copy):
    served = copy.develop("--workers", "1", port=free_port(), settings=DEBUG)
    client = served.socket("/echo/")
    copy.append("settings.py", "(((")
    served.wait_for_line("cannot run like this")
    assert client.is_open()
    copy.edit("settings.py", "(((\n", 'ALLOWED_HOSTS = ["only.example"]\n')
    assert client.closed() == 1012
    pid = served.process.pid
    until(lambda: served.output().count("Quit the server") == 2, "the server is there again")
    assert served.process.pid == pid
    assert served.get("/", Host="only.example").text == "hello"
    assert served.get("/").status == 400
    copy.append("settings.py", "(((")
    until(lambda: served.output().count("cannot run like this") == 2, "the settings are broken")
    assert served.terminate(signal.SIGINT) == 0


def test_a_template_is_read_anew_and_nothing_starts_again(copy):
    served = copy.develop("--workers", "1", settings=DEBUG)
    assert served.get("/page").text == "a page\n"
    (worker,) = served.workers(1)
    copy.edit("templates/livesite/page.html", "a page", "another page")
    assert served.get("/page").text == "another page\n"
    assert served.workers() == [worker]


# Without a database layer.


def test_a_layer_in_memory_is_one_process(copy):
    served = copy.develop("--noreload", settings=MEMORY)
    first, second = served.socket("/room/tea/"), served.socket("/room/tea/")
    first.send("hello")
    assert first.receive() == second.receive() == "hello"
    assert served.get("/").text == "hello"
    assert children(served.process.pid) == []
    served.process.send_signal(signal.SIGINT)
    assert [client.closed() for client in (first, second)] == [1001] * 2
    assert served.process.wait(60) == 0


def test_in_memory_the_whole_process_is_started_again(copy):
    served = copy.develop(port=free_port(), settings=MEMORY)
    client = served.socket("/echo/")
    assert client.ask("tea") == "tea"
    copy.edit("consumers.py", ECHO, LOUD)
    assert client.closed() == 1006
    until(lambda: served.output().count("Quit the server") == 2, "it is there again")
    assert served.socket("/echo/").ask("tea") == "TEA"
    pids = family(served)
    served.process.send_signal(signal.SIGTERM)
    until(lambda: not any(is_running(pid) for pid in pids), "all have ended")


# Options.


def test_the_lines_of_django_users(copy):
    served = copy.develop("--nothreading", "--noreload", "--force-color", settings=DEBUG)
    assert "System check identified no issues" in served.output()
    assert len(served.workers(1)) == 1
    assert served.get("/static/admin/css/base.css").status == 200
    assert served.get("/nowhere").status == 404
    served.socket("/echo/")
    until(lambda: '"GET /echo/ HTTP/1.1" 101' in served.output(), "a line for the WebSocket")
    lines = [line for line in served.output().splitlines() if "HTTP/1.1" in line]
    assert "\x1b[33m" not in lines[0]
    assert "\x1b[33m" in lines[1]  # yellow


@pytest.mark.parametrize(
    ("arguments", "settings", "status"),
    [(["--nostatic"], DEBUG, 404), ([], {}, 404), (["--insecure"], {}, 200)],
)
def test_static_files_are_served_in_development_or_when_told_to(copy, arguments, settings, status):
    served = copy.develop("--noreload", "--workers", "1", *arguments, settings=settings)
    assert served.get("/static/admin/css/base.css").status == status


def test_missing_migrations_are_a_warning(copy):
    with closing(sqlite3.connect(copy.database["NAME"], isolation_level=None)) as connection:
        connection.execute("DELETE FROM django_migrations WHERE app = 'sessions'")
    served = copy.develop("--noreload", "--workers", "1", settings=DEBUG)
    assert "You have 1 unapplied migration(s)" in served.output()


def test_ipv6(copy):
    served = copy.develop("--noreload", "--workers", "1", "-6", settings=MEMORY, ready=False)
    served.wait_for_line("http://[::1]:")


def test_without_reload_a_site_that_cannot_run_is_refused(copy):
    copy.append("consumers.py", 'for _ in range(2): consumer("twice")(leave)')
    done = copy.manage("runserver", "0", "--noreload", settings=DEBUG)
    assert done.returncode == 1
    assert "(dbchannels.E003)" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("The site cannot run: correct the errors above, and start again.\n")


@pytest.mark.parametrize("settings", [DEBUG, MEMORY], ids=["database", "memory"])
def test_a_busy_port_is_one_sentence(copy, settings):
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        done = copy.manage("runserver", str(port), "--noreload", "--skip-checks", settings=settings)
    assert done.returncode == 1
    assert done.stderr.removeprefix("CommandError: ") == (
        f"{HOST}:{port} cannot be used (Address already in use): stop what listens there, or name another port.\n"
    )


def test_a_bad_address_is_refused_in_django_s_words(copy):
    done = copy.manage("runserver", "nowhere:http")
    assert done.returncode == 1
    assert done.stderr == 'CommandError: "nowhere:http" is not a valid port number or address:port pair.\n'


# The end.


def test_ctrl_c_ends_all_at_once(copy):
    served = copy.develop("--workers", "2", settings=DEBUG)
    clients = [served.socket("/room/tea/") for _ in range(3)]
    raw = connect(served.port)
    raw.sendall(b"GET /sleep/60000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    until(lambda: copy.count("inflight", "messages LIKE 'http.request %'"), "the view runs")
    pids = family(served)
    assert len(pids) == 4
    os.killpg(served.process.pid, signal.SIGINT)  # as a terminal does
    assert served.process.wait(20) == 0
    assert "Traceback" not in served.output()
    assert [client.closed() for client in clients] == [1001] * 3
    until(lambda: not any(is_running(pid) for pid in pids), "all have ended")


def test_nothing_outlives_a_killed_server(copy):
    served = copy.develop("--workers", "2", settings=DEBUG)
    pids = family(served)
    os.kill(served.process.pid, signal.SIGKILL)
    served.process.wait()
    until(lambda: not any(is_running(pid) for pid in pids), "all have ended")
