"""``manage.py channels_doctor``: whether the site is well, and what to do if it is not."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import CommandError

from dbchannels.layers import channel_layers
from dbchannels.management.doctor import NOTE, OK, WRONG, Patient, examine
from dbchannels.management.output import ChannelsCommand, counted, on_database
from dbchannels.server.options import ServerConfig, add_options

WORDS = {OK: "OK   ", NOTE: "NOTE ", WRONG: "WRONG"}


class Command(ChannelsCommand):
    help = (
        "Looks at the settings, the database, the processes and the channels, and says for each that it is in order or "
        "what to do. The exit status is 1 if something is wrong."
    )
    requires_system_checks: list[str] = []  # noqa: RUF012  (it runs them itself, and only counts their errors)

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("--json", action="store_true", help="write a list of objects, for programs")
        parser.add_argument(
            "--max-connections",
            type=int,
            default=ServerConfig.max_connections,
            metavar="N",
            help=f"what runchannels is given ({ServerConfig.max_connections:,})",
        )
        add_options(parser, "layer")

    def handle(self, *args: Any, **options: Any) -> None:
        layer = on_database(channel_layers[options["layer"]])
        styles = {OK: self.style.SUCCESS, NOTE: self.style.WARNING, WRONG: self.style.ERROR}
        found = []
        for number, (name, finding) in enumerate(examine(Patient(layer, options["max_connections"])), 1):
            found.append({"number": number, "check": name, "status": finding.level, "text": finding.text})
            if not options["json"]:
                self.stdout.write(f"{number:2}. {styles[finding.level](WORDS[finding.level])} {finding.text}")
        if options["json"]:
            self.stdout.write(json.dumps(found, indent=2))
        wrong = sum(one["status"] == WRONG for one in found)
        if wrong:
            raise CommandError(f"{counted(wrong, 'thing')} to put right.")
