"""``manage.py channels_cancel``: cancel durable messages, those that run among them."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from dbchannels.layers.base import BaseLayer
from dbchannels.layers.orm import STATES
from dbchannels.management.output import (
    RowsCommand,
    ask,
    by_channel,
    counted,
    in_batches,
    on_database,
    operator,
    parse_duration,
)
from dbchannels.models import DurableMessage


class Command(RowsCommand):
    help = "Cancels messages on channels of the site's own: deletes those that wait, and ends consumers that run."
    row, done = "message", "cancelled"

    def add_arguments(self, parser: Any) -> None:
        super().add_arguments(parser)
        parser.add_argument("--state", choices=STATES, help="only messages in this state")
        parser.add_argument(
            "--older-than", metavar="TIME", help="only messages older than this: 90s, 10m, 12h or 30d"
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
            ask(self, rows, "Cancel {}?", "message", "--all")
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
            raise CommandError("No message matches: see channels_status, or the admin for a list.")
        self.stdout.write(result(done))
