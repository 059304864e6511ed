"""The database goes away in the middle of an upload: it goes on afterwards, or is put off, and leaves nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.endtoend.conftest import LARGE
from tests.endtoend.test_bodies import MEBIBYTE, content, sha256
from tests.harness import HOST, Served, connect, until

pytestmark = pytest.mark.postgresql

DATA = content(8 * MEBIBYTE)
HEAD = f"POST %s HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(DATA)}\r\n\r\n"


def begin(served: Served, path: str, size: int = len(DATA)):
    """Send a request with so many bytes of its body."""
    raw = connect(served.port)
    raw.sendall((HEAD % path).encode() + DATA[:size])
    return raw


def answered(raw) -> tuple[int, bytes, bytes]:
    """Return (status, head, content) of the answer."""
    data = b""
    raw.settimeout(60)
    while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < length(data):
        more = raw.recv(65_536)
        assert more, data
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), head, body


def length(data: bytes) -> int:
    """Return the Content-Length of an answer."""
    (value,) = [
        line.split()[1] for line in data.split(b"\r\n") if line.lower().startswith(b"content-length:")
    ]
    return int(value)


def spools(served: Served) -> int:
    """Return how many files without a name the server has open."""
    links = [os.readlink(one) for one in Path(f"/proc/{served.process.pid}/fd").iterdir() if one.is_symlink()]
    return sum(link.endswith("(deleted)") and not link.startswith("/memfd:") for link in links)


def nothing_is_left(site, served: Served) -> None:
    """No file, no row, and the next upload is served."""
    until(lambda: spools(served) == 0, "the files are closed")
    answer = served.request("POST", "/hash", DATA[:MEBIBYTE])
    assert answer.status == 200, (answer.text, served.output())
    assert answer.json()["sha256"] == sha256(DATA[:MEBIBYTE])
    for table in ("protocolmessage", "audience"):
        until(lambda table=table: site.count(table) == 0, f"no {table} is left")
    assert "Traceback" not in served.output()


def test_a_client_that_still_sends_notices_nothing(site, server):
    served = site.serve("--workers", "1", "--max-body", LARGE)
    assert served.get("/").text == "hello"
    raw = begin(served, "/hash", len(DATA) // 2)
    until(lambda: spools(served) == 1, "the server has a part of it")
    with server.outage():
        raw.sendall(DATA[len(DATA) // 2 : -1])
    # A request that is complete after two seconds of an outage is refused, and PostgreSQL may need them to stop.
    until(lambda: served.get("/").status == 200, "the layer can be used again")
    raw.sendall(DATA[-1:])
    status, _, body = answered(raw)
    assert status == 200, (body, served.output())
    assert json.loads(body)["sha256"] == sha256(DATA)
    nothing_is_left(site, served)


def test_an_outage_that_lasts_is_a_503(site, server):
    served = site.serve("--workers", "1", "--max-body", LARGE, "--http-timeout", "3")
    until(lambda: served.get("/").text == "hello", "a worker is ready")
    raw = begin(served, "/hash", len(DATA) // 2)
    until(lambda: spools(served) == 1, "the server has a part of it")
    with server.outage():
        raw.sendall(DATA[len(DATA) // 2 :])
        status, head, _ = answered(raw)
        assert status == 503 and b"Retry-After: 5" in head
        until(lambda: spools(served) == 0, "the file is closed")
    until(lambda: served.get("/").status == 200, "the server is well again")
    nothing_is_left(site, served)


def test_a_view_that_reads_gets_what_was_lost_once_more(site, server):
    """In a crash the rows of the body are emptied with their table: the view asks again, or its client does."""
    served = site.serve("--workers", "1", "--max-body", LARGE)
    for mode in ("fast", "kill"):
        name = f"sign-{mode}"
        raw = begin(served, f"/read-at-sign/{name}")
        until((site.folder / f"began-{name}").exists, "the view reads")
        server.restart(mode)
        (site.folder / name).touch()
        status, _, body = answered(raw)
        assert status == 200, (body, served.output())
        assert json.loads(body)["sha256"] == sha256(DATA)
        nothing_is_left(site, served)
