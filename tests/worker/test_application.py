"""A WSGI application as what answers messages: each kind of response that PEP 3333 allows."""

from __future__ import annotations

import sys

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished
from django.template import engines
from django.urls import clear_url_caches

from dbchannels.exceptions import InvalidConfiguration
from dbchannels.protocol import CHUNK
from dbchannels.server.http import messages
from dbchannels.testing.contract.case import raises
from dbchannels.worker.views import ApplicationViews, load_site, site_application

HEADERS = [("X-A", "caf\xe9")]
FIELDS = {"status": 200, "reason": "Quite OK", "headers": [[b"X-A", b"caf\xe9"]]}


def message(path="/", body=b"", headers=()):
    """Return the message of a request."""
    given = [(b"host", b"testserver"), *headers]
    request = messages.Request("POST", path, "1.1", given, "http", ("127.0.0.1", 1), ("testserver", 80))
    return messages.request_message(request, "", body, "")


class Closing:
    """An iterable that says whether it was closed, and may be asked for one piece too many."""

    def __init__(self, *pieces):
        self.pieces, self.closes = pieces, 0

    def __iter__(self):
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def close(self):
        self.closes += 1


def run(application, **given):
    """Return all messages of a response."""
    return list(ApplicationViews(application)(message(**given)))


def returning(result):
    def application(environ, start_response):
        start_response("200 Quite OK", HEADERS)
        return result

    return application


def whole(content):
    return [{**FIELDS, "content": content, "more_content": False}]


def pieces(*contents):
    first = {**FIELDS, "content": b"", "more_content": True}
    rest = [{"content": content, "more_content": True} for content in contents]
    return [first, *rest, {"content": b"", "more_content": False}]


@pytest.mark.parametrize("result", [[b"a", b"b"], (b"ab",)])
def test_a_list_is_one_message(result):
    assert run(returning(result)) == whole(b"ab")


def test_other_iterables_are_passed_on_as_they_come():
    result = Closing(b"a", b"b")
    assert run(returning(result)) == pieces(b"a", b"b")
    assert result.closes == 1


def test_a_generator_says_its_head_when_it_makes_its_first_piece():
    def application(environ, start_response):
        start_response("200 Quite OK", HEADERS)
        yield b"a"
        yield b"b"

    assert run(application) == pieces(b"a", b"b")


def test_what_is_written_goes_first():
    def application(environ, start_response):
        start_response("200 Quite OK", HEADERS)(b"a")
        return [b"b"]

    assert run(application) == whole(b"ab")


def test_an_error_may_replace_the_head_until_it_is_sent():
    def application(environ, start_response):
        start_response("404 Not Found", [])
        try:
            raise ValueError("as asked for")
        except ValueError as error:
            start_response("200 Quite OK", HEADERS, (ValueError, error, error.__traceback__))
        return [b""]

    assert run(application) == whole(b"")


def test_and_not_when_it_was_sent():
    def application(environ, start_response):
        start_response("200 Quite OK", HEADERS)
        yield b"a"
        error = ValueError("as asked for")
        start_response("500 No", [], (ValueError, error, None))

    with pytest.raises(ValueError, match="as asked for"):
        run(application)


@pytest.mark.parametrize("taken", [1, 2, 3])
def test_it_is_closed_once_at_whatever_end(taken):
    result = Closing(b"a", b"b", ValueError("as asked for"))
    messages = ApplicationViews(returning(result))(message())
    for _ in range(taken):
        next(messages)
    messages.close()
    assert result.closes == 1


def test_it_is_closed_when_it_raises():
    result = Closing(ValueError("as asked for"))
    with pytest.raises(ValueError, match="as asked for"):
        run(returning(result))
    assert result.closes == 1


def test_a_body_may_be_bytes_or_something_to_read():
    class Body:
        def read(self, size=-1):
            return b"streamed"

    def application(environ, start_response):
        start_response("200 Quite OK", HEADERS)
        return [environ["wsgi.input"].read()]

    assert run(application, body=b"bytes") == whole(b"bytes")
    fields = {**message(headers=[(b"content-length", b"8")]), "body": Body()}
    assert list(ApplicationViews(application)(fields)) == whole(b"streamed")


def test_the_length_of_a_body_to_read_is_what_came():
    seen = []

    def application(environ, start_response):
        seen.append((environ["CONTENT_LENGTH"], environ["wsgi.multithread"]))
        start_response("200 Quite OK", HEADERS)
        return []

    class Body:
        def read(self, size=-1):
            return b""

    list(ApplicationViews(application)({**message(), "body": Body(), "body_size": 8}))
    assert seen == [("8", True)]


def test_django_itself(settings, db):
    finished = []
    request_finished.connect(lambda **_: finished.append(1), weak=False, dispatch_uid="counting")
    try:
        (answer,) = list(ApplicationViews(site_application())(message("/nowhere")))
    finally:
        request_finished.disconnect(dispatch_uid="counting")
    assert answer["status"] == 404
    assert isinstance(site_application(), WSGIHandler)
    assert finished == [1]


def test_files_are_read_in_large_blocks():
    """Of Django's, which asks for smaller ones, and of applications that serve files themselves."""
    sizes = []

    class File:
        left = 3

        def read(self, size):
            sizes.append(size)
            self.left -= 1
            return b"x" * max(self.left, 0)

    def application(environ, start_response):
        start_response("200 Quite OK", HEADERS)
        return environ["wsgi.file_wrapper"](File(), 4096)

    assert run(application) == pieces(b"xx", b"x")
    assert set(sizes) == {CHUNK}


def test_the_site_s_own_application(settings):
    settings.WSGI_APPLICATION = "tests.worker.test_application.returning"
    assert site_application().__name__ == "returning"
    settings.WSGI_APPLICATION = "tests.nowhere.application"
    with raises(InvalidConfiguration) as error:
        site_application()
    assert error.sentence.startswith(
        "WSGI_APPLICATION names 'tests.nowhere.application', which cannot be imported (No "
    )


# All that the site imports.


@pytest.fixture
def site_of(settings, tmp_path, monkeypatch):
    """The URLconf is these modules: ``site_of(urls="...", inner="...")``; forgotten after the test."""

    def use(**modules):
        for name, code in modules.items():
            (tmp_path / f"loaded_{name}.py").write_text(code)
            monkeypatch.delitem(sys.modules, f"loaded_{name}", raising=False)
        settings.ROOT_URLCONF = "loaded_urls"
        clear_url_caches()

    monkeypatch.syspath_prepend(tmp_path)
    yield use
    for name in [name for name in sys.modules if name.startswith("loaded_")]:
        del sys.modules[name]
    clear_url_caches()


def test_a_site_is_loaded_with_all_that_a_request_would_import(site_of, settings, tmp_path):
    site_of(
        urls="from django.urls import include, path\n"
        "urlpatterns = [path('', include('loaded_inner'))]\nhandler404 = 'loaded_errors.missing'",
        inner="urlpatterns = []",
        errors="def missing(request, exception): ...",
        tags="from django import template\nregister = template.Library()",
    )
    settings.TEMPLATES = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {"libraries": {"tags": "loaded_tags"}},
        }
    ]
    assert load_site("default").channels()
    assert {"loaded_urls", "loaded_inner", "loaded_errors"} <= set(sys.modules)
    assert "django" in engines._engines


@pytest.mark.parametrize(
    "code",
    [
        "urlpatterns = [",
        "from django.urls import include, path\nurlpatterns = [path('', include('no_such_module'))]",
        "from django.urls import include, path\nurlpatterns = [path('', include('loaded_inner'))]",
        "urlpatterns = []\nhandler500 = 'no_such_module.view'",
    ],
)
def test_an_urlconf_that_is_broken_anywhere_is_not_loaded(site_of, code):
    site_of(urls=code, inner="views = []")
    with pytest.raises(Exception, match=r"never closed|no_such_module|does not appear to have any patterns"):
        load_site("default")


def test_a_site_without_urls_is_loaded(settings):
    del settings.ROOT_URLCONF
    assert load_site("default").channels()
