"""Which consumer runs for a message: ``consumer``, ``route``, ``include``, and the table they make.

The order is: the routing module of the setting, then the decorators in each app's ``consumers.py`` in the order
of INSTALLED_APPS, then, for ``http.request``, the view. The first match wins.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from django.apps import apps
from django.utils.module_loading import autodiscover_modules, import_string

from dbchannels import names
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.message import Message

Consumer = Callable[..., Any]
Captures = dict[str, Any]

#: A consumer whose first parameter is one of these is given the message's fields as keywords (the 2015 post).
KEYWORD_FORM = frozenset({"channel", "send_channel", "path", "content", "binary"})


class Filters:
    """Regular expressions, each searched from the start of one field of the message, by the field's name."""

    def __init__(self, patterns: dict[str, str]) -> None:
        self.patterns = patterns
        self._compiled = {key: _compiled(key, pattern) for key, pattern in patterns.items()}

    def match(self, values: Callable[[str], Any]) -> tuple[Captures, dict[str, str]] | None:
        """Return the named groups' captures and what is left of each field after its match, or None."""
        captures: Captures = {}
        rest: dict[str, str] = {}
        for key, pattern in self._compiled.items():
            value = values(key)
            found = None if value is None else pattern.match(value if isinstance(value, str) else str(value))
            if found is None:
                return None
            captures.update({name: text for name, text in found.groupdict().items() if text is not None})
            rest[key] = found.string[found.end() :]
        return captures, rest

    def key(self) -> tuple[tuple[str, str], ...]:
        """Return what makes two of these the same."""
        return tuple(sorted(self.patterns.items()))


def _compiled(key: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise InvalidConfiguration(
            f"The filter {key}={pattern!r} of a route is not a regular expression ({error}): correct it."
        ) from None


class Route:
    """One consumer for the messages of one channel whose fields match the filters.

    ``retries``, ``backoff`` and ``atomic`` are as ``consumer`` explains them.
    """

    def __init__(
        self,
        channel: str,
        consumer: Consumer,
        filters: dict[str, str],
        *,
        retries: int | None = None,
        backoff: float | Callable[[int], float] | None = None,
        atomic: bool = False,
    ) -> None:
        self.channel = names.check_channel_name(channel)
        self.retries, self.backoff, self.atomic = retries, backoff, atomic
        self._check_options()
        if not callable(consumer):
            raise InvalidConfiguration(f"The consumer of a route on {channel} is not callable: {consumer!r}.")
        self.consumer = consumer
        self.filters = Filters(filters)
        self._takes = _keywords_taken(consumer)

    def _check_options(self) -> None:
        if self.retries is not None and (not isinstance(self.retries, int) or self.retries < 0):
            raise InvalidConfiguration(
                f"The retries of a route on {self.channel} are a number from 0, not {self.retries!r}."
            )
        if self.backoff is not None and not (
            callable(self.backoff) or isinstance(self.backoff, (int, float))
        ):
            raise InvalidConfiguration(
                f"The backoff of a route on {self.channel} is seconds, or a function that takes the number of the "
                f"attempt and returns seconds, not {self.backoff!r}."
            )
        if (self.retries, self.backoff) != (None, None) and names.is_protocol(self.channel):
            raise InvalidConfiguration(
                f"Messages on {self.channel} are delivered at most once: take retries and backoff off its route."
            )

    @property
    def name(self) -> str:
        """The consumer's dotted name, for logs and checks."""
        return f"{self.consumer.__module__}.{getattr(self.consumer, '__qualname__', repr(self.consumer))}"

    def keyed(self, outer: tuple[Any, ...] = ()) -> list[tuple[Any, Route]]:
        """Return this route with what makes two the same one; the filters of the includes around it count too."""
        return [((self.channel, id(self.consumer), *outer, self.filters.key()), self)]

    def routes(self) -> Iterable[Route]:
        """Return the routes in here: this one."""
        return [self]

    def match(self, channel: str, values: Callable[[str], Any]) -> tuple[Route, Captures] | None:
        """Return this route and the captures when it is for this message."""
        if channel != self.channel:
            return None
        found = self.filters.match(values)
        return None if found is None else (self, found[0])

    def run(self, message: Message, captures: Captures) -> Any:
        """Call the consumer. What the route captured wins over the server's keys, and these over a payload's."""
        if self._takes is None:
            return self.consumer(message, **captures)
        fields = {**message.as_keywords(), **captures}
        return self.consumer(**{key: fields[key] for key in fields if self._takes(key)})


def _keywords_taken(consumer: Consumer) -> Callable[[str], bool] | None:
    """Return which keywords a consumer in the post's form takes, or None for one that takes the Message."""
    try:
        parameters = inspect.signature(consumer).parameters
    except (TypeError, ValueError):
        return None
    if next(iter(parameters), None) not in KEYWORD_FORM:
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return lambda key: True
    return parameters.__contains__


class Include:
    """Routes under common filters; each takes its part off the front of the field, like a URL prefix."""

    def __init__(self, routes: Sequence[Route | Include], filters: dict[str, str]) -> None:
        self._routes = routes
        self._filters = Filters(filters)

    def routes(self) -> Iterable[Route]:
        """Return all routes in here, in order."""
        return [route for entry in self._routes for route in entry.routes()]

    def keyed(self, outer: tuple[Any, ...] = ()) -> list[tuple[Any, Route]]:
        """Return all routes in here, each with what makes it the same as another."""
        return [one for entry in self._routes for one in entry.keyed((*outer, self._filters.key()))]

    def match(self, channel: str, values: Callable[[str], Any]) -> tuple[Route, Captures] | None:
        """Return the first matching route and its captures with ours."""
        found = self._filters.match(values)
        if found is None:
            return None
        captures, rest = found
        for entry in self._routes:
            inner = entry.match(channel, lambda key: rest[key] if key in rest else values(key))
            if inner is not None:
                return inner[0], {**captures, **inner[1]}
        return None


def route(
    channel: str,
    consumer: Consumer | str,
    *,
    retries: int | None = None,
    backoff: float | Callable[[int], float] | None = None,
    atomic: bool = False,
    **filters: str,
) -> Route:
    """Say in a routing module that ``consumer`` (a callable, or its dotted name) takes messages of a channel.

    Filters are regular expressions on fields; their named groups become arguments of the consumer::

        routes = [route("websocket.connect", join, path=r"^/chat/(?P<room>\\w+)/$")]
    """
    function = _imported(consumer) if isinstance(consumer, str) else consumer
    return Route(channel, function, filters, retries=retries, backoff=backoff, atomic=atomic)


def include(routes: str | Sequence[Route | Include], **filters: str) -> Include:
    """Put in the routes of another module, under filters that take a prefix off.

    ``include("chat.routing", path=r"^/chat")`` gives what follows ``/chat`` to the routes in there as their path.
    """
    return Include(load_routes(routes) if isinstance(routes, str) else routes, filters)


_decorated: list[Route] = []


def consumer(
    channel: str,
    *,
    retries: int | None = None,
    backoff: float | Callable[[int], float] | None = None,
    atomic: bool = False,
    **filters: str,
) -> Callable[[Consumer], Consumer]:
    """Say in an app's ``consumers.py`` that the function takes messages of a channel::

        @consumer("websocket.receive", path=r"^/chat/(?P<room>\\w+)/$")
        def say(message, room): ...

    On the site's own channels a message whose consumer raised is tried again ``retries`` times (OPTIONS["retries"]
    by default) after ``backoff`` seconds, a number or a function of the attempt's number (by default 1, 5, 25 ...,
    an hour at most), and is a dead letter then. With ``atomic`` the consumer runs in a transaction of the layer's
    database, together with its sends and the end of its message: it takes effect exactly once.
    """

    def register(function: Consumer) -> Consumer:
        _decorated.append(Route(channel, function, filters, retries=retries, backoff=backoff, atomic=atomic))
        return function

    return register


class Routing:
    """The site's table of routes."""

    def __init__(self, entries: Sequence[Route | Include]) -> None:
        self._entries = entries

    def routes(self) -> list[Route]:
        """Return every route in the order in which they are tried."""
        return [route for entry in self._entries for route in entry.routes()]

    def channels(self) -> list[str]:
        """Return the channels that have a route, each once, in order."""
        return list(dict.fromkeys(route.channel for route in self.routes()))

    def match(self, message: Message, channel: str = "") -> tuple[Route, Captures] | None:
        """Return the first route for a message, with its captures, or None."""
        for entry in self._entries:
            found = entry.match(channel or message.channel.name, message.get)
            if found is not None:
                return found
        return None

    def duplicates(self) -> list[Route]:
        """Return the routes that stand there a second time, word for word."""
        keyed = [one for entry in self._entries for one in entry.keyed()]
        first: dict[Any, int] = {}
        return [
            route
            for position, (key, route) in enumerate(keyed)
            if first.setdefault(key, position) != position
        ]


def load_routing(setting: Any = None) -> Routing:
    """Import the routing module of the setting and each app's consumers, and make the table."""
    configured = load_routes(setting) if isinstance(setting, str) else list(setting or [])
    autodiscover_modules("consumers")
    positions = {config.name: position for position, config in enumerate(apps.get_app_configs())}

    def app_position(entry: Route) -> int:
        containing = apps.get_containing_app_config(entry.consumer.__module__)
        return positions[containing.name] if containing else len(positions)

    return Routing([*configured, *sorted(_decorated, key=app_position)])


def load_routes(dotted: str) -> Sequence[Route | Include]:
    """Import a module's ``routes``, or the list that the dotted name itself names."""
    try:
        routes = import_string(dotted + ".routes")
    except ImportError as error:
        routes = _imported(dotted, error)
    if not isinstance(routes, (list, tuple)):
        raise InvalidConfiguration(f"{dotted} has no list called 'routes': add it, or name the list itself.")
    return routes


def _imported(dotted: str, earlier: ImportError | None = None) -> Any:
    try:
        return import_string(dotted)
    except ImportError as error:
        raise InvalidConfiguration(
            f"The routing names {dotted!r}, which cannot be imported ({earlier or error}): correct the name."
        ) from error
