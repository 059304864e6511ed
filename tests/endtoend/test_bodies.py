"""Bodies of any size, from a client's socket to the view that reads them."""

from __future__ import annotations

import hashlib
import signal
import socket
from collections.abc import Iterator
from functools import lru_cache

import pytest

from tests.endtoend.conftest import LARGE, emptied
from tests.endtoend.test_http import highest_memory, multipart
from tests.harness import HOST, Served, connect, reset, until

MEBIBYTE = 1_048_576


@lru_cache(maxsize=1)
def content(size: int) -> bytes:
    """Return bytes that show where they belong."""
    return b"".join(map(b"%015x\n".__mod__, range(size // 16 + 1)))[:size]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def in_chunks(data: bytes, size: int) -> Iterator[bytes]:
    """Yield pieces; http.client sends an iterator in chunks."""
    return (data[start : start + size] for start in range(0, len(data), size))


def begin(served: Served, path: str, data: bytes) -> socket.socket:
    """Send a whole request and leave its answer unread."""
    raw = connect(served.port)
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(data)}\r\n\r\n"
    raw.sendall(head.encode() + data)
    return raw


@pytest.mark.parametrize("size", [1, 131_072, 131_073, 131_072 + 262_144, 5 * MEBIBYTE + 17])
def test_a_body_of_any_size_reaches_the_view_whole(large, size):
    data = content(size)
    expected = {"size": size, "sha256": sha256(data), "length": str(size)}
    assert large.request("POST", "/hash", data).json() == expected
    assert large.request("POST", "/hash", in_chunks(data, 100_000)).json() == expected
    with large.connection() as connection:
        connection.request("POST", "/hash", data)
        assert connection.getresponse().read()
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"hello"


def test_a_body_reaches_a_view_on_sqlite_inside_a_transaction(served_on_sqlite):
    emptied(served_on_sqlite)
    data = content(3 * MEBIBYTE)
    answer = served_on_sqlite.request("POST", "/in-a-transaction", data)
    assert answer.json() == {"size": len(data), "sha256": sha256(data)}
    assert served_on_sqlite.site.entries() == ["uploaded"]


def test_a_file_of_50_mebibytes_is_uploaded_and_nobody_holds_it(large):
    data = content(50 * MEBIBYTE)
    form, headers = multipart(data)
    assert large.get("/").text == "hello"
    (worker,) = large.workers(1)
    before = highest_memory(large.process.pid), highest_memory(worker)
    answer = large.request("POST", "/stored", form, headers).json()
    assert answer == {"size": len(data), "sha256": sha256(data), "stored": "TemporaryUploadedFile"}
    after = highest_memory(large.process.pid), highest_memory(worker)
    assert [round((now - then) / MEBIBYTE) < 20 for then, now in zip(before, after, strict=True)] == [
        True
    ] * 2


def test_djangos_own_limit_of_a_body_in_memory_holds(large):
    assert large.request("POST", "/body", content(2 * MEBIBYTE)).text == str(2 * MEBIBYTE)
    assert large.request("POST", "/body", content(3 * MEBIBYTE)).status == 400


def test_a_body_that_no_view_reads_is_dropped(large):
    with large.connection() as connection:
        for _ in range(3):
            connection.request("POST", "/unread", content(4 * MEBIBYTE))
            assert connection.getresponse().read() == b"not read"
    rows = "channel LIKE 'http.request.body%'"
    until(lambda: large.site.count("protocolmessage", rows) == 0, "nothing of them is left")


def test_a_client_that_leaves_makes_the_body_unreadable(large):
    site = emptied(large).site
    raw = begin(large, "/read/sign", content(8 * MEBIBYTE))
    until(lambda: "began sign" in site.entries(), "the view reads")
    reset(raw)
    until(lambda: site.rows("SELECT 1 FROM dbchannels_protocolmessage") or site.entries()[1:], "it was told")
    site.note("sign")
    until(lambda: any("unreadable" in text for text in site.entries()), site.entries)
    (said,) = [text for text in site.entries() if text.startswith("unreadable")]
    assert said == "unreadable: The client went away before the request's body was read."
    assert large.get("/").text == "hello"


def test_a_worker_that_dies_in_the_middle_is_answered_at_once(large):
    assert large.request("POST", "/die/x", content(8 * MEBIBYTE)).status == 502
    assert large.get("/").text == "hello"


def test_a_worker_that_is_stopped_in_the_middle_reads_to_the_end(site):
    served = site.serve("--workers", "0", "--max-body", LARGE)
    worker = site.work()
    data = content(8 * MEBIBYTE)
    raw = begin(served, "/read/sign", data)
    until(lambda: "began sign" in site.entries(), "the view reads")
    worker.process.send_signal(signal.SIGTERM)
    site.note("sign")
    answer = b""
    while b"}" not in answer:
        answer += raw.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 200 ") and sha256(data).encode() in answer
    assert worker.process.wait(20) == 0
