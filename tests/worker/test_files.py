"""Which responses are regular files, and how a worker hands them over."""

from __future__ import annotations

import gzip
import os
import socket
import tempfile
from io import BufferedReader, BytesIO, FileIO
from wsgiref.util import FileWrapper

import pytest
from django.conf import settings
from django.core.files import File
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished
from django.http import FileResponse
from django.urls import path
from whitenoise import WhiteNoise

from dbchannels.protocol import CHUNK
from dbchannels.worker.response_stream import FileSender, regular_file
from dbchannels.worker.views import ApplicationViews
from tests.worker import test_views

CONTENT = bytes(range(256)) * 1_024  # 256 KiB
layer = test_views.layer


@pytest.fixture
def stored(tmp_path):
    """The path of a file with the CONTENT, and one with the same compressed."""
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT)
    with gzip.open(tmp_path / "a.gz", "wb") as file:
        file.write(CONTENT)
    return path


@pytest.fixture
def pair():
    """The server's socket, and what sends there for the queue of the tests' requests."""
    server, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.setblocking(False)
    made = FileSender("reply.s1!", sender.detach())
    yield server, made
    server.close()
    made._socket.close()


def received(server):
    """Return the channel and the content of what came, or None."""
    try:
        channel, (descriptor,), _, _ = socket.recv_fds(server, 100, 1)
    except BlockingIOError:
        return None
    with open(descriptor, "rb") as file:
        return channel.decode(), os.pread(file.fileno(), 1_000_000, 0)


class Reading(BufferedReader):
    """May change what is read."""


class Decrypting(File):
    """Does so."""

    def read(self, size):
        return b""


class Raw(FileIO):
    """May do so as well."""


def replaced(path):
    file = path.open("rb")
    file.read = BytesIO(b"other").read
    return file


def written(path):
    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(CONTENT)
    file.seek(-1_000, os.SEEK_END)
    return file


def begun(path):
    file = path.open("rb")
    file.read(5)
    return file


@pytest.mark.parametrize(
    ("make", "position"),
    [
        (lambda path: path.open("rb"), 0),
        (lambda path: path.open("rb", buffering=0), 0),
        (begun, 5),
        (written, len(CONTENT) - 1_000),
        (lambda path: File(path.open("rb")), 0),
        (lambda path: File(File(begun(path))), 5),
    ],
)
def test_a_regular_file_is_known(stored, make, position):
    with make(stored) as file:
        descriptor, start, left = regular_file(FileWrapper(file))
        assert (start, left) == (position, len(CONTENT) - position)
        assert os.pread(descriptor, 100, start) == file.read(100)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: gzip.GzipFile(path.with_suffix(".gz")),
        lambda path: BytesIO(CONTENT),
        lambda path: Reading(FileIO(path)),
        lambda path: BufferedReader(Raw(path)),
        lambda path: Raw(path),
        lambda path: Decrypting(path.open("rb")),
        replaced,
        lambda path: FileIO(path, "ab"),
        lambda path: FileIO("/dev/zero"),
        lambda path: path.open(),
    ],
)
def test_what_may_read_something_else_is_none(stored, make):
    with make(stored) as file:
        assert regular_file(FileWrapper(file)) is None


def test_neither_is_one_that_is_closed_or_wrapped_by_others(stored):
    with open(stored, "rb") as file:
        assert regular_file(iter(file)) is None
        assert regular_file(type("Own", (FileWrapper,), {})(file)) is None
    assert regular_file(FileWrapper(file)) is None


@pytest.mark.parametrize(
    ("headers", "start", "span"),
    [
        ([], 0, [0, len(CONTENT)]),
        ([], 1_000, [1_000, len(CONTENT) - 1_000]),
        ([[b"content-length", b"200000"]], 7, [7, 200_000]),
        ([[b"Content-Length", b"200000"], [b"Content-Length", b"1"]], 0, None),
        ([[b"Content-Length", b"x"]], 0, None),
        ([[b"Content-Length", b"300000"]], 0, None),  # the server breaks it off
        ([[b"Content-Length", str(CHUNK).encode()]], 0, None),  # it goes along with the head
        ([], 200_000, None),
    ],
)
def test_the_head_says_what_of_it_to_send(stored, pair, headers, start, span):
    server, sender = pair
    head = {"status": 200, "headers": headers}
    with open(stored, "rb") as file:
        file.seek(start)
        sent = sender.send("reply.s1!c1", head, FileWrapper(file))
        assert sender.send("reply.other!c1", head, FileWrapper(file)) is None
    assert (sent and sent["from_descriptor"]) == span
    if span:
        assert received(server) == ("reply.s1!c1", CONTENT)
        (length,) = [value for name, value in sent["headers"] if name.lower() == b"content-length"]
        assert int(length) == span[1] and sent["more_content"] and not head.get("more_content")
    assert received(server) is None


def test_a_server_that_takes_none_gets_chunks(stored, pair, monkeypatch):
    server, sender = pair
    sender._socket.settimeout(0.01)
    head = {"status": 200, "headers": []}
    with open(stored, "rb") as file:
        sent = 0
        while sender.send("reply.s1!c1", head, FileWrapper(file)):
            sent += 1
        assert sent
        server.close()
        assert sender.send("reply.s1!c1", head, FileWrapper(file)) is None


# The application's responses.


urlpatterns = [path("", lambda request: FileResponse(settings.STORED.open("rb")))]


@pytest.fixture
def respond(layer, pair, stored, settings):
    """Run an application in a worker; return the messages of its response, and how many of its requests ended."""
    settings.ROOT_URLCONF, settings.STORED = __name__, stored
    finished = []

    def respond(application, address, **fields):
        views = ApplicationViews(application, files=pair[1])
        messages = test_views.respond(test_views.Client(layer), address, views, **fields)
        return messages, len(finished)

    request_finished.connect(lambda **_: finished.append(1), weak=False, dispatch_uid="counting")
    yield respond
    request_finished.disconnect(dispatch_uid="counting")


def around(stored):
    return WhiteNoise(WSGIHandler(), root=stored.parent, prefix="files/")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_django_hands_it_over_and_its_request_ends(respond, pair, stored, method):
    for application in (WSGIHandler(), around(stored)):
        (head,), finished = respond(application, "/", method=method)
        assert (head["status"], head["from_descriptor"]) == (200, [0, len(CONTENT)])
        assert received(pair[0]) == ("reply.s1!c1", CONTENT)
    assert finished == 2


def test_white_noise_does_as_well_with_whole_files(respond, pair, stored):
    (head,), _ = respond(around(stored), "/files/a.bin")
    assert (head["status"], head["from_descriptor"]) == (200, [0, len(CONTENT)])
    assert received(pair[0]) == ("reply.s1!c1", CONTENT)
    headers = [*test_views.FIELDS["headers"], [b"range", b"bytes=10-199999"]]
    head, *chunks = respond(around(stored), "/files/a.bin", headers=headers)[0]
    assert head["status"] == 206 and test_views.content(chunks) == CONTENT[10:200_000]
    assert received(pair[0]) is None


def test_what_a_middleware_changes_is_sent_in_chunks(respond, pair, settings):
    settings.MIDDLEWARE = ["django.middleware.gzip.GZipMiddleware"]
    headers = [*test_views.FIELDS["headers"], [b"accept-encoding", b"gzip"]]
    messages, finished = respond(WSGIHandler(), "/", headers=headers)
    assert gzip.decompress(test_views.content(messages)) == CONTENT
    assert (received(pair[0]), finished) == (None, 1)


def test_what_an_old_application_has_written_goes_first(respond, pair, stored):
    def application(environ, start_response):
        start_response("200 OK", [])(b"written")
        return environ["wsgi.file_wrapper"](open(stored, "rb"))

    messages, _ = respond(application, "/")
    assert test_views.content(messages) == b"written" + CONTENT
    assert received(pair[0]) is None
