"""Responses that are regular files: the server reads them itself, from a descriptor that a worker has handed over."""

from __future__ import annotations

import hashlib
import http.client
import os
import signal

import pytest

from tests.harness import ask, connect, until
from tests.soak.downloads import files

MEBIBYTE = 1_048_576
CONTENT = hashlib.shake_256().digest(MEBIBYTE) + bytes(2 * MEBIBYTE)


def begin(served, path):
    """Ask for something and take the first bytes of it."""
    raw = connect(served.port)
    raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert raw.recv(15) == b"HTTP/1.1 200 OK"
    return raw


def test_clients_that_take_nothing_hold_up_nobody_and_nothing_is_stored(served):
    slow = [begin(served, "/file/24") for _ in range(4)]
    assert served.get("/").text == "hello"
    assert files(served) == 4
    # Small rows may be those of a server that an earlier test has killed.
    large = "octet_length(payload) > 10000"
    until(lambda: served.site.count("protocolmessage", large) == 0, "nothing of them is in the layer")
    for raw in slow:
        raw.close()
    until(lambda: files(served) == 0, "the files are closed")
    until(lambda: served.output().count('"GET /file/24') == 4, "the log has them")


@pytest.mark.parametrize(
    ("query", "start", "end"),
    [
        ("", 0, 3 * MEBIBYTE),
        ("?from=1000", 1_000, 3 * MEBIBYTE),
        ("?from=1000&length=500000", 1_000, 501_000),
        ("?from=3000000", 3_000_000, 3 * MEBIBYTE),
    ],
)
def test_it_arrives_whole_from_where_the_file_stands(served, query, start, end):
    answer = served.get(f"/file/3{query}")
    assert answer.content == CONTENT[start:end]
    assert answer.header("Content-Length") == str(end - start)
    line = f'"GET /file/3{query} HTTP/1.1" 200 {end - start} '
    until(lambda: line in served.output(), "the log counts its bytes")


def test_head_and_http_1_0(served):
    with served.connection() as connection:
        for _ in range(2):
            answer = ask(connection, "HEAD", "/file/3")
            assert (answer.content, answer.header("Content-Length")) == (b"", str(3 * MEBIBYTE))
    answer = served.exchange(b"GET /file/3 HTTP/1.0\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n" + CONTENT)


def test_what_does_not_fit_its_length_is_broken_off(served):
    """Longer than the file, which goes the way of other responses; and a file that becomes shorter meanwhile."""
    for query in ("length=4000000", "shorter"):
        with pytest.raises(http.client.IncompleteRead) as error:
            served.get(f"/file/3?{query}")
        assert CONTENT.startswith(error.value.partial)
    assert served.output().count("A response ended 854272 bytes before") == 1
    assert "because its file could not be read (it became shorter)" in served.output()


def test_new_workers_go_on_with_it_and_a_response_outlives_its_worker(site):
    served = site.serve("--workers", "1")
    for end in (lambda: served.process.send_signal(signal.SIGHUP), lambda: os.kill(served.workers(1)[0], 9)):
        before, slow = served.workers(), begin(served, "/file/24")
        end()
        until(lambda before=before: served.workers() not in ([], before), "another worker")
        assert served.get("/file/3").content == CONTENT
        until(lambda: files(served) == 1, "the other one is open still")
        received = len(slow.recv(MEBIBYTE))
        while data := slow.recv(MEBIBYTE):
            received += len(data)
            if received > 24 * MEBIBYTE:
                slow.close()
                break
    assert served.terminate() == 0
    assert "Traceback" not in served.output()
