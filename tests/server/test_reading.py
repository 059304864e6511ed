"""Real sockets: hostile requests, deadlines, limits of connections, and bodies that are asked for in chunks."""

from __future__ import annotations

import logging
import resource
from itertools import pairwise

import gevent
import pytest

from dbchannels.protocol import CHUNK
from dbchannels.server import connection_limits
from dbchannels.server.budget import HubTime
from dbchannels.server.connection_limits import ConnectionLimits
from dbchannels.server.http import body as body_module
from dbchannels.server.http import exchange, reader
from dbchannels.server.http.messages import Refused
from dbchannels.server.options import ServerConfig
from tests.server import test_server
from tests.server.hostile import BODIES, HEADS
from tests.server.test_server import until

new_site, site, told = test_server.new_site, test_server.site, test_server.told
HOSTILE = {**HEADS, **{f"body: {name}": case for name, case in BODIES.items()}}
GET = b"GET /%s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def everything(client):
    """Return all that comes until the server closes."""
    return b"".join(iter(lambda: client.sock.recv(65_536), b""))


# --- fault 23


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_is_refused_once_and_nothing_behind_it_is_read(site, told, name):
    data, status = HOSTILE[name]
    client = site.client()
    client.sock.sendall(data + GET % b"behind")
    answer = everything(client)
    assert answer.startswith(b"HTTP/1.1 %d " % status) and answer.count(b"\r\n\r\n") == 1
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower() and body.endswith(b".\n") and body.count(b"\n") == 1
    assert site.seen == [] and site.is_quiet()
    (line,) = told(logging.INFO)
    assert line.isascii() and line.isprintable() and len(line) < 700 and f'" {status} ' in line


def test_a_good_request_before_it_is_answered(site):
    client = site.client()
    client.sock.sendall(GET % b"good" + HEADS["a folded line"][0] + GET % b"behind")
    answer = everything(client)
    assert answer.count(b"HTTP/1.1 ") == 2 and b"HTTP/1.1 200 OK" in answer and b"HTTP/1.1 400 " in answer
    assert [message["path"] for message in site.messages("http.request")] == ["/good"]


def test_a_refused_body_is_not_read_without_end(new_site, monkeypatch):
    monkeypatch.setattr(reader, "LINGERING", 1_000_000)
    client = new_site(max_body=1_000).client()
    client.send_request("POST", "/", headers={"Content-Length": 1_000_000_000})
    sent = 0
    with pytest.raises(ConnectionError):
        for _ in range(1_000):
            client.sock.sendall(b"x" * 1_000_000)
            sent += 1
    assert sent < 900


def test_the_answer_to_a_body_that_is_too_large_is_not_lost(new_site):
    client = new_site(max_body=1_000).client()
    client.send_request("POST", "/", b"x" * 3_000_000, {"Content-Length": 3_000_000})
    assert client.response("POST").status == 413


def test_a_body_in_tiny_chunks_that_comes_faster_than_it_is_read_leaves_the_hub_to_others():
    class Fast:
        def settimeout(self, seconds):
            pass

        def recv(self, size):
            return b"1\r\na\r\n" * (size // 6)

    others, taken = [], []

    def other():  # as what waits for a socket, it is served once in each turn of the hub's loop
        while True:
            others.append(len(taken))
            gevent.sleep(0.0001)

    looking = gevent.spawn(other)
    chunked = reader.RequestReader(Fast(), ServerConfig(max_body=30_000), HubTime())
    chunked.length = None
    with pytest.raises(Refused, match="max-body"):
        chunked.read_body(taken.extend)
    looking.kill()
    assert len(taken) > 25_000
    # A turn has a few pieces, by the clock; one read has 10,922 chunks.
    assert max(later - before for before, later in pairwise(others)) < 10_000


@pytest.mark.parametrize(
    "body",
    [
        (b"", []),
        (b"Content-Length: 5\r\n", [b"he", b"llo"]),
        (b"Transfer-Encoding: chunked\r\n", [b"5\r\nhe", b"llo\r\n0\r\n\r\n"]),
    ],
    ids=["no body", "length", "chunks"],
)
def test_little_is_read_of_what_a_client_sends_behind_its_request(body):
    """It is held as long as the request waits for its response."""
    header, pieces = body

    waiting = [b"GET / HTTP/1.1\r\nHost: a\r\n" + header + b"\r\n", *pieces]

    class Flooding:
        def settimeout(self, seconds):
            pass

        def recv(self, size):
            piece = waiting.pop(0)
            return piece if waiting else piece + b"x" * (size - len(piece))

    request, content = reader.RequestReader(Flooding(), ServerConfig(), HubTime()), bytearray()
    request.read_head()
    if request.unread:
        request.read_body(content.extend)
    assert content == (b"hello" if pieces else b"")
    assert 0 < len(request.take_ahead()) <= 8_192


# --- deadlines


@pytest.mark.parametrize("data", [b"GET", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nX: "])
def test_a_head_that_does_not_end_is_a_408(new_site, told, data):
    site = new_site(head_timeout=0.05)
    client = site.client()
    client.sock.sendall(data)
    answer = everything(client)
    assert answer.startswith(b"HTTP/1.1 408 ") and answer.endswith(b"took too long to come.\n")
    (line,) = told(logging.INFO)
    assert '" 408 ' in line and site.seen == []


def test_a_head_that_comes_byte_by_byte_is_a_408_too(new_site):
    client = new_site(head_timeout=0.2).client()
    answer = gevent.spawn(everything, client)
    for byte in b"GET / HTTP/1.1\r\nX: " + b"a" * 10_000:
        if answer.ready():
            break
        client.sock.sendall(bytes([byte]))
        gevent.sleep(0.005)
    assert answer.get(timeout=10).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 100\r\n\r\nhalf",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhe",
        b"Content-Length: 5\r\n\r\n",
    ],
)
def test_a_body_that_does_not_come_is_a_408(new_site, body):
    site = new_site(body_timeout=0.05)
    client = site.client()
    client.sock.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + body)
    answer = everything(client)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"Connection: close" in answer
    assert site.seen == [] and site.is_quiet()


def test_a_body_that_trickles_is_a_408_too(new_site):
    site = new_site(body_timeout=0.2)
    client = site.client()
    client.send_request("POST", "/", headers={"Content-Length": 10_000})
    answer = gevent.spawn(everything, client)
    for _ in range(10_000):
        if answer.ready():
            break
        client.sock.sendall(b"x")
        gevent.sleep(0.005)
    assert answer.get(timeout=10).startswith(b"HTTP/1.1 408 ") and site.seen == []


def test_a_connection_that_says_nothing_is_closed_without_a_word(new_site, told):
    site = new_site(head_timeout=0.05)
    assert everything(site.client()) == b""
    assert told(logging.INFO) == [] and site.server.connection_limits.open == 0


def test_a_connection_between_two_requests_has_its_own_time(new_site):
    site = new_site(keep_alive_timeout=0.05, head_timeout=10.0)
    client = site.client()
    assert client.ask("GET", "/a").content == b"/a" and client.is_closed()


def test_a_client_that_does_not_read_is_left(new_site, told):
    site = new_site(write_timeout=0.05)
    static = {"status": 200, "headers": [], "content": b"x" * 20_000_000}
    site.server.requests.static_files = lambda request: static
    client = site.client()
    client.send_request("GET", "/")
    until(lambda: site.server.connection_limits.open == 1)
    until(lambda: site.server.connection_limits.open == 0)
    assert site.is_quiet() and told() == []


# --- what a connection is


def test_a_connection_has_so_many_requests(new_site):
    client = new_site(max_requests=2).client()
    assert client.ask("GET", "/a").header("Connection") is None
    assert client.ask("GET", "/b").header("Connection") == "close" and client.is_closed()


@pytest.mark.parametrize(
    ("version", "sent", "answered"),
    [("1.1", "close", "close"), ("1.0", "", "close"), ("1.0", "keep-alive", "keep-alive"), ("1.1", "", None)],
)
def test_the_answer_says_what_becomes_of_the_connection(site, version, sent, answered):
    client = site.client()
    response = client.ask("GET", "/a", version=version, **({"Connection": sent} if sent else {}))
    assert (response.content, response.header("Connection")) == (b"/a", answered)
    if answered == "close":
        assert client.is_closed()
    else:
        assert client.ask("GET", "/b").content == b"/b"


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_ends_with_its_head(site, status):
    client = site.client()
    site.responding({"status": status, "content": b"never sent"})
    response = client.ask("GET", "/")
    assert (response.status, response.content, response.header("Transfer-Encoding")) == (status, b"", None)
    site.responding({"status": 200, "content": b"next"})
    assert client.ask("GET", "/").content == b"next"


def test_bodies_and_requests_behind_them_are_told_apart(site):
    client = site.client()
    first = (
        b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n"
    )
    second = b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    client.sock.sendall(first + second + GET % b"c")
    until(lambda: len(site.messages("http.request")) == 3)
    seen = [
        (message["path"], message["body"], message["body_size"]) for message in site.messages("http.request")
    ]
    assert seen == [("/a", b"hello", 5), ("/b", b"abc", 3), ("/c", b"", 0)]


def test_a_100_comes_before_the_body_and_the_answer_after_it(site):
    client = site.client()
    client.send_request("POST", "/", headers={"Content-Length": 5, "Expect": "100-continue"})
    assert client.sock.recv(1_000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert site.seen == []
    client.sock.sendall(b"hello")
    assert client.response("POST").status == 200
    assert site.messages("http.request")[0]["body"] == b"hello"


def test_no_100_for_what_has_come_already(site):
    client = site.client()
    client.send_request("POST", "/", b"hello", {"Content-Length": 5, "Expect": "100-continue"})
    assert client.sock.recv(1_000).startswith(b"HTTP/1.1 200 ")


def test_no_100_for_a_body_that_is_refused(new_site):
    client = new_site(max_body=4).client()
    client.send_request("POST", "/", headers={"Content-Length": 5, "Expect": "100-continue"})
    assert everything(client).startswith(b"HTTP/1.1 413 ")


# --- limits of connections


def test_one_connection_too_many_is_a_503(new_site, told):
    site = new_site(max_connections=2)
    first, second = site.client(), site.client()
    assert (first.ask("GET", "/a").content, second.ask("GET", "/b").content) == (b"/a", b"/b")
    response = site.client().response()
    assert (response.status, response.header("Retry-After")) == (503, "5")
    assert told() == [
        "Rejected 1 connections beyond --max-connections and 0 beyond --max-per-address; 2 may be open."
    ]
    first.sock.close()
    until(lambda: site.server.connection_limits.open == 1)
    assert site.get("/c").status == 200
    assert second.ask("GET", "/d").content == b"/d"


def test_one_address_has_so_many(new_site):
    site = new_site(max_per_address=1)
    first = site.client()
    assert first.ask("GET", "/a").status == 200
    assert site.client().response().status == 429
    first.sock.close()
    until(lambda: site.server.connection_limits.open == 0)
    assert site.get("/c").status == 200


def test_a_websocket_counts_until_it_is_closed(new_site):
    site = new_site(max_connections=1)
    client = site.socket()
    assert client.status == 101 and site.server.connection_limits.open == 1
    assert site.client().response().status == 503
    client.sock.close()
    until(lambda: site.server.connection_limits.open == 0)
    assert site.socket().status == 101


def test_a_proxy_on_this_machine_has_any_number_unless_told():
    counted = ConnectionLimits(10_000, None)
    for address, most in (("127.0.0.1", 2_000), ("::1", 2_000), ("", 2_000), ("192.0.2.1", 1_000)):
        assert sum(counted.admit(address) is None for _ in range(2_000)) == most
    for _ in range(1_000):
        counted.release("192.0.2.1")
    assert counted.open == 6_000 and "192.0.2.1" not in counted._by_address


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("2001:db8:0:1:ffff::5", "2001:db8:0:1::/64"),
        ("2001:db8:0:2::5", "2001:db8:0:2::/64"),
        ("fe80::7%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("", ""),
        ("no address", "no address"),
    ],
)
def test_an_ipv6_client_counts_by_its_network(address, key):
    assert connection_limits.address_key(address) == key


def test_addresses_of_one_ipv6_network_have_one_cap():
    counted = ConnectionLimits(10_000, None)
    addresses = [f"2001:db8:0:{n % 2}::{n:x}" for n in range(4_000)]
    admitted = [one for one in addresses if counted.admit(one) is None]
    assert len(admitted) == 2_000 and admitted == addresses[:2_000]
    for one in admitted:
        counted.release(one)
    assert counted.open == 0 and not counted._by_address
    assert connection_limits.is_local("::ffff:127.0.0.1") and not connection_limits.is_local("::2")


@pytest.mark.parametrize(("soft", "first"), [(1_000, 950), (60, 30), (resource.RLIM_INFINITY, float("inf"))])
def test_a_few_descriptors_are_kept(soft, first, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, soft))
    assert connection_limits.first_kept() == first


def test_no_connection_gets_a_descriptor_that_is_kept(new_site):
    site = new_site()
    site.server.connection_limits.kept_from = 3  # as if all below were in use
    assert site.client().response().status == 503
    site.server.connection_limits.kept_from = float("inf")
    assert site.get("/a").status == 200


def test_a_body_takes_none_of_the_descriptors_that_are_kept(new_site, monkeypatch):
    site = new_site()
    monkeypatch.setattr(body_module, "first_kept", lambda: 3)
    assert site.client().ask("POST", "/a", b"x" * 1_000_000).status == 503


def test_many_that_are_rejected_are_one_line(told):
    counted = ConnectionLimits(0, None)
    for _ in range(100):
        counted.admit("192.0.2.1")
    assert len(told()) == 1


def test_descriptors_that_do_not_suffice_are_said(told, monkeypatch):
    limits = [(256, 1_000)]
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, wanted: limits.append(wanted))
    assert connection_limits.connections_that_fit(500) == 500 and told() == []
    assert limits == [(256, 1_000), (1_000, 1_000)]
    assert connection_limits.connections_that_fit(900) == 800
    (said,) = told()
    assert said.startswith("This process may have 1000 open files, enough for 800 connections but not for")


# --- large bodies


def asked(site, message, **wanted):
    site.reply(message, body=wanted)


def chunks_of(site, message):
    """Take what was sent of the body so far."""
    found = []
    while (one := site.layer.receive([message["body_channel"]]))[0] is not None:
        found.append(one[1])
    return found


@pytest.fixture(params=[CHUNK + 100_000, CHUNK + body_module.IN_MEMORY + 100_000])
def upload(request, new_site):
    """A request whose body does not fit its message, and that nobody answers: (site, client, message, body)."""
    site = new_site(max_body=10_000_000).silent("http.request")
    body = bytes(range(256)) * (request.param // 256)
    client = site.client()
    client.send_request("POST", "/large", body, {"Content-Length": len(body)})
    (message,) = until(lambda: site.messages("http.request"))
    return site, client, message, body


def test_the_rest_of_a_body_comes_as_far_as_it_is_asked_for(upload):
    site, client, message, body = upload
    assert (message["body"], message["body_size"]) == (body[:CHUNK], len(body))
    assert message["body_channel"].startswith("http.request.body?")
    assert chunks_of(site, message) == []
    asked(site, message, until=CHUNK + 1)
    found = []
    until(lambda: found.extend(chunks_of(site, message)) or found)
    assert [chunk["offset"] for chunk in found] == [CHUNK]
    asked(site, message, until=10**9)
    until(lambda: found.extend(chunks_of(site, message)) or not found[-1]["more_content"])
    assert message["body"] + b"".join(chunk["content"] for chunk in found) == body
    site.reply(message, status=200, content=b"done")
    assert client.response("POST").content == b"done"
    until(site.is_quiet)


def test_a_chunk_that_was_lost_is_sent_again(upload):
    site, _, message, body = upload
    asked(site, message, until=CHUNK + 1)
    (lost,) = until(lambda: chunks_of(site, message))
    asked(site, message, since=CHUNK, until=CHUNK + 1)
    (again,) = until(lambda: chunks_of(site, message))
    assert again == lost and body[CHUNK:].startswith(again["content"])


def test_a_client_that_leaves_ends_the_body_and_is_told_of(upload):
    site, client, message, _ = upload
    client.reset()
    (end,) = until(lambda: chunks_of(site, message))
    assert end == {"content": b"", "more_content": False, "closed": True}
    (gone,) = until(lambda: site.messages("http.disconnect"))
    assert gone == {"reply_channel": message["reply_channel"], "path": "/large"}
    until(site.is_quiet)


def test_a_disk_that_is_full_is_a_503(new_site, told, monkeypatch):
    def fail(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(body_module.tempfile, "TemporaryFile", fail)
    site = new_site(max_body=10_000_000)
    client = site.client()
    client.send_request("POST", "/", b"x" * 1_000_000, {"Content-Length": 1_000_000})
    assert client.response("POST").status == 503
    assert told() == ["The body of a request could not be stored (No space left on device): it was refused."]
    assert site.seen == [] and site.is_quiet()


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_beyond_what_all_may_take_is_a_503_and_the_others_are_whole(new_site, told, declared):
    site = new_site(max_body=10_000_000, max_spool=1_200_000).silent("http.request")
    body = bytes(range(256)) * 4_000
    first = site.client()
    first.send_request("POST", "/first", body, {"Content-Length": len(body)})
    (message,) = until(lambda: site.messages("http.request"))
    second = site.client()
    if declared:
        second.send_request(
            "POST", "/second", headers={"Content-Length": len(body), "Expect": "100-continue"}
        )
    else:
        second.send_request("POST", "/second", b"%x\r\n" % len(body) + body, {"Transfer-Encoding": "chunked"})
    response = second.response("POST")  # without a 100 before it
    assert (response.status, response.header("Retry-After")) == (503, "5")
    assert response.header("Connection") == "close" and response.content.endswith(b"try again soon.\n")
    asked(site, message, until=10**9)
    found = []
    until(lambda: found.extend(chunks_of(site, message)) or (found and not found[-1]["more_content"]))
    assert message["body"] + b"".join(chunk["content"] for chunk in found) == body
    site.reply(message, status=200, content=b"done")
    assert first.response("POST").content == b"done"
    site.responding({"status": 200, "content": b"done"})
    until(lambda: site.client().ask("POST", "/third", body).status == 200)  # the room is free again
    assert len(told()) == 1


# --- who left, and who is answered later


def test_a_client_that_leaves_before_its_answer_is_told_of(site, told):
    site.silent("http.request")
    client = site.client()
    client.send_request("GET", "/waits")
    (message,) = until(lambda: site.messages("http.request"))
    site.layer.group_add("group", message["reply_channel"])
    client.reset()
    (gone,) = until(lambda: site.messages("http.disconnect"))
    assert gone == {"reply_channel": message["reply_channel"], "path": "/waits"}
    until(site.is_quiet)
    until(lambda: site.layer.group_channels("group") == [])
    (line,) = told(logging.INFO)
    assert '"GET /waits HTTP/1.1" 499 0 ' in line


def test_one_that_has_its_answer_is_not(site):
    client = site.client()
    client.ask("GET", "/")
    client.sock.close()
    until(lambda: site.server.connection_limits.open == 0)
    assert site.messages("http.disconnect") == []


def test_one_that_leaves_in_the_middle_of_a_stream_is_told_of_once(site):
    site.silent("http.request")
    client = site.client()
    client.send_request("GET", "/stream")
    (message,) = until(lambda: site.messages("http.request"))
    site.layer.group_add("group", message["reply_channel"])
    site.reply(message, status=200, content=b"first", more_content=True)
    assert client.head().read(5) == b"first"
    client.sock.close()
    until(lambda: site.messages("http.disconnect"))
    until(site.is_quiet)
    until(lambda: site.layer.group_channels("group") == [])
    assert len(site.messages("http.disconnect")) == 1 and site.reports() == [{"closed": True}]


def test_an_answer_may_come_later_than_others(new_site):
    site = new_site(http_timeout=0.5, later_timeout=10.0)
    site.on("http.request", lambda message, reply: reply(later=True))
    client = site.client()
    client.send_request("GET", "/later")
    (message,) = until(lambda: site.messages("http.request"))
    gevent.sleep(0.6)
    site.reply(message, status=200, content=b"in the end")
    assert client.response().content == b"in the end"


def test_one_that_never_comes_is_a_504(new_site):
    site = new_site(later_timeout=0.05)
    site.on("http.request", lambda message, reply: reply(later=True))
    gone, disconnect = [], site.relay.disconnect
    site.relay.disconnect = lambda channel: gone.append(channel) or disconnect(channel)
    assert site.get("/later").status == 504
    (message,) = site.messages("http.request")
    assert gone == [message["reply_channel"]]


def begin_stream(site):
    """Begin a response that other processes go on with; return its client and its request."""
    site.silent("http.request")
    client = site.client()
    client.send_request("GET", "/events")
    (message,) = until(lambda: site.messages("http.request"))
    site.reply(message, later=True)
    site.reply(message, status=200, content=b"x", more_content=True)
    return client, message


def test_one_message_that_is_larger_than_what_may_wait_reaches_its_client(site, monkeypatch):
    """Else a client that comes back for it would never come any further."""
    monkeypatch.setattr(exchange, "WAITING", 1_000)
    client, message = begin_stream(site)
    response = client.head()
    assert response.read(1) == b"x"
    for content in (b"y" * 500_000, b"z"):
        site.reply(message, content=content, more_content=True)
        assert response.read(len(content)) == content


def test_a_stream_that_a_group_fills_faster_than_its_client_reads_is_broken_off(site, told, monkeypatch):
    monkeypatch.setattr(exchange, "WAITING", 1_000_000)
    client, message = begin_stream(site)
    response = client.head()  # a stream that is broken off before it has begun has none

    def told_of():
        site.reply(message, content=b"x" * 500_000, more_content=True)
        return told()

    assert until(told_of) == ["A response was broken off: its client reads more slowly than the site sends."]
    with pytest.raises(Exception, match="IncompleteRead"):
        response.read()
    until(site.is_quiet)
