"""``manage.py channels_resume``: end the pause of channels."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from dbchannels.layers.base import BaseLayer
from dbchannels.management.output import LayerCommand, near, on_database


class Command(LayerCommand):
    help = "Ends the pause of channels: workers take their messages again."

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("channels", nargs="*", metavar="CHANNEL", help="resume this channel")
        parser.add_argument("--all", action="store_true", help="resume all channels that are paused")
        super().add_arguments(parser)

    def act(self, layer: BaseLayer, options: dict[str, Any]) -> None:
        layer = on_database(layer)
        if bool(options["channels"]) == options["all"]:
            raise CommandError("Name the channels to resume, or give --all.")
        paused = layer.paused()
        if options["all"] and not paused:
            self.stdout.write("No channel is paused.")
        for name in dict.fromkeys(options["channels"] or paused):
            if layer.resume(name):
                self.stdout.write(f"{name} runs again.")
            else:
                self.warn(f"{name} was not paused.{near(name, paused)}")
