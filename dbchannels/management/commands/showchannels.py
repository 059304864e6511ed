"""``manage.py showchannels``: which consumer runs for which messages, in the order in which they are tried."""

from __future__ import annotations

import json
from dataclasses import fields
from fnmatch import fnmatchcase
from typing import Any

from django.core.management.base import CommandError

from dbchannels.conf import layer_settings
from dbchannels.management.output import ChannelsCommand, aligned
from dbchannels.names import is_protocol
from dbchannels.routing.routes import ConsumerOptions
from dbchannels.routing.table import Routing, load_routing
from dbchannels.server.options import add_options

Row = dict[str, Any]

HEADINGS = ("CHANNEL", "FILTERS", "CONSUMER", "OPTIONS")
OWN_SOCKETS = ("dbchannels.admin.", "dbchannels.consumers.")
VIEWS: Row = {
    "channel": "http.request",
    "durable": False,
    "filters": {},
    "consumer": "(the site's views)",
    "name": "",
    "options": {},
    "behind": None,
}


class Command(ChannelsCommand):
    help = (
        "Lists the channels with their consumers, filters and options, in the order in which they are tried."
    )
    requires_system_checks: list[str] = []  # noqa: RUF012  (it helps to find out why they fail)

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument(
            "patterns",
            nargs="*",
            metavar="PATTERN",
            help="show only channels, consumers and names that match, such as 'websocket.*' (all)",
        )
        parser.add_argument("--json", action="store_true", help="write a list of objects, for programs")
        add_options(parser, "layer")

    def handle(self, *args: Any, **options: Any) -> None:
        routing = load_routing(layer_settings(options["layer"]).routing, options["layer"])
        patterns = options["patterns"] or ["*"]
        rows = [
            row
            for row in rows_of(routing)
            if any(fnmatchcase(row[key], one) for key in ("channel", "consumer", "name") for one in patterns)
        ]
        if not options["patterns"]:  # the sockets of dbchannels itself are listed if a pattern asks for them
            rows = [row for row in rows if not row["consumer"].startswith(OWN_SOCKETS)]
        if not rows:
            raise CommandError("No channel, consumer or name matches: leave out PATTERN to list all.")
        self.stdout.write(json.dumps(rows, indent=2) if options["json"] else "\n".join(table(rows)))


def rows_of(routing: Routing) -> list[Row]:
    """Return each route, in order, as values for JSON. The site's views come last, because they are tried last."""
    rows: list[Row] = []
    shadowed = routing.shadowed()
    for number, bound in enumerate(routing.bound_routes()):
        route, behind = bound.route, shadowed.get(number)
        options = {field.name: getattr(route.options, field.name) for field in fields(route.options)}
        options["every"] = options["every"] and str(route.options.interval())
        defaults = ConsumerOptions(route.channel)
        rows.append(
            {
                "channel": route.channel,
                "durable": not is_protocol(route.channel),
                "filters": bound.shown_filters(),
                "consumer": route.name,
                "name": bound.url_name,
                "options": {
                    key: f"{value.__module__}.{value.__qualname__}" if callable(value) else value
                    for key, value in options.items()
                    if value != getattr(defaults, key)
                },
                "behind": behind and behind.route.name,  # it takes every message before this one
            }
        )
    return [*rows, VIEWS]


def table(rows: list[Row]) -> list[str]:
    """Return the lines of the table, aligned."""
    lines = [HEADINGS]
    for row in rows:
        named = {"name": row["name"]} if row["name"] else {}
        given = {**named, **row["options"]}
        options = [key if value is True else f"{key}={value}" for key, value in given.items()]
        if row["behind"]:
            options.append(f"NEVER REACHED: behind {row['behind']}")
        filters = " ".join(f"{key}={text}" for key, text in row["filters"].items())
        lines.append((row["channel"], filters or "-", row["consumer"], " ".join(options)))
    return aligned(lines)
