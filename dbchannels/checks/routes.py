"""Checks of the routing: routes that no message reaches, and consumers that cannot be called."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from asgiref.sync import AsyncToSync, iscoroutinefunction
from django.apps import apps
from django.core import checks

from dbchannels import conf, names, other_libraries
from dbchannels.checks.site import is_of_the_site, unimported_modules, unnamed_modules
from dbchannels.consumers.json import Demultiplexer, JsonWebsocketConsumer
from dbchannels.consumers.websocket import RESERVED, WebsocketConsumer, takes, wrong_groups, wrong_receive
from dbchannels.exceptions import DBChannelsError, safe_repr
from dbchannels.routing.patterns import misses_the_slash, stray_capture
from dbchannels.routing.routes import BoundRoute
from dbchannels.routing.table import Routing, load_routing
from dbchannels.worker.executor import is_generator
from dbchannels.worker.worker import PROTOCOL_CHANNELS

Messages = Iterator[checks.CheckMessage]

#: The text and number fields of protocol messages, which filters can match; see docs/messages.rst.
FIELDS = {
    "http.request": ("reply_channel", "http_version", "method", "scheme", "path", "root_path", "body_size"),
    "http.disconnect": ("reply_channel", "path"),
    "websocket.connect": ("reply_channel", "scheme", "path", "root_path", "order"),
    "websocket.receive": ("reply_channel", "path", "text", "order"),
    "websocket.event": ("reply_channel", "path", "type", "order"),
    "websocket.disconnect": ("reply_channel", "path", "code", "order"),
}
_OURS = {*Demultiplexer.__mro__, *JsonWebsocketConsumer.__mro__}
_RUN = ("connect", "receive", "receive_json", "disconnect", "groups")
_MORE = re.compile(r"\A(?:\^|\\A)?/?\w+://|\?(?!P=)[\w-]+=")  # than a path: a host, or a query string
_NAME = re.compile(r"(?<=<)(?:\w+(?=>)|(?<=<)(\w+:)\w+(?=>))")


@checks.register("dbchannels")
def check_routing(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """E002: The routing is invalid: a name cannot be imported, or a filter or an option cannot be used. Correct what
    the message names.

    If it is valid, and so all that it names is imported, TABLE_CHECKS, W009 and W018 follow.
    """
    found: list[checks.CheckMessage] = []
    is_broken = False
    for alias in conf.layer_aliases() if not conf.problems() else ():
        try:
            table = load_routing(conf.layer_settings(alias).routing, alias)
        except DBChannelsError as error:
            is_broken = True
            messages = [checks.Error(str(error), id="dbchannels.E002")]
        else:
            messages = [message for check in TABLE_CHECKS for message in check(table)]
        # The routes of a class repeat a warning, and a decorated consumer is in the table of each layer.
        before = list(found)
        for message in messages:
            if message not in (before if message.is_serious() else found):
                found.append(message)
    return found if is_broken else [*found, *unimported_modules(), *unnamed_modules()]


def check_reach(table: Routing) -> Messages:
    """E003: The same route is listed twice. Remove one of the two.

    W004: A route is never reached, because an earlier one matches all its messages. Put the route with the narrower
    filters first.
    """
    routes = table.bound_routes()
    for index, earlier in table.shadowed().items():
        later = routes[index]
        if later.key() == earlier.key():
            yield checks.Error(
                f"{later.route.name} is routed twice for {later.route.channel} with the same filters.",
                hint="Remove one of the two: the second can never match.",
                id="dbchannels.E003",
            )
        else:
            yield checks.Warning(
                f"{later.route.name} is never run for {later.route.channel}{_filters(later)}: {earlier.route.name} "
                f"comes before it and matches these messages{_filters(earlier)}.",
                hint="Put the route with the narrower filters first.",
                id="dbchannels.W004",
            )


def _filters(bound: BoundRoute) -> str:
    filters = bound.shown_filters()
    return f" ({', '.join(f'{key}={text}' for key, text in filters.items())})" if filters else ""


def check_classes(table: Routing) -> Messages:
    """E004: The methods of a consumer class do not take the captures of its routes, or are never called. Write them as
    the message says.

    Each mistake is reported once.
    """
    told = set()
    for bound in table.bound_routes():
        route = bound.route
        wrong = mismatch(route.consumer, route.channel, bound.captures())
        if wrong and (route.name, wrong) not in told:
            told.add((route.name, wrong))
            yield checks.Error(
                f"The route of {route.name} on {route.channel}{_filters(bound)} does not fit the class: {wrong}.",
                id="dbchannels.E004",
            )


def check_functions(table: Routing) -> Messages:
    """E004: A consumer does not take the captures of its route, or requires other arguments. Give it these
    parameters, or change the captures.
    """
    for bound in table.bound_routes():
        captures, route = bound.captures(), bound.route
        if hasattr(route.consumer, "consumer_class") or not route.takes_message:
            continue
        try:
            signature = inspect.signature(route.consumer)
        except (TypeError, ValueError):
            continue
        try:
            signature.bind(None, **dict.fromkeys(captures))
        except TypeError as error:
            call = ", ".join(["message", *(f"{name}=..." for name in captures)])
            told = str(error).replace("too many positional arguments", "it takes fewer arguments")
            yield checks.Error(
                f"{route.name} cannot be called with ({call}), as by its route on {route.channel}{_filters(bound)}: "
                f"{told}.",
                hint=f"Let it take ({', '.join(['message', *captures])}), or change the captures of the route."
                if "message" not in captures
                else "Rename the capture: a consumer's first argument is the message.",
                id="dbchannels.E004",
            )


def check_generators(table: Routing) -> Messages:
    """E005: A consumer is a generator, whose code does not run when it is called. Send the values instead of yielding
    them.
    """
    for bound in table.bound_routes():
        if is_generator(bound.route.consumer):
            yield checks.Error(
                f"{bound.route.name} is a generator, so calling it for a message of {bound.route.channel} runs "
                "nothing.",
                hint="Remove the yield, and send the values instead: message.reply_channel.send({...}).",
                id="dbchannels.E005",
            )


def check_channels(table: Routing) -> Messages:
    """W005: A channel's name is almost that of a protocol channel, such as ``websocket.recieve``. Correct the
    spelling.
    """
    for bound in table.bound_routes():
        name = bound.route.channel
        if name in PROTOCOL_CHANNELS or "!" in name or "?" in name:
            continue
        if near := difflib.get_close_matches(name.replace("_", "."), PROTOCOL_CHANNELS, n=1, cutoff=0.85):
            yield checks.Warning(
                f"{bound.route.name} is a consumer of {name!r}, on which the server sends nothing.",
                hint=f"Write {near[0]!r}.",
                id="dbchannels.W005",
            )


def check_fields(table: Routing) -> Messages:
    """W006: A filter is on a field that the messages of its channel do not have as text, such as ``method`` on
    ``websocket.receive``. Filter on one of the fields that the message lists.
    """
    for bound in table.bound_routes():
        known = FIELDS.get(bound.route.channel)
        for key in bound.patterns() if known else ():
            if known and key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                yield checks.Warning(
                    f"{bound.route.name} is never run: its route filters on {key!r}, which messages on "
                    f"{bound.route.channel} do not have as text.",
                    hint=f"Write {near[0]!r}." if near else f"They have {', '.join(known)}.",
                    id="dbchannels.W006",
                )


def check_periodic(table: Routing) -> Messages:
    """E008: No route on a channel takes the channel's own periodic messages, because all routes have filters. Remove
    the filters, or add a route without any.
    """
    for channel in dict.fromkeys(entry.channel for entry in table.timetable()):
        routes = [bound for bound in table.bound_routes() if bound.route.channel == channel]
        if all(bound.patterns().keys() - {"scheduled_at"} for bound in routes):
            yield checks.Error(
                f"The periodic messages on {channel} reach no consumer: they have the field 'scheduled_at' alone, and "
                f"each route on {channel} filters on others.",
                hint="Remove the filters, or add a route without any.",
                id="dbchannels.E008",
            )


def check_patterns(table: Routing) -> Messages:
    """W007: A regular expression contains a capture such as ``<slug:room>``, which captures nothing there. Remove ``^``
    and ``$``, or capture by ``(?P<room>...)``.

    W016: A regular expression for the path does not begin with a slash, or contains the query string or the host, so it
    matches no path. Write the path alone, with its first slash.
    """
    for bound in table.bound_routes():
        patterns = bound.patterns()
        for key, pattern in ((key, one) for key, chain in patterns.items() for one in chain):
            if stray := stray_capture(key, pattern):
                yield checks.Warning(
                    f"The filter {key}={pattern.text} of {bound.route.name} is a regular expression, in which {stray} "
                    "captures nothing.",
                    hint="Remove ^ and $, which make it a regular expression, or capture by (?P<name>...); write a "
                    "literal < as \\<.",
                    id="dbchannels.W007",
                )
        text = patterns["path"][0].text if "path" in patterns else ""
        if text and misses_the_slash(patterns["path"][0]):
            start = "^" if text.startswith("^") else r"\A" if text.startswith(r"\A") else ""
            yield checks.Warning(
                f"{bound.route.name} is never run: its path={text} matches no path, as each begins with a slash.",
                hint=f"Write path={start + '/' + text.removeprefix(start)!r}.",
                id="dbchannels.W016",
            )

        whole = bound.shown_filters().get("path", "")
        if _MORE.search(whole):
            yield checks.Warning(
                f"{bound.route.name} is never run: its path={whole} contains more than a path.",
                hint="Write the path alone. The query string of a handshake is message['query_string'].",
                id="dbchannels.W016",
            )


def check_names(table: Routing) -> Messages:
    """W021: A route has a ``name`` and no path. The name is for ``reverse``, which returns a path. Remove it, or add
    the path.
    """
    for bound in table.bound_routes():
        if bound.url_name and "path" not in bound.patterns():
            yield checks.Warning(
                f"The route of {bound.route.name} has the name {bound.url_name!r} and no path, so reverse never finds "
                "it.",
                hint=f"Remove the name, or add path=...; for a field called name, write "
                f"filters={{'name': {bound.route.url_name!r}}}.",
                id="dbchannels.W021",
            )


def check_paths(table: Routing) -> Messages:
    """W008: The path of a ``websocket.receive``, ``websocket.event`` or ``websocket.disconnect`` route is almost that
    of a ``websocket.connect`` route. Give them the same path.
    """
    routes = [(bound, bound.route.channel, shown_path(bound)) for bound in table.bound_routes()]
    opened = {path: bound for bound, channel, path in routes if channel == "websocket.connect" and path}
    known = {(channel, path) for _, channel, path in routes}
    for bound, channel, path in routes:
        if channel not in names.WEBSOCKET[1:] or not path or path in opened:
            continue
        for other in difflib.get_close_matches(path, opened, n=1, cutoff=0.8):
            if (channel, other) not in known:
                yield checks.Warning(
                    f"{bound.route.name} has path={bound.shown_filters()['path']} on {channel}, and "
                    f"{opened[other].route.name} path={opened[other].shown_filters()['path']} on websocket.connect: "
                    "the messages of connections that the latter accepts do not reach the former.",
                    hint="Give both the same path, as one constant, or silence dbchannels.W008 if they are different "
                    "sockets.",
                    id="dbchannels.W008",
                )


def shown_path(bound: BoundRoute) -> str:
    """Return the path of a route, without the names of its captures; "" if it has none."""
    return _NAME.sub(lambda found: found[1] or "", bound.shown_filters().get("path", ""))


def check_coroutines(table: Routing) -> Messages:
    """W014: An ``async def`` has a decorator for plain functions, such as ``@transaction.atomic``, which ends before
    the coroutine begins. Write ``@consumer(..., atomic=True)`` instead.
    """
    for bound in table.bound_routes():
        consumer = bound.route.consumer
        if iscoroutinefunction(consumer) or not callable(consumer):
            continue
        inner = inspect.unwrap(consumer, stop=lambda one: isinstance(one, AsyncToSync))
        if not isinstance(inner, AsyncToSync) and iscoroutinefunction(inner):
            yield checks.Warning(
                f"{bound.route.name} is an async def under a decorator for plain functions, which ends before the "
                "coroutine begins: a transaction, for example, would contain nothing.",
                hint="Write @consumer(..., atomic=True) instead of @transaction.atomic, or make it a plain def.",
                id="dbchannels.W014",
            )


def check_decorators(table: Routing) -> Messages:
    """W024: A decorator stands above ``@consumer``, so the consumer runs without it. Put ``@consumer`` on top."""
    for bound in table.bound_routes():
        consumer = bound.route.consumer
        outer = getattr(sys.modules.get(consumer.__module__), getattr(consumer, "__qualname__", ""), None)
        while outer is not None and outer is not consumer:
            outer = getattr(outer, "__wrapped__", None)
            if outer is consumer:
                yield checks.Warning(
                    f"{bound.route.name} has a decorator above the one that routes {bound.route.channel} to it, so it "
                    "runs without that decorator.",
                    hint="Put @consumer on top.",
                    id="dbchannels.W024",
                )


def check_unrouted(table: Routing) -> Messages:
    """W019: A consumer class in an app of the site has no route. Put ``@route_class(path="/...")`` above it, or
    ``route_class(...)`` into the routing module.
    """
    used: set[type] = set()
    todo = [of for one in table.bound_routes() if (of := getattr(one.route.consumer, "consumer_class", None))]
    while todo:
        of = todo.pop()
        used.update(of.__mro__)
        todo += _inner(of)
    for of in _leaves(WebsocketConsumer):
        config = apps.get_containing_app_config(of.__module__)
        local = "<" in of.__qualname__
        if of not in used and config is not None and is_of_the_site(config, of.__module__) and not local:
            yield checks.Warning(
                f"{of.__module__}.{of.__qualname__} has no route, so no WebSocket reaches it.",
                hint='Put @route_class(path="/...") above it, or route_class(...) into the routing module.',
                id="dbchannels.W019",
            )


def _leaves(of: type) -> Iterator[type]:
    """Yield the subclasses of a class that have no subclasses, in the order of their names."""
    for one in sorted(of.__subclasses__(), key=lambda one: (one.__module__, one.__qualname__)):
        if one.__subclasses__():
            yield from _leaves(one)
        else:
            yield one


# E004: whether the methods of a consumer class accept the captures of its route.


def mismatch(consumer: Callable[..., Any], channel: str, captures: Sequence[str]) -> str:
    """Return what is wrong with the methods of a class for this channel; "" if nothing is, and for a function."""
    of = getattr(consumer, "consumer_class", None)
    if of is None:
        return ""
    if wrong := _wrong_consumers(of):
        return wrong
    if isinstance(of.groups, str):
        return f"its groups are a str; write groups = [{of.groups!r}]"
    if taken := sorted(RESERVED.intersection(captures)):
        return f"{taken[0]!r} is another parameter of its methods; rename the capture"
    for name in (one for base in of.__mro__ if base not in _OURS for one in vars(base)):
        if told := other_libraries.advice("class", name):
            return f"{of.__qualname__}.{name} means nothing in dbchannels; {told}"
        if name == "receive_json" and not issubclass(of, JsonWebsocketConsumer):
            return f"{of.__qualname__}.receive_json is never run; subclass JsonWebsocketConsumer"
        near = difflib.get_close_matches(name, _RUN, n=1, cutoff=0.85)
        if near and name not in _RUN:
            return f"{of.__qualname__}.{name} is never run; write {near[0]}"
    return _mismatch(of, channel.rpartition(".")[2], captures)


def _mismatch(of: type[WebsocketConsumer], kind: str, captures: Sequence[str]) -> str:
    if kind == "receive":
        wrong = ""
        if not issubclass(of, JsonWebsocketConsumer):
            wrong = wrong_receive(of, tuple(captures))  # type: ignore[arg-type]
        elif of.receive not in (JsonWebsocketConsumer.receive, Demultiplexer.receive) and not (
            {"text", "bytes"} & inspect.signature(of.receive).parameters.keys()
        ):
            told = "overrides the one that calls receive_json: write receive_json(self, content)"
            wrong = f"{of.__qualname__}.receive {told}"
        if wrong:
            return wrong
    if kind == "connect" and not callable(of.groups) and (wrong := wrong_groups(of, tuple(captures))):
        return wrong
    for method, positional, keywords in _calls(of, kind):
        function, named = getattr(of, method), dict.fromkeys([*keywords, *captures])
        if is_generator(function) and method != "groups":
            return f"{of.__qualname__}.{method} is a generator, so calling it runs nothing; remove the yield"
        try:
            signature = inspect.signature(function)
            signature.bind(None, *positional, **named)
            if method == "disconnect" and [*signature.parameters][1:2] in (["message"], ["event"]):
                raise TypeError  # as in Channels: it would get the code
        except TypeError:
            wanted = ", ".join(["self", *positional, *named])
            return f"{of.__qualname__}.{method} takes {signature}; write {method}({wanted})"
    return next(filter(None, (_mismatch(one, kind, captures) for one in _inner(of))), "")


def _wrong_consumers(of: type[WebsocketConsumer]) -> str:
    """Return what is wrong with the ``consumers`` of a Demultiplexer; "" if nothing is."""
    if issubclass(of, Demultiplexer) and len(_inner(of)) < len(of.consumers):
        return f"its consumers are {safe_repr(of.consumers)}; write consumers = {{'stream': a JsonWebsocketConsumer}}"
    return ""


def _inner(of: type[WebsocketConsumer]) -> list[type[WebsocketConsumer]]:
    """Return the consumers of a Demultiplexer, as far as they can be used; of other classes none."""
    given = of.consumers if issubclass(of, Demultiplexer) and isinstance(of.consumers, Mapping) else {}
    return [one for one in given.values() if isinstance(one, type) and issubclass(one, JsonWebsocketConsumer)]


def _calls(of: type[WebsocketConsumer], kind: str) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Return the methods called for a kind of message, each with its positional and its keyword arguments."""
    if kind == "connect":
        return [*([("groups", (), ())] if callable(of.groups) else []), (kind, ("message",), ())]
    if kind == "event":  # a handler takes the event alone, and a method may be none
        return []
    if kind == "disconnect":
        return [(kind, ("code",), ())]
    if issubclass(of, JsonWebsocketConsumer):
        return [("receive_json", ("content",), ())]
    return [("receive", (), (one,)) for one in ("text", "bytes") if takes(of.receive, one)]


TABLE_CHECKS = (
    check_reach,
    check_classes,
    check_functions,
    check_generators,
    check_channels,
    check_fields,
    check_periodic,
    check_patterns,
    check_names,
    check_paths,
    check_coroutines,
    check_decorators,
    check_unrouted,
)
