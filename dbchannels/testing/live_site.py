"""``python -m dbchannels.testing.live_site``: the ``manage.py`` of a live test's processes, on the test's databases.

The settings are those of DJANGO_SETTINGS_MODULE; what a test has changed in them comes in the environment. The workers
that the server starts are this very module again.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from dataclasses import replace
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.management import execute_from_command_line

from dbchannels.exceptions import DBChannelsError

SERVE = "livechannels"  # the command that is ours; all others are Django's
CHANGES = (
    "DBCHANNELS_LIVE_TEST"  # in the environment: JSON of {"databases": {alias: name}, "settings": {...}}
)


def main(arguments: list[str]) -> None:
    """Run a command."""
    change_settings(json.loads(os.environ[CHANGES]))
    if arguments[1:2] == [SERVE]:
        serve(arguments[2:])
    else:
        execute_from_command_line(arguments)


def change_settings(changes: dict[str, Any]) -> None:
    """Take the test's databases, and its other settings."""
    for name, value in changes["settings"].items():
        setattr(settings, name, value)
    for alias, name in changes["databases"].items():
        settings.DATABASES[alias]["NAME"] = name


def serve(arguments: list[str]) -> None:
    """Do what ``runchannels`` does, with static files whatever DEBUG says, until the test's process ends."""
    import django

    django.setup()
    from dbchannels.management.commands.runchannels import Command
    from dbchannels.processes import production
    from dbchannels.server.config import LaunchConfig

    options = vars(Command().create_parser("manage.py", "runchannels").parse_args(arguments))
    logging.getLogger("dbchannels.access").disabled = True
    config = LaunchConfig.from_options(options)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        production.run(replace(config, static=apps.is_installed("django.contrib.staticfiles")), write)
    except DBChannelsError as error:
        write(str(error))  # what the test shows
        sys.exit(1)


def write(text: str) -> None:
    """Tell the test where the site is, among other things."""
    print(text, flush=True)


def end_with_parent() -> None:
    """End when the test's process has: its end of our standard input is closed then, however it ended."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv)
