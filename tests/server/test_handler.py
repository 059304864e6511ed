"""From a request to an open WebSocket: who is refused before anything is sent, and how the socket is handed over."""

from __future__ import annotations

import gc
import logging

import gevent
import pytest

from dbchannels.server.websocket.handshake import Origins
from tests.server import test_server
from tests.server.test_server import TEXT, close_frame, frame, until

new_site, site, told = test_server.new_site, test_server.site, test_server.told


def nothing_was_sent(site):
    return site.seen == [] and site.relay.waiting() == 0


# --- heartbeats


def test_the_parameter_for_heartbeats_is_seen_by_nobody(site, caplog):
    caplog.set_level(logging.INFO, "dbchannels.access")
    client = site.socket("/chat/?a=b&dbchannels-heartbeat=15&c")
    assert client.status == 101
    (message,) = site.messages("websocket.connect")
    assert (message["path"], message["query_string"]) == ("/chat/", b"a=b&c")
    (connection,) = site.server.connections
    assert connection._transport._heartbeat == 15
    assert caplog.text.count("/chat/?a=b&c HTTP/1.1") == 2 and "heartbeat" not in caplog.text
    site.socket("/refused/?dbchannels-heartbeat=15", Origin="http://evil.example")
    until(lambda: "/refused/ HTTP/1.1" in caplog.text)
    assert "heartbeat" not in caplog.text


def test_to_a_plain_request_it_is_a_parameter_like_any_other(site):
    site.get("/?dbchannels-heartbeat=15")
    (message,) = site.messages("http.request")
    assert message["query_string"] == b"dbchannels-heartbeat=15"


# --- refused before any message


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
def test_a_host_that_is_not_ours_is_a_400(site, host):
    client = site.socket(Host=host)
    assert client.status == 400 and nothing_was_sent(site)
    assert b"ALLOWED_HOSTS" in client._data + client.sock.recv(1_000)


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "",
        "http://127.0.0.1.evil.example",
        "http://a@127.0.0.1",
        "file://",
        "127.0.0.1",
    ],
)
def test_a_forged_origin_is_a_403_and_a_line_in_the_log(site, told, origin):
    client = site.socket(Origin=origin)
    assert client.status == 403 and nothing_was_sent(site)
    (said,) = told()
    assert said.startswith(
        f"Refused a WebSocket from a page of {origin}, which is not part of the site at 127.0.0.1:"
    )
    assert "CSRF_TRUSTED_ORIGINS" in said


def test_an_origin_is_logged_escaped_and_cut(site, told):
    assert site.socket(Origin="http://[31m\xe9\x9b" + "x" * 5_000).status == 403
    (said,) = told()
    assert said.isprintable() and len(said) < 500


def test_pages_of_the_site_may_connect(new_site):
    site = new_site(origins=Origins(("https://app.example",)))
    port = site.server.address[1]
    for origin in (f"http://127.0.0.1:{port}", f"https://127.0.0.1:{port}", "https://app.example"):
        assert site.socket(Origin=origin).status == 101
    for origin in (
        "http://localhost",
        "http://127.0.0.1:3000",
        "http://app.example",
    ):  # ALLOWED_HOSTS is for hosts
        assert site.socket(Origin=origin).status == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec_WebSocket_Version": "8"}, 426),
        ({"Sec_WebSocket_Key": "short"}, 400),
        ({"Connection": "close"}, 400),
        ({"Connection": "xupgradex"}, 400),
        ({"Content_Length": "3"}, 400),
        ({"Sec_WebSocket_Protocol": "a, a"}, 400),
    ],
)
def test_what_is_no_handshake_is_refused_and_closed(site, told, headers, status):
    client = site.socket(**headers)
    assert client.status == status and nothing_was_sent(site)
    assert "Connection: close" in client.lines
    assert told() == []


def test_another_method_cannot_upgrade(site):
    response = site.client().ask("POST", "/", Upgrade="websocket", Connection="Upgrade")
    assert (response.status, response.header("Allow")) == (405, "GET")
    assert nothing_was_sent(site)


@pytest.mark.parametrize("upgrade", [{"Upgrade": "h2c"}, {}])
def test_another_upgrade_is_an_ordinary_request(site, upgrade):
    client = site.client()
    assert client.ask("GET", "/a", Connection="Upgrade", **upgrade).content == b"/a"
    assert client.ask("POST", "/b", b"body", Connection="Upgrade", **upgrade).content == b"/b"
    assert [message["body"] for message in site.messages("http.request")] == [b"", b"body"]


# --- the consumer decides


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ({"accept": False, "finished": 0}, 403),
        ({"close": True, "finished": 0}, 403),
        ({"accept": False, "status": 404, "finished": 0}, 404),
        ({"accept": False, "status": 500, "finished": 0}, 500),
        ({"accept": False, "status": 302, "finished": 0}, 302),
        ({"accept": False, "status": 599, "finished": 0}, 403),
        ({"accept": False, "status": 101, "finished": 0}, 403),
        ({"accept": False, "status": 200, "finished": 0}, 403),
        ({"accept": False, "status": "no number", "finished": 0}, 403),
        ({"lost": "worker died", "channel": "websocket.connect"}, 502),
        ({"lost": "full", "channel": "websocket.connect"}, 503),
    ],
)
def test_a_refusal_is_an_answer_of_one_sentence(site, told, reply, status):
    site.on("websocket.connect", lambda message, answer: answer(**reply))
    client = site.socket()
    assert client.status == status
    assert ("Retry-After: 5" in client.lines) == (status == 503)
    while more := client.sock.recv(1_000):
        client._data += more
    assert client._data.endswith(b".\n") and client._data.count(b"\n") == 1
    assert site.relay.waiting() == 0 and site.messages("websocket.disconnect") == []
    assert told() == []


def test_a_refusal_has_the_consumers_headers(site):
    headers = [["WWW-Authenticate", "Basic"], [b"x-twice", b"1"], [b"x-twice", b"2"]]
    reply = {"accept": False, "status": 401, "headers": headers, "finished": 0}
    site.on("websocket.connect", lambda message, answer: answer(**reply))
    client = site.socket()
    assert client.status == 401
    assert {"WWW-Authenticate: Basic", "x-twice: 1", "x-twice: 2"} <= set(client.lines)


def test_a_consumer_says_when_to_come_again(site):
    reply = {"accept": False, "status": 503, "headers": [["Retry-After", "60"]], "finished": 0}
    site.on("websocket.connect", lambda message, answer: answer(**reply))
    client = site.socket()
    assert [line for line in client.lines if line.startswith("Retry-After")] == ["Retry-After: 60"]


@pytest.mark.parametrize(
    "header",
    [
        ["X", "a\r\nb"],
        ["X", "a\0"],
        ["X", "\N{SNOWMAN}"],
        ["X\r\nY", "a"],
        ["", "a"],
        ["Content-Length", "1"],
    ],
)
def test_a_refusal_with_headers_that_cannot_be_sent_is_a_500(site, told, header):
    reply = {"accept": False, "status": 401, "headers": [header], "finished": 0}
    site.on("websocket.connect", lambda message, answer: answer(**reply))
    assert site.socket().status == 500
    (said,) = told()
    assert said.startswith("A connect consumer's refusal cannot be sent as it is: ") and "\n" not in said


def test_nothing_is_written_before_the_consumer_has_decided(site):
    site.silent("websocket.connect")
    opening = gevent.spawn(site.socket)
    (message,) = until(lambda: site.messages("websocket.connect"))
    assert site.clients[0]._data == b"" and not opening.ready()
    assert site.relay.waiting() == 1
    site.reply(message, accept=True)
    assert opening.get(timeout=10).status == 101
    site.reply(message, finished=0)


def test_a_consumer_chooses_subprotocol_and_headers(site):
    reply = {"accept": True, "subprotocol": "b", "headers": [["X-A", "c"]], "finished": 0}
    site.on("websocket.connect", lambda message, answer: answer(**reply))
    client = site.socket(Sec_WebSocket_Protocol="a, b")
    assert client.status == 101
    assert {"Sec-WebSocket-Protocol: b", "X-A: c"} <= set(client.lines)
    assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in client.lines


@pytest.mark.parametrize(
    "reply", [{"subprotocol": "not offered"}, {"headers": [["X", "a\r\nb"]]}, {"headers": [["Upgrade", "x"]]}]
)
@pytest.mark.parametrize("finished", [{}, {"finished": 0}])
def test_one_that_accepts_badly_is_a_500_and_is_told_of_the_end(site, told, reply, finished):
    site.on("websocket.connect", lambda message, answer: answer(accept=True, **reply, **finished))
    assert site.socket("/x%0A%1B[2J").status == 500
    if not finished:
        site.reply(site.messages("websocket.connect")[0], finished=0)
    until(lambda: site.relay.waiting() == 0)
    assert [message["code"] for message in site.messages("websocket.disconnect")] == [1006]
    (said,) = told()
    assert (
        said.startswith("The connect consumer of /x\\n\\x1b[2J accepted with a reply that cannot be sent: ")
        and said.isprintable()
    )


def test_no_decision_in_time_is_a_503_and_a_late_consumer_is_told(new_site):
    site = new_site(handshake_timeout=0.05).silent("websocket.connect")
    client = site.socket()
    assert client.status == 503 and "Retry-After: 5" in client.lines
    assert site.relay.waiting() == 1 and site.messages("websocket.disconnect") == []
    site.reply(site.messages("websocket.connect")[0], finished=0)
    until(lambda: site.relay.waiting() == 0)
    assert [message["code"] for message in site.messages("websocket.disconnect")] == [1006]


def test_a_client_that_leaves_during_the_handshake_is_told_of(site, told):
    site.silent("websocket.connect")
    opening = gevent.spawn(site.socket)
    (message,) = until(lambda: site.messages("websocket.connect"))
    opening.kill()
    site.clients[0].sock.close()
    site.reply(message, finished=0)
    until(lambda: site.messages("websocket.disconnect"))
    until(lambda: site.relay.waiting() == 0)
    assert [message["code"] for message in site.messages("websocket.disconnect")] == [1006]
    assert told() == []


# --- the socket is handed over


def test_frames_go_both_ways(site):
    client = site.socket("/x")
    for text in ("one", "two", ""):
        client.say(text)
        assert client.receive() == (TEXT, text.encode())
    assert [message["order"] for message in site.messages("websocket.receive")] == [1, 2, 3]
    client.sock.sendall(close_frame(1000))
    assert client.closed_with() == 1000 and client.is_closed()
    until(lambda: site.relay.waiting() == 0)
    assert [message["code"] for message in site.messages("websocket.disconnect")] == [1000]


def test_frames_right_behind_the_handshake_are_not_lost(site):
    client = site.socket(behind=frame(TEXT, b"one") + frame(TEXT, b"two"))
    client.say("three")
    assert [client.receive() for _ in range(3)] == [(TEXT, b"one"), (TEXT, b"two"), (TEXT, b"three")]


def test_a_close_right_behind_the_handshake_closes(site):
    client = site.socket(behind=frame(TEXT, b"one") + close_frame(1000))
    assert client.closed_with() == 1000 and client.is_closed()
    until(lambda: site.relay.waiting() == 0)
    assert [message["text"] for message in site.messages("websocket.receive")] == ["one"]
    assert [message["code"] for message in site.messages("websocket.disconnect")] == [1000]


def test_a_connection_that_was_used_for_requests_can_be_upgraded(site):
    client = site.client()
    assert client.ask("GET", "/page").content == b"/page"
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    client.send_request("GET", "/socket", headers={**headers, "Sec-WebSocket-Key": test_server.KEY})
    client.handshake()
    assert client.status == 101
    client.say("hello")
    assert client.receive() == (TEXT, b"hello")


def greenlets():
    return sum(isinstance(one, gevent.Greenlet) and not one.dead for one in gc.get_objects())


def test_an_open_socket_has_no_greenlet(site):
    before = greenlets()
    clients = [site.socket() for _ in range(10)]
    until(lambda: greenlets() == before)
    for client in clients:
        client.say("still here")
        assert client.receive() == (TEXT, b"still here")


def lines_of(told, count):
    """Wait for so many lines of the access log; return what each is about, and its status and size."""
    lines = until(lambda: len(told(logging.INFO)) >= count and told(logging.INFO))
    assert len(lines) == count and all(line.endswith(" ms") for line in lines)
    return [line.partition('"')[2].partition(' "-" "-" ')[0].replace('"', "") for line in lines]


def test_a_websocket_is_in_the_log_when_it_asks_when_it_is_let_in_and_when_it_ends(site, told):
    client = site.socket("/x?ticket=secret")
    client.sock.sendall(close_frame(4321))
    assert lines_of(told, 3) == [
        "WSCONNECT /x?ticket=*** HTTP/1.1 - -",
        "GET /x?ticket=*** HTTP/1.1 101 0",
        "WSDISCONNECT /x?ticket=*** HTTP/1.1 4321 -",
    ]


def test_a_websocket_that_is_refused_ends_with_its_answer(site, told):
    site.on("websocket.connect", lambda message, answer: answer(accept=False, finished=0))
    site.socket("/x")
    assert lines_of(told, 2) == ["WSCONNECT /x HTTP/1.1 - -", "GET /x HTTP/1.1 403 34"]


def test_one_that_no_consumer_is_asked_about_is_a_refusal_alone(site, told):
    site.socket("/x", Sec_WebSocket_Version="8")
    assert lines_of(told, 1) == ["GET /x HTTP/1.1 426 29"]


def test_a_socket_whose_client_vanished_is_1006_in_the_log(site, told):
    site.socket("/x").sock.close()
    assert lines_of(told, 3)[2] == "WSDISCONNECT /x HTTP/1.1 1006 -"


def test_one_that_the_server_closes_is_in_the_log_with_its_code(site, told):
    site.on("websocket.receive", lambda message, answer: answer(close=4001, finished=message["order"]))
    client = site.socket("/x")
    client.say("a")
    assert client.closed_with() == 4001
    client.sock.sendall(close_frame(4001))
    assert lines_of(told, 3)[2] == "WSDISCONNECT /x HTTP/1.1 4001 -"


def test_frames_are_consumed_in_order_and_one_at_a_time(site):
    site.silent("websocket.receive")
    client = site.socket()
    for text in ("a", "b", "c"):
        client.say(text)
    for count in (1, 2, 3):
        until(lambda count=count: len(site.messages("websocket.receive")) == count)
        site.reply(site.messages("websocket.receive")[-1], finished=count)
    assert [message["text"] for message in site.messages("websocket.receive")] == ["a", "b", "c"]


def test_a_frame_whose_worker_died_closes_1011(site):
    lost = {"lost": "worker died", "channel": "websocket.receive"}
    site.on("websocket.receive", lambda message, answer: answer(**lost))
    client, other = site.socket("/a"), site.socket("/b")
    client.say("a")
    assert client.closed_with() == 1011
    client.sock.sendall(close_frame(1011))
    until(lambda: site.messages("websocket.disconnect"))
    assert [(one["path"], one["code"]) for one in site.messages("websocket.disconnect")] == [("/a", 1011)]
    site.on("websocket.receive", lambda message, answer: answer(text="fine", finished=message["order"]))
    other.say("b")
    assert other.receive() == (TEXT, b"fine")
