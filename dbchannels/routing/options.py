"""How the messages of a route are run: the options of ``consumer`` and ``route``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

from dbchannels import names
from dbchannels.conf import TEN_YEARS
from dbchannels.exceptions import InvalidConfiguration, safe_repr
from dbchannels.routing.interval import Interval, parse_interval

Backoff = float | Callable[[int], float]
Every = str | timedelta

MOST = 32_000  # attempts, or messages at a time: PostgreSQL stores the attempts as a smallint
_WHOLE, _SECONDS = "a whole number", "seconds"
#: The numbers among the options: their types, their range, and both in words.
_NUMBERS: dict[str, tuple[Any, int, float, str, str]] = {
    "retries": (int, 0, MOST, _WHOLE, f"from 0 to {MOST}"),
    "concurrency": (int, 1, MOST, _WHOLE, f"from 1 to {MOST}"),
    "soft_timeout": ((int, float), 0, TEN_YEARS, _SECONDS, "from 0 to ten years"),
    "hard_timeout": ((int, float), 0, TEN_YEARS, _SECONDS, "from 0 to ten years"),
    "backoff": (
        (int, float),
        0,
        TEN_YEARS,
        "seconds, or a function that returns them",
        "from 0 to ten years",
    ),
}


@dataclass(frozen=True)
class ConsumerOptions:
    """The options of one route, checked when created; None stands for the default. Raises InvalidConfiguration."""

    channel: str
    #: Attempts after the first before a failing message becomes a dead letter (OPTIONS["retries"]).
    retries: int | None = None
    #: Seconds until the next attempt, or a function of the failed attempt's number. None: 1, 5, 25 ...
    backoff: Backoff | None = None
    #: Run the consumer, its sends and the end of its message in one transaction of the layer's database.
    atomic: bool = False
    #: The most messages of the channel that all workers together run at a time. None: any number.
    concurrency: int | None = None
    #: Send a message this often, once for all workers: a timedelta, or five fields as in crontab(5).
    every: Every | None = None
    #: Seconds after which the worker logs where the consumer is (OPTIONS["soft_timeout"]); 0: never.
    soft_timeout: float | None = None
    #: Seconds after which the message fails and its worker is replaced (OPTIONS["hard_timeout"]); 0: never.
    hard_timeout: float | None = None

    @classmethod
    def take_from(cls, channel: str, keywords: dict[str, Any]) -> ConsumerOptions:
        """Take the options out of a route's keywords; the rest are its filters."""
        known = {field.name for field in fields(cls)} - {"channel"}
        return cls(channel, **{key: keywords.pop(key) for key in list(keywords) if key in known})

    def __post_init__(self) -> None:
        for name, (types, least, most, kind, limits) in _NUMBERS.items():
            value = getattr(self, name)
            if value is None or (name == "backoff" and callable(value)):
                continue
            if not isinstance(value, types) or isinstance(value, bool) or value != value:  # NaN
                self._refuse(name, kind, f"write a number, such as {name}=60")
            if not least <= value <= most:
                self._refuse(name, limits, "write one of these")
        if not isinstance(self.atomic, bool):
            self._refuse("atomic", "True or False", "write one of these")
        durable_only = (self.retries, self.backoff, self.concurrency, self.every)
        if durable_only != (None, None, None, None) and names.is_protocol(self.channel):
            raise InvalidConfiguration(
                f"Messages on {self.channel} are delivered at most once, as they come: remove retries, backoff, "
                "concurrency and every from the route."
            )
        self.interval()  # check it now, not when it is first due

    def interval(self) -> Interval | None:
        """Return ``every`` as an Interval."""
        return None if self.every is None else parse_interval(self.every, self.channel)

    def _refuse(self, name: str, wanted: str, instead: str) -> None:
        value = getattr(self, name)
        raise InvalidConfiguration(
            f"The {name} of a route on {self.channel} must be {wanted}, not {safe_repr(value)}: {instead}."
        )
