"""``python -m tests.benchmarks [--quick]``: measure, and print the table."""

from __future__ import annotations

import os
import sys

import django
from django.core.management import call_command

from tests.benchmarks.measure import HEAD


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    call_command("migrate", verbosity=0)
    from tests.benchmarks import layer  # our models need the settings

    print(HEAD)
    for figure in layer.figures(quick="--quick" in sys.argv):
        print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
