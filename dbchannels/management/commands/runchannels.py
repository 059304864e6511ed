"""``manage.py runchannels``: the interface server, and the workers beside it."""

from __future__ import annotations

import logging
from typing import Any

from dbchannels.management.output import LongRunningCommand, log_to_terminal
from dbchannels.processes import handover, production
from dbchannels.server.access_log import use_format
from dbchannels.server.options import LaunchConfig, add_options


class Command(LongRunningCommand):
    help = "Serves HTTP and WebSockets on one port, and runs the workers that answer them."
    requires_system_checks: list[str] = []  # noqa: RUF012  (a child runs them: they import the site's code)

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument(
            "address", nargs="?", default="", metavar="[ADDR:]PORT", help="where to listen (127.0.0.1:8000)"
        )
        add_options(parser)
        parser.add_argument(
            "--ready",
            type=int,
            metavar="N",
            help="set by runchannels: a descriptor to write to once it has taken over",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        log_to_terminal(options["verbosity"])
        try:
            config = LaunchConfig.from_options(options)
            logging.getLogger("dbchannels.access").disabled = not config.access_log
            use_format(config.access_log_format)
            if options["detach"] and options["ready"] is None:
                if not handover.detach():
                    raise SystemExit(1)  # the other process has said why
                return
            production.run(config, self.stdout.write, options["ready"])
        except KeyboardInterrupt:  # before it serves: it may have waited for the database
            raise SystemExit(130) from None
