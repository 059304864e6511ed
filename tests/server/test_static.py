"""Static files in development: what is found, what is not, and what is nobody's business."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from django.contrib.staticfiles import finders
from django.test import override_settings

from dbchannels.server.http.dispatch import DevelopmentFiles
from dbchannels.server.http.messages import Request, response_head


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
