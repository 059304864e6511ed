"""``python -m tests.soak [--scale 0.1] [FAULT ...]``: measure, print each figure beside its target.

Rows come from every module of this package that has ``ROWS``, ordered by their faults; fault 0 is what belongs to
none. The status is 1 when a target was missed, 130 after Ctrl-C, and no process is left behind.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

from tests import soak
from tests.soak.row import Row, Seen

HEAD = "| fault | what | seen | target | reached |\n|---|---|---|---|---|"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    signal.signal(signal.SIGTERM, _interrupt)
    given = _parser().parse_args(arguments)
    rows = chosen(all_rows(), given.faults)
    if not rows:
        print(f"No row is for fault {', '.join(map(str, given.faults))}.", file=sys.stderr)
        return 2
    print(HEAD, flush=True)
    try:
        reached = [_measured(row, given.scale) for row in rows]
        return 0 if all(reached) else 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="The full figures of the faults."
    )
    parser.add_argument(
        "--scale", type=_scale, default=1.0, metavar="S", help="of the full size, such as 0.1 (default: 1)"
    )
    parser.add_argument("faults", nargs="*", type=int, metavar="FAULT", help="only these (default: all)")
    return parser


def _scale(text: str) -> float:
    scale = float(text)
    if not 0 < scale <= 10:
        raise argparse.ArgumentTypeError("give a number above 0, 10 at most")
    return scale


def all_rows() -> list[Row]:
    """Return the rows of all modules in here, ordered by fault."""
    modules = sorted(module.name for module in pkgutil.iter_modules(soak.__path__))
    found = [importlib.import_module(f"{soak.__name__}.{name}") for name in modules if name != "__main__"]
    return sorted((row for module in found for row in getattr(module, "ROWS", [])), key=lambda row: row.fault)


def chosen(rows: Sequence[Row], faults: Sequence[int]) -> list[Row]:
    """Return the rows for these faults; all of them when none is named."""
    return [row for row in rows if not faults or row.fault in faults]


def _measured(row: Row, scale: float) -> bool:
    """Measure a row and print it; one that could not be measured is one that was missed."""
    try:
        seen = row.measure(scale)
    except Exception as error:
        traceback.print_exc()
        seen = Seen(f"not measured: {type(error).__name__}", False)
    print(line(row, seen), flush=True)
    return seen.reached


def line(row: Row, seen: Seen) -> str:
    """Return the row of the table."""
    fault = str(row.fault) if row.fault else "-"
    return f"| {fault} | {row.what} | {seen.text} | {row.target} | {'yes' if seen.reached else 'NO'} |"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
