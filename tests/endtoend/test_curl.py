"""curl, a client that others wrote, and what it does when nobody looks."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.endtoend.conftest import LARGE
from tests.endtoend.test_bodies import MEBIBYTE, content
from tests.harness import HOST, Served

SIZE = 20_000_000


def curl(served: Served, *arguments: str, data: bytes | None = None) -> str:
    """Run it with paths of the site as addresses; return what it wrote."""
    root = f"http://{HOST}:{served.port}"
    given = [
        root + one if (one.startswith("/") and not Path(one).exists()) or one == "/" else one
        for one in arguments
    ]
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "60", *given], input=data, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file to upload."""
    path = tmp_path / "upload.bin"
    path.write_bytes(content(SIZE))
    return path


def test_it_uploads_a_file_with_a_100_before_it(large, file):
    said = json.loads(
        curl(large, "-T", f"{file}", "--request", "POST", "-H", "Expect: 100-continue", "/hash")
    )
    assert said == {
        "size": SIZE,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "length": str(SIZE),
    }


def test_it_uploads_what_it_reads_in_chunks(large, file):
    said = json.loads(curl(large, "-T", "-", "--request", "POST", "/hash", data=file.read_bytes()))
    assert said == {
        "size": SIZE,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "length": str(SIZE),
    }


def test_it_uploads_a_form_with_a_file(large, file):
    file.write_bytes(content(SIZE - 1_000_000))
    said = json.loads(curl(large, "-F", f"file=@{file}", "/stored"))
    assert said["size"] == SIZE - 1_000_000 and said["stored"] == "TemporaryUploadedFile"


def test_it_is_told_at_once_of_a_body_that_is_too_large(large, tmp_path):
    (tmp_path / "larger.bin").write_bytes(bytes(int(LARGE) + 1))
    said = curl(large, "-T", f"{tmp_path}/larger.bin", "-w", " %{http_code} %{size_upload}", "/hash")
    assert said == f"The request's body is larger than this server takes, {LARGE} bytes (--max-body).\n 413 0"


def test_it_uploads_a_file_of_50_mebibytes_through_the_admin(large, tmp_path):
    """Log in, fill in Django's own form with its token, and read the message on the page behind it."""
    site = large.site
    data = content(50 * MEBIBYTE)
    (tmp_path / "large.bin").write_bytes(data)
    (tmp_path / "cookies").touch()
    jar = ["-b", f"{tmp_path}/cookies", "-c", f"{tmp_path}/cookies"]

    def token(page: str) -> str:
        found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
        assert found, page
        return found[1]

    def form(path: str, *fields: str) -> str:
        given = [f"csrfmiddlewaretoken={token(curl(large, *jar, path))}", *fields]
        flags = [part for field in given for part in ("-F", field)]
        return curl(large, *jar, "-L", "-w", " %{http_code}", *flags, path)

    add = "/admin/livesite/document/add/"
    assert form("/admin/login/", "username=admin", "password=secret", "next=/admin/").endswith(" 200")
    page = form(add, "name=tea and cake", f"file=@{tmp_path}/large.bin")
    assert "was added successfully" in page and "tea and cake" in page and page.endswith(" 200")
    assert "was added successfully" not in curl(large, *jar, "/admin/livesite/document/")
    (name,) = [name for (name,) in site.rows("SELECT file FROM livesite_document")]
    assert (site.folder / name).read_bytes() == data
    (tmp_path / "small.bin").write_bytes(content(MEBIBYTE))
    fields = ("-F", "name=no token", "-F", f"file=@{tmp_path}/small.bin")
    refused = curl(large, *jar, "-w", " %{http_code}", *fields, add)
    assert refused.endswith(" 403") and site.rows("SELECT count(*) FROM livesite_document") == [(1,)]


def test_it_gets_a_part_of_a_file(served):
    part = curl(served, "-r", "6000-6011", "-w", "%{http_code} %header{content-range}", "/ranged")
    assert part == "01000\n01001\n206 bytes 6000-6011/600000"


def test_it_keeps_its_connection(served):
    said = curl(
        served,
        "-w",
        "%{http_code} %{num_connects}\n",
        *("-o", "/dev/null") * 4,
        "/",
        "/ranged",
        "/empty",
        "/",
    )
    assert said.splitlines() == ["200 1", "200 0", "204 0", "200 0"]


def test_it_gets_a_stream_in_http_1_0_too(served):
    for version in ("--http1.0", "--http1.1"):
        assert curl(served, version, "-o", "/dev/null", "-w", "%{size_download}", "/download/1") == "1048576"
