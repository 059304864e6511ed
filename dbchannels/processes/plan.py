"""What the command line of ``runchannels`` or ``runserver`` asks for, checked."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from django.apps import apps
from django.conf import settings

from dbchannels.exceptions import InvalidConfiguration
from dbchannels.server.config import Options, checked
from dbchannels.server.limits import checked_limits
from dbchannels.server.listeners import Address, SocketPermissions
from dbchannels.server.proxy_headers import LOOPBACK, Trusted
from dbchannels.server.websocket.handshake import Origins
from dbchannels.waiting import check_timeout


class Plan(NamedTuple):
    """The interface server's options, and what is started beside it."""

    server: Options
    workers: int  # processes; as threads where the layer is in memory
    layer: str
    static: bool  # static files are served as while DEBUG is on
    passed_on: tuple[str, ...]  # options of manage.py itself that the children need too
    wait_for_database: float = 0.0  # seconds at the start
    threads: int = 0  # views run in so many threads of the server; 0: in the workers

    @property
    def graceful_timeout(self) -> float:
        """Seconds in which requests and consumers are to end."""
        return self.server.drain_timeout

    @classmethod
    def of(cls, host: str, port: int, options: dict[str, Any]) -> Plan:
        """Fill in the defaults: as many workers as cores, and four at least, so that some are always kept free."""
        workers = options["workers"]
        if workers is None:
            workers = max(4, os.cpu_count() or 1)
        if workers < 0:
            raise InvalidConfiguration("--workers takes a number from 0.")
        passed_on = [f"--pythonpath={options['pythonpath']}"] if options.get("pythonpath") else []
        return cls(
            server_options(host, port, options),
            workers,
            options["layer"],
            settings.DEBUG and not options["nostatic"] and apps.is_installed("django.contrib.staticfiles"),
            tuple(passed_on),
            check_timeout("--wait-for-database", options["wait_for_database"]),
            check_threads(options["threads"]) if options.get("http") == "direct" else 0,
        )


def server_options(host: str, port: int, options: dict[str, Any]) -> Options:
    """Return what the interface server goes by."""
    http_timeout = check_timeout("--http-timeout", options["http_timeout"])
    return Options(
        host,
        port,
        allowed_hosts(),
        trusted_origins(),
        http_timeout=http_timeout,
        handshake_timeout=min(http_timeout, Options().handshake_timeout),
        drain_timeout=check_timeout("--graceful-timeout", options["graceful_timeout"]),
        websocket=checked_limits(options),
        ws_compression=bool(options.get("ws_compression")),
        binds=tuple(map(Address.parse, options.get("bind") or ())),
        socket_permissions=SocketPermissions.parse(
            options.get("socket_mode") or "660", options.get("socket_owner") or ""
        ),
        proxies=trusted(options),
        root_path=check_root_path(options.get("root_path") or ""),
        probe=Address.parse(options["probe_port"]) if options.get("probe_port") else None,
        **checked(options),
    )


def allowed_hosts() -> tuple[str, ...]:
    """Return ALLOWED_HOSTS, or with DEBUG and none the local ones, as Django does."""
    if settings.DEBUG and not settings.ALLOWED_HOSTS:
        return (".localhost", "127.0.0.1", "[::1]")
    return tuple(settings.ALLOWED_HOSTS)


def trusted_origins() -> Origins:
    """Return whose pages may open WebSockets: with DEBUG those of this machine, on any port."""
    return Origins(tuple(settings.CSRF_TRUSTED_ORIGINS), settings.DEBUG)


def trusted(options: dict[str, Any]) -> Trusted | None:
    """Return whose X-Forwarded headers are believed; None: they are left to the site."""
    if options.get("proxy_headers"):
        return Trusted.of(options.get("trusted_proxies") or LOOPBACK, bool(options.get("forwarded_host")))
    for name in ("trusted_proxies", "forwarded_host"):
        if options.get(name):
            option = name.replace("_", "-")
            raise InvalidConfiguration(f"--{option} says nothing without --proxy-headers: give both.")
    return None


def check_root_path(path: str) -> str:
    """Return a path below which a site is, without a slash at its end."""
    if path and (not path.startswith("/") or "?" in path or "%" in path):
        raise InvalidConfiguration(
            f"--root-path takes a path that begins with a slash, as /site, not {path!r}."
        )
    return path.rstrip("/")


def check_threads(threads: int) -> int:
    """Return a number of threads."""
    if threads < 1:
        raise InvalidConfiguration("--threads takes a number from 1.")
    return threads
