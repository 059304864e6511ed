"""``manage.py replay``: let dead letters run again."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from dbchannels.exceptions import DBChannelsError
from dbchannels.layers import channel_layers
from dbchannels.management.output import run_again


class Command(BaseCommand):
    help = "Moves dead letters back to their channels, where they run from the first attempt."

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("channels", nargs="*", metavar="CHANNEL", help="of these channels (default: all)")
        parser.add_argument("--layer", default="default", help="the alias in DBCHANNELS (default: default)")
        parser.add_argument(
            "--id", type=int, action="append", metavar="N", help="this one alone, as the admin numbers it"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            layer = channel_layers[options["layer"]]
            layer.check()
            found = layer.dead_letter_ids(options["channels"])
            wanted = found if options["id"] is None else set(found).intersection(options["id"])
            moved = layer.replay(wanted)
        except DBChannelsError as error:
            raise CommandError(str(error)) from None
        if not moved:
            raise CommandError("No dead letter matches: the admin lists those there are.")
        self.stdout.write(run_again(moved))
