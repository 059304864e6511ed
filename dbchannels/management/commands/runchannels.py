"""``manage.py runchannels``: the interface server, and the workers beside it."""

from __future__ import annotations

import re
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from dbchannels import serving
from dbchannels.exceptions import DBChannelsError
from dbchannels.management.output import log_to_terminal
from dbchannels.management.websocket_options import add_websocket_options

ADDRESS = re.compile(r"(?:(?P<host>\[[0-9a-fA-F:]+\]|[^:\[\]]+):)?(?P<port>\d{1,5})\Z")


class Command(BaseCommand):
    help = "Serves HTTP and WebSockets on one port, and runs the workers that answer them."
    requires_system_checks: list[str] = []  # noqa: RUF012  (a child runs them: they import the site's code)

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("address", nargs="?", default="127.0.0.1:8000", metavar="[ADDR:]PORT")
        parser.add_argument(
            "--workers",
            type=int,
            default=None,
            metavar="N",
            help="worker processes (default: the number of cores, at least 2; 0: the server alone)",
        )
        parser.add_argument("--layer", default="default", help="the alias in DBCHANNELS (default: default)")
        parser.add_argument(
            "--http-timeout",
            type=float,
            default=60.0,
            metavar="S",
            help="seconds until a request is given up (60)",
        )
        parser.add_argument(
            "--graceful-timeout",
            type=float,
            default=10.0,
            metavar="S",
            help="seconds to finish in at the end (10)",
        )
        add_websocket_options(parser)
        parser.add_argument(
            "--nostatic", action="store_true", help="do not serve static files when DEBUG is on"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        log_to_terminal(options["verbosity"])
        host, port = parse_address(options["address"])
        try:
            serving.run(serving.Plan.of(host, port, options), self.stdout.write)
        except DBChannelsError as error:
            raise CommandError(str(error)) from None


def parse_address(text: str) -> tuple[str, int]:
    """Return (host, port) of ``8000``, ``0.0.0.0:8000`` or ``[::1]:8000``."""
    found = ADDRESS.match(text)
    if found is None or int(found["port"]) > 65_535:
        raise CommandError(
            f"{text!r} is no address: give a port, as 8000, or an address and a port, as 0.0.0.0:8000."
        )
    return (found["host"] or "127.0.0.1").strip("[]"), int(found["port"])
