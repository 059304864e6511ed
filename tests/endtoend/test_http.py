"""An unchanged Django site behind ``http.request``: what its visitors and its views see."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import secrets
import socket
from pathlib import Path

import pytest

from tests.harness import HOST, Answer, LiveSite, Served, ask, connect, until

MEBIBYTE = 1_048_576
LIMIT = MEBIBYTE + 65_536  # of a request's body


def options(**options: object) -> dict[str, object]:
    """Return the settings for these OPTIONS of the layer."""
    return {"DBCHANNELS": {"default": {"OPTIONS": options}}}


def log_in(served: Served) -> str:
    """Log in to the admin as a browser does; return the Cookie header of the session."""
    form = served.get("/admin/login/")
    token = form.cookies()["csrftoken"]
    sent = ask_form(served, "/admin/login/", token, username="admin", password="secret", next="/admin/")
    assert (sent.status, sent.header("Location")) == (302, "/admin/")
    return f"sessionid={sent.cookies()['sessionid']}; csrftoken={token}"


def ask_form(served: Served, path: str, token: str, **fields: str) -> Answer:
    """Send a form with the token in its cookie and in itself."""
    body = "&".join(f"{key}={value}" for key, value in {"csrfmiddlewaretoken": token, **fields}.items())
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": f"csrftoken={token}"}
    return served.request("POST", path, body, headers)


def multipart(data: bytes) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a form with a file."""
    head = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nJo\r\n'
    head += b'--b\r\nContent-Disposition: form-data; name="file"; filename="f.bin"\r\n\r\n'
    return head + data + b"\r\n--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}


def highest_memory(pid: int) -> int:
    """Return the most memory that a process has had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def open_request(served: Served, path: str, body: bytes = b"") -> socket.socket:
    """Send a GET and leave its answer unread."""
    raw = connect(served.port)
    raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}:{served.port}\r\n\r\n".encode() + body)
    return raw


# The request, as the view sees it.


def test_a_page_is_answered_on_each_database(any_served):
    answer = any_served.get("/")
    assert (answer.status, answer.text) == (200, "hello")
    cookie = f"sessionid={any_served.get('/visits').cookies()['sessionid']}"
    assert any_served.get("/visits", Cookie=cookie).text == "2"


def test_the_view_sees_the_request(served):
    seen = served.get("/s%65en?a=%C3%A4&b", **{"X-Twice": "1", "Content-Type": "text/x"}).json()
    assert seen == {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/seen",
        "QUERY_STRING": "a=%C3%A4&b",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_X_TWICE": "1",
        "CONTENT_TYPE": "text/x",
        "host": f"{HOST}:{served.port}",
        "secure": False,
    }


def test_a_header_sent_twice_is_joined(served):
    answer = served.exchange(
        b"GET /seen HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Twice: 1\r\nX-Twice: 2\r\nConnection: close\r\n\r\n"
    )
    assert b'"HTTP_X_TWICE": "1,2"' in answer


def test_a_header_with_an_underscore_forges_nothing(served):
    assert served.get("/seen", X_Twice="forged").json()["HTTP_X_TWICE"] is None


def test_a_host_that_is_not_the_sites_is_refused(served):
    assert served.get("/seen", Host="evil.example").status == 400


# Sessions, login, forms.


def test_a_session_remembers(served):
    cookie = f"sessionid={served.get('/visits').cookies()['sessionid']}"
    assert [served.get("/visits", Cookie=cookie).text for _ in range(2)] == ["2", "3"]
    assert served.get("/visits").text == "1"


def test_the_admin_is_for_those_who_logged_in(served):
    turned_away = served.get("/admin/")
    assert (turned_away.status, turned_away.header("Location")) == (302, "/admin/login/?next=/admin/")
    page = served.get("/admin/dbchannels/process/", Cookie=log_in(served))
    assert page.status == 200
    assert page.text.count("interface server") == 1


def test_a_form_needs_its_token(served):
    answer = served.get("/token")
    assert served.request("POST", "/guarded").status == 403
    sent = ask_form(served, "/guarded", answer.cookies()["csrftoken"])
    assert (sent.status, sent.text) == (200, "POST")


def test_cookies_and_redirects_come_through(served):
    answer = served.get("/cookies")
    assert (answer.status, answer.header("Location")) == (302, "/seen")
    assert answer.cookies() == {"a": "1", "b": "2"}


# Uploads.


@pytest.mark.parametrize("size", [0, 1, 65_536, MEBIBYTE])
def test_an_upload_arrives_whole(served, size):
    data = secrets.token_bytes(size).replace(b"--", b"..")  # no boundary of the form by chance
    seen = served.request("POST", "/upload", *multipart(data)).json()
    if size:
        assert seen == {"name": "Jo", "size": size, "sha256": hashlib.sha256(data).hexdigest()}
    else:
        assert seen == {"file": ["The submitted file is empty."]}


def test_an_upload_in_chunks_arrives_whole(served):
    body, headers = multipart(b"x" * 300_000)
    pieces = (body[start : start + 7_777] for start in range(0, len(body), 7_777))
    assert served.request("POST", "/upload", pieces, headers).json()["size"] == 300_000


def test_a_body_beyond_the_limit_is_refused(served):
    assert served.request("POST", "/upload", b"x" * LIMIT, {"Content-Type": "text/plain"}).status == 400
    answer = served.request("POST", "/upload", b"x" * (LIMIT + 1))
    assert (answer.status, answer.header("Connection")) == (413, "close")
    assert (
        answer.text == f"The request's body is larger than this server takes, {LIMIT} bytes (--max-body).\n"
    )


def test_a_body_in_chunks_beyond_the_limit_is_refused(served):
    answer = served.request("POST", "/upload", (b"x" * 65_536 for _ in range(18)))
    assert (answer.status, answer.header("Connection")) == (413, "close")


# Downloads.


@pytest.mark.parametrize("mebibytes", [0, 1, 3])
def test_a_download_arrives_whole(served, mebibytes):
    answer = served.get(f"/download/{mebibytes}")
    assert answer.header("Content-Disposition") == 'inline; filename="zeros.bin"'
    assert answer.content == bytes(mebibytes * MEBIBYTE)


def test_a_large_download_is_in_nobodys_memory(served):
    served.get("/download/1")
    pids = [served.process.pid, *served.workers()]
    before = [highest_memory(pid) for pid in pids]
    assert len(served.get("/download/64").content) == 64 * MEBIBYTE
    grown = [highest_memory(pid) - memory for pid, memory in zip(pids, before, strict=True)]
    assert max(grown) < 16 * MEBIBYTE


def test_a_client_that_reads_nothing_is_not_written_for(served):
    raw = open_request(served, "/download/512")
    waiting = "SELECT coalesce(sum(length(payload)), 0) FROM dbchannels_protocolmessage"
    assert raw.recv(15) == b"HTTP/1.1 200 OK"
    first = served.get("/pid").text
    until(lambda: served.get("/pid").text == first, "a page while the download waits")
    assert served.site.rows(waiting)[0][0] < 2 * MEBIBYTE
    raw.close()
    until(lambda: len({served.get("/pid").text for _ in range(4)}) == 2, "both workers free", 30)


def test_a_piece_of_a_stream_arrives_before_the_next_is_made(served):
    name = secrets.token_hex(4)
    with served.connection() as connection:
        connection.request("GET", f"/stream/{name}")
        response = connection.getresponse()
        assert response.readline() == b"first\n"
        served.site.note(name)
        assert response.read() == b"second\n"


def test_a_stream_that_breaks_is_seen_to_break(served):
    with served.connection() as connection:
        connection.request("GET", "/cut-off")
        response = connection.getresponse()
        assert response.status == 200
        with pytest.raises(http.client.IncompleteRead) as broken:
            response.read()
        assert broken.value.partial == b"x" * 100


def test_a_stream_that_raises_before_its_first_piece_is_a_500_in_the_log_too(served):
    with served.connection() as connection:
        assert ask(connection, "GET", "/cut-off-early").status == 500
        assert ask(connection, "GET", "/").text == "hello"
    until(lambda: '"GET /cut-off-early HTTP/1.1" 500 ' in served.output(), "it is in the log")


# The connection.


def test_one_connection_carries_many_requests(served):
    with served.connection() as connection:
        assert [ask(connection, "GET", "/").text for _ in range(5)] == ["hello"] * 5
        assert ask(connection, "POST", "/upload", *multipart(b"abc")).json()["size"] == 3
        assert ask(connection, "GET", "/boom").status == 500
        assert ask(connection, "GET", "/").text == "hello"


def test_requests_sent_at_once_are_answered_in_order(served):
    one = b"GET /seen?%d HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n"
    answers = served.exchange(one % (1, b"") + one % (2, b"") + one % (3, b"Connection: close\r\n"))
    assert re.findall(rb'"QUERY_STRING": "(\d)"', answers) == [b"1", b"2", b"3"]


def test_head_has_the_head_of_get_and_no_body(served):
    with served.connection() as connection:
        head = ask(connection, "HEAD", "/")
        assert (head.status, head.content, head.header("Content-Length")) == (200, b"", "5")
        assert ask(connection, "HEAD", "/download/1").content == b""
        assert ask(connection, "GET", "/").text == "hello"


def test_no_content_is_no_content(served):
    with served.connection() as connection:
        answer = ask(connection, "GET", "/empty")
        assert (answer.status, answer.content, answer.header("Content-Length")) == (204, b"", None)
        assert answer.header("Transfer-Encoding") is None
        assert ask(connection, "GET", "/").text == "hello"


# Errors.


def test_an_error_shows_a_visitor_nothing(served):
    boom, missing = served.get("/boom"), served.get("/nowhere")
    assert (boom.status, missing.status) == (500, 404)
    assert "as asked for" not in boom.text + missing.text


def test_an_error_shows_a_developer_everything(site):
    served = site.serve("--workers", "1", settings={"DEBUG": True})
    boom = served.get("/boom")
    assert boom.status == 500
    assert "ValueError" in boom.text and "as asked for" in boom.text and "livesite/urls.py" in boom.text
    assert "Using the URLconf defined in" in served.get("/nowhere").text
    assert "message[&#x27;text&#x27;] contains a set: send sorted(...)" in served.get("/sends-a-set").text


def test_a_consumers_error_is_answered_at_once(served):
    answer = served.get("/raises")
    assert (answer.status, answer.header("Retry-After")) == (500, None)
    assert answer.text == "The site could not answer: its code raised an error, which is in the log.\n"


def test_a_view_that_kills_its_worker_is_answered_at_once(any_site):
    served = any_site.serve("--workers", "1", settings=options(lease=600))
    answer = served.get("/die")
    assert answer.status == 502
    assert answer.text == "The worker that held this request died; it was not tried again.\n"
    assert served.get("/").text == "hello"


def test_a_full_channel_is_answered_with_when_to_come_again(site):
    settings = options(channel_capacity={"http.request": 2})
    served = site.serve("--workers", "0", settings=settings)
    waiting = [open_request(served, "/") for _ in range(2)]
    until(lambda: site.count("protocolmessage") == 2, "two requests wait")
    refused = served.get("/")
    assert (refused.status, refused.header("Retry-After")) == (503, "5")
    site.work()
    assert [raw.recv(15) for raw in waiting] == [b"HTTP/1.1 200 OK"] * 2


def test_no_worker_in_time_is_a_504(any_site):
    served = any_site.serve("--workers", "0", "--http-timeout", "0.2")
    answer = served.get("/")
    assert (answer.status, answer.text) == (504, "No worker answered this request in time.\n")


def test_what_a_stranger_sends_prints_no_traceback(served):
    before = len(served.output())
    bad = [b"\0\xff\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/x\r\n\r\n"]
    assert [served.exchange(data)[:13] for data in bad] == [b"HTTP/1.1 400 "] * len(bad)
    assert served.get("/%00%ff?%ff").status == 404
    assert served.get("/visits", Cookie="sessionid=%00; =; a").status == 200
    assert '"GET" 400 ' in served.output()[before:]
    assert "Traceback" not in served.output()[before:]


# Static files.


def test_static_files_are_served_in_development_alone(site: LiveSite):
    served = site.serve("--workers", "0", settings={"DEBUG": True})
    answer = served.get("/static/admin/css/base.css")
    assert (answer.status, answer.header("Content-Type")) == (200, "text/css")
    assert int(answer.header("Content-Length") or 0) == len(answer.content) > 1000
    assert served.get("/static/admin/css/none.css").status == 404
    assert served.get("/static/..%2f..%2fmanage.py").status == 404
    modified = {"If-Modified-Since": answer.header("Last-Modified") or ""}
    assert served.get("/static/admin/css/base.css", **modified).status == 304


def test_static_files_are_left_to_others_in_production(served):
    assert served.get("/static/admin/css/base.css").status == 404


def test_the_access_log_as_json(site):
    served = site.serve("--workers", "1", "--access-log-format", "json")
    assert served.get("/no-such-page/?token=secret", Referer='"}\t{').status == 404
    served.socket("/echo/").close(4000)

    def lines():
        return [json.loads(line) for line in served.output().splitlines() if line.startswith("{")]

    until(lambda: any(one["event"] == "disconnect" for one in lines()), served.output)
    page = next(one for one in lines() if one["status"] == 404)
    assert (page["method"], page["target"], page["referer"]) == ("GET", "/no-such-page/?token=***", '"}\t{')
    assert [one["status"] for one in lines() if one["target"] == "/echo/"] == [None, 101, 4000]
