"""Clients that do not wait for their answer, or have ended their sending half, and addresses that ask for too much."""

from __future__ import annotations

import logging
import socket
import threading
from types import SimpleNamespace

import gevent
import pytest

from dbchannels.layers.operations import Send, Withdraw
from dbchannels.server.http import dispatch, reader
from dbchannels.server.proxy_headers import LOOPBACK, Trusted
from tests.server import test_server
from tests.server.test_server import until

new_site, site, told = test_server.new_site, test_server.site, test_server.told


@pytest.fixture
def no_worker(site):
    """A site whose worker takes nothing."""
    site._worker.kill()
    return site


def asks(site, path="/", **headers):
    client = site.client()
    client.send_request("GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()})
    return client


def in_layer(site, channel="http.request"):
    return site.layer.channel_statistics(channel)["messages_pending"]


def half_close(client):
    client.sock.shutdown(socket.SHUT_WR)


# --- who left


def test_what_nobody_waits_for_is_not_run(no_worker, told):
    client = asks(no_worker)
    until(lambda: in_layer(no_worker) == 1)
    client.reset()
    until(lambda: in_layer(no_worker) == 0)
    until(no_worker.is_quiet)
    (line,) = told(logging.INFO)
    assert '"GET / HTTP/1.1" 499 0 ' in line


@pytest.mark.parametrize("behind", [b"G", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"])
@pytest.mark.parametrize("when", ["with it", "later"])
def test_what_a_client_has_sent_behind_its_request_does_not_hide_that_it_left(
    no_worker, monkeypatch, behind, when
):
    monkeypatch.setattr(reader, "LOOK_EVERY", 0.01)
    client = no_worker.client()
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    client.sock.sendall(request + behind if when == "with it" else request)
    until(lambda: in_layer(no_worker) == 1)
    if when == "later":
        client.sock.sendall(behind)
        gevent.sleep(0.05)
    client.reset()
    until(lambda: in_layer(no_worker) == 0)
    until(no_worker.is_quiet)


def test_what_a_worker_puts_back_is_not_run_by_the_next(no_worker, monkeypatch):
    """It was in a batch, behind a view that is slow."""
    monkeypatch.setattr(dispatch, "WITHDRAW_AGAIN", 0.1)
    client = asks(no_worker)
    until(lambda: in_layer(no_worker))
    _, message = no_worker.layer.receive(["http.request"])
    client.reset()
    until(lambda: in_layer(no_worker, "http.disconnect"))
    no_worker.layer.send("http.request", message)
    until(lambda: in_layer(no_worker) == 0)


def test_who_has_left_before_the_request_was_read_costs_the_layer_nothing(no_worker, monkeypatch, told):
    sent = []
    monkeypatch.setattr(no_worker.relay, "_outbox", SimpleNamespace(put=sent.append, qsize=lambda: 0))
    for _ in range(3):
        asks(no_worker).reset()
    until(lambda: len(told(logging.INFO)) == 3)
    until(no_worker.is_quiet)
    assert all('"GET / HTTP/1.1" 499 0 ' in line for line in told(logging.INFO))
    assert sent == []


def test_who_leaves_is_in_no_group_even_if_the_outbox_is_full(site, monkeypatch):
    site.silent("http.request")
    client = asks(site)
    (message,) = until(lambda: site.messages("http.request"))
    site.layer.group_add("news", message["reply_channel"])
    site.reply(message, status=200, content=b":", more_content=True)
    client.head()
    monkeypatch.setattr("dbchannels.layers.relay.OUTBOX", -1)
    client.reset()
    until(lambda: site.layer.group_channels("news") == [])


def test_what_takes_too_long_is_not_run_either(new_site, monkeypatch):
    site = new_site(http_timeout=0.1)
    site._worker.kill()
    taken = []
    send = site.relay.send
    monkeypatch.setattr(site.relay, "send", lambda *given: taken.extend(given) or send(*given))
    assert asks(site).response().status == 504
    assert [one.channel for one in taken if isinstance(one, Withdraw)] == ["http.request"]


def test_what_a_worker_has_answered_is_not_taken_back(site, monkeypatch):
    sent = []
    send = site.relay.send
    monkeypatch.setattr(site.relay, "send", lambda *given: sent.extend(given) or send(*given))
    assert site.get().status == 200
    until(site.is_quiet)
    assert not any(isinstance(one, Withdraw) for one in sent)


@pytest.mark.parametrize("answer", [{"later": True}, {"status": 200, "content": b":", "more_content": True}])
def test_what_a_worker_has_begun_to_answer_is_held_no_longer(site, answer):
    """The response may take days, as a stream of events does."""
    site.silent("http.request")
    client = asks(site)
    (message,) = until(lambda: site.messages("http.request"))
    receiver = site.relay.receiver(message["reply_channel"])
    assert receiver.in_layer is not None
    site.reply(message, **answer)
    until(lambda: receiver._sent is None)
    client.reset()
    until(site.is_quiet)


def test_what_was_not_written_yet_is_never_written(no_worker, monkeypatch):
    held, written, write = threading.Event(), [], no_worker.layer.write
    monkeypatch.setattr(no_worker.relay, "_await_renewal", lambda link: held.wait(10))
    monkeypatch.setattr(
        no_worker.layer, "write", lambda *given, **how: written.extend(given[0]) or write(*given, **how)
    )
    client = asks(no_worker)
    until(lambda: no_worker.relay.waiting() == 1)
    client.reset()
    until(no_worker.is_quiet)
    held.set()
    until(lambda: [one for one in written if isinstance(one, Withdraw)])
    assert not [one for one in written if isinstance(one, Send) and one.channel == "http.request"]


# --- who has ended its sending half


def test_a_half_closed_client_gets_its_answer(site):
    site.silent("http.request")
    client = asks(site)
    half_close(client)
    (message,) = until(lambda: site.messages("http.request"))
    gevent.sleep(0.05)
    site.reply(message, status=200, content=b"late")
    assert client.response().content == b"late"
    assert client.is_closed() and site.messages("http.disconnect") == []


def test_a_half_closed_client_gets_a_large_answer(site):
    parts = [b"x" * 100_000] * 3
    head = {
        "status": 200,
        "headers": [[b"Content-Length", b"300000"]],
        "content": parts[0],
        "more_content": True,
    }
    site.responding(head, {"content": parts[1], "more_content": True}, {"content": parts[2]})
    client = site.client()
    client.sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    half_close(client)
    assert client.response().content == b"".join(parts)


def test_a_half_closed_client_may_take_its_time_for_a_large_answer(site, monkeypatch):
    monkeypatch.setattr(reader, "HALF_CLOSED", 0.02)
    monkeypatch.setattr(reader, "LOOK_EVERY", 0.01)
    head = {"status": 200, "headers": [[b"Content-Length", b"2"]], "content": b"a", "more_content": True}
    site.responding(head)
    client = asks(site)
    response = client.head()
    half_close(client)
    gevent.sleep(0.1)
    assert site.messages("http.disconnect") == []
    site.reply(site.messages("http.request")[0], content=b"b")
    assert response.read() == b"ab"
    until(site.is_quiet)


def test_a_half_closed_client_is_given_up_in_time(no_worker, monkeypatch):
    monkeypatch.setattr(reader, "HALF_CLOSED", 0.05)
    monkeypatch.setattr(reader, "LOOK_EVERY", 0.01)
    client = asks(no_worker)
    until(lambda: in_layer(no_worker) == 1)
    half_close(client)
    until(lambda: in_layer(no_worker) == 0)
    assert client.is_closed()
    until(no_worker.is_quiet)


def test_a_half_closed_client_that_resets_has_left(site, monkeypatch):
    monkeypatch.setattr(reader, "LOOK_EVERY", 0.01)
    site.silent("http.request")
    client = asks(site)
    half_close(client)
    until(lambda: site.messages("http.request"))
    gevent.sleep(0.05)
    assert site.messages("http.disconnect") == []
    client.reset()
    until(lambda: site.messages("http.disconnect"))
    until(site.is_quiet)


def test_one_that_has_sent_more_must_stay_for_what_comes_later(site, monkeypatch):
    monkeypatch.setattr(reader, "LOOK_EVERY", 0.01)
    site.silent("http.request")
    client = site.client()
    client.sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nG")
    (message,) = until(lambda: site.messages("http.request"))
    site.reply(message, later=True)
    client.sock.close()
    until(lambda: site.messages("http.disconnect"))
    until(site.is_quiet)


@pytest.mark.parametrize("first", ["later", "half"])
def test_who_is_answered_later_must_stay(site, first):
    site.silent("http.request")
    client = asks(site)
    (message,) = until(lambda: site.messages("http.request"))
    steps = [lambda: site.reply(message, later=True), lambda: half_close(client)]
    for step in steps if first == "later" else reversed(steps):
        step()
        gevent.sleep(0.02)
    until(lambda: site.messages("http.disconnect"))
    until(site.is_quiet)


def test_who_reads_a_stream_without_an_end_must_stay(site):
    site.silent("http.request")
    client = asks(site)
    (message,) = until(lambda: site.messages("http.request"))
    site.reply(message, status=200, content=b"first", more_content=True)
    assert client.head().read(5) == b"first"
    half_close(client)
    until(lambda: site.messages("http.disconnect"))
    until(site.is_quiet)


# --- turns


@pytest.fixture
def crowded(new_site):
    """A site behind a proxy, of which each client may have two requests in the layer; nobody takes them."""
    site = new_site(max_waiting_per_address=2, proxies=Trusted.of(LOOPBACK), graceful_timeout=0.05)
    site._worker.kill()
    return site


def test_one_address_has_so_many_requests_in_the_layer(crowded):
    clients = [asks(crowded, f"/{number}", X_Forwarded_For="192.0.2.7") for number in range(6)]
    until(lambda: len(crowded.server.requests.in_flight) == 6)
    until(lambda: in_layer(crowded) == 2)
    visitor = asks(crowded, "/visitor", X_Forwarded_For="192.0.2.8")
    until(lambda: in_layer(crowded) == 3)
    taken = [crowded.layer.receive(["http.request"])[1] for _ in range(3)]
    assert [message["path"] for message in taken] == ["/0", "/1", "/visitor"]
    for client in clients[2:4]:
        client.reset()
    until(lambda: len(crowded.server.requests.in_flight) == 5)
    for message in taken:
        crowded.reply(message, status=200, content=b"done")
    assert [client.response().content for client in (visitor, *clients[:2])] == [b"done"] * 3
    until(lambda: in_layer(crowded) == 2)
    taken = [crowded.layer.receive(["http.request"])[1] for _ in range(2)]
    assert [message["path"] for message in taken] == ["/4", "/5"]  # never those who left
    assert in_layer(crowded, "http.disconnect") == 0  # of what no worker has seen none is told


@pytest.mark.parametrize("word", ["later", "taken"])
def test_what_is_answered_later_keeps_nobody_waiting(crowded, word):
    """A room full of long polls behind one address: each has been run."""
    for _ in range(5):
        asks(crowded, X_Forwarded_For="192.0.2.7")
    for _ in range(5):
        until(lambda: in_layer(crowded))
        crowded.reply(crowded.layer.receive(["http.request"])[1], **{word: True})
    assert len(crowded.server.requests.in_flight) == 5


def test_who_waits_for_its_turn_has_no_more_time_than_others(new_site):
    site = new_site(max_waiting_per_address=1, http_timeout=0.1)
    site._worker.kill()
    clients = [asks(site) for _ in range(3)]
    assert {client.response().status for client in clients} == {504}
    until(site.is_quiet)


def test_who_waits_for_its_turn_is_answered_when_the_server_stops(new_site):
    site = new_site(max_waiting_per_address=1, graceful_timeout=0.05)
    site._worker.kill()
    clients = [asks(site) for _ in range(3)]
    until(lambda: len(site.server.requests.in_flight) == 3)
    stopping = gevent.spawn(site.stop)
    assert [client.response().status for client in clients] == [503] * 3
    stopping.get()


HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def test_handshakes_wait_for_their_turn_too_and_not_for_requests(crowded):
    for _ in range(3):
        asks(crowded, X_Forwarded_For="192.0.2.7")
    clients = [asks(crowded, X_Forwarded_For="192.0.2.7", **HANDSHAKE) for _ in range(4)]
    until(lambda: len(crowded.server.requests.in_flight) == 7)
    until(lambda: in_layer(crowded, "websocket.connect") == 2)
    clients[2].reset()
    until(lambda: len(crowded.server.requests.in_flight) == 6)
    for _ in range(2):
        crowded.reply(crowded.layer.receive(["websocket.connect"])[1], accept=True, finished=0)
    until(lambda: in_layer(crowded, "websocket.connect") == 1)
    crowded.reply(crowded.layer.receive(["websocket.connect"])[1], accept=False, status=403, finished=0)
    for client in (clients[0], clients[1], clients[3]):
        client.handshake()
    assert sorted(client.status for client in (clients[0], clients[1], clients[3])) == [101, 101, 403]


def test_frames_wait_for_their_turn_too(crowded):
    clients = []
    for address in ["192.0.2.7"] * 4 + ["192.0.2.8"]:
        clients.append(asks(crowded, X_Forwarded_For=address, **HANDSHAKE))
        until(lambda: in_layer(crowded, "websocket.connect"))
        crowded.reply(crowded.layer.receive(["websocket.connect"])[1], finished=0)
        clients[-1].handshake()
    for number, client in enumerate(clients):
        client.say(str(number))
    until(lambda: in_layer(crowded, "websocket.receive") == 3)
    taken = [crowded.layer.receive(["websocket.receive"])[1] for _ in range(3)]
    assert "4" in [message["text"] for message in taken]  # behind two of the others at most
    for message in taken:
        crowded.reply(message, finished=message["order"])
    until(lambda: in_layer(crowded, "websocket.receive") == 2)


def test_handshakes_whose_clients_leave_at_once_have_no_more_turns(crowded):
    for number in range(5):
        client = asks(crowded, f"/{number}", X_Forwarded_For="192.0.2.7", **HANDSHAKE)
        until(lambda: crowded.server.requests.in_flight)
        client.reset()
        until(lambda: not crowded.server.requests.in_flight)
    assert in_layer(crowded, "websocket.connect") == 2
    message = crowded.layer.receive(["websocket.connect"])[1]
    client = asks(crowded, "/stays", X_Forwarded_For="192.0.2.7", **HANDSHAKE)
    until(lambda: len(crowded.server.requests.in_flight) == 1)
    assert in_layer(crowded, "websocket.connect") == 1
    crowded.reply(message, finished=0)  # it accepts one that has left
    until(lambda: in_layer(crowded, "websocket.connect") == 2)
    assert crowded.layer.receive(["websocket.connect"])[1]["path"] == "/1"
    crowded.reply(crowded.layer.receive(["websocket.connect"])[1], finished=0)
    client.handshake()
    assert client.status == 101


def test_turns_come_back_though_the_database_has_forgotten_what_was_asked(crowded, monkeypatch):
    monkeypatch.setitem(crowded.layer.options, "expiry", 0.1)
    clients = [asks(crowded, X_Forwarded_For="192.0.2.7", **HANDSHAKE) for _ in range(2)]
    until(lambda: in_layer(crowded, "websocket.connect") == 2)
    for client in clients:
        crowded.layer.receive(["websocket.connect"])
        client.reset()
    asks(crowded, "/next", X_Forwarded_For="192.0.2.7", **HANDSHAKE)
    (path,) = until(
        lambda: [message["path"] for _, message in [crowded.layer.receive(["websocket.connect"])] if message]
    )
    assert path == "/next"


def test_a_handshake_whose_client_left_is_told_of_once_its_consumer_accepts(site):
    site.silent("websocket.connect")
    client = asks(site, **HANDSHAKE)
    (message,) = until(lambda: site.messages("websocket.connect"))
    client.reset()
    until(lambda: site.server.connection_limits.open == 0)
    assert site.messages("websocket.disconnect") == []
    site.reply(message, finished=0)
    until(lambda: site.messages("websocket.disconnect"))
    until(site.is_quiet)
