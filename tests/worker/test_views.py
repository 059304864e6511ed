"""Views as consumers: the WSGI environment of a request, and the messages of its response."""

from __future__ import annotations

import io
import json
import sqlite3
import threading

import pytest
from django.core import signals
from django.core.handlers.base import BaseHandler
from django.db import DatabaseError, OperationalError
from django.http import (
    FileResponse,
    HttpResponse,
    HttpResponseNotModified,
    HttpResponseRedirect,
    JsonResponse,
    StreamingHttpResponse,
)
from django.test import RequestFactory
from django.urls import path, reverse

from dbchannels import Channel, ResponseLater, channel_layers, codec, conf, event_stream, route
from dbchannels.layers import make_layer
from dbchannels.layers.link import Link
from dbchannels.protocol import CHUNK, WINDOW
from dbchannels.routing.table import Routing
from dbchannels.testing.contract.case import drain
from dbchannels.worker import response_stream, worker
from dbchannels.worker.views import ApplicationViews, catching_later, is_outage, make_environ

CLIENT = "reply.s1!c1"
FLOW = "http.flow?c1"
FIELDS = {
    "reply_channel": CLIENT,
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/echo/",
    "query_string": b"",
    "root_path": "",
    "headers": [[b"host", b"testserver"]],
    "body": b"",
    "body_channel": None,
    "flow_channel": FLOW,
    "client": ["192.0.2.7", 50_000],
    "server": ["127.0.0.1", 8000],
}


def echo(request):
    """Answer with what a view sees of its request."""
    return JsonResponse(
        {
            "method": request.method,
            "path": request.path,
            "path_info": request.path_info,
            "reversed": reverse("echo"),
            "get": dict(request.GET.lists()),
            "post": dict(request.POST.lists()),
            "files": {name: file.read().decode() for name, file in request.FILES.items()},
            "cookies": request.COOKIES,
            "body": request.body.decode("latin-1") if not request.POST else None,
            "host": request.get_host(),
            "secure": request.is_secure(),
            "content_type": request.content_type,
        }
    )


echo.csrf_exempt = True


def big(request):
    """Answer with more than a chunk, not streamed."""
    return HttpResponse(b"x" * (2 * CHUNK + 5), content_type="text/plain")


def stream(request):
    """Answer piece by piece."""
    return StreamingHttpResponse(iter([b"one", "two", b"three"]))


class EndlessFile(io.RawIOBase):
    """A file without end that counts how often and how much it was read, and knows when it was closed."""

    reads: list[int] = []  # noqa: RUF012  (one for all, which a test empties)
    last = None

    def __init__(self):
        super().__init__()
        EndlessFile.last = self
        EndlessFile.reads.clear()

    def readable(self):
        """It can be read."""
        return True

    def read(self, size=-1):
        """Return as much as was asked for."""
        self.reads.append(size)
        return b"y" * size


def endless(request):
    """Answer with a download that has no end."""
    return FileResponse(EndlessFile(), content_type="application/octet-stream")


def file(request):
    """Answer with a download."""
    return FileResponse(io.BytesIO(b"z" * (3 * CHUNK)), as_attachment=True, filename="z.bin")


def cookies(request):
    """Set some cookies, and take one away."""
    response = HttpResponse("set")
    response.set_cookie("a", "1", httponly=True, samesite="Lax")
    response.set_cookie("b", "two words; and more")
    response.delete_cookie("c")
    return response


def headers(request):
    """Answer with headers of every kind, and a status with words of its own."""
    response = HttpResponse("no tea", status=418, reason="I am a teapot")
    response["X-Latin"] = "caf\xe9"
    response["X-Chinese"] = "\u8336"
    return response


def broken(request):
    """Fail."""
    raise RuntimeError("The view's own words.")


def without_database(request, code):
    """Fail as Django does when the database cannot be used."""
    raise OperationalError("FATAL") from DriversError(None if code == "none" else code)


class DriversError(Exception):
    """What psycopg2 raises; psycopg 3 calls the code ``sqlstate``."""

    def __init__(self, code):
        self.pgcode = code


def broken_stream(request):
    """Fail after the first piece."""

    def pieces():
        yield b"first"
        raise RuntimeError("The stream's own words.")

    return StreamingHttpResponse(pieces())


def quits(request):
    """Leave in a way that Django lets through."""
    raise SystemExit(3)


def sends(request):
    """Send something, and note what can be seen of it then."""
    Channel("out").send({"from": "a view"})
    return HttpResponse("sent")


def later(request):
    """Leave the answer to others, after a send."""
    Channel("out").send({"to": request.reply_channel.name})
    raise ResponseLater


def anything_later(request):
    """Leave the answer to others."""
    raise ResponseLater


async def later_in_async(request):
    """The same, as a coroutine."""
    raise ResponseLater


def unread(request):
    """Say how long the body is, and read a part of it."""
    return JsonResponse({"length": request.META["CONTENT_LENGTH"], "part": request.read(3).decode()})


urlpatterns = [
    path("events/", lambda request: event_stream("news")),
    path("later/", later),
    path("later-in-async/", later_in_async),
    path("unread/", unread),
    path("echo/", echo, name="echo"),
    path("t\xe9/<str:name>/", lambda request, name: HttpResponse(name)),
    path("big/", big),
    path("stream/", stream),
    path("endless/", endless),
    path("file/", file),
    path("cookies/", cookies),
    path("headers/", headers),
    path("broken/", broken),
    path("without-database/<code>/", without_database),
    path("broken-stream/", broken_stream),
    path("quits/", quits),
    path("sends/", sends),
    path("redirect/", lambda request: HttpResponseRedirect("/elsewhere/")),
    path("same/", lambda request: HttpResponseNotModified()),
    path("empty/", lambda request: HttpResponse(b"")),
]


@pytest.fixture(autouse=True)
def urls(settings):
    """The views of this module are the site."""
    settings.ROOT_URLCONF = __name__


@pytest.fixture
def layer(tables):
    """The site's layer: one in memory. At its end a request looks after Django's connections, so they are open."""
    backend = conf.SHORT_BACKENDS["memory"]
    channel_layers["default"] = make_layer(
        conf.LayerSettings("default", backend, "default", None, conf.OPTIONS)
    )
    yield channel_layers["default"]
    channel_layers.clear()


class Client(Link):
    """A link with an interface server behind it, whose client takes all that comes."""

    def __init__(self, layer, leaves_after=None):
        super().__init__(layer)
        self.messages = []
        self.asked = []
        self.leaves_after = leaves_after  # bytes

    def apply(self, operations):
        """Get messages."""
        for send in operations:
            assert send.channel == CLIENT
            self.messages.append(codec.decode(send.payload))
        return []

    def receive_many(self, queues, limit, worker=""):
        """Report that all was taken, or that the client left."""
        self.asked += queues
        size = sum(len(message.get("content", b"")) for message in self.messages)
        left = self.leaves_after is not None and size >= self.leaves_after
        report = {"closed": True} if left else {"taken": size}
        return [self.layer.make_send("own", report)]


@pytest.fixture
def client(layer):
    """A client that stays to the end."""
    return Client(layer)


def respond(client, address="/echo/", views=None, **fields):
    """Run the view of an address; return the messages of its response, in order."""
    message = {**FIELDS, "path": address, **fields}
    operations = (views or ApplicationViews()).respond(message, client, client.layer)
    return client.messages + [codec.decode(send.payload) for send in operations]


def whole(client, address="/echo/", **fields):
    """Run a view that answers with one message; return that."""
    (response,) = respond(client, address, **fields)
    assert "more_content" not in response
    return response


def seen(client, **fields):
    """Return what the view ``echo`` sees of a request."""
    return json.loads(whole(client, **fields)["content"])


def values(response, name):
    """Return the values of a header of a response, in order."""
    return [value for key, value in response["headers"] if key.lower() == name.lower()]


def content(messages):
    """Return the whole body."""
    return b"".join(message.get("content", b"") for message in messages)


def environ(**fields):
    """Return the environment of a request."""
    return make_environ({**FIELDS, **fields})


# The environment.


def test_the_environment_is_wsgis():
    made = environ(method="POST", path="/a/", query_string=b"b=1&c=%20", body=b"12345", http_version="1.0")
    expected = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a/",
        "QUERY_STRING": "b=1&c=%20",
        "CONTENT_LENGTH": "5",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.0",
        "REMOTE_ADDR": "192.0.2.7",
        "REMOTE_PORT": "50000",
        "HTTP_HOST": "testserver",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.run_once": False,
    }
    assert {key: made[key] for key in expected} == expected
    assert made["wsgi.input"].read() == b"12345"
    assert made["wsgi.errors"].write


def test_every_text_of_the_environment_is_latin_1():
    made = environ(path="/caf\xe9/\u8336/", root_path="/\u8336", headers=[[b"x-raw", bytes(range(128, 256))]])
    for key, value in made.items():
        assert not key.isupper() or value.encode("latin-1") is not None
    assert made["PATH_INFO"].encode("latin-1").decode() == "/caf\xe9/\u8336/"
    assert made["SCRIPT_NAME"].encode("latin-1").decode() == "/\u8336"
    assert made["HTTP_X_RAW"].encode("latin-1") == bytes(range(128, 256))


def test_a_request_says_no_more_than_it_must():
    few = {key: FIELDS[key] for key in ("method", "path", "query_string", "http_version", "headers")}
    made = make_environ(few)
    assert (made["SERVER_NAME"], made["SERVER_PORT"], made["REMOTE_ADDR"]) == ("localhost", "80", "")
    assert (made.get("CONTENT_LENGTH"), made["wsgi.input"].read(), made["wsgi.url_scheme"]) == (
        None,
        b"",
        "http",
    )


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ([[b"x-a", b"1"]], "HTTP_X_A", "1"),
        ([[b"x-a", b"1"], [b"x-a", b"2"]], "HTTP_X_A", "1,2"),
        ([[b"cookie", b"a=1"], [b"cookie", b"b=2"]], "HTTP_COOKIE", "a=1; b=2"),
        ([[b"content-type", b"text/plain"]], "CONTENT_TYPE", "text/plain"),
        ([[b"accept", b""]], "HTTP_ACCEPT", ""),
        ([[b"x-a", b"caf\xe9"]], "HTTP_X_A", "caf\xe9"),
    ],
)
def test_headers_are_keys(given, key, value):
    assert environ(headers=given)[key] == value


def test_a_header_with_an_underscore_is_dropped():
    """``X_Forwarded_For`` would be the same key as ``X-Forwarded-For``, so a stranger could forge what a proxy says."""
    made = environ(
        headers=[[b"x_forwarded_for", b"forged"], [b"x-forwarded-for", b"1.2.3.4"], [b"remote_user", b"x"]]
    )
    assert made["HTTP_X_FORWARDED_FOR"] == "1.2.3.4"
    assert not [key for key in made if "REMOTE_USER" in key]


@pytest.mark.parametrize("length", [b"0", b"3", b"1000000", b"-1", b"x"])
def test_the_length_is_the_bodys_whatever_the_client_said(length):
    made = environ(body=b"12345", headers=[[b"content-length", length]])
    assert made["CONTENT_LENGTH"] == "5"
    assert "HTTP_CONTENT_LENGTH" not in made


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ([], None),
        ([[b"content-length", b"0"]], "0"),
        ([[b"transfer-encoding", b"chunked"]], "0"),
        ([[b"content-type", b"text/plain"]], None),
    ],
)
def test_without_a_body_there_is_the_length_that_the_client_sent_or_none(headers, length):
    assert environ(headers=headers).get("CONTENT_LENGTH") == length


def test_the_root_path_is_taken_off_the_path():
    made = environ(path="/site/a/", root_path="/site")
    assert (made["SCRIPT_NAME"], made["PATH_INFO"]) == ("/site", "/a/")
    assert environ(path="/a/", root_path="/site")["PATH_INFO"] == "/a/"


# What a view sees.


def test_a_view_sees_its_request(client):
    found = seen(
        client, query_string=b"a=1&a=2&b=%C3%A9", headers=[[b"host", b"testserver"], [b"cookie", b"c=3"]]
    )
    assert (found["method"], found["path"], found["host"]) == ("GET", "/echo/", "testserver")
    assert (found["get"], found["cookies"]) == ({"a": ["1", "2"], "b": ["\xe9"]}, {"c": "3"})
    assert found["secure"] is False


def test_a_form_and_an_upload_arrive(client):
    form = [[b"host", b"testserver"], [b"content-type", b"application/x-www-form-urlencoded"]]
    assert seen(client, method="POST", body=b"a=1&b=%E8%8C%B6", headers=form)["post"] == {
        "a": ["1"],
        "b": ["\u8336"],
    }
    body = (
        b'--x\r\nContent-Disposition: form-data; name="f"; filename="f.txt"\r\n\r\nthe file\r\n'
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n'
    )
    upload = [[b"host", b"testserver"], [b"content-type", b"multipart/form-data; boundary=x"]]
    found = seen(client, method="POST", body=body, headers=upload)
    assert (found["files"], found["post"]) == ({"f": "the file"}, {"a": ["1"]})


def test_a_body_of_any_bytes_arrives(client):
    headers = [[b"host", b"testserver"], [b"content-type", b"application/octet-stream"]]
    every = bytes(range(256)) * 100
    found = seen(client, method="PUT", body=every, headers=headers)
    assert found["body"].encode("latin-1") == every
    assert found["content_type"] == "application/octet-stream"


def test_a_path_of_any_characters_finds_its_view(client):
    assert whole(client, "/t\xe9/\u8336 \U0001f375/")["content"].decode() == "\u8336 \U0001f375"


def test_links_are_made_under_the_root_path_of_each_request(client):
    assert seen(client, path="/site/echo/", root_path="/site")["reversed"] == "/site/echo/"
    assert seen(client)["reversed"] == "/echo/"


def test_a_secure_request_is_one(client):
    assert seen(client, scheme="https")["secure"] is True


# The response.


def test_a_small_response_is_one_message(client):
    response = whole(client, "/headers/")
    assert (response["status"], response["reason"], response["content"]) == (418, "I am a teapot", b"no tea")
    assert values(response, b"Content-Type") == [b"text/html; charset=utf-8"]
    assert values(response, b"Content-Length") == [b"6"]
    assert client.messages == []  # it is written with what the view sent


def test_headers_of_any_characters_are_bytes(client):
    response = whole(client, "/headers/")
    assert values(response, b"X-Latin") == [b"caf\xe9"]
    assert values(response, b"X-Chinese") == [b"=?utf-8?b?6Iy2?="]  # as RFC 2047 says, which Django does


def test_each_cookie_has_a_line(client):
    a, b, c = values(whole(client, "/cookies/"), b"Set-Cookie")
    assert a == b"a=1; HttpOnly; Path=/; SameSite=Lax"
    assert b.startswith(b'b="two words\\073 and more"')
    assert c.startswith(b'c=""; expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0')


@pytest.mark.parametrize(
    ("address", "status"), [("/redirect/", 302), ("/same/", 304), ("/empty/", 200), ("/nowhere/", 404)]
)
def test_every_status_comes_through(client, address, status):
    response = whole(client, address)
    assert response["status"] == status
    assert values(response, b"Location") == ([b"/elsewhere/"] if status == 302 else [])


def test_the_head_of_a_stream_of_events_is_one_reply_that_always_fits(client):
    message = {**FIELDS, "path": "/events/", "query_string": b"last-event-id=7"}
    (head,) = ApplicationViews().respond(message, client, client.layer)
    assert head.certain and codec.decode(head.payload)["server_sent_events"] == "7"


def test_an_answer_that_nobody_could_give_later_says_so():
    with pytest.raises(
        ResponseLater, match="This request cannot be answered later: let a worker run its view"
    ):
        catching_later(anything_later)(RequestFactory().get("/"))  # as under --http direct


def test_a_host_that_is_not_allowed_is_a_bad_request(client):
    assert whole(client, headers=[[b"host", b"elsewhere.example"]])["status"] == 400


def test_a_view_that_fails_is_500_and_logged(client, caplog):
    response = whole(client, "/broken/")
    assert response["status"] == 500
    assert b"own words" not in response["content"]
    assert "The view's own words." in caplog.text


def test_a_view_that_fails_shows_its_traceback_with_debug(client, settings):
    settings.DEBUG = True
    assert b"The view&#x27;s own words." in whole(client, "/broken/")["content"]


@pytest.mark.parametrize("code", ["none", "53100", "53300", "57P03", "08006"])
def test_a_view_whose_database_cannot_be_used_is_503(client, code, caplog):
    response = whole(client, f"/without-database/{code}/")
    assert (response["status"], values(response, b"Retry-After")) == (503, [b"5"])
    assert b"try again soon" in response["content"]
    assert "FATAL" in caplog.text


@pytest.mark.parametrize("code", ["40P01", "57014"])
def test_another_error_of_the_database_is_500(client, code):
    assert whole(client, f"/without-database/{code}/")["status"] == 500


@pytest.mark.parametrize("code", [None, "08006"])
def test_the_drivers_bare_error_is_an_outage(code):
    error = DatabaseError("server closed the connection unexpectedly")
    error.__cause__ = DriversError(code)
    assert is_outage(error)
    error.__cause__ = None
    assert not is_outage(error)


def test_an_error_of_sqlite_is_none_of_these():
    error = OperationalError("no such table")
    error.__cause__ = sqlite3.OperationalError("no such table")
    assert not is_outage(error)


def test_an_outage_shows_its_traceback_with_debug(client, settings):
    settings.DEBUG = True
    response = whole(client, "/without-database/53100/")
    assert response["status"] == 500
    assert b"FATAL" in response["content"]


# Responses in chunks.


def test_a_large_response_goes_in_chunks(client):
    head, *chunks, end = respond(client, "/big/")
    assert (head["status"], head["content"], head["more_content"]) == (200, b"", True)
    assert values(head, b"Content-Length") == [str(2 * CHUNK + 5).encode()]
    assert [len(chunk["content"]) for chunk in chunks] == [CHUNK, CHUNK, 5]
    assert all(chunk["more_content"] for chunk in chunks)
    assert end == {"content": b"", "more_content": False}


def test_a_large_response_that_is_whole_has_its_length_without_any_middleware(client, settings):
    """Or a client that has shut down its sending half would get no answer, as from a stream."""
    settings.MIDDLEWARE = []
    head, *chunks, _ = respond(client, "/big/")
    assert values(head, b"Content-Length") == [str(len(content(chunks))).encode()]


def test_a_stream_goes_piece_by_piece(client):
    head, *chunks, end = respond(client, "/stream/")
    assert head["status"] == 200
    assert content(chunks) == b"onetwothree"
    assert end == {"content": b"", "more_content": False}


def test_a_file_is_read_by_chunks(client):
    head, *chunks, end = respond(client, "/file/")
    assert values(head, b"Content-Disposition") == [b'attachment; filename="z.bin"']
    assert values(head, b"Content-Length") == [str(3 * CHUNK).encode()]
    assert content(chunks) == b"z" * (3 * CHUNK)
    assert end == {"content": b"", "more_content": False}


def test_a_client_that_leaves_ends_a_download_and_closes_its_file(layer):
    client = Client(layer, leaves_after=2 * WINDOW)
    messages = respond(client, "/endless/")
    assert len(content(messages)) <= 3 * WINDOW
    assert set(EndlessFile.reads) == {CHUNK}
    assert EndlessFile.last.closed
    assert set(client.asked) == {FLOW}
    assert messages[-1].get("more_content")  # nothing more was said to nobody


def test_without_a_flow_channel_a_window_is_all(layer, monkeypatch):
    monkeypatch.setattr(response_stream, "STALLED", 0.01)
    client = Client(layer)
    assert len(content(respond(client, "/endless/", flow_channel=None))) == WINDOW
    assert client.asked == []


def test_an_exception_in_a_stream_breaks_it_off(client):
    with pytest.raises(RuntimeError, match="The stream's own words"):
        respond(client, "/broken-stream/")
    assert content(client.messages) == b"first"
    assert client.messages[-1] == {"error": "broken off"}


def test_a_chunk_that_finds_its_channel_full_is_sent_again(client, monkeypatch):
    monkeypatch.setattr(response_stream, "FULL_PAUSE", 0.0001)
    apply, tries = client.apply, []

    def full_at_first(operations):
        tries.append(1)
        return operations if len(tries) % 3 else apply(operations)

    monkeypatch.setattr(client, "apply", full_at_first)
    assert len(content(respond(client, "/big/"))) == 2 * CHUNK + 5
    assert len(tries) == 3 * len(client.messages) == 15


# Signals and connections.


@pytest.fixture
def signalled():
    """The signals of requests, in the order in which they were sent."""
    names = []

    def started(**kwargs):
        names.append("started")

    def finished(**kwargs):
        names.append("finished")

    signals.request_started.connect(started)
    signals.request_finished.connect(finished)
    yield names
    signals.request_started.disconnect(started)
    signals.request_finished.disconnect(finished)


@pytest.mark.parametrize("address", ["/echo/", "/big/", "/stream/", "/file/", "/broken/", "/nowhere/"])
def test_each_request_starts_and_finishes_once(client, signalled, address):
    respond(client, address)
    assert signalled == ["started", "finished"]


def test_a_broken_stream_finishes_too(client, signalled):
    with pytest.raises(RuntimeError):
        respond(client, "/broken-stream/")
    assert signalled == ["started", "finished"]


def test_a_request_finishes_after_its_last_chunk(client, signalled):
    respond(client, "/stream/")
    order = []
    client.messages.clear()

    def finished(**kwargs):
        order.append(client.messages[-1])

    signals.request_finished.connect(finished)
    respond(client, "/stream/")
    signals.request_finished.disconnect(finished)
    assert order == [{"content": b"", "more_content": False}]


def test_the_middleware_is_made_once(client, monkeypatch):
    made = []
    load = BaseHandler.load_middleware
    monkeypatch.setattr(BaseHandler, "load_middleware", lambda self: (made.append(1), load(self))[1])
    views = ApplicationViews()
    for _ in range(3):
        respond(client, views=views)
    assert made == [1]


# In a worker.


def answers(layer, address, **fields):
    """Return what a worker answers to a request."""
    layer.send("http.request", {**FIELDS, "path": address, **fields})
    one = worker.Worker(layer, Routing([route("own", lambda message: None)]))
    assert one.run_once()
    return drain(layer, "reply.s1!")


def test_a_worker_answers_with_the_view(layer):
    (response,) = answers(layer, "/sends/")
    assert (response["status"], response["content"]) == (200, b"sent")
    assert drain(layer, "out") == [{"from": "a view"}]


def test_a_worker_streams(layer):
    head, *chunks, end = answers(layer, "/big/")
    assert (head["status"], len(content(chunks)), end["more_content"]) == (200, 2 * CHUNK + 5, False)


def test_a_worker_breaks_off_a_stream_that_fails(layer):
    messages = answers(layer, "/broken-stream/")
    assert content(messages) == b"first"
    assert {"error": "broken off"} in messages
    assert all("error" in message for message in messages[2:])


def test_a_worker_outlives_a_view_that_quits(layer, caplog):
    assert answers(layer, "/quits/") == [{"error": "consumer"}]
    assert "SystemExit" in caplog.text


def test_no_view_leaves_a_thread(layer):
    before = set(threading.enumerate())
    answers(layer, "/file/")
    answers(layer, "/broken-stream/")
    assert set(threading.enumerate()) <= before  # one of an earlier test may have ended


# Answers that come later, and bodies that come in parts.


class Seen:
    """Middleware that notes the responses that pass it, and what their views sent."""

    statuses: list[int] = []  # noqa: RUF012  (one for all, which a test empties)

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        response = self.get_response(request)
        self.statuses.append(response.status_code)
        return response


@pytest.mark.parametrize("address", ["/later/", "/later-in-async/"])
def test_a_view_may_leave_its_answer_to_others(client, layer, settings, caplog, address):
    settings.MIDDLEWARE = [f"{__name__}.Seen"]
    Seen.statuses.clear()
    assert respond(client, address) == [{"later": True}]
    assert Seen.statuses == [200] and caplog.records == []
    assert drain(layer, "out") == ([{"to": CLIENT}] if address == "/later/" else [])


def test_the_next_view_answers_itself(client):
    views = ApplicationViews()
    assert respond(client, "/later/", views) == [{"later": True}]
    assert respond(client, "/empty/", views)[-1]["status"] == 200


def test_a_request_knows_its_reply_channel_and_the_length_of_its_body(client):
    fields = {"body": b"four", "body_size": 40, "body_channel": "http.request.body?c1"}
    response = whole(client, "/unread/", **fields)
    assert json.loads(response["content"]) == {"length": "40", "part": "fou"}
    assert client.asked == []
