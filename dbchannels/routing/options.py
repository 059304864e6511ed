"""How the messages of one route are run: what ``consumer`` and ``route`` take beside the filters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

from dbchannels import names
from dbchannels.exceptions import InvalidConfiguration, safe_repr
from dbchannels.layers.delivery import LONGEST_DELAY
from dbchannels.routing.interval import Interval, parse_interval

Backoff = float | Callable[[int], float]
Every = str | timedelta

MOST = 32_000  # attempts, or messages at a time: PostgreSQL keeps the attempts as a smallint


@dataclass(frozen=True)
class ConsumerOptions:
    """Checked when they are made; raises InvalidConfiguration with one sentence. None is the layer's default."""

    channel: str
    #: Attempts after the first, before a message whose consumer raises is a dead letter (OPTIONS["retries"]).
    retries: int | None = None
    #: Seconds until the next attempt, or a function of the number of the one that failed. None: 1, 5, 25 ...
    backoff: Backoff | None = None
    #: The consumer, its sends and the end of its message are one transaction of the layer's database.
    atomic: bool = False
    #: How many of the channel's messages all workers together run at a time. None: any number.
    concurrency: int | None = None
    #: A message is sent so often, once however many workers there are: a timedelta, or five fields as in crontab(5).
    every: Every | None = None
    #: Seconds after which the worker logs where the consumer stands (OPTIONS["soft_timeout"]); 0: never.
    soft_timeout: float | None = None
    #: Seconds after which the message has failed, and its worker is replaced (OPTIONS["hard_timeout"]); 0: never.
    hard_timeout: float | None = None

    @classmethod
    def take_from(cls, channel: str, keywords: dict[str, Any]) -> ConsumerOptions:
        """Take the options out of a route's keywords; what is left are its filters."""
        known = {field.name for field in fields(cls)} - {"channel"}
        return cls(channel, **{key: keywords.pop(key) for key in list(keywords) if key in known})

    def __post_init__(self) -> None:
        self._number("retries", 0)
        self._number("concurrency", 1)
        self._seconds("soft_timeout")
        self._seconds("hard_timeout")
        if not callable(self.backoff):
            self._seconds("backoff")
        if not isinstance(self.atomic, bool):
            self._refuse("atomic", "True or False", "take one of these")
        durable_only = (self.retries, self.backoff, self.concurrency, self.every)
        if durable_only != (None, None, None, None) and names.is_protocol(self.channel):
            raise InvalidConfiguration(
                f"Messages on {self.channel} are delivered at most once, as they come: take retries, backoff, "
                "concurrency and every off its route."
            )
        self.interval()  # or it would be found wrong when it is first due

    def interval(self) -> Interval | None:
        """Return ``every`` as it is reckoned with."""
        return None if self.every is None else parse_interval(self.every, self.channel)

    def _number(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is None:
            return
        if not isinstance(value, int) or isinstance(value, bool):
            self._refuse(name, "a whole number", f"write one, such as {name}=5")
        if not least <= value <= MOST:
            self._refuse(name, f"from {least} to {MOST}", "take one of these")

    def _seconds(self, name: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        if not _is_number(value):
            wanted = "seconds" + (", or a function that returns them" if name == "backoff" else "")
            self._refuse(name, wanted, f"write a number, such as {name}=60")
        if not 0 <= value <= LONGEST_DELAY:
            self._refuse(name, "from 0 to ten years", "write so many seconds")

    def _refuse(self, name: str, wanted: str, instead: str) -> None:
        value = getattr(self, name)
        raise InvalidConfiguration(
            f"The {name} of a route on {self.channel} is {wanted}, not {safe_repr(value)}: {instead}."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value  # not NaN
