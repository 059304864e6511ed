"""``manage.py channels_purge``: delete old dead letters."""

from __future__ import annotations

from typing import Any

from dbchannels.layers.base import BaseLayer
from dbchannels.management.output import (
    LayerCommand,
    ask,
    by_channel,
    counted,
    in_batches,
    on_database,
    parse_duration,
)
from dbchannels.models import DeadLetter


class Command(LayerCommand):
    help = "Deletes old dead letters."

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument(
            "--older-than",
            required=True,
            metavar="TIME",
            help="those that failed longer ago than this: 90s, 10m, 12h or 30d",
        )
        parser.add_argument(
            "--channel",
            action="append",
            default=[],
            metavar="PATTERN",
            help="only those of this channel, or of channels that match a pattern; can be given more than once (all)",
        )
        super().add_arguments(parser)
        parser.add_argument("--no-input", "--noinput", action="store_true", help="do not ask")

    def act(self, layer: BaseLayer, options: dict[str, Any]) -> None:
        layer, age = on_database(layer), options["older_than"]
        before = layer.now() - parse_duration(age)
        rows = by_channel(layer.rows(DeadLetter), options["channel"]).filter(failed_at__lt=before)
        if not options["no_input"]:
            ask(self, rows, f"Delete {{}} older than {age}?", "dead letter", "--no-input")

        def result(number: int) -> str:
            return f"{counted(number, 'dead letter')} {'was' if number == 1 else 'were'} deleted."

        done = in_batches(self, rows, lambda ids: rows.filter(id__in=ids).delete()[0], result)
        self.stdout.write(result(done) if done else f"Nothing is older than {age}.")
