"""``manage.py runchannels``: the interface server, and the workers beside it."""

from __future__ import annotations

import logging
from argparse import BooleanOptionalAction
from typing import Any

from django.core.management.base import CommandError

from dbchannels.exceptions import DBChannelsError
from dbchannels.management.limit_options import add_limit_options
from dbchannels.management.output import TellingCommand, add_wait_option, log_to_terminal
from dbchannels.processes import production
from dbchannels.processes.plan import Plan
from dbchannels.server.listeners import Address
from dbchannels.server.proxy_headers import LOOPBACK


class Command(TellingCommand):
    help = "Serves HTTP and WebSockets on one port, and runs the workers that answer them."
    requires_system_checks: list[str] = []  # noqa: RUF012  (a child runs them: they import the site's code)

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument(
            "address", nargs="?", default="", metavar="[ADDR:]PORT", help="where to listen (127.0.0.1:8000)"
        )
        parser.add_argument(
            "--bind",
            action="append",
            default=[],
            metavar="ADDRESS",
            help="the same, as often as you like: [ADDR:]PORT or unix:/run/site.sock",
        )
        parser.add_argument(
            "--socket-mode", default="660", metavar="MODE", help="who may use a Unix socket (660)"
        )
        parser.add_argument(
            "--socket-owner", default="", metavar="USER[:GROUP]", help="whose it is (this process's)"
        )
        parser.add_argument(
            "--proxy-headers",
            action="store_true",
            help="take client and scheme from X-Forwarded-For and -Proto of a trusted proxy",
        )
        parser.add_argument(
            "--forwarded-host",
            action="store_true",
            help="take the host from its X-Forwarded-Host as well: a proxy that does not set it passes on a client's",
        )
        parser.add_argument(
            "--trusted-proxies",
            action="append",
            default=[],
            metavar="LIST",
            help=f"addresses, networks, and the word unix for peers of Unix sockets ({','.join(LOOPBACK)})",
        )
        parser.add_argument(
            "--root-path", default="", metavar="PATH", help="the site is below this path, as /site"
        )
        parser.add_argument(
            "--probe-port",
            default="",
            metavar="[ADDR:]PORT",
            help="answer /healthz and /readyz here (not at all)",
        )
        parser.add_argument(
            "--access-log",
            action=BooleanOptionalAction,
            default=True,
            help="a line for each request and WebSocket",
        )
        parser.add_argument(
            "--workers",
            type=int,
            default=None,
            metavar="N",
            help="worker processes (default: the number of cores, at least 4; 0: the server alone)",
        )
        parser.add_argument("--layer", default="default", help="the alias in DBCHANNELS (default: default)")
        parser.add_argument(
            "--http-timeout",
            type=float,
            default=60.0,
            metavar="S",
            help="seconds until a request is given up that no worker answers (60)",
        )
        parser.add_argument(
            "--graceful-timeout",
            type=float,
            default=10.0,
            metavar="S",
            help="seconds to finish in at the end (10)",
        )
        add_wait_option(parser)
        add_limit_options(parser)
        parser.add_argument(
            "--nostatic", action="store_true", help="do not serve static files when DEBUG is on"
        )
        parser.add_argument(
            "--http",
            choices=("channels", "direct"),
            default="channels",
            help="where views run: in workers, or in threads of the server itself (channels)",
        )
        parser.add_argument(
            "--threads", type=int, default=16, metavar="N", help="threads for views, with --http direct (16)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        log_to_terminal(options["verbosity"])
        logging.getLogger("dbchannels.access").disabled = not options["access_log"]
        host, port = parse_address(options["address"] or "8000")
        if options["address"] and options["bind"]:
            options["bind"].insert(0, options["address"])
        try:
            production.run(Plan.of(host, port, options), self.stdout.write)
        except KeyboardInterrupt:  # before it serves: it may have waited for the database
            raise SystemExit(130) from None
        except DBChannelsError as error:
            raise CommandError(str(error)) from None


def parse_address(text: str) -> tuple[str, int]:
    """Return (host, port) of ``8000``, ``0.0.0.0:8000`` or ``[::1]:8000``."""
    try:
        return Address.parse(text)[:2]
    except DBChannelsError as error:
        raise CommandError(str(error)) from None
