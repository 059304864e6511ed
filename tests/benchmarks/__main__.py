"""``python -m tests.benchmarks [--quick] [--against PYTHON] [PART ...]``: measure, and print the table.

``--against`` names the interpreter of an environment with the peers of the tasks, see ``tasks``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import django
from django.core.management import call_command

from tests.benchmarks.measure import HEAD, Figure


def layer(quick: bool) -> Iterator[Any]:
    """The layer beside bare SQL, in this process."""
    call_command("migrate", verbosity=0)
    from tests.benchmarks import layer  # our models need the settings

    return layer.figures(quick)


def sockets(quick: bool) -> Iterator[Any]:
    """The whole way, in processes of its own."""
    from tests.benchmarks import sockets

    return sockets.figures(quick)


def tasks(quick: bool) -> Iterator[Any]:
    """Django's tasks beside other systems, in processes of their own."""
    from tests.benchmarks import tasks

    return tasks.figures(quick, option("--against"))


def channels(quick: bool) -> Iterator[Any]:
    """Our channel layer for Channels beside the others, under uvicorn."""
    from tests.benchmarks import channels

    return channels.figures(quick)


PARTS = {"layer": layer, "sockets": sockets, "tasks": tasks, "channels": channels}


def option(name: str) -> str:
    """Return the word after an option of the command line; "" without the option."""
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else ""


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    options = {"--quick", "--against", option("--against")}
    named = [one for one in sys.argv[1:] if one not in options]
    if unknown := set(named) - set(PARTS):
        sys.exit(
            f"There is no part {', '.join(sorted(unknown))}: name some of {', '.join(PARTS)}, or none for all."
        )
    print(HEAD)
    for name in named or PARTS:
        for found in PARTS[name](quick="--quick" in sys.argv):
            print(found.line() if isinstance(found, Figure) else found, flush=True)


if __name__ == "__main__":
    main()
