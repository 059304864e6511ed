"""What each option of a layer takes: its type and its range, and the sentence for another value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dbchannels.exceptions import safe_repr

TEN_YEARS = 10 * 365 * 86_400  # seconds; a database's timestamps reach further
MOST_MESSAGES = 2**31 - 1  # PostgreSQL's int
MOST_BYTES = 2**28  # PostgreSQL takes a statement of 1 GiB, and bytes are written in twice their number
MOST_RETRIES = 32_000  # PostgreSQL keeps the attempts as a smallint
#: Of an entry of DATABASES, what leads to the server.
WAYS = ("NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")


class Rule(NamedTuple):
    """Which values fit, and what to write."""

    fits: Callable[[Any], bool]
    write: str


def value_problem(name: str, value: object, where: str) -> str:
    """Return the sentence for a value that the option cannot have; "" for one that fits."""
    rule = RULES[name]
    if rule.fits(value):
        return ""
    # A password may stand in there.
    given = safe_repr(value) if name != "direct" else f"a {type(value).__name__} with something else in it"
    return f"{where}[{name!r}] is {given}: write {rule.write}."


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _seconds(least: float, most: float) -> Callable[[Any], bool]:
    """Seconds, from the least on; NaN is none of them."""
    return lambda value: (
        isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
    )


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _is_capacities(value: Any) -> bool:
    fits = _or_none(_whole(0, MOST_MESSAGES))
    return isinstance(value, dict) and all(
        isinstance(key, str) and key and fits(one) for key, one in value.items()
    )


def _is_way(value: Any) -> bool:
    if not isinstance(value, dict) or not set(value) <= set(WAYS):
        return False
    return all(
        isinstance(one, dict) if key == "OPTIONS" else isinstance(one, (str, int))
        for key, one in value.items()
    )


RULES = {
    "expiry": Rule(_seconds(0.001, TEN_YEARS), "seconds, more than 0 and at most ten years, such as 60"),
    "group_expiry": Rule(
        _seconds(0.001, TEN_YEARS), "seconds, more than 0 and at most ten years, such as 86400"
    ),
    "capacity": Rule(
        _or_none(_whole(1, MOST_MESSAGES)),
        f"a whole number from 1 to {MOST_MESSAGES}, such as 10000, or None for no limit",
    ),
    "channel_capacity": Rule(
        _is_capacities,
        "a dict of names or patterns with whole numbers from 0 on, or None for no limit, such as {'http.request': 200}",
    ),
    "max_message_size": Rule(
        _whole(1, MOST_BYTES), f"bytes, a whole number from 1 to {MOST_BYTES}, such as 1048576"
    ),
    "poll_interval": Rule(
        _or_none(_seconds(0.001, 86_400)), "seconds, more than 0 and at most a day, such as 0.5, or None"
    ),
    "wakeups": Rule(lambda value: isinstance(value, bool), "True or False"),
    "direct": Rule(
        _is_way, "a dict with some of " + ", ".join(WAYS) + ", as in DATABASES, such as {'PORT': 5432}"
    ),
    "lease": Rule(_seconds(0.5, 86_400), "seconds, from 0.5 to a day, such as 15"),
    "retries": Rule(_whole(0, MOST_RETRIES), f"a whole number from 0 to {MOST_RETRIES}, such as 5"),
    "soft_timeout": Rule(_seconds(0, TEN_YEARS), "seconds, such as 30, at most ten years, or 0 for never"),
    "hard_timeout": Rule(_seconds(0, TEN_YEARS), "seconds, such as 600, at most ten years, or 0 for never"),
}
