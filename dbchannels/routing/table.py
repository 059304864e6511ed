"""The table of routes, which finds the consumer of a message, and its parts: ``consumer``, ``route``, ``include``.

The first match wins, in this order: the sockets of dbchannels itself, the routing module of the setting, the decorators
in each app's ``consumers.py`` in the order of INSTALLED_APPS, and for ``http.request`` the view.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import quote

from django.apps import apps
from django.core.signals import setting_changed
from django.urls import NoReverseMatch
from django.utils.http import RFC3986_SUBDELIMS, escape_leading_slashes
from django.utils.module_loading import autodiscover_modules, import_string

from dbchannels import conf, names, other_libraries
from dbchannels.exceptions import InvalidConfiguration, safe_repr
from dbchannels.routing.interval import Entry
from dbchannels.routing.patterns import Pattern
from dbchannels.routing.routes import (
    BoundRoute,
    Captures,
    Consumer,
    ConsumerOptions,
    Include,
    Route,
    Texts,
    check_entries,
)
from dbchannels.routing.tasks import task_routes

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
    """Route a channel's messages to ``consumer`` (a callable, or its dotted name), in a routing module.

    The options are those of ``consumer``. Every other keyword is a filter: a pattern for the field with its name. A
    pattern is a path with converters, or a regular expression; its captures become arguments of the consumer. For a
    field with the name of an option, here or in Celery, put the pattern into the dict ``filters``. ``name`` is for
    ``reverse``::

        routes = [route("websocket.connect", join, path="/chat/<slug:room>/", name="room")]
    """
    names.check_channel_name(channel)
    _check_types(f"a route on {channel}", filters, name=name)
    function = _imported(consumer) if isinstance(consumer, str) else consumer
    options = ConsumerOptions.take_from(channel, options_and_filters)
    _check_keywords(f"A route on {channel}", options_and_filters)
    return Route(channel, function, {**options_and_filters, **(filters or {})}, options, name)


def _check_keywords(where: str, keywords: dict[str, Any]) -> None:
    """Refuse what is likely meant as an option: any keyword that is no option is a filter, and a filter is text."""
    for key, value in keywords.items():
        is_text = isinstance(value, (str, re.Pattern))
        field = f"write filters={{{key!r}: ...}} for a field of that name"
        if told := other_libraries.advice("option", key):
            raise InvalidConfiguration(f"{where} takes no {key!r}: {told}{f'; {field}' if is_text else ''}.")
        # Fields of a site's own messages may be called "currency" or "entries".
        options, cutoff = (("every", "name"), 0.8) if is_text else (OPTIONS, 0.6)
        if near := difflib.get_close_matches(key, options, n=1, cutoff=cutoff):
            raise InvalidConfiguration(
                f"{where} has the unknown option {key!r}: write {near[0]!r}, or {field}."
            )
        if not is_text:
            raise InvalidConfiguration(
                f"{where} takes no {key}={safe_repr(value)}: there is no such option, and a filter is text; remove it, "
                f"or write {key}='...'."
            )


def _check_types(where: str, filters: object, **names_: object) -> None:
    for option, given in names_.items():
        if not isinstance(given, str):
            raise InvalidConfiguration(f"The {option} of {where} must be a str, not {safe_repr(given)}.")
    if filters is not None and not (
        isinstance(filters, dict) and all(isinstance(key, str) for key in filters)
    ):
        raise InvalidConfiguration(
            f"The filters of {where} must be a dict, {{field: pattern}}, not {safe_repr(filters)}."
        )


def include(
    routes: str | Sequence[Route | Include], *, namespace: str = "", filters: Texts | None = None, **more: Any
) -> Include:
    """Include the routes of another module, under filters that remove a prefix.

    With ``include("chat.routing", path="/chat")`` those routes match the rest of the path after ``/chat``. With a
    ``namespace``, their names for ``reverse`` are ``"namespace:name"``.
    """
    _check_types("an include", filters, namespace=namespace)
    for key in more:
        if key in OPTIONS:
            raise InvalidConfiguration(
                f"An include takes no {key!r}: give it to the routes inside, or write filters={{{key!r}: ...}} for a "
                "field of that name."
            )
    _check_keywords("An include", more)
    inner = load_routes(routes) if isinstance(routes, str) else routes
    return Include(inner, {**more, **(filters or {})}, namespace)


_decorated: list[Route] = []
_loaded = False  # a table has been made: consumers decorated later are not in it


def consumer(
    channel: str, *, name: str = "", filters: Texts | None = None, **options_and_filters: Any
) -> Callable[[F], F]:
    """Route a channel's messages to the decorated function, in an app's ``consumers.py``::

        @consumer("websocket.receive", path="/chat/<slug:room>/")
        def say(message, room): ...

    The options, of which the last four are for the site's own channels; other keywords are filters, as in ``route``:

    * ``atomic``: commit what the consumer writes, what it sends, and the end of its message in one transaction;
    * ``soft_timeout``: seconds after which the log shows where the consumer is; 0: never;
    * ``hard_timeout``: seconds after which the message fails and its worker is replaced; 0: never;
    * ``retries``: how often a failed message is tried again;
    * ``backoff``: seconds until the next attempt, or a function that takes the number of the failed attempt;
    * ``concurrency``: how many messages of the channel run at a time, in all workers together;
    * ``every``: send a message this often, a timedelta or a crontab line.
    """
    if callable(channel):
        given = getattr(channel, "__qualname__", safe_repr(channel))
        raise InvalidConfiguration(
            f'@consumer on {given} has no channel: write @consumer("websocket.receive").'
        )

    def register(function: F) -> F:
        made = route(channel, function, name=name, filters=filters, **options_and_filters)
        _decorated.append(made)
        site_routing.cache_clear()
        if not names.is_protocol(channel):
            other_libraries.refuse_calls(function, channel)
        if _loaded:
            log.warning(
                "%s, a consumer of %s, was imported after the routing was loaded, so no worker runs it: import its "
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
        self._by_channel: dict[str, list[Route | Include]] = {}
        for entry in self._entries:
            for channel in {one.route.channel for one in entry.bound_routes()}:
                self._by_channel.setdefault(channel, []).append(entry)

    def bound_routes(self) -> list[BoundRoute]:
        """Return all routes in the order in which they are tried, each with the filters of the includes around it."""
        return [one for entry in self._entries for one in entry.bound_routes()]

    def routes(self) -> list[Route]:
        """Return all routes in the order in which they are tried."""
        return [one.route for one in self.bound_routes()]

    def channels(self) -> list[str]:
        """Return the channels with a route, each once, in order."""
        return list(dict.fromkeys(route.channel for route in self.routes()))

    def concurrency(self) -> dict[str, int]:
        """Return the ``concurrency`` of each channel that has one; the least of several routes."""
        limits: dict[str, int] = {}
        for route in self.routes():
            if (limit := route.options.concurrency) is not None:
                limits[route.channel] = min(limit, limits.get(route.channel, limit))
        return limits

    def timetable(self) -> list[Entry]:
        """Return the periodic messages, each once."""
        entries = [(route.channel, route.options.interval()) for route in self.routes()]
        return list({(name, str(every)): Entry(name, every) for name, every in entries if every}.values())

    def match(self, channel: str, fields: Mapping[str, Any]) -> tuple[Route, Captures] | None:
        """Return the first route that matches a message with these fields, with its captures; or None."""
        for entry in self._by_channel.get(channel, ()):
            if (found := entry.match(channel, fields.get)) is not None:
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


def load_routing(setting: Any = None, layer: str = "default") -> Routing:
    """Import the routing module of the setting and each app's consumers, and return their table.

    The routes of tasks whose messages go through the layer come last.
    """
    global _loaded
    _loaded = False
    configured = load_routes(setting) if isinstance(setting, str) else check_entries(setting or [], "ROUTING")
    autodiscover_modules("consumers")
    _loaded = True
    positions = {config.name: position for position, config in enumerate(apps.get_app_configs())}

    def app_position(entry: Route) -> int:
        containing = apps.get_containing_app_config(entry.consumer.__module__)
        return positions[containing.name] if containing else len(positions)

    decorated = sorted(_decorated, key=app_position)
    # A route of the site that takes all paths does not take the sockets of dbchannels' own pages and tags.
    own = [one for one in decorated if one.consumer.__module__.startswith("dbchannels.")]
    return Routing([*own, *configured, *(one for one in decorated if one not in own), *task_routes(layer)])


@cache
def site_routing(alias: str = "default") -> Routing:
    """Return the table of a layer, made on first use. Raises InvalidConfiguration."""
    return load_routing(conf.layer_settings(alias).routing, alias)


# For override_settings in tests.
setting_changed.connect(lambda **kwargs: site_routing.cache_clear(), weak=False)


def load_routes(dotted: str) -> Sequence[Route | Include]:
    """Import the ``routes`` of a module, or the list with this dotted name."""
    _check_dotted(dotted)
    try:
        routes = _import(dotted + ".routes")
    except ImportError as error:
        routes = _imported(dotted, error)
    if not isinstance(routes, (list, tuple)):
        inside = vars(routes) if isinstance(routes, ModuleType) else ()
        told = next(filter(None, (other_libraries.advice("routing", name) for name in inside)), "")
        raise InvalidConfiguration(
            f"{dotted} has no list called 'routes': {told or 'add it, or name the list itself'}."
        )
    return check_entries(routes, dotted)  # type: ignore[no-any-return]


def _check_dotted(dotted: str) -> None:
    if not all(part.isidentifier() for part in dotted.split(".")):
        raise InvalidConfiguration(
            f"The routing names {safe_repr(dotted)}, which is not a dotted name: write one, such as 'chat.routing'."
        )


def _imported(dotted: str, earlier: ImportError | None = None) -> Any:
    _check_dotted(dotted)
    try:
        return _import(dotted)
    except ImportError as error:
        raise InvalidConfiguration(
            f"The routing names {dotted!r}, which cannot be imported ({earlier or error}): correct the name."
        ) from error


def _import(dotted: str) -> Any:
    """As Django's ``import_string``, which takes an AttributeError in the module for a name that is missing there."""
    if "." in dotted:
        import_module(dotted.rpartition(".")[0])
    return import_string(dotted)


_GAP = re.compile(r"%\((\w+)\)s")


def reverse(to: str | Consumer, kwargs: Mapping[str, Any] | None = None, *, layer: str = "default") -> str:
    """Return the path of the first route with this name whose captures are exactly these keywords.

    ``to`` is the route's ``name`` (``"namespace:name"`` in an include with a namespace), its consumer, or the
    consumer's dotted name. The path is quoted as in a URL. The first call imports the site's consumers. Raises
    NoReverseMatch, and InvalidConfiguration for an invalid routing::

        reverse("room", kwargs={"room": "tea"})  # "/chat/tea/"
    """
    given = dict(kwargs or {})
    bound = site_routing(layer).bound_routes()
    if isinstance(to, str):
        found = [one for one in bound if to in (one.url_name, one.route.name)]
    else:
        found = [one for one in bound if inspect.unwrap(one.route.consumer) == inspect.unwrap(to)]
    for one in found:
        path = _path(one.patterns().get("path", []), given)
        if path is not None:
            return escape_leading_slashes(quote(path, safe=RFC3986_SUBDELIMS + "/~:@"))
    raise NoReverseMatch(_sentence(to, given, found))


def _path(chain: Sequence[Pattern], given: dict[str, Any]) -> str | None:
    """Return the text that the patterns match one after another, with exactly these captures; None if there is none."""
    for parts in itertools.product(*(one.candidates() for one in chain)) if chain else ():
        if {name for _, captured in parts for name in captured} != set(given):
            continue
        try:
            path = "".join(
                _GAP.sub(lambda gap, one=one: _text(one, gap[1], given), text)  # type: ignore[misc]
                for (text, _), one in zip(parts, chain, strict=True)
            )
        except ValueError:  # a converter refuses the value
            continue
        if _matches(chain, path, given):
            return path
    return None


def _text(pattern: Pattern, name: str, given: dict[str, Any]) -> str:
    converter = pattern.converters.get(name)
    return str(given[name] if converter is None else converter.to_url(given[name]))


def _matches(chain: Sequence[Pattern], path: str, given: dict[str, Any]) -> bool:
    """Whether the path gives these captures back: a slash in a slug, for example, would change the path."""
    rest = path
    for pattern in chain:
        found = pattern.regex.match(rest)
        if found is None:
            return False
        captured = {name: text for name, text in found.groupdict().items() if text is not None}
        if any(text != _text(pattern, name, given) for name, text in captured.items()):
            return False
        rest = rest[found.end() :]
    return True


def _sentence(to: str | Consumer, given: dict[str, Any], found: Sequence[BoundRoute]) -> str:
    called = to if isinstance(to, str) else f"{to.__module__}.{getattr(to, '__qualname__', repr(to))}"
    if not found:
        return (
            f"Reverse for {called!r} not found. It is neither the name of a route nor a consumer with a route: give a "
            f"route name={called.rpartition('.')[2]!r}, or run 'manage.py showchannels' to list the routes."
        )
    tried = [one.shown_filters().get("path") for one in found]
    if not any(tried):
        return f"Reverse for {called!r} not found. Its route has no filter on the path: add path=... to it."
    arguments = f"keyword arguments {safe_repr(given, 200)}" if given else "no arguments"
    paths = ", ".join(repr(text) for text in tried if text)
    return f"Reverse for {called!r} with {arguments} not found. {len(tried)} pattern(s) tried: {paths}"
