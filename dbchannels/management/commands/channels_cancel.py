"""``manage.py channels_cancel``: cancel durable messages, those that run among them."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from dbchannels.layers.base import BaseLayer
from dbchannels.layers.orm import STATES
from dbchannels.management.output import (
    LayerCommand,
    ask,
    by_channel,
    counted,
    counts,
    in_batches,
    on_database,
    operator,
    parse_duration,
)
from dbchannels.models import DurableMessage


class Command(LayerCommand):
    help = "Cancels messages on channels of the site's own: deletes those that wait, and ends consumers that run."

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument(
            "channels",
            nargs="*",
            metavar="CHANNEL",
            help="cancel the messages of these channels, or of those that match a pattern such as 'reports.*' (all)",
        )
        super().add_arguments(parser)
        parser.add_argument(
            "--id",
            type=int,
            action="append",
            metavar="N",
            help="only this message, by its number in the admin; can be given more than once",
        )
        parser.add_argument("--state", choices=STATES, help="only messages in this state")
        parser.add_argument(
            "--older-than", metavar="TIME", help="only messages sent so long ago: 90s, 10m, 12h or 30d"
        )
        parser.add_argument("--all", action="store_true", help="do not ask before all of these are cancelled")
        parser.add_argument(
            "--no-input", "--noinput", action="store_true", dest="all", help="the same as --all"
        )

    def act(self, layer: BaseLayer, options: dict[str, Any]) -> None:
        layer = on_database(layer)
        rows = by_channel(
            layer.rows(DurableMessage).filter(cancelled_by=""), options["channels"], options["id"]
        )
        if options["state"]:
            rows = rows.filter(STATES[options["state"]])
        if options["older_than"]:
            rows = rows.filter(sent_at__lt=layer.now() - parse_duration(options["older_than"]))
        if not options["all"]:
            found = counts(rows)
            if not found:
                raise CommandError(NONE)
            ask(self, found, f"Cancel {counted(sum(found.values()), 'message')}?", "--all")
        running, by = 0, operator()

        def cancel(ids: list[int]) -> int:
            nonlocal running
            deleted, marked = layer.cancel(ids, by)
            running += marked
            return deleted + marked

        def result(number: int) -> str:
            ended = f" {counted(running, 'worker')} must end a consumer for it." if running else ""
            return f"{counted(number, 'message')} {'was' if number == 1 else 'were'} cancelled.{ended}"

        done = in_batches(self, rows, cancel, result)
        if not done:
            raise CommandError(NONE)
        self.stdout.write(result(done))


NONE = "No message matches: see channels_status, or the admin for a list."
