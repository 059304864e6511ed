"""What several commands share: options of other frameworks, the log on the terminal, and the result of a replay."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any, NoReturn

from django.core.management.base import BaseCommand

from dbchannels import other_libraries
from dbchannels.server.access_log import TerminalFormatter


class HintingCommand(BaseCommand):
    """A command that answers an option of another framework's command with its name here."""

    def create_parser(self, *arguments: Any, **keywords: Any) -> Any:
        parser = super().create_parser(*arguments, **keywords)
        refuse = parser.error

        def error(message: str) -> NoReturn:
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
            raise AssertionError  # refuse has ended the process

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
