"""Static files in development: what is found, what is not, and what is nobody's business."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from django.contrib.staticfiles import finders
from django.test import override_settings

from dbchannels.protocol import CHUNK
from dbchannels.server.http import dispatch
from dbchannels.server.http.dispatch import FILE, DevelopmentFiles
from dbchannels.server.http.exchange import BrokenOff
from dbchannels.server.http.messages import Request, response_head
from tests.server import test_server

new_site, site = test_server.new_site, test_server.site


@pytest.fixture
def folder(tmp_path):
    """A folder of static files beside a secret, as the only finder sees it."""
    (tmp_path / "secret.txt").write_text("secret")
    root = tmp_path / "static"
    (root / "site").mkdir(parents=True)
    (root / "site" / "a b.css").write_text("p {}")
    (root / "site" / "é.txt").write_bytes(b"\xff")
    (root / "empty").write_bytes(b"")
    only_files = ["django.contrib.staticfiles.finders.FileSystemFinder"]
    with override_settings(STATICFILES_DIRS=[str(root)], STATICFILES_FINDERS=only_files):
        finders.get_finder.cache_clear()
        yield root
    finders.get_finder.cache_clear()


def get(target, method="GET", **headers):
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    message = DevelopmentFiles()(Request(method, target, "1.1", pairs, "http", ("c", 1), ("s", 2)))
    return message and (message["status"], response_head(message, method).headers, message["content"])


def assert_not_found(answer):
    status, headers, content = answer
    assert (status, content) == (404, b"There is no such static file.\n")
    assert dict(headers)["Content-Length"] == str(len(content))


def test_a_file_is_found_with_its_type_and_length(folder):
    status, headers, content = get("/static/site/a%20b.css?v=1")
    assert (status, content) == (200, b"p {}")
    given = dict(headers)
    assert given["Content-Type"].startswith("text/css") and given["Content-Length"] == "4"
    assert "Last-Modified" in given


@pytest.mark.parametrize(
    ("target", "content"), [("/static/site/%C3%A9.txt", b"\xff"), ("/static/empty", b"")]
)
def test_every_name_and_every_content_is_fine(folder, target, content):
    assert get(target)[::2] == (200, content)


@pytest.fixture
def large(folder):
    """A file of some pieces, and the message that its client gets."""
    path = folder / "large"
    path.write_bytes(b"x" * (2 * CHUNK + 5))
    message = DevelopmentFiles()(Request("GET", "/static/large", "1.1", [], "http", ("c", 1), ("s", 2)))
    yield path, message
    message[FILE].close()


def test_of_a_large_file_a_client_holds_one_piece(large):
    _, message = large
    assert (message["status"], message["content"], message["more_content"]) == (200, b"", True)
    assert [len(piece) for piece in message[FILE]] == [CHUNK, CHUNK, 5]


def test_a_large_file_that_became_shorter_is_broken_off(large):
    path, message = large
    path.write_bytes(b"x" * CHUNK)
    with pytest.raises(BrokenOff):
        list(message[FILE])


def test_the_head_of_a_large_file_has_its_length(folder, large):
    status, headers, content = get("/static/large", "HEAD")
    assert (status, dict(headers)["Content-Length"], content) == (200, str(2 * CHUNK + 5), b"")


def test_a_large_file_takes_none_of_the_descriptors_that_are_kept(folder, large, monkeypatch):
    monkeypatch.setattr(dispatch, "first_kept", lambda: 0)
    assert get("/static/large")[0] == 503


def test_a_large_file_is_written_whole_and_closed(site, large):
    path, _ = large
    files, found = DevelopmentFiles(), []

    def noted(request):
        message = files(request)
        found.append(message.get(FILE))
        return message

    site.server.requests.static_files = noted
    client = site.client()
    for method, content in [("GET", path.read_bytes()), ("HEAD", b""), ("GET", path.read_bytes())]:
        response = client.ask(method, "/static/large")
        assert (response.status, response.content) == (200, content)
        assert response.header("Content-Length") == str(2 * CHUNK + 5)
    assert [one and one._file.closed for one in found] == [True, None, True]


@pytest.mark.parametrize("target", ["/", "/stati", "/static", "/page/static/x", "//static/x"])
def test_other_paths_are_the_sites(folder, target):
    assert get(target) is None


@pytest.mark.parametrize(
    "target", ["/static/", "/static/none", "/static/site", "/static/site/", "/static/" + "x" * 5_000]
)
def test_what_is_no_file_is_a_404(folder, target):
    assert_not_found(get(target))


@pytest.mark.parametrize(
    "name",
    [
        "../secret.txt",
        "site/../../secret.txt",
        "..%2Fsecret.txt",
        "%2e%2e/secret.txt",
        "/etc/passwd",
        "%2Fetc%2Fpasswd",
        "site/%00",
        "..\\secret.txt",
        "%ff",
        "../static/../secret.txt",
    ],
)
def test_nothing_outside_of_the_folders_is_read(folder, name):
    assert_not_found(get(f"/static/{name}"))


def test_an_unreadable_file_is_a_404(folder):
    (folder / "loop").symlink_to(folder / "loop")
    assert_not_found(get("/static/loop"))


def test_what_has_not_changed_is_a_304(folder):
    status, headers, content = get("/static/site/a%20b.css", if_modified_since=formatdate(usegmt=True))
    assert (status, content) == (304, b"")
    assert "Content-Length" not in dict(headers) or dict(headers)["Content-Length"] == "0"
    assert get("/static/site/a%20b.css", if_modified_since=formatdate(0, usegmt=True))[0] == 200


def test_the_files_of_apps_are_found():
    status, _, content = get("/static/admin/css/base.css")
    assert status == 200 and len(content) > 1_000
