"""Health checks: what they answer, and that they answer whatever the rest of the server does."""

from __future__ import annotations

import os
import socket as blocking_socket
import time
from contextlib import ExitStack
from types import SimpleNamespace

import gevent
import pytest
from gevent import socket

from dbchannels.layers.store import StoreLink
from dbchannels.server import health
from dbchannels.server.health import check_health
from dbchannels.server.listeners import Address
from tests.server import test_server
from tests.server.test_server import Client, until

new_site = test_server.new_site


@pytest.mark.parametrize(
    ("path", "why", "status"),
    [
        ("/healthz", "", 200),
        ("/healthz", "stopping", 200),
        ("/readyz", "", 200),
        ("/readyz", "stopping", 503),
        ("/", "", 404),
        ("/readyz/", "", 404),
    ],
)
def test_the_answer_for_a_path(path, why, status):
    answered, sentence = check_health(path, why)
    assert answered == status
    assert (why in sentence) is (status == 503 or not why)


@pytest.fixture
def site(new_site):
    return new_site(health_address=Address("127.0.0.1", 0))


def asked(site, path, method="GET"):
    """Ask the probes' port."""
    client = Client(site.server.health_address.port)
    site.clients.append(client)
    return client.ask(method, path)


def readiness(site):
    """Whether requests may come, and what is said."""
    answer = asked(site, "/readyz")
    return answer.status, answer.content


def test_a_server_that_has_all_it_needs_is_ready(site):
    until(lambda: readiness(site) == (200, b"Ready.\n"))
    answer = asked(site, "/healthz")
    assert (answer.status, answer.header("Connection")) == (200, "close")
    assert asked(site, "/healthz", "HEAD").content == b""
    assert site.seen == []  # none of it is for the site


@pytest.mark.parametrize(
    ("question", "status"),
    [
        (b"POST /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"GET /healthz?a=b HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        (b"GET /" + b"a" * 2_000, 414),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 2_000, 431),
        (b"hello\r\n", 400),
    ],
)
def test_a_question_is_read_strictly_and_no_further(site, question, status):
    client = Client(site.server.health_address.port)
    site.clients.append(client)
    client.sock.sendall(question)
    assert client.response().status == status


def test_whoever_asks_nothing_is_left_after_a_while(site, monkeypatch):
    monkeypatch.setattr(health, "DEADLINE", 0.05)
    with socket.create_connection(("127.0.0.1", site.server.health_address.port)) as silent:
        silent.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert silent.recv(100) == b""
    until(lambda: not site.server._health._open)


def test_many_who_ask_nothing_hold_up_no_probe_and_few_descriptors(site):
    port = site.server.health_address.port
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(3 * health.MOST)
        ]
        assert asked(site, "/healthz").status == 200
        assert len(site.server._health._open) <= health.MOST
        assert [one.recv(1) for one in silent[: health.MOST]] == [b""] * health.MOST  # the oldest went
    until(lambda: not site.server._health._open)


def test_those_who_come_at_once_go_at_once(site):
    """Each takes the place of another one, also of one that has not ended yet."""
    served, sockets = site.server._health, [socket.socketpair() for _ in range(3 * health.MOST)]
    greenlets = [gevent.spawn(served._serve, ours, None) for ours, _ in sockets]
    gevent.sleep(0)
    gevent.sleep(0)
    assert sum(not one.ready() for one in greenlets) == len(served._open) == health.MOST
    for pair in sockets:
        for one in pair:
            one.close()
    gevent.joinall(greenlets)


def test_those_who_come_at_once_take_few_descriptors(site, monkeypatch):
    """They are accepted few at a time, or the server would have no descriptor left until the first ones are closed."""
    served, found = site.server._health._server, []
    handle, before = served.do_handle, len(os.listdir("/proc/self/fd"))

    def counted(*given):
        found.append(len(os.listdir("/proc/self/fd")) - before - len(silent))
        handle(*given)

    monkeypatch.setattr(served, "do_handle", counted)
    address = ("127.0.0.1", site.server.health_address.port)
    # The kernel takes them all before the hub, which is in this thread, has a turn.
    silent = [blocking_socket.create_connection(address) for _ in range(3 * health.MOST)]
    until(lambda: len(found) == len(silent))
    for one in silent:
        one.close()
    assert max(found) <= health.MOST + 4 * health.ACCEPTED
    until(lambda: not site.server._health._open)


def test_slow_clients_share_the_text_of_the_metrics(site, monkeypatch):
    text = b"x" * 100_000
    monkeypatch.setattr(site.server._health, "_metrics", SimpleNamespace(text=lambda: [text]))
    ours, client = socket.socketpair()
    with ours, client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        head, body = site.server._health._answer(ours)
        assert head.endswith(
            b"\r\nContent-Length: 100000\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        assert body is text
        client.sendall(b"HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert site.server._health._answer(ours) == (head,)


def test_probes_are_not_for_clients(site):
    assert site.get("/healthz").content == b"/healthz"
    assert [message["path"] for message in site.messages("http.request")] == ["/healthz"]


def test_without_a_worker_it_is_not_ready(site):
    there = []
    site.server.has_worker = lambda: bool(there)
    until(lambda: readiness(site) == (503, b"Not ready: no worker is ready.\n"))
    there.append(1)
    assert readiness(site)[0] == 200


def test_a_layer_that_does_not_answer_is_not_ready_but_alive(site, monkeypatch):
    until(lambda: readiness(site)[0] == 200)
    before_reading(site, monkeypatch, lambda: time.sleep(0.01) or 1 / 0)
    until(lambda: readiness(site) == (503, b"Not ready: the layer cannot be used.\n"))
    assert asked(site, "/healthz").status == 200
    monkeypatch.undo()
    until(lambda: readiness(site)[0] == 200)


def test_a_layer_that_hangs_holds_up_no_probe(site, monkeypatch):
    until(lambda: readiness(site)[0] == 200)
    hanging = []
    before_reading(site, monkeypatch, lambda: hanging.append(1) or until_released(hanging))
    until(lambda: hanging)
    until(lambda: readiness(site)[0] == 503)
    assert asked(site, "/healthz").status == 200
    hanging.append("released")


def before_reading(site, monkeypatch, act):
    """Have the server act before each time that it reads its replies."""
    receive_many = StoreLink.receive_many

    def receive(link, queues, *given):
        if queues == [site.relay.queue]:  # the site's worker reads others
            act()
        return receive_many(link, queues, *given)

    monkeypatch.setattr(StoreLink, "receive_many", receive)


def until_released(hanging):
    while "released" not in hanging:
        time.sleep(0.01)


def test_a_server_that_stops_is_alive_until_its_end_and_not_ready(site):
    until(lambda: readiness(site)[0] == 200)
    seen = []
    stop = site.relay.stop
    site.relay.stop = lambda within: (
        site.relay.hub.call(lambda: seen.append(site.server.why_not_ready())),
        stop(within),
    )
    site.stop()
    assert seen == ["stopping"]
    with pytest.raises(ConnectionRefusedError):
        asked(site, "/healthz")
