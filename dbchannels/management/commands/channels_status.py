"""``manage.py channels_status``: what waits and runs on each channel, and who takes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from fnmatch import fnmatchcase
from time import sleep
from typing import Any

from django.db import Error, connections

from dbchannels.exceptions import DBChannelsError
from dbchannels.layers import channel_layers
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.orm import DjangoLayer
from dbchannels.layers.overview import MOST, ChannelStatus, Overview, ProcessStatus, overview
from dbchannels.management.output import (
    LayerCommand,
    ago,
    aligned,
    consumers_of,
    counted,
    on_database,
    sentence,
    short,
)
from dbchannels.names import is_protocol
from dbchannels.wakeup import check_timeout

CHANNELS = ("CHANNEL", "READY", "DELAYED", "RUNNING", "DEAD", "OLDEST", "PAUSED", "TAKEN BY")
PROCESSES = ("PROCESS", "KIND", "HOST", "PID", "STATE", "UP", "RUNS")
EXACT = 2**31 - 1
CLEAR = "\x1b[H\x1b[2J"  # the cursor goes to the first line, and the screen is cleared

Consumers = dict[str, list[str]]


class Command(LayerCommand):
    help = "Shows what waits and runs on each channel, who takes it, and the servers and workers."

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument(
            "patterns",
            nargs="*",
            metavar="PATTERN",
            help="show only these channels, or those that match a pattern such as 'reports.*' (all)",
        )
        parser.add_argument(
            "--watch",
            nargs="?",
            type=float,
            const=2.0,
            metavar="S",
            help="show it again every S seconds, 2 unless given, until Ctrl-C",
        )
        parser.add_argument("--json", action="store_true", help="write an object, for programs")
        parser.add_argument(
            "--exact", action="store_true", help=f"count to the end, instead of to {MOST:,} on each channel"
        )
        super().add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["watch"] is None:
            super().handle(*args, **options)
            return
        try:
            check_timeout("--watch", options["watch"])
            self.watch(options)
        except KeyboardInterrupt:
            self.stdout.write("")

    def act(self, layer: BaseLayer, options: dict[str, Any]) -> None:
        self.stdout.write(self.shown(on_database(layer), options))

    def watch(self, options: dict[str, Any]) -> None:
        """Show it again and again; an outage of the database is shown too, and does not end it."""
        layer = on_database(channel_layers[options["layer"]])
        is_terminal = self.stdout.isatty()
        while True:
            try:
                text = self.shown(layer, options)
            except (DBChannelsError, Error) as error:
                connections[layer.database].close()
                text = f"{sentence(error)} Trying again."
            if is_terminal:
                width, height = shutil.get_terminal_size()
                text = CLEAR + "\n".join(line[:width] for line in text.splitlines()[: height - 1])
            self.stdout.write(text if is_terminal or options["json"] else f"{text}\n")
            self.stdout.flush()
            sleep(options["watch"])

    def shown(self, layer: DjangoLayer, options: dict[str, Any]) -> str:
        """Return what the command prints."""
        note, consumers = "", Consumers()
        try:
            consumers = consumers_of(layer.alias)
        except DBChannelsError as error:
            note = f"\nThe routing cannot be read, so channels without messages are missing: {error}"
        found = overview(layer, EXACT if options["exact"] else MOST)
        present = {one.channel for one in found.channels}
        idle = [ChannelStatus(name) for name in consumers if name not in present and not is_protocol(name)]
        channels = [
            one
            for one in sorted([*found.channels, *idle], key=lambda one: one.channel)
            if not options["patterns"] or any(fnmatchcase(one.channel, text) for text in options["patterns"])
        ]
        shown = Overview(channels, found.processes, found.note)
        note += f"\n{found.note}" * bool(found.note)
        return as_json(shown, consumers) if options["json"] else as_text(shown, consumers) + note


def as_json(found: Overview, consumers: Consumers) -> str:
    """Return everything as a JSON object on one line."""
    channels = [
        {
            **{
                name: getattr(one, name)
                for name in ("channel", "ready", "delayed", "running", "dead", "oldest")
            },
            "more": sorted(one.more),
            "paused": one.pause and {"by": one.pause.paused_by, "since": one.pause.paused_at.isoformat()},
            "workers": one.workers,
            "consumers": consumers.get(one.channel, []),
        }
        for one in found.channels
    ]
    processes = [{**one._asdict(), "started_at": one.started_at.isoformat()} for one in found.processes]
    return json.dumps({"channels": channels, "processes": processes, "note": found.note})


def as_text(found: Overview, consumers: Consumers) -> str:
    """Return two tables."""
    lines = aligned([CHANNELS, *(channel_line(one, consumers) for one in found.channels)])
    if not found.channels:
        lines = ["No channel matches, or none has a message, a consumer or a worker."]
    lines += ["", *aligned([PROCESSES, *map(process_line, found.processes)])]
    if not found.processes:
        lines[-1] = "No server and no worker is on record: start runchannels."
    return "\n".join(lines)


def channel_line(one: ChannelStatus, consumers: Consumers) -> list[str]:
    """Return the cells of a channel."""
    numbers = [
        f"{number:,}{'+' * (name in one.more)}" if number or name in one.more else "-"
        for name in ("ready", "delayed", "running", "dead")
        for number in [getattr(one, name)]
    ]
    takes = counted(len(one.workers), "worker") if one.workers else "nobody"
    if one.read_by_servers:
        takes = "its server"
    elif one.durable and one.channel not in consumers:
        takes += ", no consumer"
    return [
        one.channel,
        *numbers,
        "-" if one.oldest is None else short(one.oldest),
        f"{ago(one.pause.paused_at)} by {one.pause.paused_by or 'somebody'}" if one.pause else "-",
        takes,
    ]


def process_line(one: ProcessStatus) -> list[str]:
    """Return the cells of a process."""
    runs = str(one.work.get("runs") or "")
    since: Iterable[str] = [f" since {one.work['since']}"] if runs and one.work.get("since") else []
    state = "alive" if one.alive else "lease expired"
    return [
        one.name,
        one.kind,
        one.host,
        str(one.pid),
        state,
        ago(one.started_at).removesuffix(" ago"),
        runs + "".join(since) or "-",
    ]
