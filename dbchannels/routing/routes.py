"""``Route`` and ``Include``: the entries of a routing module, their options, and how they match a message."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, NamedTuple

from django.urls import URLPattern, URLResolver

from dbchannels import names
from dbchannels.conf import TASK_RULES, task_value_problem
from dbchannels.exceptions import InvalidConfiguration, safe_repr
from dbchannels.message import Message
from dbchannels.routing.interval import Interval, parse_interval
from dbchannels.routing.patterns import Pattern, compile_pattern, convert, joined

Consumer = Callable[..., Any]
Captures = dict[str, Any]
Texts = Mapping[str, "str | re.Pattern[str]"]

Backoff = float | Callable[[int], float]
Every = str | timedelta

#: A consumer whose first parameter is one of these takes the message's fields as keywords (the form of the 2015 post).
KEYWORD_FORM = frozenset({"channel", "send_channel", "path", "content", "binary"})


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
        for name in TASK_RULES:
            value = getattr(self, name)
            is_given = value is not getattr(ConsumerOptions, name)
            if is_given and (wrong := task_value_problem(name, value, f"A route on {self.channel}")):
                raise InvalidConfiguration(wrong)
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


class Filters:
    """Patterns, each for one field of the message, by the field's name."""

    def __init__(self, texts: Texts, *, whole: bool = True) -> None:
        self.patterns = {key: compile_pattern(key, text, whole=whole) for key, text in texts.items()}
        # Prepared for the match of each message.
        self._compiled = [
            (key, one.regex.fullmatch if whole and one.ends else one.regex.match, one.converters)
            for key, one in self.patterns.items()
        ]

    def match(self, values: Callable[[str], Any]) -> tuple[Captures, dict[str, str]] | None:
        """Return the named captures, and the rest of each field after its match; or None."""
        captures: Captures = {}
        rest: dict[str, str] = {}
        for key, match, converters in self._compiled:
            value = values(key)
            found = None if value is None else match(value if isinstance(value, str) else str(value))
            if found is None:
                return None
            captures.update({name: text for name, text in found.groupdict().items() if text is not None})
            if converters and not convert(captures, converters):
                return None
            rest[key] = found.string[found.end() :]
        return captures, rest

    def captures(self) -> list[str]:
        """Return the names of the captures."""
        return [name for one in self.patterns.values() for name in one.regex.groupindex]

    def key(self) -> tuple[tuple[str, str], ...]:
        """Return a key that is the same for equal filters."""
        return tuple(sorted((key, one.text) for key, one in self.patterns.items()))


class Route:
    """The consumer of one channel's messages whose fields match the filters, and how it is run."""

    def __init__(
        self,
        channel: str,
        consumer: Consumer,
        filters: Texts,
        options: ConsumerOptions | None = None,
        url_name: str = "",
    ) -> None:
        self.channel = channel
        self.options = options or ConsumerOptions(channel)
        if not callable(consumer):
            raise InvalidConfiguration(
                f"The consumer of a route on {channel} is not callable: {safe_repr(consumer)}; name a function or "
                "a class."
            )
        as_consumer = getattr(consumer, "as_consumer", None)  # of a WebsocketConsumer
        self.consumer: Consumer = as_consumer() if as_consumer else consumer
        self.filters = Filters(filters)
        self.url_name = url_name
        self._takes = _keywords_taken(self.consumer)

    @property
    def name(self) -> str:
        """The consumer's dotted name, for logs and checks."""
        return f"{self.consumer.__module__}.{getattr(self.consumer, '__qualname__', repr(self.consumer))}"

    @property
    def takes_message(self) -> bool:
        """Whether the consumer takes the Message; otherwise it takes keywords, as in the 2015 post."""
        return self._takes is None

    def bound_routes(self, around: tuple[Filters, ...] = (), namespace: str = "") -> Iterator[BoundRoute]:
        """Yield this route, bound to the filters of the includes around it."""
        yield BoundRoute(self, (*around, self.filters), namespace + self.url_name if self.url_name else "")

    def match(self, channel: str, values: Callable[[str], Any]) -> tuple[Route, Captures] | None:
        """Return this route and the captures if it matches, else None."""
        if channel != self.channel:
            return None
        found = self.filters.match(values)
        return None if found is None else (self, found[0])

    def run(self, message: Message, captures: Captures) -> Any:
        """Call the consumer. Captures override the server's keys, which override the payload's."""
        if self._takes is None:
            return self.consumer(message, **captures)
        fields = {**message.as_keywords(), **captures}
        return self.consumer(**{key: fields[key] for key in fields if self._takes(key)})


def _keywords_taken(consumer: Consumer) -> Callable[[str], bool] | None:
    """Return a test for the keywords of a consumer in the post's form; None for one that takes the Message."""
    try:
        parameters = inspect.signature(consumer).parameters
    except (TypeError, ValueError):
        return None
    if next(iter(parameters), None) not in KEYWORD_FORM:
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return lambda key: True
    return parameters.__contains__


def check_entries(entries: Any, where: str) -> Any:
    """Return a list of routes; raises InvalidConfiguration if an item is not a route."""
    if not isinstance(entries, (list, tuple)):
        raise InvalidConfiguration(f"{where} must be a list, [route(...), ...], not {safe_repr(entries)}.")
    for entry in entries:
        if not isinstance(entry, (Route, Include)):
            raise InvalidConfiguration(
                f"{where} contains {safe_repr(entry)}, which is not a route: {_write_instead(entry)}."
            )
    return entries


def _write_instead(entry: object) -> str:
    if isinstance(entry, (list, tuple)) and entry and isinstance(entry[0], str):
        return f"write route({safe_repr(entry[0])}, ...)"
    if isinstance(entry, (list, tuple)):
        return "write its items one by one, or put a * in front of it"
    if isinstance(entry, (URLPattern, URLResolver)):
        return 'write route("websocket.connect", consumer, path=...), and keep the paths of views in urls.py'
    if isinstance(entry, str):
        return f"write include({safe_repr(entry)})"
    if hasattr(entry, "as_routes"):
        return "write route_class(...) around it"
    if callable(entry):
        return "write route(channel, ...) around it"
    return "write route(...), route_class(...) or include(...)"


class Include:
    """Routes under common filters, each of which removes a prefix from its field."""

    def __init__(self, routes: Sequence[Route | Include], filters: Texts, namespace: str = "") -> None:
        self._routes: Sequence[Route | Include] = check_entries(routes, "An include")
        self._filters = Filters(filters, whole=False)
        self._namespace = namespace

    def bound_routes(self, around: tuple[Filters, ...] = (), namespace: str = "") -> Iterator[BoundRoute]:
        """Yield all routes in order, each bound to the filters around it."""
        inner = f"{namespace}{self._namespace}:" if self._namespace else namespace
        for entry in self._routes:
            yield from entry.bound_routes((*around, self._filters), inner)

    def match(self, channel: str, values: Callable[[str], Any]) -> tuple[Route, Captures] | None:
        """Return the first matching route, with its captures and ours; or None."""
        found = self._filters.match(values)
        if found is None:
            return None
        captures, rest = found
        for entry in self._routes:
            inner = entry.match(channel, lambda key: rest[key] if key in rest else values(key))
            if inner is not None:
                return inner[0], {**captures, **inner[1]}
        return None


class BoundRoute(NamedTuple):
    """A route with the filters of the includes around it, outermost first, and its own last."""

    route: Route
    filters: tuple[Filters, ...]
    url_name: str  # "namespace:name"; "" where the route has no name

    def key(self) -> tuple[Any, ...]:
        """Return a key that is the same for equal routes."""
        return (self.route.channel, id(self.route.consumer), *(one.key() for one in self.filters))

    def patterns(self) -> dict[str, list[Pattern]]:
        """Return the patterns of each field, outermost first."""
        found: dict[str, list[Pattern]] = {}
        for filters in self.filters:
            for key, pattern in filters.patterns.items():
                found.setdefault(key, []).append(pattern)
        for pattern in found.get("path", [])[:1]:
            # The slash may be omitted.
            if pattern.is_path and (pattern.text or pattern.whole) and pattern.text[:1] != "/":
                found["path"][0] = pattern._replace(text="/" + pattern.text)
        return found

    def captures(self) -> list[str]:
        """Return the names of all captures, each once, in order."""
        return list(dict.fromkeys(name for one in self.filters for name in one.captures()))

    def shown_filters(self) -> dict[str, str]:
        """Return the filters as text, the prefixes of includes first."""
        return {
            key: whole.text if (whole := joined(chain)) else " + ".join(one.text for one in chain)
            for key, chain in self.patterns().items()
        }

    def covers(self, later: BoundRoute) -> bool:
        """Whether this route is known to match every message that a later one matches."""
        if self.route.channel != later.route.channel:
            return False
        theirs = later.patterns()
        for key, chain in self.patterns().items():
            if chain != (other := theirs.get(key, [])):
                ours, other_one = joined(chain), joined(other) if other else None
                if ours is None or other_one is None or not ours.covers(other_one):
                    return False
        return True
