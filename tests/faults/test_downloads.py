"""Fault 40: whoever takes a large response slowly holds up no worker, and where it must, half of them at most."""

from __future__ import annotations

import pytest

from tests.harness import connect, until
from tests.soak import downloads

pytestmark = pytest.mark.postgresql

MEBIBYTE = 1_048_576


def begin(served, path, address):
    """Ask for a download and take nothing of it; nginx would say who asks."""
    raw = connect(served.port)
    raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {address}\r\n\r\n".encode())
    return raw


def status(raw):
    """Return the status of an answer that has begun."""
    return int(raw.recv(65_536).split()[1])


def held(site):
    """Return how many requests workers are at."""
    return site.count("inflight", "messages LIKE 'http.request %'")


@pytest.mark.parametrize("views", ["channels", "direct"])
def test_slow_clients_hold_up_nobody(site, views):
    """More of them than workers or threads, and all is given back when they leave."""
    served = site.serve("--workers", "1", "--http", views, "--threads", "1")
    slow = [begin(served, "/download/24", "192.0.2.1") for _ in range(3)]
    assert served.get("/").text == "hello"
    assert [status(raw) for raw in slow] == [200] * 3
    until(lambda: downloads.files(served) == 6, "each has its two files")
    for raw in slow:
        raw.close()
    until(lambda: downloads.files(served) == 0, "the files are closed")
    assert "Traceback" not in served.output()


def test_without_room_half_of_the_workers_wait_and_more_is_a_503(site):
    site.crew(2)
    served = site.serve("--workers", "0", "--max-response-spool", str(MEBIBYTE))
    assert served.get("/").text == "hello"
    slow = begin(served, "/download/24", "192.0.2.1")
    assert status(slow) == 200
    refused = served.get("/download/24")
    assert (refused.status, refused.header("Retry-After")) == (503, "5")
    until(lambda: held(site) == 1, "one worker waits")
    assert [served.get("/").text for _ in range(5)] == ["hello"] * 5
    slow.close()
    until(lambda: held(site) == 0, "the worker is free")
    assert served.get("/download/24").content == bytes(24 * MEBIBYTE)
    assert "Traceback" not in served.output()


def test_one_address_leaves_room_for_the_others(site):
    """The share of one is 32 MiB here, of which half is one response's."""
    served = site.serve(
        "--workers", "2", "--proxy-headers", "--max-response-spool", str(64 * MEBIBYTE), "--http-timeout", "5"
    )
    slow = [begin(served, "/download/48", "192.0.2.1") for _ in range(4)]
    until(lambda: "large responses with 503 and broke" in served.output(), "one too many of its own", 10)
    other = begin(served, "/download/12", "192.0.2.2")
    assert status(other) == 200
    assert [served.get("/").text for _ in range(5)] == ["hello"] * 5
    for raw in (*slow, other):
        raw.close()
    until(lambda: downloads.files(served) == 0, "the files are closed")


def test_pages_come_beside_slow_downloads(site):
    found = downloads.downloads(site.serve("--workers", "2"), 4, "/file/24", 2.0)
    assert found.clients == {"200": 4} and found.pages > 20
