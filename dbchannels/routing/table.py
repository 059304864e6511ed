"""Which consumer runs for a message: ``consumer``, ``route``, ``include``, and the table they make.

The order is: the routing module of the setting, then the decorators in each app's ``consumers.py`` in the order
of INSTALLED_APPS, then, for ``http.request``, the view. The first match wins.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache
from types import ModuleType
from typing import Any, TypeVar

from django.apps import apps
from django.core.signals import setting_changed
from django.utils.module_loading import autodiscover_modules, import_string

from dbchannels import conf, foreign, names
from dbchannels.exceptions import InvalidConfiguration, safe_repr
from dbchannels.message import Message
from dbchannels.routing.interval import Entry
from dbchannels.routing.options import ConsumerOptions
from dbchannels.routing.routes import (
    KEYWORD_FORM,
    BoundRoute,
    Captures,
    Consumer,
    Filters,
    Include,
    Route,
    Texts,
    check_entries,
)

__all__ = [
    "KEYWORD_FORM",
    "BoundRoute",
    "Captures",
    "Consumer",
    "Filters",
    "Include",
    "Route",
    "Routing",
    "consumer",
    "include",
    "load_routes",
    "load_routing",
    "route",
    "site_routing",
]

log = logging.getLogger("dbchannels.routing")

F = TypeVar("F", bound=Callable[..., Any])
OPTIONS = frozenset(field.name for field in fields(ConsumerOptions)) - {"channel"} | {"name", "filters"}


def route(
    channel: str,
    consumer: Consumer | str,
    *,
    name: str = "",
    filters: Texts | None = None,
    **options_and_filters: Any,
) -> Route:
    """Say in a routing module that ``consumer`` (a callable, or its dotted name) takes messages of a channel.

    Filters are patterns for fields: a path with converters, or a regular expression (``dbchannels.routing.patterns``).
    What they capture becomes arguments of the consumer. ``filters`` takes them as a dict, for fields that are called
    as an option is. ``name`` is for ``reverse``; the options are those of ``consumer``::

        routes = [route("websocket.connect", join, path="/chat/<slug:room>/", name="room")]
    """
    _check_types(f"a route on {safe_repr(channel)}", filters, name=name)
    function = _imported(consumer) if isinstance(consumer, str) else consumer
    options = ConsumerOptions.take_from(channel, options_and_filters)
    _check_keywords(channel, options_and_filters)
    return Route(channel, function, {**options_and_filters, **(filters or {})}, options, name)


def _check_types(where: str, filters: object, **names_: object) -> None:
    for option, given in names_.items():
        if not isinstance(given, str):
            raise InvalidConfiguration(f"The {option} of {where} is {safe_repr(given)}: write a str.")
    if filters is not None and not (
        isinstance(filters, dict) and all(isinstance(key, str) for key in filters)
    ):
        raise InvalidConfiguration(
            f"The filters of {where} are {safe_repr(filters)}: write a dict, {{field: pattern}}."
        )


def _check_keywords(channel: str, keywords: dict[str, Any]) -> None:
    """Refuse an option that is spelled wrong: what is no option is a filter, and a filter is text."""
    for key, value in keywords.items():
        is_text = isinstance(value, (str, re.Pattern))
        if not is_text and (told := foreign.advice("option", key)):
            raise InvalidConfiguration(f"A route on {channel} takes no {key!r}: {told}.")
        near = difflib.get_close_matches(key, OPTIONS, n=1, cutoff=0.8 if is_text else 0.6)
        if near:
            raise InvalidConfiguration(
                f"A route on {channel} has the unknown option {key!r}: write {near[0]!r}, or, for a field of the "
                f"message that is called so, filters={{{key!r}: ...}}."
            )
        if not is_text:
            raise InvalidConfiguration(
                f"A route on {channel} takes no {key}={safe_repr(value)}: no option is called so, and a filter is "
                f"text; take it away, or write {key}='...'."
            )


def include(
    routes: str | Sequence[Route | Include], *, namespace: str = "", filters: Texts | None = None, **more: Any
) -> Include:
    """Put in the routes of another module, under filters that take a prefix off.

    ``include("chat.routing", path="/chat")`` gives what follows ``/chat`` to the routes in there as their path. With a
    ``namespace`` their names are ``"namespace:name"`` to ``reverse``.
    """
    _check_types("an include", filters, namespace=namespace)
    for key in more:
        if key in OPTIONS:
            raise InvalidConfiguration(
                f"An include takes no {key!r}: give it to the routes inside, or, for a field of the message that is "
                f"called so, write filters={{{key!r}: ...}}."
            )
    inner = load_routes(routes) if isinstance(routes, str) else routes
    return Include(inner, {**more, **(filters or {})}, namespace)


_decorated: list[Route] = []
_loaded = False  # a table has been made of the decorated ones: a later one is in none


def consumer(
    channel: str, *, name: str = "", filters: Texts | None = None, **options_and_filters: Any
) -> Callable[[F], F]:
    """Say in an app's ``consumers.py`` that the function takes messages of a channel::

        @consumer("websocket.receive", path="/chat/<slug:room>/")
        def say(message, room): ...

    The options, each explained in ``ConsumerOptions``: on the site's own channels ``retries``, ``backoff``,
    ``concurrency`` and ``every``; on all of them ``atomic``, ``soft_timeout`` and ``hard_timeout``. Every other
    keyword is a filter, as in ``route``.
    """

    if callable(channel):
        raise InvalidConfiguration(
            f'@consumer stands bare on {channel!r}: name the channel, as @consumer("websocket.receive").'
        )

    def register(function: F) -> F:
        made = route(channel, function, name=name, filters=filters, **options_and_filters)
        _decorated.append(made)
        site_routing.cache_clear()
        if not names.is_protocol(channel):
            foreign.refuse_calls(function, channel)
        if _loaded:
            log.warning(
                "%s, a consumer of %s, was imported after the routing had been read, so no worker runs it: import its "
                "module in the app's consumers.py.",
                made.name,
                channel,
            )
        return function

    return register


class Routing:
    """The site's table of routes."""

    def __init__(self, entries: Sequence[Route | Include]) -> None:
        self._entries: Sequence[Route | Include] = check_entries(entries, "The routing")

    def routes(self) -> list[Route]:
        """Return every route in the order in which they are tried."""
        return [route for entry in self._entries for route in entry.routes()]

    def bound_routes(self) -> list[BoundRoute]:
        """Return the same, each with the filters of the includes around it."""
        return [one for entry in self._entries for one in entry.bound_routes()]

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

    def shadowed(self) -> dict[int, BoundRoute]:
        """Map each unreachable route's index in ``bound_routes`` to the route that shadows it."""
        routes = self.bound_routes()
        found = {}
        for index, later in enumerate(routes):
            before = [one for one in routes[:index] if one.covers(later)]
            same = [one for one in before if one.key() == later.key()]
            if before:
                found[index] = (same or before)[0]
        return found


def load_routing(setting: Any = None) -> Routing:
    """Import the routing module of the setting and each app's consumers, and make the table."""
    global _loaded
    _loaded = False
    configured = load_routes(setting) if isinstance(setting, str) else check_entries(setting or [], "ROUTING")
    autodiscover_modules("consumers")
    _loaded = True
    positions = {config.name: position for position, config in enumerate(apps.get_app_configs())}

    def app_position(entry: Route) -> int:
        containing = apps.get_containing_app_config(entry.consumer.__module__)
        return positions[containing.name] if containing else len(positions)

    return Routing([*configured, *sorted(_decorated, key=app_position)])


@cache
def site_routing(alias: str = "default") -> Routing:
    """Return the table of a layer, made when it is first asked for. Raises InvalidConfiguration."""
    return load_routing(conf.layer_settings(alias).routing)


setting_changed.connect(
    lambda **kwargs: site_routing.cache_clear(), weak=False
)  # in tests: override_settings


def load_routes(dotted: str) -> Sequence[Route | Include]:
    """Import a module's ``routes``, or the list that the dotted name itself names."""
    _check_dotted(dotted)
    try:
        routes = import_string(dotted + ".routes")
    except ImportError as error:
        routes = _imported(dotted, error)
    if not isinstance(routes, (list, tuple)):
        inside = vars(routes) if isinstance(routes, ModuleType) else ()
        told = next(filter(None, (foreign.advice("routing", name) for name in inside)), "")
        raise InvalidConfiguration(
            f"{dotted} has no list called 'routes': {told or 'add it, or name the list itself'}."
        )
    return check_entries(routes, dotted)  # type: ignore[no-any-return]


def _check_dotted(dotted: str) -> None:
    if not all(part.isidentifier() for part in dotted.split(".")):
        raise InvalidConfiguration(
            f"The routing names {safe_repr(dotted)}, which is no dotted name: write one, such as 'chat.routing'."
        )


def _imported(dotted: str, earlier: ImportError | None = None) -> Any:
    _check_dotted(dotted)
    try:
        return import_string(dotted)
    except ImportError as error:
        raise InvalidConfiguration(
            f"The routing names {dotted!r}, which cannot be imported ({earlier or error}): correct the name."
        ) from error
