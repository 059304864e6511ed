"""One line of the soak's table: what is measured, what it must reach, and what was seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple


class Seen(NamedTuple):
    """What one measurement gave."""

    text: str  # the figures, with their units
    reached: bool


class Row(NamedTuple):
    """One measurement; ``measure(scale)`` takes 1.0 for the full size, less for a shorter run."""

    fault: int  # its number in the table of faults; 0: none
    what: str
    target: str
    measure: Callable[[float], Seen]


def p99(spent: Iterable[float]) -> float:
    """Return what 99 of 100 do not exceed."""
    ordered = sorted(spent)
    return ordered[int(len(ordered) * 0.99)]
