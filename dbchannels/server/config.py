"""What the operator of the interface server may set: the one place, told to users in docs/server.rst."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dbchannels.exceptions import InvalidConfiguration
from dbchannels.server.budget import TOTAL
from dbchannels.server.http.parser import HeadLimits
from dbchannels.server.limits import Limits
from dbchannels.server.listeners import Address, SocketPermissions
from dbchannels.server.proxy_headers import Trusted
from dbchannels.server.websocket.handshake import Origins
from dbchannels.waiting import check_timeout


class Options(NamedTuple):
    """Times in seconds, sizes in bytes. FLAGS says which of them runchannels takes, and docs/server.rst what for."""

    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    origins: Origins = Origins()  # whose pages may open WebSockets

    # Who may come in. A cap of connections is never above what the descriptors suffice for.
    max_connections: int = 16_000  # HTTP and WebSockets together
    max_per_address: int | None = None  # None: 1,000, and any number from this machine itself
    max_waiting_per_address: int | None = None  # requests in the layer; None: 32, and the same
    max_requests: int = 0  # on one connection, which is closed then; 0: any number

    # What a request may take.
    max_line: int = 8_192  # the first line, which has the address
    max_head: int = 32_768  # all header lines
    max_headers: int = 100  # their number
    max_body: int = 104_857_600  # 100 MiB, of which little is in memory: see the next two

    # What the bodies of all requests together may take, and those of all responses.
    max_body_memory: int = 268_435_456  # 256 MiB, for each of the two
    max_spool: int = 1_073_741_824  # 1 GiB, of the disk
    max_response_spool: int = 1_073_741_824  # 1 GiB

    # How long it may take.
    head_timeout: float = 15.0  # from a head's first byte to its last, or the connection's beginning
    body_timeout: float = 30.0  # without a byte of it; in all so long and a second for each KiB
    keep_alive_timeout: float = 60.0  # between two requests
    write_timeout: float = 60.0  # until the client has taken 64 KiB of its response
    http_timeout: float = 60.0  # until the first message of the response, and between two
    later_timeout: float = 600.0  # the same, once a view has raised ResponseLater
    handshake_timeout: float = 15.0  # until the connect consumer has decided
    drain_timeout: float = 10.0  # for requests under way when the server stops
    websocket: Limits = Limits()
    max_websocket_memory: int = TOTAL  # for what their clients sent, and as much for what they do not read
    ws_compression: bool = False  # permessage-deflate, with clients that offer it
    binds: tuple[Address, ...] = ()  # where to listen; none: at host and port
    socket_permissions: SocketPermissions = SocketPermissions()  # of Unix sockets
    # Whose X-Forwarded headers are believed; None: nobody's, and they are left alone.
    proxies: Trusted | None = None
    root_path: str = ""  # below which the site is, "/site"
    probe: Address | None = None  # where /healthz and /readyz are answered

    def is_outside(self, path: str) -> bool:
        """Whether a request's path is not below the site's root."""
        return bool(self.root_path) and not f"{path}/".startswith(f"{self.root_path}/")

    @property
    def head_limits(self) -> HeadLimits:
        """Return what the reader of heads goes by."""
        return HeadLimits(self.max_line, self.max_head, self.max_headers)


#: What runchannels takes as an option, ``--max-body`` for ``max_body``, with its help.
FLAGS = {
    "max_connections": "connections at once, WebSockets among them",
    "max_per_address": "the same from one address, an IPv6 /64 network (1000, and any number from this machine)",
    "max_waiting_per_address": "unanswered requests of one address in the layer (32, and any number from this machine)",
    "max_requests": "requests on one connection, 0: any number",
    "max_line": "bytes of a request's first line, which has the address",
    "max_head": "bytes of a request's headers",
    "max_headers": "headers of a request",
    "max_body": "bytes of a request's body",
    "max_body_memory": "bytes of memory for the bodies of all requests together, and as many for responses",
    "max_spool": "bytes of the disk for the bodies of all requests together",
    "max_response_spool": "bytes of the disk for responses that clients take more slowly than they are made",
    "max_websocket_memory": "bytes of memory for what all WebSockets sent, and as many for what waits for them",
    "head_timeout": "seconds for a request's first line and headers",
    "body_timeout": "seconds without a byte of a request's body, and in all so many and one for each KiB",
    "keep_alive_timeout": "seconds between two requests on one connection",
    "write_timeout": "seconds until the client has taken 64 KiB of its response",
    "later_timeout": "seconds until a request is given up whose view has raised ResponseLater",
}
#: Where it is not 1. Below its own the memory would not do for one body's beginning.
LEAST = {"max_requests": 0, "max_body": 0, "max_body_memory": 1_048_576, "max_response_spool": 1_048_576}


def checked(given: Mapping[str, float | None]) -> dict[str, Any]:
    """Return those of the FLAGS that were given, checked; raises InvalidConfiguration with what to give instead."""
    found: dict[str, Any] = {}
    for name in FLAGS:
        value, option = given.get(name), f"--{name.replace('_', '-')}"
        if value is None:
            continue
        if name.endswith("timeout"):
            check_timeout(option, value)
        elif value < LEAST.get(name, 1):
            least = LEAST.get(name)
            raise InvalidConfiguration(f"{option} takes a number {f'from {least}' if least else 'above 0'}.")
        found[name] = value
    body, spool = (found.get(name, Options._field_defaults[name]) for name in ("max_body", "max_spool"))
    if body > spool:
        raise InvalidConfiguration(
            f"--max-body takes no more than --max-spool, {spool}, where all bodies have room together: raise that too."
        )
    return found
