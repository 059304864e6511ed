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
from dbchannels.consumer_options import ConsumerOptions
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.message import Message
from dbchannels.periodic import Entry

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
    """One consumer for the messages of one channel whose fields match the filters, and how they are run."""

    def __init__(
        self,
        channel: str,
        consumer: Consumer,
        filters: dict[str, str],
        options: ConsumerOptions | None = None,
    ) -> None:
        self.channel = names.check_channel_name(channel)
        self.options = options or ConsumerOptions(channel)
        if not callable(consumer):
            raise InvalidConfiguration(f"The consumer of a route on {channel} is not callable: {consumer!r}.")
        self.consumer = consumer
        self.filters = Filters(filters)
        self._takes = _keywords_taken(consumer)

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


def route(channel: str, consumer: Consumer | str, **options_and_filters: Any) -> Route:
    """Say in a routing module that ``consumer`` (a callable, or its dotted name) takes messages of a channel.

    Filters are regular expressions on fields; their named groups become arguments of the consumer. The options are
    those of ``consumer``::

        routes = [route("websocket.connect", join, path=r"^/chat/(?P<room>\\w+)/$")]
    """
    function = _imported(consumer) if isinstance(consumer, str) else consumer
    options = ConsumerOptions.take_from(channel, options_and_filters)
    return Route(channel, function, options_and_filters, options)


def include(routes: str | Sequence[Route | Include], **filters: str) -> Include:
    """Put in the routes of another module, under filters that take a prefix off.

    ``include("chat.routing", path=r"^/chat")`` gives what follows ``/chat`` to the routes in there as their path.
    """
    return Include(load_routes(routes) if isinstance(routes, str) else routes, filters)


_decorated: list[Route] = []


def consumer(channel: str, **options_and_filters: Any) -> Callable[[Consumer], Consumer]:
    """Say in an app's ``consumers.py`` that the function takes messages of a channel::

        @consumer("websocket.receive", path=r"^/chat/(?P<room>\\w+)/$")
        def say(message, room): ...

    The options, each explained in ``ConsumerOptions``: on the site's own channels ``retries``, ``backoff``,
    ``concurrency`` and ``every``; on all of them ``atomic``, ``soft_timeout`` and ``hard_timeout``. Every other
    keyword is a filter, as in ``route``.
    """

    def register(function: Consumer) -> Consumer:
        filters = dict(options_and_filters)
        _decorated.append(Route(channel, function, filters, ConsumerOptions.take_from(channel, filters)))
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

    def concurrency(self) -> dict[str, int]:
        """Return how many messages may run at a time, of each channel that says so; of several routes the least."""
        limits: dict[str, int] = {}
        for route in self.routes():
            if (limit := route.options.concurrency) is not None:
                limits[route.channel] = min(limit, limits.get(route.channel, limit))
        return limits

    def timetable(self) -> list[Entry]:
        """Return what is sent every so often, each once."""
        entries = [(route.channel, route.options.interval()) for route in self.routes()]
        return list({(name, str(every)): Entry(name, every) for name, every in entries if every}.values())

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
