"""What a WSGI server's environment becomes, and how the requests' threads share one relay."""

from __future__ import annotations

import os
import threading
from io import BytesIO
from wsgiref.util import setup_testing_defaults

import pytest

from dbchannels import conf
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.server import wsgi_gateway
from dbchannels.server.http import messages
from dbchannels.server.wsgi_gateway import Gateway, ThreadHub, read_body, read_request
from dbchannels.testing.contract.case import raises
from dbchannels.worker.views import make_environ
from tests.clocks import patch_time


def environ(**given):
    """Return an environment as PEP 3333 has it."""
    made = {**given}
    setup_testing_defaults(made)
    return made


def again(**given):
    """Return the environment that a worker makes of the message made of an environment."""
    request = read_request(environ(**given))
    fields = messages.request_message(request, "reply.a!b", b"", "http.flow?b")
    return make_environ(fields)


NO_UTF_8 = ["/caf\xe9", "/\xfe", "/\xff", "/\0", "/\xef\xbf\xbd"]  # the last is U+FFFD itself


@pytest.mark.parametrize(
    "path", ["/", "/a b", "/\xc3\xa9t\xc3\xa9", "/a%2Fb", "/a?b", "/a;b=c", "//x/../y", *NO_UTF_8]
)
def test_a_path_comes_through(path):
    assert again(PATH_INFO=path)["PATH_INFO"] == path


def test_a_site_below_a_path_comes_through():
    seen = again(SCRIPT_NAME="/caf\xc3\xa9", PATH_INFO="/menu", QUERY_STRING="a=%20&b")
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == ("/caf\xc3\xa9", "/menu")
    assert seen["QUERY_STRING"] == "a=%20&b"
    assert again(SCRIPT_NAME="/caf\xc3\xa9", PATH_INFO="/\xe9")["PATH_INFO"] == "/\xe9"


def test_headers_and_addresses_come_through():
    given = {
        "HTTP_X_TWICE": "1,2",
        "HTTP_COOKIE": "a=\xe9",
        "CONTENT_TYPE": "text/plain",
        "REMOTE_ADDR": "192.0.2.7",
        "REMOTE_PORT": "4711",
        "SERVER_NAME": "www.example.org",
        "SERVER_PORT": "8443",
        "REQUEST_METHOD": "PUT",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "https",
    }
    seen = again(**given)
    assert {key: seen[key] for key in given} == given


def test_a_header_has_one_way_in():
    seen = again(HTTP_CONTENT_LENGTH="7", HTTP_CONTENT_TYPE="text/html")
    assert (seen.get("CONTENT_LENGTH"), seen.get("CONTENT_TYPE")) == (None, None)
    assert again(CONTENT_LENGTH="0")["CONTENT_LENGTH"] == "0"


def test_a_unix_socket_has_no_ports():
    request = read_request(environ(REMOTE_ADDR="", SERVER_PORT=""))
    assert (request.client, request.server[1]) == (("", 0), 0)


class Trickle(BytesIO):
    """Gives two bytes at a time."""

    def read(self, size=-1):
        return super().read(min(size, 2))


class Broken(BytesIO):
    """The client has gone."""

    def read(self, size=-1):
        raise OSError


ENDED = {"wsgi.input_terminated": True}


@pytest.mark.parametrize(
    ("source", "given", "body"),
    [
        (BytesIO(b"abcdef"), {"CONTENT_LENGTH": "5"}, b"abcde"),
        (Trickle(b"abcde"), {"CONTENT_LENGTH": "5"}, b"abcde"),
        (Trickle(b"abcde"), ENDED, b"abcde"),
        (BytesIO(b"abcde"), {}, b""),
        (BytesIO(b"abcde"), {"CONTENT_LENGTH": ""}, b""),
        (BytesIO(b"abcd"), {"CONTENT_LENGTH": "5"}, 400),
        (Broken(), {"CONTENT_LENGTH": "5"}, 400),
        (BytesIO(b"abcde"), {"CONTENT_LENGTH": "+5"}, 400),
        (BytesIO(b"abcde"), {"CONTENT_LENGTH": "\xb2"}, 400),
        (BytesIO(b"a" * 8), {"CONTENT_LENGTH": "8"}, b"a" * 8),
        (BytesIO(b"a" * 9), {"CONTENT_LENGTH": "9"}, 413),
        (Trickle(b"a" * 8), ENDED, b"a" * 8),
        (Trickle(b"a" * 9), ENDED, 413),
        (BytesIO(b"5\r\nabcde"), {"HTTP_TRANSFER_ENCODING": "chunked"}, 411),
    ],
)
def test_a_body_is_read_to_its_end_and_no_further(source, given, body):
    given = environ(**given)
    given["wsgi.input"] = source
    assert read_body(given, read_request(given), 8) == body


def test_a_layer_that_no_worker_reaches_is_refused(settings):
    settings.DBCHANNELS = {"default": {"BACKEND": "memory"}}
    with raises(InvalidConfiguration) as error:
        Gateway("default", http_timeout=1, max_body=1)
    assert error.sentence.startswith("This layer lives in one process")


def test_replies_are_delivered_one_at_a_time():
    hub, inside, overlaps = ThreadHub(), [], []
    started = threading.Barrier(4)

    def run():
        inside.append(1)
        overlaps.append(len(inside))
        os.sched_yield()
        inside.pop()

    def send():
        started.wait()
        for _ in range(200):
            hub.call(run)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(overlaps) == 800
    assert set(overlaps) == {1}


class FailingRelay:
    """A relay of a layer that cannot be used."""

    starts = 0

    def __init__(self, *args):
        """There is nothing to make."""

    def start(self):
        type(self).starts += 1
        raise conf.InvalidConfiguration("as asked for")


def test_a_relay_that_cannot_start_is_tried_again_after_a_while(monkeypatch):
    monkeypatch.setattr(wsgi_gateway, "Relay", FailingRelay)
    application = Gateway("default", http_timeout=1, max_body=1)
    patch_time(monkeypatch, wsgi_gateway, monotonic=lambda: now)
    now = 100.0
    for moment, starts in ((100.0, 1), (100.5, 1), (101.5, 2)):
        now = moment
        with pytest.raises(wsgi_gateway.DBChannelsError):
            application._relay()
        assert FailingRelay.starts == starts
