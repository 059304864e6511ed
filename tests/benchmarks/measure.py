"""Rounds, medians, and the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

ROUNDS = 5
MOST = 8_000  # messages: a fast machine would fill a channel, which takes 10,000


class Figure(NamedTuple):
    """One scenario: the medians of dbchannels and of the bare program, their ratio with its spread, and its target."""

    name: str
    unit: str
    ours: float
    bare: float
    ratio: float
    least: float
    most: float
    target: str

    def line(self) -> str:
        """Return the row of the table."""
        spread = f"{self.least:.2f} to {self.most:.2f}"
        ours, bare = f"{self.ours:,.0f}", f"{self.bare:,.0f}"
        return f"{self.name:<54} {ours:>9} {bare:>9} {self.unit:<6} {self.ratio:>6.2f}  {spread:<14} {self.target}"


HEAD = f"{'':<54} {'ours':>9} {'bare':>9} {'':<6} {'ratio':>6}  {'spread':<14} target"


def compare(
    name: str,
    ours: Callable[[], float],
    bare: Callable[[], float],
    target: str,
    unit: str = "/s",
    rounds: int = ROUNDS,
) -> Figure:
    """Measure both in turns; each returns its figure. The first round of each does not count."""
    ours(), bare()
    pairs = [(ours(), bare()) for _ in range(rounds)]
    ratios = [one / other for one, other in pairs]
    first, second = (statistics.median(values) for values in zip(*pairs, strict=True))
    return Figure(name, unit, first, second, statistics.median(ratios), min(ratios), max(ratios), target)


def beside_others(
    title: str,
    found: Mapping[str, Sequence[Mapping[str, float]]],
    targets: Mapping[str, tuple[float, bool]],
    ours: str = "dbchannels",
) -> Iterator[str]:
    """Yield a table of the medians of each system's rounds, then ours beside the best of the others.

    A target is what that ratio is to reach, and whether more is better.
    """
    medians = {
        name: {key: statistics.median(one[key] for one in numbers) for key in targets}
        for name, numbers in found.items()
    }
    yield f"{title:<20}" + "".join(f"{key:>28}" for key in targets)
    for name, numbers in medians.items():
        yield f"{name:<20}" + "".join(f"{numbers[key]:>28,.2f}" for key in targets)
    for key, (target, more) in targets.items() if len(medians) > 1 else ():
        others = [numbers[key] for name, numbers in medians.items() if name != ours]
        ratio = medians[ours][key] / (max(others) if more else min(others))
        sign = ">=" if more else "<="
        yield f"{key}: {ratio:.2f} of the best of the others, target {sign} {target}"


def rate(action: Callable[[], object], each: int = 1, seconds: float = 0.5, most: int = MOST) -> float:
    """Repeat an action, which does ``each`` things, until the time or ``most`` is reached; return things per second."""
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds and done < most:
        action()
        done += each
    return done / spent
