"""``--http direct`` in this process: the site is a generator that runs in a native thread."""

from __future__ import annotations

import logging
import threading
import time
from http.client import IncompleteRead

import gevent
import pytest
from django.utils import translation
from django.utils.translation import get_language

from dbchannels import conf
from dbchannels.layers.memory import MemoryLayer
from dbchannels.server.http import direct
from dbchannels.server.http.direct import DirectViews
from dbchannels.server.listeners import Address
from dbchannels.server.options import ServerConfig
from dbchannels.server.server import InterfaceServer
from tests.server.test_server import Client, until

MEBIBYTE = 1_048_576


class Direct:
    """A server whose views are ``answers``, called with each message in a thread."""

    def __init__(self, threads=2, **options):
        layer = MemoryLayer(
            conf.LayerSettings("default", None, "", None, {**conf.OPTIONS, "poll_interval": 0.005})
        )
        given = {
            "addresses": (Address("127.0.0.1", 0),),
            "allowed_hosts": ("127.0.0.1",),
            "graceful_timeout": 5.0,
            **options,
        }
        self.server = InterfaceServer(layer, {}, ServerConfig(**given))
        self.direct = DirectViews(self.run, threads, self.server.relay.hub.call, self.server.requests.turns)
        self.server.requests.direct = self.direct
        self.threads = []
        self.closed = []
        self.released = threading.Event()  # what blocks goes on
        self.clients = []
        self.server.start()
        self.stopped = False

    def run(self, message):
        self.threads.append(threading.get_ident())
        try:
            yield from getattr(self, message["path"].strip("/"))(message)
        finally:
            self.closed.append(message["path"])

    # Views.

    def translated(self, message):
        yield {"status": 200, "headers": [], "content": get_language().encode()}
        translation.activate("de")

    def whole(self, message):
        yield {
            "status": 200,
            "headers": [[b"X-A", b"b"]],
            "content": message["body"] or b"whole",
            "more_content": False,
        }

    def block(self, message):
        self.released.wait(20)
        yield {"status": 200, "content": b"late"}

    def trickle(self, message):
        yield {"status": 200, "content": b"", "more_content": True}
        yield {"content": b"first", "more_content": True}
        self.released.wait(20)
        yield {"content": b"second", "more_content": True}
        yield {"content": b"", "more_content": False}

    def large(self, message):
        yield {"status": 200, "content": b"", "more_content": True}
        for number in range(64):
            self.made = number + 1
            yield {"content": b"x" * MEBIBYTE, "more_content": True}
        yield {"content": b"", "more_content": False}

    def raises(self, message):
        raise ValueError("as asked for")
        yield

    def exits(self, message):
        raise SystemExit
        yield

    def breaks(self, message):
        yield {"status": 200, "content": b"", "more_content": True}
        yield {"content": b"first", "more_content": True}
        raise ValueError("as asked for")

    def page(self, message):
        yield {"status": 200, "headers": [[b"Content-Length", b"7"]], "content": bytes(30_000_000)}

    def early(self, message):
        yield {"status": 200, "content": b"", "more_content": True}
        raise ValueError("as asked for")

    def bad(self, message):
        yield {"status": 200, "headers": [[b"X-A", b"b\r\nX-B: c"]], "content": b"", "more_content": True}
        for _ in range(100):
            yield {"content": b"x" * MEBIBYTE, "more_content": True}

    # Clients.

    def client(self):
        self.clients.append(Client(self.server.address[1]))
        return self.clients[-1]

    def get(self, path):
        return self.client().ask("GET", path)

    def send(self, path):
        client = self.client()
        client.send_request("GET", path)
        return client

    def stop(self):
        if not self.stopped:
            self.stopped = True
            self.server.stop()

    def end(self):
        self.released.set()
        for client in self.clients:
            client.sock.close()
        self.stop()


@pytest.fixture
def new_site():
    made = []

    def new(*args, **options):
        made.append(Direct(*args, **options))
        return made[-1]

    yield new
    for site in made:
        site.end()


@pytest.fixture
def site(new_site):
    return new_site()


def test_a_view_runs_in_a_thread_of_its_own(site):
    response = site.client().ask("POST", "/whole", b"body")
    assert (response.status, response.content, response.header("X-A")) == (200, b"body", "b")
    assert site.get("/whole").content == b"whole"
    until(lambda: len(site.closed) == 2)
    assert threading.get_ident() not in site.threads
    assert site.server.relay.waiting() == 0


def test_the_language_of_one_request_is_not_there_for_the_next(new_site):
    site = new_site(1)
    assert [site.get("/translated").content for _ in range(2)] == [b"en-us", b"en-us"]
    assert len(set(site.threads)) == 1


def test_who_hangs_holds_one_thread(site):
    hanging = site.send("/block")
    until(lambda: len(site.threads) == 1)
    assert [site.get("/whole").content for _ in range(5)] == [b"whole"] * 5
    site.released.set()
    assert hanging.response().content == b"late"


def test_who_finds_all_threads_taken_waits_and_beyond_the_queue_it_is_503(new_site, monkeypatch):
    monkeypatch.setattr(direct, "WAITING_PER_THREAD", 2)
    site = new_site(1)
    first = site.send("/block")
    until(lambda: len(site.threads) == 1)
    waiting = [site.send("/whole") for _ in range(2)]
    until(lambda: len(site.server.requests.in_flight) == 3)
    refused = site.get("/whole")
    assert (refused.status, refused.header("Retry-After")) == (503, "5")
    site.released.set()
    assert [client.response().content for client in (first, *waiting)] == [b"late", b"whole", b"whole"]
    assert site.get("/whole").status == 200


def test_who_leaves_while_all_threads_are_taken_is_not_run(new_site):
    site = new_site(1)
    first = site.send("/block")
    until(lambda: len(site.threads) == 1)
    left, stays = site.send("/large"), site.send("/whole")
    until(lambda: len(site.server.requests.in_flight) == 3)
    left.reset()
    until(lambda: len(site.server.requests.in_flight) == 2)
    site.released.set()
    assert [client.response().content for client in (first, stays)] == [b"late", b"whole"]
    assert "/large" not in site.closed


def test_what_takes_too_long_is_504_and_what_no_thread_took_503(new_site):
    site = new_site(1, http_timeout=0.5)
    late = site.send("/block")
    until(lambda: len(site.threads) == 1)
    assert site.get("/whole").status == 503
    assert late.response().status == 504
    assert len(site.threads) == 1  # the second never began
    site.released.set()
    until(lambda: site.closed)
    assert site.get("/whole").status == 200


def test_a_stream_comes_as_it_is_made(site):
    client = site.send("/trickle")
    response = client.head()
    assert response.read(5) == b"first"
    site.released.set()
    assert response.read() == b"second"
    until(lambda: site.closed == ["/trickle"])


def test_a_slow_client_holds_no_thread(site):
    client = site.send("/large")
    response = client.head()
    read = len(response.read(1))
    until(lambda: site.closed == ["/large"])
    while part := response.read(MEBIBYTE):
        read += len(part)
    assert read == 64 * MEBIBYTE
    assert site.made == 64


@pytest.mark.parametrize("spool", [MEBIBYTE, 8 * MEBIBYTE])
def test_without_room_half_of_the_threads_wait_and_the_others_are_let_go(new_site, spool):
    """What finds no room at its beginning is a 503, and what finds none later is broken off."""
    site = new_site(max_response_spool=spool)
    clients = [site.send("/large") for _ in range(2)]
    answers = [client.head() for client in clients]
    until(lambda: site.closed)  # of two threads one may wait
    budget = site.server.requests.responses
    assert (budget.waiting, len(site.closed)) == (1, 1)
    seen = []
    for response in answers:
        try:
            seen.append((response.status, len(response.read()) // MEBIBYTE))
        except IncompleteRead:
            seen.append("broken off")
    assert (200, 64) in seen and (503, 0) in seen if spool == MEBIBYTE else "broken off" in seen
    until(lambda: (budget.waiting, budget.disk) == (0, spool))


def test_a_large_response_that_is_whole_holds_no_thread_and_keeps_its_length(site):
    response = site.send("/page").head()
    until(lambda: site.closed == ["/page"])
    assert (response.getheader("Content-Length"), len(response.read())) == ("30000000", 30_000_000)


def test_a_client_that_leaves_ends_the_view(new_site):
    site = new_site(2, max_response_spool=MEBIBYTE)
    client = site.send("/large")
    client.head().read(1)
    client.sock.close()
    until(lambda: site.closed == ["/large"])
    assert site.made < 64
    until(lambda: not site.server.requests.in_flight)


def test_a_client_that_leaves_before_its_answer_is_waited_for_no_more(site):
    client = site.send("/block")
    until(lambda: site.threads)
    client.reset()
    until(lambda: not site.server.requests.in_flight)
    assert site.closed == []  # a thread cannot be ended; it ends when its view does
    site.released.set()
    until(lambda: site.closed == ["/block"])
    assert site.get("/whole").content == b"whole"


def test_a_client_that_takes_nothing_is_given_up(new_site, monkeypatch):
    monkeypatch.setattr(direct, "STALLED", 0.05)
    site = new_site(max_response_spool=MEBIBYTE)
    client = site.send("/large")
    client.head().read(1)
    until(lambda: site.closed == ["/large"])
    assert site.made < 64


def test_a_view_that_raises_is_a_500_and_one_that_has_begun_is_broken_off(site, caplog, capfd):
    assert [site.get(path).status for path in ("/raises", "/exits", "/early")] == [500] * 3
    client = site.send("/breaks")
    data = b""
    while more := client.sock.recv(65_536):
        data += more
    assert data.endswith(b"5\r\nfirst\r\n")
    assert [record.levelno for record in caplog.records if record.name == "dbchannels.server"] == [
        logging.ERROR
    ] * 4
    assert capfd.readouterr().err == ""


def test_a_response_that_cannot_be_sent_lets_its_thread_go(site):
    assert site.get("/bad").status == 500
    until(lambda: site.closed == ["/bad"])


def test_the_end_waits_for_what_is_under_way(new_site):
    site = new_site(graceful_timeout=20.0)
    client = site.send("/block")
    until(lambda: site.threads)
    stopping = gevent.spawn(site.stop)
    until(lambda: site.server._closing is not None)
    site.released.set()
    assert client.response().content == b"late"
    stopping.join(10)
    assert stopping.successful()


def test_the_end_does_not_wait_for_ever_and_who_still_waits_is_answered(new_site):
    site = new_site(1, graceful_timeout=0.05)
    blocked = site.send("/block")
    until(lambda: site.threads)
    waiting = [site.send("/whole") for _ in range(3)]
    until(lambda: len(site.server.requests.in_flight) == 4)
    started = time.monotonic()
    site.stop()
    assert time.monotonic() - started < 15
    for client in (blocked, *waiting):
        response = client.response()
        assert (response.status, response.header("Retry-After")) == (503, "5")
    assert len(site.threads) == 1  # no other view has begun


def test_at_the_end_a_stream_is_cut_and_its_view_ends(new_site):
    site = new_site(graceful_timeout=0.05)
    client = site.send("/trickle")
    response = client.head()
    assert response.read(5) == b"first"
    site.stop()
    with pytest.raises(IncompleteRead):
        response.read()
    site.released.set()
    until(lambda: site.closed == ["/trickle"])
