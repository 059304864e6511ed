"""``manage.py channels_pause``: let the messages of channels wait."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from django.db import transaction

from dbchannels.exceptions import DBChannelsError
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.overview import overview
from dbchannels.management.output import LayerCommand, ago, consumers_of, near, on_database, operator


class Command(LayerCommand):
    help = "Pauses channels of the site's own: their messages wait until channels_resume. Running ones are finished."

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("channels", nargs="+", metavar="CHANNEL", help="pause this channel")
        super().add_arguments(parser)

    def act(self, layer: BaseLayer, options: dict[str, Any]) -> None:
        layer = on_database(layer)
        with transaction.atomic(using=layer.database):  # all of them or none
            paused = {name: layer.pause(name, operator()) for name in dict.fromkeys(options["channels"])}
        found = {one.channel: one for one in overview(layer).channels}
        known = {
            one.channel for one in found.values() if one.ready or one.delayed or one.running or one.workers
        }
        with suppress(DBChannelsError):  # the routing may be what is to be mended
            known |= consumers_of(layer.alias).keys()
        for name, is_new in paused.items():
            one = found.get(name)
            if not is_new and one and one.pause:
                who, when = one.pause.paused_by or "somebody", ago(one.pause.paused_at)
                self.stdout.write(f"{name} was paused already, by {who}, {when}.")
                continue
            self.stdout.write(f"{name} is paused: run 'manage.py channels_resume {name}' to resume it.")
            if name not in known:
                self.warn(f"No route and no message has the channel {name}.{near(name, known)}")
