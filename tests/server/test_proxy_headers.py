"""Whom the server believes, and what it makes of truths and lies in X-Forwarded headers."""

from __future__ import annotations

import pytest

from dbchannels.exceptions import InvalidConfiguration
from dbchannels.server.http.messages import Request, connect_message
from dbchannels.server.proxy_headers import LOOPBACK, Trusted, forwarded
from dbchannels.testing.contract.case import raises

OURS = Trusted.of([*LOOPBACK, "10.0.0.0/8, fd00::/8"], host=True)
PROXY = ("127.0.0.1", 5000)


def request(*headers, client=PROXY):
    """A request with these headers, from this peer."""
    given = [(b"host", b"inner:8000"), *((name.lower().encode(), value) for name, value in headers)]
    return Request("GET", "/", "1.1", given, "http", client, ("127.0.0.1", 8000))


def client_of(*values, client=PROXY):
    """The client that lines of X-Forwarded-For make."""
    return forwarded(request(*(("X-Forwarded-For", one) for one in values), client=client), OURS).client


# Who is believed.


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "10.1.2.3", "fd00::7", ""]
)
def test_the_proxies_of_the_list_are_believed(host):
    assert forwarded(request(("X-Forwarded-Proto", b"https"), client=(host, 1)), OURS).scheme == "https"


@pytest.mark.parametrize("host", ["192.0.2.1", "11.0.0.1", "::2", "fe80::1", "::ffff:192.0.2.1", "unix"])
def test_all_others_are_not_and_their_claims_are_dropped(host):
    told = request(
        ("X-Forwarded-Proto", b"https"),
        ("X-Forwarded-For", b"198.51.100.7"),
        ("X-Forwarded-Host", b"bank.example"),
        ("X-Other", b"kept"),
        client=(host, 1),
    )
    seen = forwarded(told, OURS)
    assert (seen.scheme, seen.client) == ("http", (host, 1))
    assert seen.headers == [(b"host", b"inner:8000"), (b"x-other", b"kept")]


def test_a_unix_sockets_peer_is_believed_only_when_it_is_named():
    told = request(("X-Forwarded-For", b"198.51.100.7"), client=("", 0))
    assert forwarded(told, Trusted.of(["unix"])).client == ("198.51.100.7", 0)
    assert forwarded(told, Trusted.of(["127.0.0.1"])).client == ("", 0)


def test_nobody_is_believed_when_nobody_is_named():
    assert forwarded(request(("X-Forwarded-For", b"198.51.100.7")), Trusted.of([])).client == PROXY


def test_the_list_is_words_or_commas():
    assert Trusted.of(["10.0.0.1,unix", " ::1 , 192.0.2.0/24"]) == Trusted.of(
        ["10.0.0.1", "::1", "192.0.2.0/24", "unix"]
    )


@pytest.mark.parametrize("word", ["*", "proxy.example", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "UNIX", "1"])
def test_what_is_no_address_or_network_is_refused_in_a_sentence(word):
    with raises(InvalidConfiguration) as error:
        Trusted.of([word])
    assert error.sentence.startswith(f"{word!r} in --trusted-proxies is not an address or network: ")


# The client.


@pytest.mark.parametrize(
    ("values", "client"),
    [
        # Truths.
        ([b"198.51.100.7"], ("198.51.100.7", 0)),
        ([b"198.51.100.7:4711"], ("198.51.100.7", 4711)),
        ([b"2001:db8::1"], ("2001:db8::1", 0)),
        ([b"[2001:db8::1]"], ("2001:db8::1", 0)),
        ([b"[2001:db8::1]:4711"], ("2001:db8::1", 4711)),
        ([b"::ffff:198.51.100.7"], ("198.51.100.7", 0)),
        ([b"198.51.100.7, 10.0.0.1, 10.0.0.2"], ("198.51.100.7", 0)),
        ([b"198.51.100.7", b"10.0.0.1"], ("198.51.100.7", 0)),
        ([b"10.0.0.3, 10.0.0.1"], ("10.0.0.3", 0)),  # a client inside: the first of ours
        # Lies: what a client sends stands left of what the proxy adds.
        ([b"127.0.0.1, 198.51.100.7"], ("198.51.100.7", 0)),
        ([b"10.0.0.9, 198.51.100.7"], ("198.51.100.7", 0)),
        ([b"192.0.2.1", b"198.51.100.7"], ("198.51.100.7", 0)),
        ([b"192.0.2.1, 198.51.100.7, 10.0.0.1"], ("198.51.100.7", 0)),
        ([b"<script>, 198.51.100.7"], ("198.51.100.7", 0)),
        # What is none: the last true address before it.
        ([b"unknown, 10.0.0.1"], ("10.0.0.1", 0)),
        ([b"192.0.2.1, unknown, 10.0.0.1"], ("10.0.0.1", 0)),
        ([b"192.0.2.1, , 10.0.0.1"], ("10.0.0.1", 0)),
        ([b"192.0.2.1,"], PROXY),
        ([b"unknown"], PROXY),
        ([b""], PROXY),
        ([b"localhost"], PROXY),
        ([b"198.51.100"], PROXY),
        ([b"198.51.100.7.9"], PROXY),
        ([b"198.51.100.7:"], PROXY),
        ([b"198.51.100.7:99999"], ("198.51.100.7", 0)),
        ([b"198.51.100.7:x"], PROXY),
        ([b"[198.51.100.7"], PROXY),
        ([b"2001:db8::1]:80"], PROXY),
        ([b"1"], PROXY),
        ([b"\xd9\xa1.1.1.1"], PROXY),
        ([b"198.51.100.7\x00"], PROXY),
        ([b"198.51.100.7;DROP"], PROXY),
        ([b"9" * 5000], PROXY),
        ([b"," * 5000], PROXY),
        ([], PROXY),
    ],
)
def test_the_client_is_the_last_address_that_a_proxy_of_ours_vouches_for(values, client):
    assert client_of(*values) == client


def test_from_a_unix_socket_without_a_word_of_the_client_nobody_is_known():
    assert client_of(client=("", 0)) == ("", 0)


# Scheme and host.


@pytest.mark.parametrize(
    ("values", "scheme"),
    [
        ([b"https"], "https"),
        ([b"HTTPS"], "https"),
        ([b"wss"], "https"),
        ([b"http"], "http"),
        ([b"ws"], "http"),
        ([b"https, http"], "http"),  # the client's lie, and what the proxy added
        ([b"https", b"http"], "http"),
        ([b"http, https"], "https"),
        ([b"https,"], "http"),
        ([b"ftp"], "http"),
        ([b"https://"], "http"),
        ([b"https\x00"], "http"),
        ([b""], "http"),
        ([], "http"),
    ],
)
def test_the_scheme_is_the_one_that_the_nearest_proxy_names(values, scheme):
    seen = forwarded(request(*(("X-Forwarded-Proto", one) for one in values)), OURS)
    assert seen.scheme == scheme
    assert connect_message(seen, "r!x")["scheme"] == {"http": "ws", "https": "wss"}[scheme]


@pytest.mark.parametrize(
    ("values", "host"),
    [
        ([b"site.example"], "site.example"),
        ([b"site.example:8443"], "site.example:8443"),
        ([b"[2001:db8::1]:8443"], "[2001:db8::1]:8443"),
        ([b"evil.example, site.example"], "site.example"),
        ([b"evil.example", b"site.example"], "site.example"),
        ([b"site.example/evil"], "inner:8000"),
        ([b"user@site.example"], "inner:8000"),
        ([b"site.example:port"], "inner:8000"),
        ([b"site.example:443:443"], "inner:8000"),
        ([b"site example"], "inner:8000"),
        ([b"\xe9.example"], "inner:8000"),
        ([b"site.example,"], "inner:8000"),
        ([b"a" * 256], "inner:8000"),
        ([b""], "inner:8000"),
        ([], "inner:8000"),
    ],
)
def test_the_host_becomes_the_one_that_the_nearest_proxy_names(values, host):
    seen = forwarded(request(*(("X-Forwarded-Host", one) for one in values)), OURS)
    assert seen.host() == host
    assert [name for name, _ in seen.headers].count(b"host") == 1
    if host == "inner:8000":  # not believed, so no view is to believe it
        assert seen.header(b"x-forwarded-host") is None
    unheard = forwarded(request(*(("X-Forwarded-Host", one) for one in values)), OURS._replace(host=False))
    assert (unheard.host(), unheard.header(b"x-forwarded-host")) == ("inner:8000", None)


def test_a_believed_proxys_headers_stay_where_they_were():
    told = request(("X-Forwarded-For", b"198.51.100.7"), ("Cookie", b"a=b"))
    assert forwarded(told, OURS).headers == told.headers
