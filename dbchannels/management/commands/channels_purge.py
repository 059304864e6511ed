"""``manage.py channels_purge``: delete old dead letters, or old messages that wait."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError
from django.db.models import Q

from dbchannels.layers.base import BaseLayer
from dbchannels.management.output import (
    LayerCommand,
    ask,
    by_channel,
    counted,
    counts,
    in_batches,
    on_database,
    parse_duration,
)
from dbchannels.models import DeadLetter, DurableMessage


class Command(LayerCommand):
    help = "Deletes old dead letters, or old messages that wait on channels of the site's own."

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument(
            "--older-than",
            required=True,
            metavar="TIME",
            help="dead letters that failed so long ago, or messages sent so long ago: 90s, 10m, 12h or 30d",
        )
        parser.add_argument(
            "--dead-letters", action="store_true", help="delete dead letters; needed only beside --waiting"
        )
        parser.add_argument(
            "--waiting",
            action="store_true",
            help="delete messages that are due and that no worker has taken; needs --channel",
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
        layer, age = on_database(layer), parse_duration(options["older_than"])
        if options["waiting"] and not options["channel"]:
            raise CommandError(
                "--waiting deletes messages that have not run: name their channels by --channel."
            )
        before, found = layer.now() - age, []
        if options["dead_letters"] or not options["waiting"]:
            letters = by_channel(layer.rows(DeadLetter), options["channel"]).filter(failed_at__lt=before)
            found.append(("dead letter", letters))
        if options["waiting"]:
            due = Q(due_at=None) | Q(due_at__lte=layer.now())
            rows = layer.rows(DurableMessage).filter(due, claimed_by=None, sent_at__lt=before)
            found.append(("waiting message", by_channel(rows, options["channel"])))
        deleted = 0
        for word, rows in found:
            by_name = {} if options["no_input"] else counts(rows)
            if by_name:
                number = counted(sum(by_name.values()), word)
                ask(self, by_name, f"Delete {number} older than {options['older_than']}?", "--no-input")

            def result(number: int, word: str = word) -> str:
                return f"{counted(number, word)} {'was' if number == 1 else 'were'} deleted."

            done = in_batches(self, rows, lambda ids, rows=rows: rows.filter(id__in=ids).delete()[0], result)
            if done:
                self.stdout.write(result(done))
            deleted += done
        if not deleted:
            self.stdout.write(f"Nothing is older than {options['older_than']}.")
