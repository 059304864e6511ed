"""``manage.py replay``: run dead letters again."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from dbchannels import names
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.orm import DjangoLayer
from dbchannels.management.output import (
    RowsCommand,
    ask,
    by_channel,
    in_batches,
    on_database,
    parse_moment,
    run_again,
)
from dbchannels.models import DeadLetter

FILTERS = ("channels", "id", "error", "since", "until")


class Command(RowsCommand):
    help = "Moves dead letters back to their channels, where they run from the first attempt."
    row, done = "dead letter", "moved"

    def add_arguments(self, parser: Any) -> None:
        super().add_arguments(parser)
        parser.add_argument("--error", metavar="TEXT", help="only those with this text in their traceback")
        parser.add_argument(
            "--since",
            metavar="TIME",
            help="only those that failed at this time or later: 2026-01-31T08:00, or 12h for 12 hours ago",
        )
        parser.add_argument("--until", metavar="TIME", help="only those that failed before this time")
        parser.add_argument(
            "--to", default="", metavar="CHANNEL", help="send them to this channel (their own)"
        )

    def act(self, layer: BaseLayer, options: dict[str, Any]) -> None:
        to = options["to"]
        if to and names.is_protocol(names.check_channel_name(to)):
            raise CommandError(f"Dead letters cannot run on {to}: name one of the site's own channels.")
        if isinstance(layer, DjangoLayer) or any(options[one] for one in ("error", "since", "until")):
            moved = self.replay(on_database(layer), options)
        else:
            found = layer.dead_letter_ids(options["channels"])
            wanted = found if options["id"] is None else set(found).intersection(options["id"])
            moved = layer.replay(wanted, to)
        if not moved:
            raise CommandError("No dead letter matches: see the admin for a list.")
        self.stdout.write(run_again(moved))

    def replay(self, layer: DjangoLayer, options: dict[str, Any]) -> int:
        """Run those that match the filters again; return how many."""
        rows = by_channel(layer.rows(DeadLetter), options["channels"], options["id"])
        if options["error"]:
            rows = rows.filter(error__contains=options["error"])
        if options["since"]:
            rows = rows.filter(failed_at__gte=parse_moment(options["since"]))
        if options["until"]:
            rows = rows.filter(failed_at__lt=parse_moment(options["until"]))
        if not options["all"] and not any(options[one] for one in FILTERS):
            ask(self, rows, "Run all of them again?", "dead letter", "--all")
        return in_batches(self, rows, lambda ids: layer.replay(ids, options["to"]), run_again)
