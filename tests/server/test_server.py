"""The interface server in this process, on a memory layer, with a greenlet in the place of its workers."""

from __future__ import annotations

import logging
import re
import socket
import struct
import threading
import time
from contextlib import closing, suppress
from functools import partial
from http.client import HTTPResponse, IncompleteRead

import gevent
import pytest
from gevent import socket as gevent_socket

from dbchannels import conf
from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.memory import MemoryLayer
from dbchannels.layers.relay import OutboxFull
from dbchannels.protocol import EVENT_STREAM, REPORT_EVERY, SENTENCES
from dbchannels.server import relay, server
from dbchannels.server.http import messages
from dbchannels.server.http.exchange import BrokenOff, Exchange, Stream
from dbchannels.server.http.handler import Handler
from dbchannels.server.listeners import Address, AddressInUse
from dbchannels.server.options import ServerConfig
from dbchannels.server.server import InterfaceServer
from dbchannels.testing.contract.case import raises

PROTOCOL = [
    "http.request",
    "http.disconnect",
    "websocket.connect",
    "websocket.receive",
    "websocket.disconnect",
]
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
TEXT, CLOSE = 1, 8


def until(condition):
    """Let the hub run until the condition holds; return what it gave."""
    end = time.monotonic() + 10
    while not (found := condition()):
        assert time.monotonic() < end, "This did not come true within 10 s."
        gevent.sleep(0.002)
    return found


class Site:
    """A server with its layer, a worker that does what a test says, and clients."""

    def __init__(self, **options):
        settings = conf.LayerSettings("default", None, "", None, {**conf.OPTIONS, "poll_interval": 0.005})
        self.layer = MemoryLayer(settings)
        given = {
            "addresses": (Address("127.0.0.1", 0),),
            "allowed_hosts": ("127.0.0.1", "localhost"),
            "graceful_timeout": 5.0,
            **options,
        }
        self.server = InterfaceServer(self.layer, {}, ServerConfig(**given))
        self.relay = self.server.relay
        self.seen = []  # (channel, message)
        self.consumers = {
            "http.request": lambda message, reply: reply(status=200, content=message["path"].encode()),
            "http.disconnect": lambda message, reply: None,
            "websocket.receive": lambda message, reply: reply(
                text=message["text"], finished=message["order"]
            ),
        }
        self.clients = []
        self.server.start()
        self._worker = gevent.spawn(self._work)
        self.stopped = False

    def _work(self):
        while True:
            channel, message = self.layer.receive(PROTOCOL)
            if channel is None:
                gevent.sleep(0.001)
                continue
            self.seen.append((channel, message))
            reply = partial(self.reply, message)
            self.consumers.get(channel, _finish)(message, reply)

    def reply(self, message, **fields):
        self.layer.send(message["reply_channel"], fields)

    def on(self, channel, consumer):
        self.consumers[channel] = consumer
        return self

    def responding(self, *messages):
        """Answer each request with these messages, one after another."""
        return self.on("http.request", lambda message, reply: [reply(**one) for one in messages] and None)

    def silent(self, channel):
        """Never answer on this channel."""
        return self.on(channel, lambda message, reply: None)

    def messages(self, channel):
        return [message for seen, message in self.seen if seen == channel]

    def reports(self):
        """What the worker was told of its stream, so far."""
        (message,) = self.messages("http.request")
        if not hasattr(self, "_reports"):
            self._reports = []
        while (found := self.layer.receive([message["flow_channel"]]))[0] is not None:
            self._reports.append(found[1])
        return self._reports

    def client(self):
        self.clients.append(Client(self.server.address[1]))
        return self.clients[-1]

    def get(self, path="/", **headers):
        return self.client().ask("GET", path, **headers)

    def socket(self, path="/", behind=b"", **headers):
        """Open a WebSocket; what is ``behind`` the handshake goes out with it."""
        client = self.client()
        given = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        given |= {"Sec-WebSocket-Key": KEY} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        client.send_request("GET", path, behind, given)
        client.handshake()
        return client

    def is_quiet(self):
        """Nothing waits for a reply."""
        return self.relay.waiting() == 0 and not self.server.requests.in_flight

    def stop(self, **options):
        if not self.stopped:
            self.stopped = True
            self.server.stop(**options)

    def end(self):
        for client in self.clients:
            with suppress(OSError):  # it is closed
                client.reset()
        self.stop()
        self._worker.kill()


def _finish(message, reply):
    reply(finished=message["order"])


class Response:
    def __init__(self, response, content):
        self.status, self.reason, self.content = response.status, response.reason, content
        self.header = response.getheader
        self.names = [name.lower() for name, _ in response.getheaders()]


class Client:
    """A client on a cooperative socket."""

    def __init__(self, port):
        self.port = port
        self.sock = gevent_socket.create_connection(("127.0.0.1", port), timeout=10)
        self._data = b""

    def send_request(self, method, path, body=b"", headers=(), version="1.1"):
        given = {"Host": f"127.0.0.1:{self.port}", **dict(headers)}
        lines = [
            f"{method} {path} HTTP/{version}",
            *(f"{name}: {value}" for name, value in given.items()),
            "",
            "",
        ]
        self.sock.sendall("\r\n".join(lines).encode("latin-1") + body)

    def ask(self, method, path, body=b"", version="1.1", **headers):
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if body:
            given.setdefault("Content-Length", str(len(body)))
        self.send_request(method, path, body, given, version)
        return self.response(method)

    def head(self, method="GET"):
        response = HTTPResponse(self.sock, method=method)
        response.begin()
        return response

    def response(self, method="GET"):
        response = self.head(method)
        return Response(response, response.read())

    def reset(self):
        """Leave with a RST, as a process that dies does; a plain close looks like the end of what is sent."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def is_closed(self):
        """Whether the server closes without another byte."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    # WebSockets.

    def handshake(self):
        while b"\r\n\r\n" not in self._data:
            more = self.sock.recv(65_536)
            assert more, self._data
            self._data += more
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        self.lines = head.decode("latin-1").split("\r\n")
        self.status = int(self.lines[0].split()[1])

    def say(self, text):
        self.sock.sendall(frame(TEXT, text.encode()))

    def receive(self):
        """Return the next short frame: (opcode, payload)."""
        while len(self._data) < 2 or len(self._data) < 2 + self._data[1]:
            more = self.sock.recv(65_536)
            assert more, f"The server closed after {self._data!r}."
            self._data += more
        end = 2 + self._data[1]
        taken, self._data = self._data[:end], self._data[end:]
        return taken[0] & 15, taken[2:]

    def closed_with(self):
        opcode, payload = self.receive()
        assert opcode == CLOSE
        return int.from_bytes(payload[:2], "big")


def frame(opcode, payload=b""):
    """A client's short frame, masked with zeros."""
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


def close_frame(code):
    return frame(CLOSE, code.to_bytes(2, "big"))


@pytest.fixture
def new_site():
    made = []

    def new(**options):
        made.append(Site(**options))
        return made[-1]

    yield new
    for site in made:
        site.end()


@pytest.fixture
def site(new_site):
    return new_site()


@pytest.fixture
def told(caplog, capfd):
    """The warnings and errors that were logged; a traceback on stderr fails the test."""
    caplog.set_level(logging.INFO, "dbchannels")

    def lines(level=logging.WARNING):
        assert capfd.readouterr().err == ""
        return [record.getMessage() for record in caplog.records if record.levelno >= level]

    return lines


# --- requests and responses


def test_a_large_chunk_is_sent_without_a_copy(site, monkeypatch):
    """It may be that of an event, which goes to many clients."""
    sent, send = [], Handler._send
    monkeypatch.setattr(Handler, "_send", lambda handler, data: sent.append(data) or send(handler, data))
    content = bytes(100_000)
    site.responding(
        {"status": 200, "content": content, "more_content": True}, {"content": b"end", "more_content": False}
    )
    assert site.get().content == content + b"end"
    assert content in sent


def test_a_request_becomes_a_message_and_its_reply_the_response(site):
    site.responding({"status": 201, "reason": "Made", "headers": [[b"X-A", b"b"]], "content": b"done"})
    response = site.client().ask("POST", "/a%20b?c=d", b"body", Cookie="e=f")
    assert (response.status, response.reason, response.content) == (201, "Made", b"done")
    assert response.header("X-A") == "b" and response.header("Content-Length") == "4"
    (message,) = site.messages("http.request")
    assert (message["method"], message["path"], message["query_string"]) == ("POST", "/a b", b"c=d")
    assert (message["body"], message["http_version"], message["scheme"]) == (b"body", "1.1", "http")
    assert [b"cookie", b"e=f"] in message["headers"]
    assert message["server"] == ["127.0.0.1", site.server.address[1]]
    assert message["client"][0] == "127.0.0.1"
    assert site.is_quiet()


def test_requests_at_once_get_their_own_responses(site):
    asked = [gevent.spawn(site.get, f"/{number}") for number in range(30)]
    gevent.joinall(asked, timeout=10, raise_error=True)
    assert [one.value.content for one in asked] == [f"/{number}".encode() for number in range(30)]
    assert site.is_quiet()


def test_a_connection_is_kept_alive(site):
    client = site.client()
    assert [client.ask("GET", path).content for path in ("/a", "/b", "/c")] == [b"/a", b"/b", b"/c"]


def test_requests_sent_at_once_are_answered_in_order(site):
    client = site.client()
    one = b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n"
    client.sock.sendall(b"".join(one % number for number in range(5)))
    data = b""
    while data.count(b"\r\n\r\n/") < 5:
        data += client.sock.recv(65_536)
    assert [data.find(b"\r\n\r\n/%d" % number) for number in range(5)] == sorted(
        data.find(b"\r\n\r\n/%d" % number) for number in range(5)
    )
    assert [message["path"] for message in site.messages("http.request")] == [
        f"/{number}" for number in range(5)
    ]


def test_accepted_sockets_send_at_once(site, monkeypatch):
    seen = []
    read = Handler._read_request

    def reading(handler, head):
        seen.append(handler.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        return read(handler, head)

    monkeypatch.setattr(Handler, "_read_request", reading)
    site.get()
    assert seen == [1]


def test_a_head_is_answered_without_a_body(site):
    client = site.client()
    site.responding({"status": 200, "content": b"12345"})
    response = client.ask("HEAD", "/")
    assert (response.status, response.header("Content-Length"), response.content) == (200, "5", b"")
    assert client.ask("GET", "/").content == b"12345"


def test_a_head_of_a_streamed_response_ends_with_its_head(site):
    site.responding(*streamed(b"one", b"two"))
    client = site.client()
    client.send_request("HEAD", "/")
    client.send_request("GET", "/", headers={"Connection": "close"})
    data = b""
    while more := client.sock.recv(65_536):
        data += more
    first, second, *chunks = data.split(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 OK\r\n") and second.startswith(b"HTTP/1.1 200 OK\r\n")
    assert chunks == [b"3\r\none\r\n3\r\ntwo\r\n0", b""]
    assert site.is_quiet()


def test_nobody_makes_the_content_of_what_is_answered_by_its_head_alone(site):
    site.silent("http.request")
    client = site.client()
    client.send_request("HEAD", "/")
    (message,) = until(lambda: site.messages("http.request"))
    site.reply(message, status=200, headers=[[b"Content-Length", b"50000000"]], more_content=True)
    assert client.response("HEAD").header("Content-Length") == "50000000"
    until(lambda: site.reports() == [{"closed": True}])
    assert site.is_quiet()


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_204_and_304_are_answered_without_a_body(site, status, method, told):
    client = site.client()
    site.responding({"status": status, "headers": [[b"Content-Length", b"5"]], "content": b"12345"})
    response = client.ask(method, "/")
    assert (response.status, response.content) == (status, b"")
    assert not {"content-length", "transfer-encoding"} & set(response.names)
    assert client.ask("GET", "/").status == status
    assert told() == []


def test_http_1_0_is_closed_after_its_response(site):
    client = site.client()
    assert client.ask("GET", "/x", version="1.0").content == b"/x"
    assert client.is_closed()
    assert site.messages("http.request")[0]["http_version"] == "1.0"


def test_http_1_0_can_be_kept_alive_by_a_length(site):
    client = site.client()
    for path in (b"/a", b"/b"):
        assert client.ask("GET", path.decode(), version="1.0", Connection="keep-alive").content == path


def test_http_1_0_gets_a_stream_without_chunks_and_then_the_end(site):
    site.responding(*streamed(b"one", b"two"))
    client = site.client()
    response = client.ask("GET", "/", version="1.0", Connection="keep-alive")
    assert response.content == b"onetwo" and "transfer-encoding" not in response.names
    assert client.is_closed()


def test_http_1_0_is_kept_alive_by_a_response_that_has_no_content(site):
    site.responding(*streamed(b"one", b"two"))
    client = site.client()
    for _ in range(2):
        response = client.ask("HEAD", "/", version="1.0", Connection="keep-alive")
        assert response.header("Connection") == "keep-alive"
        assert not {"content-length", "transfer-encoding"} & set(response.names)


def test_each_request_is_a_line_in_the_log(site, told):
    site.get("/a%20b?c=d&token=e", Referer="http://a.example/", User_Agent='q"\x80')
    (line,) = until(lambda: told(logging.INFO))
    assert re.fullmatch(
        r"127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "
        r'"GET /a%20b\?c=d&token=\*\*\* HTTP/1\.1" 200 4 "http://a\.example/" "q\\x22\\x80" \d+ ms',
        line,
    )


def test_what_is_no_request_is_a_400_and_a_line_in_the_log(site, told):
    client = site.client()
    client.sock.sendall(b"\x1b[31mnonsense\r\n\r\n")
    assert client.response().status == 400 and client.is_closed()
    (said,) = told(logging.INFO)
    assert "\x1b" not in said and '"\\x1b[31mnonsense" 400 ' in said and site.seen == []


# --- bodies


def test_a_body_as_large_as_the_limit_is_taken(new_site):
    site = new_site(max_body=1_000)
    assert site.client().ask("POST", "/", b"x" * 1_000).status == 200
    assert site.messages("http.request")[0]["body"] == b"x" * 1_000


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"x" * 1_001, {}),
        (b"", {"Content-Length": "99999999999", "Expect": "100-continue"}),
        (b"3e9\r\n" + b"x" * 1_001 + b"\r\n0\r\n\r\n", {"Transfer-Encoding": "chunked"}),
    ],
)
def test_a_larger_one_is_refused_with_413_before_anything_is_sent(new_site, body, headers):
    site = new_site(max_body=1_000)
    client = site.client()
    client.send_request("POST", "/", body, headers or {"Content-Length": len(body)})
    response = client.response("POST")
    assert (response.status, response.header("Connection")) == (413, "close")
    assert (
        response.content == b"The request's body is larger than this server takes, 1000 bytes (--max-body).\n"
    )
    assert site.seen == [] and site.is_quiet()


def test_a_body_in_chunks_is_whole_in_its_message(site):
    chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    client = site.client()
    client.send_request("POST", "/", chunks, {"Transfer-Encoding": "chunked"})
    assert client.response().status == 200
    assert site.messages("http.request")[0]["body"] == b"abcde"


def test_chunks_that_are_none_are_a_400(site, told):
    client = site.client()
    client.send_request("POST", "/", b"zz\r\nabc\r\n", {"Transfer-Encoding": "chunked"})
    assert client.response().status == 400 and client.is_closed()
    assert site.seen == [] and len(told()) <= 1


def test_a_client_that_leaves_during_its_upload_leaves_nothing(site, told):
    client = site.client()
    client.send_request("POST", "/", b"x" * 10, {"Content-Length": "100"})
    client.sock.shutdown(socket.SHUT_WR)
    assert client.response().status == 400
    assert site.seen == [] and site.is_quiet() and told() == []


# --- failures


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ({"error": "consumer"}, 500),
        ({"lost": "worker died", "channel": "http.request"}, 502),
        ({"lost": "expired", "channel": "http.request"}, 504),
        ({"lost": "full", "channel": "http.request"}, 503),
    ],
)
def test_a_request_that_nobody_can_answer_is_answered_at_once(site, reply, status):
    client = site.client()
    site.responding(reply)
    response = client.ask("GET", "/")
    assert (response.status, response.content.decode()) == (status, SENTENCES[status] + "\n")
    assert response.header("Retry-After") == ("5" if status in (503, 504) else None)
    site.responding({"status": 200, "content": b"fine"})
    assert client.ask("GET", "/").content == b"fine"
    assert site.is_quiet()


def test_a_consumer_that_returned_without_an_answer_is_logged(new_site, caplog):
    site = new_site(http_timeout=1.0).responding({"taken": True})
    assert site.client().ask("GET", "/asked").status == 504
    assert "The consumer of '/asked' returned without an answer: send a response to" in caplog.text


def test_no_worker_in_time_is_a_504(new_site, caplog):
    site = new_site(http_timeout=0.05).silent("http.request")
    client = site.client()
    response = client.ask("GET", "/")
    assert (response.status, response.content.decode()) == (504, SENTENCES[504] + "\n")
    assert site.is_quiet() and "without an answer" not in caplog.text
    site.reply(site.messages("http.request")[0], status=200, content=b"late")
    site.responding({"status": 200, "content": b"in time"})
    assert client.ask("GET", "/").content == b"in time"


def test_a_layer_that_is_away_all_the_time_is_a_503(new_site, monkeypatch):
    def away(*_, **__):
        raise LayerUnavailable("away")

    site = new_site(http_timeout=1.0)
    monkeypatch.setattr(site.layer, "write", away)
    response = site.get()
    monkeypatch.undo()
    assert (response.status, response.header("Retry-After")) == (503, "5")
    until(lambda: not site.relay.unavailable)
    until(lambda: site.get("/back").status == 200)


def test_in_an_outage_new_requests_are_refused_at_once_and_those_that_wait_go_on(site, monkeypatch, told):
    down = threading.Event()
    write = site.layer.write

    def away(*given, **how):
        if down.is_set():
            raise LayerUnavailable("away")
        return write(*given, **how)

    monkeypatch.setattr(site.layer, "write", away)
    monkeypatch.setattr(relay, "REFUSE_AFTER", 0.0)
    down.set()
    waits = site.client()
    waits.send_request("GET", "/waits")
    until(lambda: site.relay.refuses)
    until(lambda: site.get("/new").status == 503)
    upload = site.client()
    upload.send_request("POST", "/", headers={"Content-Length": 1_000, "Expect": "100-continue"})
    response = upload.response("POST")
    assert (response.status, response.header("Retry-After")) == (503, "5")
    assert site.socket().status == 503
    down.clear()
    assert waits.response().content == b"/waits"
    until(lambda: not site.relay.unavailable)
    assert site.get("/back").content == b"/back"
    assert site.messages("websocket.connect") == []


def test_a_full_outbox_is_a_503(site, monkeypatch):
    def refuse(*operations):
        raise OutboxFull

    monkeypatch.setattr(site.relay, "send", refuse)
    assert site.get().status == 503
    assert site.socket().status == 503
    assert site.relay.waiting() == 0 and site.is_quiet() and site.seen == []


@pytest.mark.parametrize(
    "reply",
    [
        {"text": "for a socket"},
        {"status": "200"},
        {"status": 200, "content": "text"},
        {"status": 200, "headers": [["X", "y"]]},
        {"status": 200, "headers": [[b"X", b"a\r\nX-Forged: 1"]]},
        {"status": 200, "reason": "OK\r\nX-Forged: 1"},
        {"status": 200, "content": "text", "more_content": True},
    ],
)
def test_a_response_that_cannot_be_sent_is_a_500_and_a_line_in_the_log(site, told, reply):
    site.responding(reply)
    response = site.get("/%1b")
    assert response.status == 500 and "x-forged" not in response.names
    (said,) = told()
    assert said.startswith("A response to /\\x1b could not be sent: ") and said.isprintable()
    assert site.is_quiet()


# --- streams


def streamed(*chunks, headers=()):
    """The messages of a response in chunks."""
    return [
        {"status": 200, "headers": [*headers], "content": b"", "more_content": True},
        *({"content": chunk, "more_content": True} for chunk in chunks),
        {"content": b"", "more_content": False},
    ]


def test_a_streamed_response_arrives_chunk_by_chunk(site):
    site.silent("http.request")
    client = site.client()
    client.send_request("GET", "/")
    (message,) = until(lambda: site.messages("http.request"))
    site.reply(message, status=200, content=b"first", more_content=True)
    response = client.head()
    assert response.getheader("Transfer-Encoding") == "chunked" and response.read(5) == b"first"
    site.reply(message, content=b"second", more_content=True)
    assert response.read(6) == b"second"
    site.reply(message, content=b"third")
    assert response.read() == b"third"
    until(site.is_quiet)
    assert site.reports() == []


def test_a_streamed_response_keeps_the_views_length(site):
    client = site.client()
    site.responding(*streamed(b"one", b"two", headers=[[b"Content-Length", b"6"]]))
    response = client.ask("GET", "/")
    assert response.content == b"onetwo" and response.header("Content-Length") == "6"
    assert client.ask("GET", "/").content == b"onetwo"


@pytest.mark.parametrize("length", [b"4", b"9"])
def test_a_stream_that_is_not_as_long_as_it_said_ends_the_connection(site, told, length):
    site.responding(*streamed(b"one", b"two", headers=[[b"Content-Length", length]]))
    client = site.client()
    client.send_request("GET", "/")
    response = client.head()
    with pytest.raises(IncompleteRead):
        response.read()
    assert client.is_closed()
    assert len(told()) == 1 and site.is_quiet()


def test_the_worker_is_told_what_the_client_has_taken(site):
    head, *chunks, end = streamed(*[b"x" * (REPORT_EVERY // 2)] * 5)
    site.responding(head, *chunks)
    client = site.client()
    client.send_request("GET", "/")
    until(lambda: site.messages("http.request") and len(site.reports()) == 2)
    assert site.reports() == [{"taken": REPORT_EVERY}, {"taken": REPORT_EVERY * 2}]
    site.reply(site.messages("http.request")[0], **end)
    assert len(client.response().content) == REPORT_EVERY // 2 * 5
    until(site.is_quiet)
    assert len(site.reports()) == 2  # nobody makes it any more


def report_of(site, message):
    """Return the server's next report to whoever answers this request; None while there is none."""
    return site.layer.receive([message["flow_channel"]])[1]


def test_a_slow_client_holds_up_nobody(site, told):
    """Its response is stored as fast as it is made, and all is given back when the client leaves or has it."""
    chunk, number = b"x" * 131_072, 240
    site.responding(*streamed(*[chunk] * 8)[:-1])  # a window: what comes without a report
    clients = [site.client() for _ in range(2)]
    for client in clients:
        client.send_request("GET", "/")
    requests = until(lambda: len(site.messages("http.request")) == 2 and site.messages("http.request"))
    for message in requests:
        sent, stored = 8, 0
        while sent < number:
            stored = until(partial(report_of, site, message))["taken"]
            while sent < number and (sent - 8) * len(chunk) <= stored:
                site.reply(message, content=chunk, more_content=True)
                sent += 1
        site.reply(message, content=b"", more_content=False)
    budget = site.server.requests.responses
    assert budget.disk < budget._disk - 20_000_000 and budget.memory > budget._memory - 2_000_000
    clients[0].sock.close()
    assert len(clients[1].response().content) == number * len(chunk)
    until(lambda: (budget.disk, budget.memory) == (budget._disk, budget._memory))
    until(site.is_quiet)
    assert told() == []


def test_a_large_response_that_finds_no_room_is_a_503_and_its_worker_is_let_go(site, told):
    site.relay.housekeeper.http_workers = 2
    budget = site.server.requests.responses
    budget.take("", disk=budget.disk)
    budget.waiting = 1  # the one that may wait does
    site.responding(*streamed(b"x" * 1000)[:2])
    response = site.get()
    assert (response.status, response.header("Retry-After")) == (503, "5")
    assert b"large responses" in response.content
    until(lambda: site.reports() == [{"closed": True}])
    budget.waiting = 0
    client = site.client()
    client.send_request("GET", "/")
    assert client.head().read(1000) == b"x" * 1000
    assert len(told()) == 1  # a line that counts


@pytest.mark.parametrize("length", [b"1000", b"1048576"])
def test_without_room_what_no_worker_waits_for_is_answered(site, length):
    budget = site.server.requests.responses
    budget.take("", disk=budget.disk)
    site.responding(
        *streamed(
            *[b"x" * 1000] * (int(length) // 1000),
            b"x" * (int(length) % 1000),
            headers=[[b"Content-Length", length]],
        )
    )
    assert len(site.get().content) == int(length)


def test_a_worker_that_begins_to_stream_too_late_is_let_go(new_site):
    site = new_site(http_timeout=0.05).silent("http.request")
    assert site.get().status == 504
    (message,) = site.messages("http.request")
    site.reply(message, status=200, content=b"", more_content=True)
    until(lambda: site.reports() == [{"closed": True}])


@pytest.mark.parametrize("last", [{"error": "broken off"}, {"lost": "worker died"}, {"content": "text"}])
def test_a_stream_that_breaks_off_ends_the_connection(site, told, last):
    site.responding(*streamed(b"one")[:2], last)
    client = site.client()
    client.send_request("GET", "/")
    response = client.head()
    with pytest.raises(IncompleteRead):
        response.read()
    until(site.is_quiet)
    until(lambda: {"closed": True} in site.reports())
    assert len(told()) == ("content" in last)


def test_a_stream_that_stalls_ends_the_connection(new_site, told):
    site = new_site(http_timeout=0.5)
    site.responding(*streamed(b"one")[:2])
    client = site.client()
    client.send_request("GET", "/")
    with pytest.raises(IncompleteRead):
        client.head().read()
    until(site.is_quiet)
    assert told() == []


def test_the_worker_is_told_that_the_client_went_away(site, told):
    site.silent("http.request")
    client = site.client()
    client.send_request("GET", "/")
    (message,) = until(lambda: site.messages("http.request"))
    site.reply(message, status=200, content=b"first", more_content=True)
    assert client.head().read(5) == b"first"
    client.sock.close()

    def went_on():
        site.reply(message, content=b"x" * 100_000, more_content=True)
        return site.reports()

    # Once more for each part that comes after the end.
    assert all(report == {"closed": True} for report in until(went_on))
    assert site.is_quiet() and told() == []


class Bench:
    """A stream without a server."""

    def __init__(self, site, head):
        self.exchange = Exchange(site.relay)
        self.reports, self.ends = [], []
        self.exchange.report = self.reports.append
        first = {"status": 200, "content": b"first", "more_content": True}
        self.stream = Stream(self.exchange, first, head, 0.01, self.end)

    def end(self):
        self.ends.append(1)
        self.exchange.close()


def test_a_stream_that_was_never_begun_is_ended_too(site):
    bench = Bench(site, messages.ResponseHead("200 OK", [], True))
    bench.stream.close()
    assert bench.reports == [{"closed": True}] and bench.ends == [1]


def test_a_stream_that_is_left_in_its_middle_is_ended(site):
    bench = Bench(site, messages.ResponseHead("200 OK", [], True))
    chunks = iter(bench.stream)
    assert next(chunks) == b"first"
    with pytest.raises(BrokenOff):
        next(chunks)
    bench.stream.close()
    assert bench.reports == [{"closed": True}] and bench.ends == [1]


def test_a_stream_whose_head_could_not_be_written_is_ended(site, monkeypatch, told):
    def fail(handler, data):
        raise BrokenPipeError(32, "Broken pipe")

    site.responding(*streamed(b"one"))
    monkeypatch.setattr(Handler, "_send", fail)
    client = site.client()
    client.send_request("GET", "/")
    assert client.is_closed()
    until(site.is_quiet)
    assert told() == []


# --- static files


def test_static_files_are_answered_by_the_server_itself(site):
    site.server.requests.static_files = lambda request: (
        {"status": 200, "headers": [[b"X-A", b"b"]], "content": b"p {}"} if request.path == "/s" else None
    )
    client = site.client()
    response = client.ask("GET", "/s")
    assert (response.status, response.reason, response.content) == (200, "OK", b"p {}")
    assert response.header("X-A") == "b" and site.seen == []
    assert client.ask("HEAD", "/s").content == b""
    assert client.ask("GET", "/other").content == b"/other"
    assert client.ask("POST", "/s").content == b"/s"
    assert [message["method"] for message in site.messages("http.request")] == ["GET", "POST"]


# --- the address


def test_an_address_in_use_is_one_sentence(site):
    host, port = site.server.address
    with raises(AddressInUse) as raised:
        InterfaceServer(
            site.layer,
            {},
            ServerConfig(addresses=(Address("127.0.0.1", port),)),
        )
    assert raised.sentence.startswith(f"{host}:{port} cannot be used (Address already in use): ")


def test_an_address_of_another_machine_is_one_sentence(site):
    with raises(AddressInUse) as raised:
        InterfaceServer(
            site.layer,
            {},
            ServerConfig(addresses=(Address("192.0.2.1", 8000),)),
        )
    assert raised.sentence.startswith("192.0.2.1:8000 cannot be used (")


# --- stopping


def test_stopping_finishes_the_requests_under_way(site):
    site.silent("http.request")
    client = site.client()
    client.send_request("GET", "/")
    (message,) = until(lambda: site.messages("http.request"))
    stopping = gevent.spawn(site.stop)
    until(lambda: refuses(site.server.address))
    assert not stopping.ready()
    site.reply(message, status=200, content=b"in the end")
    assert client.response().content == b"in the end"
    stopping.get(timeout=10)
    assert site.is_quiet() and not any(thread.is_alive() for thread in site.relay._threads)


def refuses(address):
    try:
        gevent_socket.create_connection(address, timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_server_that_has_handed_over_finishes_what_it_has(new_site, monkeypatch):
    site = new_site(drain_websockets=0.0)
    monkeypatch.setattr(server, "LAST_REQUEST", 0.0)
    site.silent("http.request")
    idle, busy, socket = site.client(), site.client(), site.socket()
    busy.send_request("GET", "/")
    (message,) = until(lambda: site.messages("http.request"))
    until(lambda: len(site.server.readers) == 2)
    site.server.hand_over()
    assert refuses(site.server.address)
    draining = gevent.spawn(site.server.drain, lambda: False)
    assert idle.sock.recv(1) == b""
    assert socket.closed_with() == 1012
    assert not draining.ready()
    site.reply(message, status=200, content=b"in the end")
    response = busy.response()
    assert (response.content, response.header("Connection")) == (b"in the end", "close")
    draining.get(timeout=10)
    assert not site.server.readers


STREAM = {"status": 200, "content": b"", "more_content": True, EVENT_STREAM: ""}


@pytest.mark.parametrize("end", ["stop", "drain"])
def test_a_stream_of_events_ends_whole_and_holds_up_nothing(new_site, monkeypatch, end):
    """Its client reconnects by itself."""
    site = new_site(graceful_timeout=600.0, drain_timeout=600.0, drain_websockets=0.0).responding(STREAM)
    monkeypatch.setattr(server, "LAST_REQUEST", 0.0)
    client = site.client()
    client.send_request("GET", "/")
    response = client.head()
    assert response.read(4) == b"id: "
    site.server.hand_over()
    ending = gevent.spawn(site.stop if end == "stop" else partial(site.server.drain, lambda: False))
    assert response.read().endswith(b"\n\n")  # and the chunk that is the last
    ending.get(timeout=10)
    assert site.is_quiet() and not site.server.requests.in_flight.streams


def test_a_stream_of_events_that_begins_in_a_stop_ends_at_once(new_site):
    site = new_site(graceful_timeout=600.0).silent("http.request")
    client = site.client()
    client.send_request("GET", "/")
    (message,) = until(lambda: site.messages("http.request"))
    stopping = gevent.spawn(site.stop)
    until(lambda: site.server.requests.in_flight.streams_end)
    site.reply(message, **STREAM)
    assert client.response().content.startswith(b"id: ")
    stopping.get(timeout=10)


@pytest.mark.parametrize("options", [{"drain_timeout": 0.0}, {}])
def test_a_request_that_nobody_answers_does_not_hold_up_the_drain(new_site, options):
    site = new_site(**options)
    site.silent("http.request")
    site.client().send_request("GET", "/")
    until(lambda: site.messages("http.request"))
    site.server.hand_over()
    hurried = []
    draining = gevent.spawn(site.server.drain, lambda: hurried)
    if not options:
        hurried.append("by a signal")
    draining.get(timeout=10)


def test_a_request_that_nobody_answers_does_not_hold_up_the_stop(new_site):
    site = new_site(graceful_timeout=0.05).silent("http.request")
    client = site.client()
    client.send_request("GET", "/")
    until(lambda: site.messages("http.request"))
    site.stop()
    assert is_put_off(client)
    assert site.is_quiet() and not any(thread.is_alive() for thread in site.relay._threads)


def is_put_off(client):
    """Whether the server has asked a client to come again, and closed."""
    response = client.response()
    assert (response.status, response.header("Retry-After"), response.header("Connection")) == (
        503,
        "5",
        "close",
    )
    return client.is_closed()


@pytest.mark.parametrize("body", [b"half", b""])
def test_nor_does_a_body_that_does_not_come_to_its_end(new_site, body):
    site = new_site(graceful_timeout=0.05)
    client = site.client()
    client.send_request("POST", "/", body, {"Content-Length": "100"})
    until(lambda: site.server.requests.in_flight)
    gevent.spawn(site.stop)
    assert is_put_off(client)
    assert site.seen == []


def test_nor_does_a_view_that_has_said_that_it_answers_later(new_site):
    site = new_site(graceful_timeout=0.05).responding({"later": True})
    client = site.client()
    client.send_request("GET", "/")
    until(lambda: site.messages("http.request"))
    site.stop()
    assert is_put_off(client)


def test_nor_does_a_handshake_that_nobody_decides(new_site):
    site = new_site(graceful_timeout=0.05).silent("websocket.connect")
    opening = gevent.spawn(site.socket)
    until(lambda: site.messages("websocket.connect"))
    site.stop()
    refused = opening.get(timeout=10)
    assert refused.status == 503 and "Retry-After: 5" in refused.lines


def test_a_response_that_has_begun_is_cut_so_that_its_client_sees_it(new_site):
    site = new_site(graceful_timeout=0.05).responding(*streamed(b"one")[:2])
    client = site.client()
    client.send_request("GET", "/")
    response = client.head()
    assert response.read(3) == b"one"
    site.stop()
    with pytest.raises(IncompleteRead):
        response.read()
    assert client.is_closed()
    assert site.reports() == [{"closed": True}]


def test_all_that_wait_are_answered_each_by_itself(new_site):
    site = new_site(graceful_timeout=0.05).silent("http.request")
    clients = [site.client() for _ in range(20)]
    for client in clients:
        client.send_request("GET", "/")
    until(lambda: len(site.messages("http.request")) == 20)
    site.stop()
    assert all(map(is_put_off, clients)) and site.is_quiet()


def test_a_request_that_comes_after_the_last_answer_is_put_off_too(site):
    client = site.client()
    assert client.ask("GET", "/before").content == b"/before"
    site.server.requests.in_flight.give_up()
    assert site.socket().status == 503
    assert client.ask("GET", "/after").status == 503 and client.is_closed()
    assert [message["path"] for message in site.messages("http.request")] == ["/before"]


@pytest.mark.parametrize(("restart", "code"), [(False, 1001), (True, 1012)])
def test_stopping_closes_the_sockets_and_lets_their_consumers_run(site, restart, code):
    clients = [site.socket(f"/{number}") for number in range(5)]
    stopping = gevent.spawn(site.stop, restart=restart)
    for client in clients:
        assert client.closed_with() == code
        client.sock.sendall(close_frame(code))
    stopping.get(timeout=10)
    assert [message["code"] for message in site.messages("websocket.disconnect")] == [code] * 5
    assert {message["path"] for message in site.messages("websocket.disconnect")} == {
        f"/{n}" for n in range(5)
    }
    assert site.is_quiet()


def test_a_socket_that_is_accepted_while_the_server_stops_is_closed_too(site):
    site.silent("websocket.connect")
    opening = gevent.spawn(site.socket)
    (message,) = until(lambda: site.messages("websocket.connect"))
    stopping = gevent.spawn(site.stop)
    until(lambda: refuses(site.server.address))
    site.reply(message, finished=0)
    client = opening.get(timeout=10)
    assert client.closed_with() == 1001
    client.sock.sendall(close_frame(1001))
    stopping.get(timeout=10)
    assert [message["code"] for message in site.messages("websocket.disconnect")] == [1001]


# --- declared dead


def test_a_server_that_was_declared_dead_closes_1012_and_answers_what_waits(site):
    client = site.socket()
    site.silent("http.request").silent("websocket.connect")
    asking, opening = gevent.spawn(site.get), gevent.spawn(site.socket)
    until(lambda: site.messages("http.request") and len(site.messages("websocket.connect")) == 2)
    with closing(site.layer.link()) as link:
        link.clean_up_after(site.relay.name)
    site.relay.housekeeper.look_soon()
    assert client.closed_with() == 1012
    client.sock.sendall(close_frame(1012))
    assert client.is_closed()
    assert asking.get(timeout=10).status == 503 and opening.get(timeout=10).status == 503
    until(site.is_quiet)
    # Those who cleaned up have said so of both that a connect consumer ran for, and nobody else has.
    until(lambda: len(site.messages("websocket.disconnect")) > 1)
    assert [message["code"] for message in site.messages("websocket.disconnect")] == [1006, 1006]
    site.responding({"status": 200, "content": b"alive"})
    assert site.get().content == b"alive"


# --- looking after the sockets


def test_sockets_that_are_gone_are_forgotten(site):
    client, other = site.socket(), site.socket()
    client.sock.close()
    until(lambda: site.messages("websocket.disconnect"))
    until(lambda: len(site.server.connections) == 1)
    other.say("still here")
    assert other.receive() == (TEXT, b"still here")
    assert site.relay.waiting() == 1
