"""``dbchannels.wsgi`` behind real WSGI servers: gunicorn's threads, processes and greenlets, uWSGI, and wsgiref."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.endtoend.conftest import migrated, postgresql_database
from tests.harness import HOST, MANAGE, LiveSite, Served, connect, until
from tests.returning import ReturningEvents

MEBIBYTE = 1_048_576
GUNICORN = (sys.executable, "-m", "gunicorn")
WSGIREF = f"""
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "livesite.settings"
sys.path.insert(0, {str(MANAGE.parent)!r})
from wsgiref.simple_server import make_server
from dbchannels.wsgi import application
server = make_server("{HOST}", 0, application)
print(f"Listening at: http://{HOST}:{{server.server_port}} ", flush=True)
server.serve_forever()
"""

FORKED = f"""
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "livesite.settings"
sys.path.insert(0, {str(MANAGE.parent)!r})
from wsgiref.util import setup_testing_defaults
from dbchannels.wsgi import application
def ask(name):
    environ = {{"PATH_INFO": "/seen", "QUERY_STRING": name, "HTTP_HOST": "localhost"}}
    setup_testing_defaults(environ)
    told = []
    content = b"".join(application(environ, lambda status, headers: told.append(status)))
    print(name, told[0], name.encode() in content, flush=True)
ask("before")
child = os.fork()
ask("child" if child == 0 else "parent")
if child:
    os.waitpid(child, 0)
    ask("after")
"""


def start(site: LiveSite, program: tuple[str, ...], *arguments: str) -> Served:
    """Start a WSGI server; wait until it listens."""
    served = Served(site, list(arguments), None, program)
    site.processes.append(served)
    served.wait_ready("Listening at")
    return served


def gunicorn(site: LiveSite, *arguments: str, **options: object) -> Served:
    """Start gunicorn on the site's own wsgi.py with these options of the factory."""
    environment = f"LIVESITE_GATEWAY={json.dumps(options)}"
    own = ["--chdir", str(MANAGE.parent), "--env", environment, "--bind", f"{HOST}:0"]
    return start(site, GUNICORN, "livesite.wsgi", *own, *arguments)


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two processes of gunicorn, forked after the import, and two workers."""
    site = migrated(postgresql_database("dbchannels_wsgi"), tmp_path_factory.mktemp("wsgi"))
    try:
        site.crew(2)
        yield gunicorn(site, "--workers", "2", "--threads", "4", "--preload")
    finally:
        site.end()


pytestmark = pytest.mark.postgresql


def test_a_view_runs_in_a_worker(behind):
    assert behind.get("/").text == "hello"
    assert int(behind.get("/pid").text) in [served.process.pid for served in behind.site.processes[:2]]


def test_many_at_once_get_each_its_own(behind):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: behind.get(f"/seen?{number}").json(), range(60)))
    assert [answer["QUERY_STRING"] for answer in answers] == [str(number) for number in range(60)]


def test_what_a_view_sees(behind):
    seen = behind.get("/seen?a=%20b", **{"X-Twice": "1"}).json()
    assert seen == {
        "secure": False,
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/seen",
        "QUERY_STRING": "a=%20b",
        "REMOTE_ADDR": HOST,
        "HTTP_X_TWICE": "1",
        "CONTENT_TYPE": None,
        "host": f"{HOST}:{behind.port}",
    }


def test_bodies_and_cookies(behind):
    answer = behind.request(
        "POST", "/upload", b"name=a", {"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert answer.json() == {"file": ["This field is required."]}
    assert behind.get("/cookies").cookies().keys() == {"a", "b"}
    assert behind.request("HEAD", "/").header("Content-Length") == "5"
    assert behind.get("/empty").status == 204


def test_a_body_in_chunks_reaches_the_view_whole(behind):
    parts = iter([b"name=", b"a"])
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert behind.request("POST", "/upload", parts, headers).json() == {"file": ["This field is required."]}


def test_a_body_that_is_too_large_is_refused(behind):
    answer = behind.request("POST", "/upload", b"x" * (2 * MEBIBYTE))
    assert answer.status == 413 and "the max_body of get_wsgi_application()" in answer.text


def test_errors_are_those_of_the_interface_server(behind):
    assert behind.get("/boom").status == 500
    assert behind.get("/raises").status == 500
    assert behind.get("/nowhere").status == 404


def test_a_stream_comes_as_it_is_made_and_no_faster_than_it_is_taken(behind):
    with behind.connection() as connection:
        connection.request("GET", "/stream/wsgi-second")
        response = connection.getresponse()
        assert response.readline() == b"first\n"
        behind.site.note("wsgi-second")
        assert response.read() == b"second\n"
    raw = connect(behind.port)
    raw.sendall(b"GET /download/24 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    taken = len(raw.recv(10))
    busiest = 0
    for _ in range(20):
        size = "SELECT coalesce(sum(length(payload)), 0) FROM dbchannels_protocolmessage"
        ((waiting,),) = behind.site.rows(size)
        busiest = max(busiest, int(waiting))
    while data := raw.recv(MEBIBYTE):
        taken += len(data)
    assert taken > 24 * MEBIBYTE
    assert busiest <= 2 * MEBIBYTE


def test_a_stream_of_events_misses_nothing(behind):
    """Its client comes back to another process, perhaps, and has missed forty lines."""
    client = ReturningEvents(lambda: behind.port, "/room-events/wsgi")
    say = "from dbchannels import Group\nfor n in range({}, {}): Group('room-wsgi', history=99).send(text=str(n))"
    assert client.connect() and client.hear()
    behind.site.shell(say.format(0, 3))
    while len(client.heard) < 3:
        client.hear()
    client.cut()
    behind.site.shell(say.format(3, 43))
    assert client.connect()
    while len(client.heard) < 43:
        client.hear()
    assert client.heard == [str(number) for number in range(43)]
    client.cut()


def test_a_client_that_leaves_ends_the_stream(behind):
    raw = connect(behind.port)
    raw.sendall(b"GET /download/200 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    raw.recv(10)
    raw.close()
    held = "messages LIKE 'http.request %'"
    until(lambda: not behind.site.count("inflight", held), "the worker has given up", 30)
    assert behind.get("/").text == "hello"


def test_a_stream_that_breaks_off_is_seen_to(behind):
    answer = behind.exchange(b"GET /cut-off HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert b"x" * 100 in answer
    assert not answer.endswith(b"0\r\n\r\n")
    assert behind.get("/cut-off-early").status == 500


def test_a_worker_that_dies_is_a_502_and_none_at_all_a_503(site):
    parent = site.serve("--workers", "1")
    served = gunicorn(site, "--threads", "2", http_timeout=0.5)
    until(lambda: served.get("/").status == 200, "the worker answers")
    assert served.get("/die").status == 502
    parent.terminate()
    answer = served.get("/")
    assert answer.status in (503, 504)
    assert answer.text.endswith(".\n")


def test_the_end_leaves_nothing_on_record(any_site):
    any_site.work()
    served = gunicorn(any_site, "--worker-class", "sync", "--workers", "2")
    assert served.get("/").text == "hello"
    until(lambda: any_site.count("process", "kind = 'server'") >= 1, "a process is on record")
    assert served.terminate() == 0
    # A clean-up may have had a row of it just then, and comes back for the rest; the lease lasts for 15 s.
    until(lambda: any_site.count("process", "kind = 'server'") == 0, "nothing is on record", 10)


def test_a_database_that_is_away_is_a_503_and_comes_back(sqlite_site, tmp_path):
    away = LiveSite({**sqlite_site.database, "NAME": str(tmp_path / "away.sqlite3")}, tmp_path)
    served = gunicorn(away, "--threads", "2")
    try:
        answer = served.get("/")
        assert (answer.status, answer.header("Retry-After")) == (503, "5")
    finally:
        away.end()


def test_wsgiref(site):
    site.work()
    served = start(site, (sys.executable, "-c", WSGIREF), "wsgiref")
    assert served.get("/").text == "hello"
    assert served.get("/download/3").content == bytes(3 * MEBIBYTE)
    assert served.request("POST", "/upload", b"name=a").status == 400


def sound(served: Served, cleaned_up_within: float = 0.0) -> None:
    """Many requests at once get each its own answer, streams come as they are made, and nothing is held up.

    The records of the server are gone so many seconds after its end.
    """
    with ThreadPoolExecutor(8) as pool:
        slow = pool.submit(served.get, "/sleep/1000")
        answers = list(pool.map(lambda number: served.get(f"/seen?{number}").json(), range(60)))
        assert not slow.done()
    assert [answer["QUERY_STRING"] for answer in answers] == [str(number) for number in range(60)]
    assert served.get("/download/3").content == bytes(3 * MEBIBYTE)
    with served.connection() as connection:
        connection.request("GET", "/stream/sound")
        response = connection.getresponse()
        assert response.readline() == b"first\n"
        served.site.note("sound")
        assert response.read() == b"second\n"
    assert served.request("POST", "/upload", b"name=a").status == 400
    assert served.get("/boom").status == 500
    assert served.terminate() == 0
    until(
        lambda: served.site.count("process", "kind = 'server'") == 0,
        "no server is on record",
        cleaned_up_within,
    )


def test_greenlets_of_gunicorn(site):
    site.crew(2)
    sound(gunicorn(site, "--worker-class", "gevent"))


def test_uwsgi(site):
    places = [str(Path(sys.executable).parent), os.environ["PATH"]]
    program = shutil.which("uwsgi", path=os.pathsep.join(places))
    assert program is not None, "No uWSGI: install the package pyuwsgi."
    site.crew(2)
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    own = ["--http", f"{HOST}:{port}", "--chdir", str(MANAGE.parent), "--module", "livesite.wsgi", "--master"]
    own += [part for path in sys.path if path for part in ("--pythonpath", path)]
    arguments = [*own, "--die-on-term", "--processes", "2", "--threads", "4"]
    served = Served(site, arguments, None, (program,))
    site.processes.append(served)
    served.port = port
    served.wait_for_line("spawned uWSGI http")
    until(lambda: served.get("/").status == 200, "it answers")
    # uWSGI runs no exit handlers in a process that it takes for busy. Others clean up after that one's lease.
    sound(served, cleaned_up_within=40.0)


def test_a_child_has_a_relay_of_its_own_and_leaves_its_parent_s_alone(any_site):
    any_site.work()
    served = Served(any_site, ["forked"], None, (sys.executable, "-W", "ignore", "-c", FORKED))
    any_site.processes.append(served)
    assert served.process.wait(60) == 0, served.output()
    lines = served.output().splitlines()
    assert sorted(lines) == [f"{name} 200 OK True" for name in ("after", "before", "child", "parent")]
    assert any_site.count("process", "kind = 'server'") == 0
