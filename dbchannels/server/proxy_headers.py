"""The X-Forwarded headers of a request that comes through a proxy, pure.

They are not a standard; this is what nginx, HAProxy and the load balancers of clouds send. Any client can send them
too, so they are read only if the peer of the socket is a proxy that the operator has named.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dbchannels.exceptions import InvalidConfiguration
from dbchannels.server.http.headers import RawHeaders, match_host, split_list, values
from dbchannels.server.http.messages import Request

#: The proxies that are believed by default: this machine, and all peers of Unix sockets.
LOOPBACK = ("127.0.0.0/8", "::1", "unix")

FOR, PROTO, HOST = b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"
_SCHEMES = {b"http": "http", b"ws": "http", b"https": "https", b"wss": "https"}
LONGEST_HOST = 255  # characters
# An address with a port: an IPv6 one has brackets then, and may have them without.
_WITH_PORT = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<four>[0-9.]+))(?::(?P<port>[0-9]{1,5}))?\Z")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Trusted(NamedTuple):
    """The proxies whose headers are believed."""

    networks: tuple[Network, ...]
    unix: bool  # peers of Unix sockets, which have no address
    host: bool = (
        False  # whether X-Forwarded-Host is believed: a proxy that does not set it passes on a client's
    )

    @classmethod
    def of(cls, texts: Iterable[str], host: bool = False) -> Trusted:
        """Read addresses, networks, and the word ``unix``. Raises InvalidConfiguration."""
        words = [word.strip() for text in texts for word in text.split(",") if word.strip()]
        networks = []
        for word in filter("unix".__ne__, words):
            try:
                networks.append(ipaddress.ip_network(word))
            except ValueError:
                raise InvalidConfiguration(
                    f"{word!r} in --trusted-proxies is not an address or network: "
                    "write one as 10.0.0.1, 10.0.0.0/8 or fd00::/8, or the word unix."
                ) from None
        return cls(tuple(networks), "unix" in words, host)

    def believes(self, host: str) -> bool:
        """Whether the peer with this address is believed; a Unix socket's peer has none, ""."""
        if not host:
            return self.unix
        address = read_address(host)
        return address is not None and self.contains(address)

    def contains(self, address: Address) -> bool:
        """Whether an address is in one of the networks."""
        return any(address in network for network in self.networks)


def forwarded(request: Request, trusted: Trusted) -> Request:
    """Return the request as its client made it.

    If the peer is believed: the client is the right-most address of X-Forwarded-For that is not a trusted proxy; the
    scheme is the last one in X-Forwarded-Proto; with ``trusted.host``, the Host is the last one in X-Forwarded-Host.
    Malformed values are ignored. A header that is not believed is dropped, so that no view believes it.
    """
    headers = request.headers
    if not trusted.believes(request.client[0]):
        return request._replace(headers=[pair for pair in headers if pair[0] not in (FOR, PROTO, HOST)])
    host = _last(headers, HOST) if trusted.host else b""
    match = match_host(host.decode("latin-1"))
    if match is None or len(match[1]) > LONGEST_HOST or match[2] == "":
        believed = [pair for pair in headers if pair[0] != HOST]
    else:
        believed = [(b"host", host), *(pair for pair in headers if pair[0] != b"host")]
    return request._replace(
        client=_client(split_list(values(headers, FOR)), trusted) or request.client,
        scheme=forwarded_scheme(headers) or request.scheme,
        headers=believed,
    )


def forwarded_scheme(headers: RawHeaders) -> str:
    """Return the scheme in X-Forwarded-Proto, or ""."""
    return _SCHEMES.get(_last(headers, PROTO).lower(), "")


def _last(headers: RawHeaders, name: bytes) -> bytes:
    """Return the item of the nearest proxy: each adds to the end of the list."""
    return (split_list(values(headers, name)) or [b""])[-1]


def _client(items: Sequence[bytes], trusted: Trusted) -> tuple[str, int] | None:
    """Go from the right: each proxy adds its peer, so an address is true if a trusted proxy added it."""
    found = None
    for item in reversed(items):
        # 192.0.2.1, 192.0.2.1:80, 2001:db8::1 or [2001:db8::1]:80
        text = item.decode("latin-1")
        match = _WITH_PORT.match(text)
        address = read_address(match["six"] or match["four"] if match else text)
        if address is None:  # "unknown", or forged: what is left of it is no better
            break
        port = int(match["port"] or 0) if match else 0
        found = str(address), port if port <= 65_535 else 0
        if not trusted.contains(address):
            break
    return found


def read_address(host: str) -> Address | None:
    """Return an address without its scope, and ``::ffff:192.0.2.1`` as IPv4; None if the text is not an address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
