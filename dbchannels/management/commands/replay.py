"""``manage.py replay``: run dead letters again."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from dbchannels.exceptions import DBChannelsError
from dbchannels.layers import channel_layers
from dbchannels.management.output import run_again
from dbchannels.server.options import add_options


class Command(BaseCommand):
    help = "Moves dead letters back to their channels, where they run from the first attempt."

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument(
            "channels", nargs="*", metavar="CHANNEL", help="run the dead letters of these channels (all)"
        )
        add_options(parser, "layer")
        parser.add_argument(
            "--id",
            type=int,
            action="append",
            metavar="N",
            help="only this dead letter, by its number in the admin; can be given more than once",
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
            raise CommandError("No dead letter matches: see the admin for a list.")
        self.stdout.write(run_again(moved))
