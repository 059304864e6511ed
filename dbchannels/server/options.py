"""The options of the server: the parser of ``runchannels``, its help, the checks and the defaults come from here.

A field that is made by `number` is an option of the command line by its own name, ``--max-body`` for ``max_body``; one
that is made by `parsed` is read from one or more options. To add an option, add a field, and a row in docs/server.rst.
"""

from __future__ import annotations

import os
from argparse import ArgumentTypeError, BooleanOptionalAction
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from django.apps import apps
from django.conf import settings

from dbchannels.exceptions import InvalidConfiguration
from dbchannels.server.listeners import Address, SocketPermissions
from dbchannels.server.proxy_headers import LOOPBACK, Trusted
from dbchannels.server.websocket.handshake import Origins
from dbchannels.wakeup import check_timeout

Given = Mapping[str, Any]  # options of a command line, by name

#: Bytes that a client may still send after the server has refused something, so that the client sees the refusal.
LINGERING = 16_777_216
LEAST_MEMORY = 33_554_432  # bytes for --max-memory: no worker has less


def size(text: str) -> int:
    """Return a number of bytes, which may have a unit: ``64M`` is 64 MiB."""
    try:
        number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
        return int(number) << 10 * ("", "K", "M", "G").index(unit)
    except ValueError:
        raise ArgumentTypeError(
            f"{text!r} is not a size: write bytes, or use K, M or G as in 512M."
        ) from None


UNITS = {"S": float, "N": int, "BYTES": size}  # seconds, a number, bytes


def number(default: float | None, unit: str, text: str, least: float | None = None) -> Any:
    """Return a field with an option that takes a number, from ``least`` on, or above 0."""
    shown = "" if default is None else f" ({default:g})" if unit == "S" else f" ({default:,})"
    text = f"bytes {text}" if unit == "BYTES" else text
    keywords = {"type": UNITS[unit], "default": default, "metavar": unit, "help": text + shown}
    return field(default=default, metadata={"keywords": keywords, "least": least})


def parsed(default: Any, read: Callable[[Given], Any], **flags: dict[str, Any]) -> Any:
    """Return a field whose value is ``read`` from several options; ``flags`` are their arguments for argparse."""
    return field(default=default, metadata={"flags": flags, "read": read})


def check_number(name: str, value: float | None, least: float | None = None) -> float | None:
    """Return the value of an option; raise InvalidConfiguration if it is out of range."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, float):
        check_timeout(flag, value)
    if value is not None and (value <= 0 if least is None else value < least):
        raise InvalidConfiguration(
            f"{flag} takes a number {'above 0' if least is None else f'from {least:,}'}."
        )
    return value


def read_hosts(given: Given) -> tuple[str, ...]:
    """Return ALLOWED_HOSTS, or as Django does the names of this machine when DEBUG is on and it is empty."""
    if settings.DEBUG and not settings.ALLOWED_HOSTS:
        return (".localhost", "127.0.0.1", "[::1]")
    return tuple(settings.ALLOWED_HOSTS)


def read_proxies(given: Given) -> Trusted | None:
    """Return the proxies whose X-Forwarded headers are believed; None leaves these headers to the site."""
    if given["proxy_headers"]:
        return Trusted.of(given["trusted_proxies"] or LOOPBACK, given["forwarded_host"])
    for name in ("trusted_proxies", "forwarded_host"):
        if given[name]:
            raise InvalidConfiguration(
                f"--{name.replace('_', '-')} has no effect without --proxy-headers: give both."
            )
    return None


def read_root_path(given: Given) -> str:
    """Return the path below which the site is, without a slash at its end."""
    path: str = given["root_path"]
    if path and (not path.startswith("/") or "?" in path or "%" in path):
        raise InvalidConfiguration(
            f"--root-path takes a path that begins with a slash, as /site, not {path!r}."
        )
    return path.rstrip("/")


def read_takeover(given: Given) -> bool:
    """Return whether to take over from a running server."""
    if given["takeover"] and not given["control"]:
        raise InvalidConfiguration(
            "--takeover needs --control PATH, the socket of the running server: give both."
        )
    if given["detach"] and not given["takeover"]:
        raise InvalidConfiguration("--detach has no effect without --takeover: give both.")
    return bool(given["takeover"])


@dataclass(frozen=True)
class WebSocketLimits:
    """What one WebSocket may take; beyond a limit it is closed. The options begin with ``--ws-``."""

    # 1009. An empty frame costs its sender no more than 6 bytes.
    max_size: int = number(1_048_576, "BYTES", "of one message, all its fragments together, else 1009")
    max_fragments: int = number(4096, "N", "frames of one message, else 1009")
    # 1008.
    message_timeout: float = number(
        30.0, "S", "seconds for one message, from its first byte to its last, else 1008"
    )
    max_pings: int = number(1000, "N", "pings of a client in ten seconds, else 1008")
    # 1006. The pings are spread by a tenth.
    ping_interval: float = number(20.0, "S", "seconds between two pings of the server")
    silence: float = number(
        60.0, "S", "seconds without a byte from a client, pongs included, until it counts as gone: 1006"
    )
    # 1001.
    idle_timeout: float = number(
        0.0, "S", "seconds without a message until a socket is closed with 1001; 0: never", 0
    )
    lifetime: float = number(0.0, "S", "seconds until a socket is closed with 1001; 0: never", 0)
    # 1013. See budget.py for max_memory.
    max_memory: int = number(
        2_097_152,
        "BYTES",
        "of unconsumed data of one client, beyond which it is not read; at least twice --ws-max-size",
    )
    send_timeout: float = number(
        20.0, "S", "seconds within which a client that reads slowly must read something, else 1013"
    )
    waiting_frames: int = number(64, "N", "frames that may wait for a client that reads slowly, else 1013")
    waiting_bytes: int = number(1_048_576, "BYTES", "of these frames, else 1013")

    @classmethod
    def from_options(cls, given: Given) -> WebSocketLimits:
        """Read and check the options. Raises InvalidConfiguration."""
        values = read_fields(cls, given, "ws_")
        if values["silence"] <= values["ping_interval"]:
            raise InvalidConfiguration(
                "--ws-silence must be longer than --ws-ping-interval: only pongs break a silence."
            )
        values["max_memory"] = max(values["max_memory"], 2 * values["max_size"])
        return cls(**values)


@dataclass(frozen=True)
class ServerConfig:
    """How the interface server works. Times are seconds, sizes bytes."""

    #: None: see `listen_all`.
    addresses: tuple[Address, ...] = parsed(
        (),
        lambda given: tuple(Address.parse(text) for text in [given.get("address"), *given["bind"]] if text),
        bind={
            "action": "append",
            "default": [],
            "metavar": "ADDRESS",
            "help": "where to listen: [ADDR:]PORT, or unix:PATH for a Unix socket; can be given more than once",
        },
    )
    socket_permissions: SocketPermissions = parsed(
        SocketPermissions(),
        lambda given: SocketPermissions.parse(given["socket_mode"], given["socket_owner"]),
        socket_mode={"default": "660", "metavar": "MODE", "help": "permissions of a Unix socket (660)"},
        socket_owner={
            "default": "",
            "metavar": "USER[:GROUP]",
            "help": "owner of a Unix socket (that of this process)",
        },
    )
    allowed_hosts: tuple[str, ...] = parsed((), read_hosts)
    origins: Origins = parsed(
        Origins(), lambda given: Origins(tuple(settings.CSRF_TRUSTED_ORIGINS), settings.DEBUG)
    )
    proxies: Trusted | None = parsed(
        None,
        read_proxies,
        proxy_headers={
            "action": "store_true",
            "help": "take the client and the scheme from X-Forwarded-For and X-Forwarded-Proto of trusted proxies",
        },
        forwarded_host={
            "action": "store_true",
            "help": "with --proxy-headers: the host too, from X-Forwarded-Host; only if the proxy always sets it",
        },
        trusted_proxies={
            "action": "append",
            "default": [],
            "metavar": "LIST",
            "help": f"with --proxy-headers: addresses, networks, and unix for Unix sockets ({','.join(LOOPBACK)})",
        },
    )
    root_path: str = parsed(
        "",
        read_root_path,
        root_path={
            "default": "",
            "metavar": "PATH",
            "help": "the path below which the site is, such as /site",
        },
    )
    health_address: Address | None = parsed(
        None,
        lambda given: Address.parse(given["probe_port"]) if given["probe_port"] else None,
        probe_port={
            "default": "",
            "metavar": "[ADDR:]PORT",
            "help": "where to answer /healthz, /readyz and /metrics, on 127.0.0.1 unless an address is given (nowhere)",
        },
    )

    # Connections. There are never more than the limit of open files allows.
    max_connections: int = number(16_000, "N", "connections at once, WebSockets among them, else 503")
    max_per_address: int | None = number(
        None,
        "N",
        "connections of one address, or IPv6 /64 network, else 429 (1,000; from this machine any number)",
    )
    max_waiting_per_address: int | None = number(
        None,
        "N",
        "unanswered requests, and frames, of one address in the layer; others wait (32; from this machine any number)",
    )
    max_requests: int = number(0, "N", "requests on one connection before it is closed; 0: any number", 0)

    # One request.
    max_line: int = number(8_192, "BYTES", "of a request's first line, which contains the URL, else 414")
    max_head: int = number(32_768, "BYTES", "of a request's headers, else 431")
    max_headers: int = number(100, "N", "headers of a request, else 431")
    max_body: int = number(104_857_600, "BYTES", "of a request's body, else 413", 0)

    # The bodies of all requests together, and of all responses. With less memory no body could begin.
    max_body_memory: int = number(
        268_435_456,
        "BYTES",
        "of memory for the bodies of all requests, else 503, and as much for responses",
        1_048_576,
    )
    max_spool: int = number(1_073_741_824, "BYTES", "of the disk for the bodies of all requests, else 503")
    max_response_spool: int = number(
        1_073_741_824, "BYTES", "of the disk for responses to clients that read slowly", 1_048_576
    )
    max_websocket_memory: int = number(
        67_108_864, "BYTES", "of memory for what all WebSockets sent, and as much for what waits for them"
    )

    head_timeout: float = number(15.0, "S", "seconds for a request's first line and headers, else 408")
    body_timeout: float = number(
        30.0,
        "S",
        "seconds without a byte of a request's body, else 408; for the whole body as many, and one for each KiB",
    )
    keep_alive_timeout: float = number(
        60.0, "S", "seconds between two requests on one connection before it is closed", 0
    )
    write_timeout: float = number(
        60.0,
        "S",
        "seconds within which a client must read 64 KiB of its response, else its connection is closed",
    )
    http_timeout: float = number(
        60.0, "S", "seconds for a worker's response, and between two parts of it, else 504"
    )
    later_timeout: float = number(
        600.0, "S", "seconds for the response, once a view has raised ResponseLater, else 504"
    )
    handshake_timeout: float = 15.0  # until the connect consumer has decided
    graceful_timeout: float = number(
        10.0, "S", "seconds for requests and consumers to finish when the server stops", 0
    )
    drain_timeout: float = number(60.0, "S", "seconds for the old server's requests after a takeover", 0)
    drain_websockets: float = number(
        5.0, "S", "seconds over which the old server closes its WebSockets after a takeover, with 1012", 0
    )

    ws_compression: bool = parsed(
        False,
        lambda given: given["ws_compression"],
        ws_compression={
            "action": "store_true",
            "help": "compress messages of WebSockets, with clients that offer it (off)",
        },
    )
    websocket: WebSocketLimits = parsed(WebSocketLimits(), WebSocketLimits.from_options)

    @classmethod
    def from_options(cls, given: Given) -> ServerConfig:
        """Read and check the options. Raises InvalidConfiguration."""
        values = read_fields(cls, given)
        values["handshake_timeout"] = min(values["http_timeout"], cls.handshake_timeout)
        if values["max_body"] > values["max_spool"]:
            raise InvalidConfiguration(
                f"--max-body takes no more than --max-spool, {values['max_spool']}, where all bodies have room "
                "together: raise that too."
            )
        return cls(**values)


@dataclass(frozen=True)
class LaunchConfig:
    """What ``runchannels`` or ``runserver`` starts: the server, and the workers beside it."""

    server: ServerConfig = parsed(ServerConfig(), ServerConfig.from_options)
    #: Processes; with a layer in memory, threads. Four at least, so that some are always free.
    workers: int = number(
        None, "N", "worker processes; 0: the server alone (the number of cores, but at least 4)", 0
    )
    max_messages: int | None = number(
        None, "N", "messages after which a worker is replaced; up to a tenth fewer, at random", 1
    )
    max_memory: int | None = number(
        None,
        "BYTES",
        "of memory above which a worker is replaced after its message; up to a tenth less, at random",
        LEAST_MEMORY,
    )
    layer: str = parsed(
        "default",
        lambda given: given["layer"],
        layer={"default": "default", "metavar": "ALIAS", "help": "the alias in DBCHANNELS (default)"},
    )
    wait_for_database: float = number(
        60.0, "S", "seconds to wait at the start for a database that cannot be reached; 0: not at all", 0
    )
    static: bool = parsed(
        False,
        lambda given: (
            settings.DEBUG and not given["nostatic"] and apps.is_installed("django.contrib.staticfiles")
        ),
        nostatic={"action": "store_true", "help": "do not serve static files when DEBUG is on"},
    )
    #: Views run in so many threads of the server; 0: in the workers.
    threads: int = parsed(
        0,
        lambda given: check_number("threads", given["threads"], 1) if given["http"] == "direct" else 0,
        http={
            "choices": ("channels", "direct"),
            "default": "channels",
            "help": "where views run: in workers, or in threads of the server itself (channels)",
        },
        threads={
            "type": int,
            "default": 16,
            "metavar": "N",
            "help": "threads for views, with --http=direct (16)",
        },
    )
    control: Address | None = parsed(
        None,
        lambda given: Address.parse(f"unix:{given['control']}") if given["control"] else None,
        control={
            "default": "",
            "metavar": "PATH",
            "help": "a Unix socket, for this user alone, at which another server can take over (none)",
        },
    )
    takeover: bool = parsed(
        False,
        read_takeover,
        takeover={
            "action": "store_true",
            "help": "take over from the server at --control once this one is ready; if there is none, just start",
        },
        detach={
            "action": "store_true",
            "help": "with --takeover: serve in the background, and return once it has taken over",
        },
    )
    access_log: bool = parsed(
        True,
        lambda given: given["access_log"],
        access_log={
            "action": BooleanOptionalAction,
            "default": True,
            "help": "write a line for each request and WebSocket (on)",
        },
    )
    access_log_format: str = parsed(
        "combined",
        lambda given: given["access_log_format"],
        access_log_format={
            "choices": ("combined", "json"),
            "default": "combined",
            "help": "the form of these lines: as Apache and nginx write them, or an object of JSON (combined)",
        },
    )
    passed_on: tuple[str, ...] = ()  # options of manage.py itself that child processes need too

    @classmethod
    def from_options(cls, given: Given) -> LaunchConfig:
        """Read and check the options of a command. Raises InvalidConfiguration."""
        values = read_fields(cls, {**DEFAULTS, **given})
        if values["workers"] is None:
            values["workers"] = max(4, os.cpu_count() or 1)
        for name in ("max_messages", "max_memory"):
            if values[name] is not None and not values["workers"]:
                raise InvalidConfiguration(
                    f"--{name.replace('_', '-')} has no effect with --workers 0: give it to runworker."
                )
        if given.get("pythonpath"):
            values["passed_on"] = (f"--pythonpath={given['pythonpath']}",)
        return cls(**values)


def read_fields(cls: type, given: Given, prefix: str = "") -> dict[str, Any]:
    """Return the values of a class's fields that options set."""
    values = {}
    for one in fields(cls):
        if "read" in one.metadata:
            values[one.name] = one.metadata["read"](given)
        elif one.metadata:
            name = prefix + one.name
            value: Any = one.default if given[name] is None else given[name]
            values[one.name] = check_number(name, value, one.metadata["least"])
    return values


#: The options of ``runchannels``, with their arguments for argparse.
FLAGS: dict[str, dict[str, Any]] = {
    name: keywords
    for cls, prefix in ((LaunchConfig, ""), (ServerConfig, ""), (WebSocketLimits, "ws_"))
    for one in fields(cls)
    for name, keywords in one.metadata.get("flags", {prefix + one.name: one.metadata.get("keywords")}).items()
    if keywords
}
DEFAULTS = {name: keywords.get("default", False) for name, keywords in FLAGS.items()}


def add_options(parser: Any, *names: str) -> None:
    """Add options to a command's parser, all of them unless some are named."""
    for name in names or FLAGS:
        parser.add_argument(f"--{name.replace('_', '-')}", **FLAGS[name])
