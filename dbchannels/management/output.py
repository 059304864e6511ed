"""What several commands share: options of other frameworks, the log, the layer, tables, questions, batches, times."""

from __future__ import annotations

import atexit
import difflib
import gc
import getpass
import io
import logging
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import Error
from django.db.models import Count
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from dbchannels import conf, other_libraries
from dbchannels.exceptions import DBChannelsError, InvalidConfiguration
from dbchannels.layers import channel_layers
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.orm import DjangoLayer
from dbchannels.processes.first import leave_first_place
from dbchannels.routing.table import load_routing
from dbchannels.server.access_log import TerminalFormatter
from dbchannels.server.options import add_options

BATCH = 1000  # rows of one transaction
PROGRESS = 2.0  # seconds between two lines of progress
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class ChannelsCommand(BaseCommand):
    """A command that ends with one sentence when dbchannels raises an error of its own."""

    def execute(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute(*args, **options)
        except DBChannelsError as error:
            raise CommandError(str(error)) from None


class LongRunningCommand(ChannelsCommand):
    """A command that runs until it is stopped. It answers an option of another framework with the name here."""

    def run_from_argv(self, argv: list[str]) -> None:
        leave_first_place()
        # What was imported stays: no collection walks through it, and neither do the last ones, at the end of Python.
        gc.freeze()
        atexit.register(gc.freeze)
        super().run_from_argv(argv)

    def create_parser(self, *arguments: Any, **keywords: Any) -> Any:
        parser = super().create_parser(*arguments, **keywords)
        refuse = parser.error

        def error(message: str) -> None:
            _, unknown, given = message.partition("unrecognized arguments: ")
            words = [word.partition("=")[0] for word in given.split()] if unknown else []
            hints = [
                f"for {word}, {advice}"
                for word in words
                if (advice := other_libraries.advice("command", word))
            ]
            if words and not words[0].startswith("-") and "--only" in parser.format_usage():
                hints.append(f"write --only {words[0]}")  # Channels' command takes the names themselves
            refuse("; ".join([message, *hints]))

        parser.error = error  # type: ignore[method-assign]
        return parser


def log_to_terminal(verbosity: int) -> None:
    """Show the log of dbchannels on standard error, unless the site's LOGGING has a handler for it.

    Standard output is flushed at each line, even if it is a pipe, so that the log of a container shows a line at once.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    log = logging.getLogger("dbchannels")
    if log.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TerminalFormatter("[%(asctime)s] %(message)s", "%d/%b/%Y %H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.WARNING if verbosity == 0 else logging.INFO)


def run_again(number: int) -> str:
    """Return the result of a replay as a sentence: ``3 dead letters run again.``"""
    return f"{number:,} dead letters run again." if number != 1 else "1 dead letter runs again."


# Commands on the layer.


class LayerCommand(ChannelsCommand):
    """A command that does something with the layer of ``--layer``; what goes wrong is one sentence."""

    requires_system_checks: list[str] = []  # noqa: RUF012  (Django's own attribute)

    def add_arguments(self, parser: Any) -> None:
        add_options(parser, "layer")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            layer = channel_layers[options["layer"]]
            layer.check()
            self.act(layer, options)
        except (DBChannelsError, Error) as error:
            raise CommandError(sentence(error)) from None
        except UnicodeEncodeError as error:
            raise CommandError(
                f"{error.object!r} has bytes that are not UTF-8, as no name and no key has: write it in UTF-8."
            ) from None

    def act(self, layer: BaseLayer, options: dict[str, Any]) -> None:
        """Do what the command is for. May raise DBChannelsError, or one of Django's database errors."""
        raise NotImplementedError

    def warn(self, text: str) -> None:
        """Write a warning to standard error."""
        self.stderr.write(self.style.WARNING(text))


class RowsCommand(LayerCommand):
    """A command on the rows of channels: of some, of some ids, or of all after a question."""

    row, done = "", ""  # such as "message" and "cancelled"

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument(
            "channels",
            nargs="*",
            metavar="CHANNEL",
            help=f"only {self.row}s of these channels, or of those that match a pattern such as 'reports.*' (all)",
        )
        super().add_arguments(parser)
        parser.add_argument(
            "--id",
            type=int,
            action="append",
            metavar="N",
            help=f"only this {self.row}, by its number in the admin; can be given more than once",
        )
        parser.add_argument(
            "--all", action="store_true", help=f"do not ask before all of these {self.row}s are {self.done}"
        )
        parser.add_argument(
            "--no-input", "--noinput", action="store_true", dest="all", help="the same as --all"
        )


def sentence(error: BaseException) -> str:
    """Return what an error says on one line; of a database's, only its first line."""
    text = str(error).strip()
    if isinstance(error, DBChannelsError):
        return text
    return f"The database refuses this: {text.partition(chr(10))[0] or type(error).__name__}."


def operator() -> str:
    """Return who runs a command: ``the command line (ann@host)``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user need have no name
        user = "somebody"
    return f"the command line ({user}@{socket.gethostname()})"


def on_database(layer: BaseLayer) -> DjangoLayer:
    """Return a layer whose rows are in a database of the site; raises InvalidConfiguration for any other."""
    if isinstance(layer, DjangoLayer):
        return layer
    raise InvalidConfiguration(
        f"The layer {layer.alias!r} is not on a database of the site, and this command reads its rows: give a layer "
        "that is by --layer."
    )


def consumers_of(alias: str) -> dict[str, list[str]]:
    """Return the names of the consumers of each channel by the site's routing; raises InvalidConfiguration."""
    found: dict[str, list[str]] = {}
    for one in load_routing(conf.layer_settings(alias).routing, alias).bound_routes():
        names = found.setdefault(one.route.channel, [])
        if one.route.name not in names:
            names.append(one.route.name)
    return found


def near(name: str, known: Iterable[str]) -> str:
    """Return advice for a name that is not known: `` Did you mean 'invoices'?``, or nothing."""
    found = difflib.get_close_matches(name, sorted(known), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


# Tables, counts and times.


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose columns are two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def counted(number: int, word: str) -> str:
    """Return a number with its word: ``1 message``, ``2,000 messages``."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def short(seconds: float) -> str:
    """Return a duration for people to read: 3.2 s, 42 s, 4 min, 5 h, 3 d."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def ago(moment: datetime) -> str:
    """Return how long ago a moment was: ``3 min ago``."""
    return f"{short(max(0.0, (timezone.now() - moment).total_seconds()))} ago"


def parse_duration(text: str) -> timedelta:
    """Read a duration such as 90s, 10m, 12h or 30d; raises CommandError."""
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if not found:
        raise CommandError(
            f"{text!r} is not a duration: write a number and a unit, such as 90s, 10m, 12h or 30d."
        )
    seconds = int(found[1]) * UNITS[found[2]]
    if seconds > conf.TEN_YEARS:
        raise CommandError(f"{text!r} is longer than ten years: give a shorter time.")
    return timedelta(seconds=seconds)


def parse_moment(text: str) -> datetime:
    """Read a moment in ISO format, in the site's time zone unless it names one, or a duration before now.

    The result is naive if USE_TZ is False, as the values of the models are. Raises CommandError.
    """
    if re.fullmatch(r"\d+[smhd]", text):
        return timezone.now() - parse_duration(text)
    try:
        found = parse_datetime(text)
        day = None if found else parse_date(text)
    except ValueError:
        found = day = None
    if found is None and day is None:
        raise CommandError(
            f"{text!r} is not a moment: write 2026-01-31, 2026-01-31T08:00, or 12h for 12 hours ago."
        )
    moment = found or datetime.combine(day, datetime.min.time())  # type: ignore[arg-type]
    aware = (
        moment if timezone.is_aware(moment) else timezone.make_aware(moment, timezone.get_default_timezone())
    )
    return (
        aware
        if timezone.is_aware(timezone.now())
        else timezone.make_naive(aware, timezone.get_default_timezone())
    )


# Many rows.


def by_channel(rows: Any, patterns: Sequence[str], ids: Sequence[int] | None = None) -> Any:
    """Return those rows of a query set whose channel matches one of the patterns; all without a pattern.

    With ``ids``, only the rows with these ids are among them.
    """
    if ids is not None:
        rows = rows.filter(id__in=[one for one in ids if abs(one) < 2**63])  # SQLite takes no greater one
    if not patterns:
        return rows
    if not any(set("*?[") & set(one) for one in patterns):
        return rows.filter(channel__in=patterns)
    channels = rows.order_by().values_list("channel", flat=True).distinct()
    return rows.filter(
        channel__in=[one for one in channels if any(fnmatchcase(one, pattern) for pattern in patterns)]
    )


def ask(command: BaseCommand, rows: Any, question: str, word: str, yes: str) -> None:
    """Show how many rows of a query set each channel has, and ask; raises CommandError unless the answer is yes.

    If there is a row: ``{}`` in the question stands for their number with the word. ``yes`` is the option that answers.
    """
    found = dict(rows.order_by("channel").values_list("channel").annotate(Count("id")))
    if not found:
        return
    total = sum(found.values())
    if not sys.stdin.isatty():
        raise CommandError(f"There is no terminal to ask at: give {yes} if all {total:,} are meant.")
    lines = [[f"  {channel}", f"{number:,}"] for channel, number in found.items()]
    command.stdout.write("\n".join(aligned(lines)))
    if input(f"{question.format(counted(total, word))} [y/N] ").strip().lower() not in ("y", "yes"):
        raise CommandError("Nothing was done.")


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C sets, so that what runs can end; a second Ctrl-C raises KeyboardInterrupt."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: Any) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def in_batches(
    command: BaseCommand, rows: Any, act: Callable[[list[int]], int], result: Callable[[int], str]
) -> int:
    """Act on the rows of a query set by their ids, BATCH at a time, each batch in a transaction of its own.

    Rows that come meanwhile are left alone. Progress goes to standard error if it takes long. ``result`` says what was
    done, for when Ctrl-C or an error ends it early: then CommandError is raised. Return how many rows were acted on.
    """
    last = rows.order_by("-id").values_list("id", flat=True).first() or 0
    total, after, done, said_at = rows.filter(id__lte=last).count(), 0, 0, time.monotonic()
    with interruptible() as stopped:
        try:
            while ids := list(
                rows.filter(id__gt=after, id__lte=last).order_by("id").values_list("id", flat=True)[:BATCH]
            ):
                done += act(ids)
                after = ids[-1]
                if stopped.is_set() and after < last:
                    raise CommandError(f"Interrupted: {result(done)} The rest is untouched.", returncode=130)
                if time.monotonic() - said_at >= PROGRESS:
                    said_at = time.monotonic()
                    command.stderr.write(f"{done:,} of {total:,}")
        except (DBChannelsError, Error) as error:
            raise CommandError(f"{sentence(error)} Before that: {result(done)}") from None
    return done
