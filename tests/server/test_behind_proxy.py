"""A server behind a proxy: what a request becomes, who may connect, and where the site begins."""

from __future__ import annotations

import os

import pytest
from gevent import socket as gevent_socket

from dbchannels.server.listeners import Address
from dbchannels.server.proxy_headers import LOOPBACK, Trusted
from tests.server import test_server
from tests.server.test_server import Client, until

new_site, told = test_server.new_site, test_server.told

FORWARDED = {
    "X_Forwarded_For": "192.0.2.9, 198.51.100.7",
    "X_Forwarded_Proto": "https",
    "X_Forwarded_Host": "site.example",
}


@pytest.fixture
def site(new_site):
    """A server that believes this machine."""
    return new_site(proxies=Trusted.of(LOOPBACK, host=True), allowed_hosts=("site.example",))


def test_a_request_is_as_its_client_made_it(site):
    site.get("/", **FORWARDED)
    (message,) = site.messages("http.request")
    assert (message["scheme"], message["client"]) == ("https", ["198.51.100.7", 0])
    assert [value for name, value in message["headers"] if name == b"host"] == [b"site.example"]


def test_a_websocket_too_and_its_origin_is_compared_with_the_clients_host(site):
    client = site.socket("/", Origin="https://site.example", **FORWARDED)
    assert client.status == 101
    (message,) = site.messages("websocket.connect")
    assert (message["scheme"], message["client"]) == ("wss", ["198.51.100.7", 0])
    assert site.socket("/", Origin=f"http://127.0.0.1:{client.port}", **FORWARDED).status == 403
    assert site.socket("/", Origin="http://site.example", **FORWARDED).status == 403  # the scheme is known
    assert site.socket("/", **{**FORWARDED, "X_Forwarded_Host": "evil.example"}).status == 400


def test_a_host_is_not_believed_unless_the_operator_says_so(new_site):
    site = new_site(proxies=Trusted.of(LOOPBACK))
    site.get("/", **FORWARDED)
    (message,) = site.messages("http.request")
    assert message["scheme"] == "https" and [b"host", b"site.example"] not in message["headers"]
    assert not [name for name, _ in message["headers"] if name == b"x-forwarded-host"]
    assert site.socket("/", Origin="https://site.example", **FORWARDED).status == 403


def test_without_the_option_the_headers_are_the_sites_own_matter(new_site):
    site = new_site()
    site.get("/", **FORWARDED)
    (message,) = site.messages("http.request")
    assert (message["scheme"], message["client"][0]) == ("http", "127.0.0.1")
    assert [b"x-forwarded-proto", b"https"] in message["headers"]


def test_a_stranger_is_not_believed(new_site):
    site = new_site(proxies=Trusted.of(["10.0.0.1"]))
    site.get("/", **FORWARDED)
    (message,) = site.messages("http.request")
    assert (message["scheme"], message["client"][0]) == ("http", "127.0.0.1")
    assert not [name for name, _ in message["headers"] if name.startswith(b"x-forwarded")]


def test_the_log_names_the_client_not_the_proxy(site, told, caplog):
    site.get("/", **FORWARDED)
    told(0)
    assert caplog.records[-1].getMessage().startswith("198.51.100.7 - - [")


# Limits by address.


def from_client(address):
    """What a proxy says of a request of this client's."""
    return {"X_Forwarded_For": address}


@pytest.fixture
def limited(new_site):
    """A server behind a proxy on this machine; each client may have two at once."""
    return new_site(proxies=Trusted.of(LOOPBACK), max_per_address=2)


def test_a_proxy_may_have_any_number_of_connections(limited):
    clients = [limited.client() for _ in range(10)]
    assert [client.ask("GET", "/").status for client in clients] == [200] * 10
    assert limited.server.connection_limits.open == 10


def test_requests_in_flight_count_by_their_client(limited):
    limited.silent("http.request")
    waiting = [limited.client() for _ in range(2)]
    for client in waiting:
        client.send_request("GET", "/", headers={"X-Forwarded-For": "192.0.2.9"})
    messages = until(lambda: len(found := limited.messages("http.request")) == 2 and found)
    refused = limited.get("/", **from_client("192.0.2.9"))
    assert (refused.status, refused.header("Connection")) == (429, "close")
    assert limited.get("/", **from_client("192.0.2.9, 192.0.2.9")).status == 429
    limited.responding({"status": 200, "content": b"another's"})
    assert limited.get("/", **from_client("192.0.2.8")).content == b"another's"
    assert limited.get("/").content == b"another's"  # the proxy's own
    for message in messages:
        limited.reply(message, status=200, content=b"done")
    assert [client.response().content for client in waiting] == [b"done"] * 2
    assert [waiting[0].ask("GET", "/", **from_client("192.0.2.9")).status for _ in range(5)] == [200] * 5
    assert not limited.server.connection_limits._by_address


def test_a_body_that_is_refused_so_is_not_read(limited):
    limited.silent("http.request")
    for _ in range(2):
        limited.client().send_request("GET", "/", headers={"X-Forwarded-For": "192.0.2.9"})
    until(lambda: len(limited.messages("http.request")) == 2)
    client = limited.client()
    headers = {"X-Forwarded-For": "192.0.2.9", "Content-Length": "1000000"}
    client.send_request("POST", "/", b"x" * 100_000, headers)
    assert client.response("POST").status == 429
    assert len(limited.messages("http.request")) == 2


def test_websockets_count_by_their_client_until_they_are_closed(limited):
    open_ones = [limited.socket(**from_client("192.0.2.9")) for _ in range(2)]
    assert [client.status for client in open_ones] == [101, 101]
    assert limited.socket(**from_client("192.0.2.9")).status == 429
    assert limited.get("/", **from_client("192.0.2.9")).status == 429
    assert limited.socket(**from_client("192.0.2.8")).status == 101
    open_ones[0].sock.close()
    until(lambda: limited.server.connection_limits._by_address["192.0.2.9"] == 1)
    assert limited.socket(**from_client("192.0.2.9")).status == 101


@pytest.mark.parametrize("refusal", ["websocket.connect", "origin"])
def test_a_handshake_that_is_refused_does_not_count(limited, refusal):
    limited.on("websocket.connect", lambda message, reply: reply(accept=False, finished=0))
    origin = {"Origin": "https://evil.example"} if refusal == "origin" else {}
    for _ in range(5):
        assert limited.socket(**from_client("192.0.2.9"), **origin).status == 403
    assert not limited.server.connection_limits._by_address


def test_a_stranger_who_says_so_counts_by_its_own_address(new_site):
    site = new_site(proxies=Trusted.of(["10.0.0.1"]), max_per_address=1)
    first = site.client()
    assert first.ask("GET", "/", **from_client("192.0.2.9")).status == 200
    assert site.client().response().status == 429


# The root path.


@pytest.fixture
def below(new_site):
    """A server whose site is below /site."""
    return new_site(root_path="/site")


@pytest.mark.parametrize("path", ["/site", "/site/", "/site/a?b=c", "/site/../a"])
def test_what_is_below_the_root_is_the_sites(below, path):
    assert below.get(path).status == 200
    (message,) = below.messages("http.request")
    assert (message["root_path"], message["path"]) == ("/site", path.partition("?")[0])


@pytest.mark.parametrize("path", ["/", "/sites", "/other/site", "//site/a", "/SITE/a"])
def test_what_is_not_is_a_404_in_a_sentence(below, path):
    answer = below.get(path)
    assert (answer.status, answer.content) == (
        404,
        b"This server's site is not at this path: see its --root-path.\n",
    )
    assert below.socket(path).status == 404
    assert below.seen == []


def test_a_websocket_below_the_root_knows_it(below):
    assert below.socket("/site/chat").status == 101
    (message,) = below.messages("websocket.connect")
    assert (message["root_path"], message["path"]) == ("/site", "/site/chat")


# Unix sockets.


class UnixClient(Client):
    """A client on a Unix socket."""

    def __init__(self, path):
        self.port, self._data = 0, b""
        self.sock = gevent_socket.socket(gevent_socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(path)


def test_a_server_listens_at_several_addresses_and_leaves_no_socket_behind(new_site, tmp_path):
    path = str(tmp_path / "s")
    addresses = (Address("", 0, path), Address("127.0.0.1", 0), Address("::1", 0))
    site = new_site(addresses=addresses, proxies=Trusted.of(["unix"]))
    unix = UnixClient(path)
    site.clients.append(unix)
    assert unix.ask("GET", "/unix", **FORWARDED).content == b"/unix"
    assert site.get("/tcp", **FORWARDED).content == b"/tcp"
    six = gevent_socket.create_connection(("::1", site.server.addresses[2].port), timeout=10)
    six.sendall(b"GET /six HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert six.recv(65_536).endswith(b"/six")
    six.close()
    seen = site.messages("http.request")
    assert [message["client"][0] for message in seen] == ["198.51.100.7", "127.0.0.1", "::1"]
    assert [message["server"] for message in seen] == [
        ["localhost", 80],
        ["127.0.0.1", site.server.address[1]],
        ["::1", site.server.addresses[2].port],
    ]
    os.link(path, path + "2")
    site.stop()
    assert not os.path.exists(path)
    os.rename(path + "2", path)  # another server's, and file systems give an inode again
    site.server.close_listeners()
    assert os.path.exists(path)


def test_a_peer_without_an_address_has_none_in_messages_and_log(new_site, tmp_path, told, caplog):
    site = new_site(addresses=(Address("", 0, str(tmp_path / "s")),))
    unix = UnixClient(str(tmp_path / "s"))
    site.clients.append(unix)
    unix.ask("GET", "/")
    assert site.messages("http.request")[0]["client"] == ["", 0]
    told(0)
    assert caplog.records[-1].getMessage().startswith("- - - [")
