"""What the operator of the interface server may set: the one place, told to users in docs/settings.rst."""

from __future__ import annotations

from typing import NamedTuple

from dbchannels.interface.binding import Bind, SocketRights
from dbchannels.interface.limits import Limits
from dbchannels.interface.proxy import Trusted


class Options(NamedTuple):
    """What the operator may set; times in seconds, sizes in bytes."""

    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    http_timeout: float = 60.0  # until the first message of the response
    handshake_timeout: float = 15.0  # until the connect consumer has decided
    drain_timeout: float = 10.0  # for requests under way when the server stops
    max_body: int = 1_114_112  # 1 MiB, and 64 KiB for the form around it
    websocket: Limits = Limits()
    binds: tuple[Bind, ...] = ()  # where to listen; none: at host and port
    socket_rights: SocketRights = SocketRights()  # of Unix sockets
    proxies: Trusted | None = (
        None  # whose X-Forwarded headers are believed; None: nobody's, and they are left alone
    )
    root_path: str = ""  # below which the site is, "/site"
    probe: Bind | None = None  # where /healthz and /readyz are answered
