"""``runchannels --http direct``: views in the server's own threads, WebSockets on channels."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.endtoend.conftest import migrated, postgresql_database
from tests.harness import LiveSite, Served, until


def test_views_run_in_the_server_to_their_end_and_websockets_in_workers(any_site):
    served = any_site.serve("--http", "direct", "--workers", "1", settings={"DEBUG": True})
    assert f"{served.process.pid}" == served.get("/pid").text
    assert "Views:   in this process, 16 threads" in served.output()
    client = served.socket("/room/tea/")
    assert client.ask("pid") == str(served.workers(1)[0])
    assert served.get("/static/admin/css/base.css").status == 200
    assert any_site.count("protocolmessage") == 0
    with served.connection() as connection:
        connection.request("GET", "/stream/direct")
        response = connection.getresponse()
        assert response.readline() == b"first\n"
        served.process.send_signal(signal.SIGTERM)
        until(lambda: "Stopping." in served.output(), "it has begun to stop")
        any_site.note("direct")
        assert response.read() == b"second\n"
    assert client.closed() == 1001
    assert served.process.wait(20) == 0


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server for the tests that leave it as it was."""
    site = migrated(postgresql_database("dbchannels_direct"), tmp_path_factory.mktemp("direct"))
    try:
        yield site.serve("--http", "direct", "--threads", "4", "--workers", "1")
    finally:
        site.end()


@pytest.mark.postgresql
def test_a_view_sends_to_consumers(direct):
    client = direct.socket("/room/tea/")
    code = "from dbchannels import Group; Group('room-tea').send({'text': 'from outside'})"
    direct.site.shell(code)
    assert client.receive() == "from outside"
    assert direct.get("/send?text=kept").text == "sent"
    assert direct.get("/send?text=dropped&roll-back").text == "sent"
    until(lambda: direct.site.entries() == ["kept"], "the consumer has run")


@pytest.mark.postgresql
def test_a_stream_of_events_needs_a_worker(direct):
    assert direct.get("/room-events/tea").status == 500
    assert "do not serve this view with --http direct" in direct.output()


@pytest.mark.postgresql
def test_requests_of_the_usual_kinds(direct):
    boundary, data = "xyz", bytes(range(256)) * 2000
    form = b"".join(
        [
            b'--xyz\r\nContent-Disposition: form-data; name="name"\r\n\r\na\r\n',
            b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="b"\r\n\r\n',
            data,
            b"\r\n--xyz--\r\n",
        ]
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    answer = direct.request("POST", "/upload", form, headers).json()
    assert answer == {"name": "a", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert direct.request("HEAD", "/").header("Content-Length") == "5"
    assert direct.get("/download/24").content == bytes(24 * 1_048_576)
    found = [direct.get(path).status for path in ("/boom", "/cut-off-early", "/nowhere")]
    assert found == [500, 500, 404] and '"GET /cut-off-early HTTP/1.1" 500 ' in direct.output()
    first = direct.get("/visits")
    cookie = f"sessionid={first.cookies()['sessionid']}"
    assert (first.text, direct.get("/visits", Cookie=cookie).text) == ("1", "2")
    assert direct.get("/seen").json()["host"] == f"127.0.0.1:{direct.port}"


def sessions(site: LiveSite, pid: int) -> int:
    """Return how many database sessions the views of a process have."""
    ((number,),) = site.rows(f"SELECT count(*) FROM pg_stat_activity WHERE application_name = 'site {pid}'")
    return int(number)


@pytest.mark.postgresql
def test_threads_leave_no_database_connection_behind(direct):
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: direct.get("/visits").text, range(40))) == {"1"}
    until(lambda: sessions(direct.site, direct.process.pid) == 0, "every request has closed its own")


def test_a_thread_that_hangs_does_not_hold_up_the_end(site):
    served = site.serve("--http", "direct", "--workers", "1", "--graceful-timeout", "0.2")
    with served.connection() as connection:
        connection.request("GET", "/sleep/60000")
        assert served.get("/").text == "hello"
        assert served.terminate() == 0


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (["--threads", "0"], {}, "--threads takes a number from 1."),
        (
            [],
            {"WSGI_APPLICATION": "livesite.nowhere"},
            "WSGI_APPLICATION names 'livesite.nowhere', which cannot be imported (",
        ),
    ],
)
def test_what_cannot_be_meant_is_said_in_a_sentence(site, arguments, settings, sentence):
    done = site.manage("runchannels", "127.0.0.1:0", "--http", "direct", *arguments, settings=settings)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_the_site_s_own_application_is_run(site):
    settings = {"WSGI_APPLICATION": "livesite.direct.application"}
    served = site.serve("--http", "direct", "--workers", "1", settings=settings)
    assert served.get("/anything").text == "the site's own"
