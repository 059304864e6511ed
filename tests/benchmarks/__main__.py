"""``python -m tests.benchmarks [--quick] [layer] [sockets]``: measure, and print the table."""

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


PARTS = {"layer": layer, "sockets": sockets}


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    named = [one for one in sys.argv[1:] if one != "--quick"]
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
