"""Checks of the routing: what no message reaches, and what a consumer cannot be called with."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator
from typing import Any

from asgiref.sync import AsyncToSync, iscoroutinefunction
from django.apps import apps
from django.conf import settings
from django.core import checks

from dbchannels import conf
from dbchannels.checks.modules import is_of_the_site, unnamed_modules
from dbchannels.checks.signatures import mismatch
from dbchannels.consumers.json import Demultiplexer
from dbchannels.consumers.websocket import WebsocketConsumer
from dbchannels.exceptions import DBChannelsError
from dbchannels.routing.patterns import misses_the_slash, stray_capture
from dbchannels.routing.table import BoundRoute, Routing, load_routing
from dbchannels.worker.executor import is_generator
from dbchannels.worker.worker import PROTOCOL_CHANNELS

Messages = Iterator[checks.CheckMessage]

#: What messages of the protocols hold as text, or as a number that is matched as text; see docs/messages.rst.
FIELDS = {
    "http.request": ("reply_channel", "http_version", "method", "scheme", "path", "root_path", "body_size"),
    "http.disconnect": ("reply_channel", "path"),
    "websocket.connect": ("reply_channel", "scheme", "path", "root_path", "order"),
    "websocket.receive": ("reply_channel", "path", "text", "order"),
    "websocket.disconnect": ("reply_channel", "path", "code", "order"),
}
_NAME = re.compile(r"(?<=<)(?:\w+(?=>)|(?<=<)(\w+:)\w+(?=>))")


@checks.register("dbchannels")
def check_routing(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """E002: the routing cannot be made. Then what its routes say: E003 to E005, W004 to W008, W014, W016, W019."""
    found: list[checks.CheckMessage] = []
    for setting in _routing_settings():
        try:
            table = load_routing(setting)
        except DBChannelsError as error:
            found.append(checks.Error(str(error), id="dbchannels.E002"))
            continue
        said = list(found)  # the decorated consumers are in the table of each layer
        found += [message for message in _check_table(table) if message not in said]
    broken = any(
        message.id == "dbchannels.E002" for message in found
    )  # what it would have named is not known
    return found if broken else found + list(unnamed_modules())


def _routing_settings() -> list[Any]:
    if conf.problems():
        return []
    layers = getattr(settings, "DBCHANNELS", {}) or ["default"]
    found: list[Any] = []
    for alias in layers:
        routing = conf.layer_settings(alias).routing
        if routing not in found:
            found.append(routing)
    return found


def _check_table(table: Routing) -> Messages:
    yield from _unreachable(table)
    yield from _classes(table)
    for bound in table.bound_routes():
        yield from _signature(bound)
        yield from _channel(bound)
        yield from _fields(bound)
        yield from _mixed(bound)
        yield from _wrapped_coroutine(bound)
        yield from _generator(bound)
        yield from _slash(bound)
    yield from _differing_paths(table)
    yield from _unrouted(table)


def _unreachable(table: Routing) -> Messages:
    """E003: a route stands there twice. W004: another takes all its messages."""
    routes = table.bound_routes()
    for index, earlier in table.shadowed().items():
        later = routes[index]
        if later.key() == earlier.key():
            yield checks.Error(
                f"{later.route.name} is routed twice for {later.route.channel} with the same filters.",
                hint="Take one of the two away: the second can never match.",
                id="dbchannels.E003",
            )
        else:
            yield checks.Warning(
                f"{later.route.name} is never run for {later.route.channel}{_shown(later)}: {earlier.route.name} "
                f"stands before it and takes these messages{_shown(earlier)}.",
                hint="Put the route with the narrower filters first.",
                id="dbchannels.W004",
            )


def _shown(bound: BoundRoute) -> str:
    filters = bound.shown_filters()
    return f" ({', '.join(f'{key}={text}' for key, text in filters.items())})" if filters else ""


def _classes(table: Routing) -> Messages:
    """E004: a class does not take what its routes capture; each mistake once, though all three routes meet it."""
    told = set()
    for bound in table.bound_routes():
        route = bound.route
        wrong = mismatch(route.consumer, route.channel, bound.captures())
        if wrong and (route.name, wrong) not in told:
            told.add((route.name, wrong))
            yield checks.Error(
                f"The route of {route.name} on {route.channel}{_shown(bound)} does not fit the class: {wrong}.",
                id="dbchannels.E004",
            )


def _signature(bound: BoundRoute) -> Messages:
    """E004: a function does not take what its route captures, or needs what it does not."""
    captures, route = bound.captures(), bound.route
    if getattr(route.consumer, "consumer_class", None) is not None:
        return
    try:
        signature = inspect.signature(route.consumer)
    except (TypeError, ValueError):
        return
    if not route.takes_message:
        return  # it is given what it takes
    try:
        signature.bind(None, **dict.fromkeys(captures))
    except TypeError as error:
        call = ", ".join(["message", *(f"{name}=..." for name in captures)])
        yield checks.Error(
            f"{route.name} is called with ({call}) by its route on {route.channel}{_shown(bound)}, and cannot be: "
            f"{_plainly(error)}.",
            hint=f"Let it take ({', '.join(['message', *captures])}), or change what the route captures.",
            id="dbchannels.E004",
        )


def _plainly(error: TypeError) -> str:
    """Return what is wrong with a call, as seen from the function: to Python the call is what is wrong."""
    return str(error).replace("too many positional arguments", "it takes fewer arguments")


def _generator(bound: BoundRoute) -> Messages:
    """E005: a consumer is a generator, whose code does not run when it is called."""
    if is_generator(bound.route.consumer):
        yield checks.Error(
            f"{bound.route.name} is a generator, so calling it for a message of {bound.route.channel} runs nothing.",
            hint="Take the yield out, and send what it yields: message.reply_channel.send({...}).",
            id="dbchannels.E005",
        )


def _slash(bound: BoundRoute) -> Messages:
    """W016: a regular expression for the path cannot begin with a slash, as each path does."""
    first = next(iter(bound.patterns().get("path", [])), None)
    if first is not None and misses_the_slash(first):
        yield checks.Warning(
            f"{bound.route.name} is never run: its path={first.text} matches no path, as each begins with a slash.",
            hint=f"Write path={_with_slash(first.text)!r}.",
            id="dbchannels.W016",
        )


def _with_slash(text: str) -> str:
    start = "^" if text.startswith("^") else r"\A" if text.startswith(r"\A") else ""
    return f"{start}/{text.removeprefix(start)}"


def _unrouted(table: Routing) -> Messages:
    """W019: a class for WebSockets in an app of the site has no route."""
    used: set[type] = set()
    todo = [of for one in table.bound_routes() if (of := getattr(one.route.consumer, "consumer_class", None))]
    while todo:
        of = todo.pop()
        used.update(of.__mro__)
        todo += of.consumers.values() if issubclass(of, Demultiplexer) else ()
    for of in _leaves(WebsocketConsumer):
        config = apps.get_containing_app_config(of.__module__)
        if (
            of not in used
            and config is not None
            and is_of_the_site(config, of.__module__)
            and "<" not in of.__qualname__
        ):
            yield checks.Warning(
                f"{of.__module__}.{of.__qualname__} has no route, so no WebSocket reaches it.",
                hint='Put @route_class(path="/...") above it, or route_class(...) into the routing module.',
                id="dbchannels.W019",
            )


def _leaves(of: type) -> Iterator[type]:
    """Yield the classes below one that have none below them, in the order of their names."""
    for one in sorted(of.__subclasses__(), key=lambda one: (one.__module__, one.__qualname__)):
        if one.__subclasses__():
            yield from _leaves(one)
        else:
            yield one


def _channel(bound: BoundRoute) -> Messages:
    """W005: a channel is spelled almost as one of the protocols'."""
    name = bound.route.channel
    if name in PROTOCOL_CHANNELS or "!" in name or "?" in name:
        return
    near = difflib.get_close_matches(name.replace("_", "."), PROTOCOL_CHANNELS, n=1, cutoff=0.85)
    if near:
        yield checks.Warning(
            f"{bound.route.name} is a consumer of {name!r}, on which the server sends nothing.",
            hint=f"Write {near[0]!r}.",
            id="dbchannels.W005",
        )


def _fields(bound: BoundRoute) -> Messages:
    """W006: a filter is on a field that the messages of this channel do not hold as text."""
    known = FIELDS.get(bound.route.channel)
    for key in bound.patterns() if known else ():
        if known and key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            yield checks.Warning(
                f"{bound.route.name} is never run: its route filters on {key!r}, which messages on "
                f"{bound.route.channel} do not hold as text.",
                hint=f"Write {near[0]!r}." if near else f"They hold {', '.join(known)}.",
                id="dbchannels.W006",
            )


def _mixed(bound: BoundRoute) -> Messages:
    """W007: a regular expression holds what looks like a path's capture."""
    for key, chain in bound.patterns().items():
        for pattern in chain:
            if stray := stray_capture(key, pattern):
                yield checks.Warning(
                    f"The filter {key}={pattern.text} of {bound.route.name} is a regular expression, in which {stray} "
                    "captures nothing.",
                    hint="Leave out ^ and $, which make it one, or capture by (?P<name>...); a < that is meant as it "
                    "stands is written \\<.",
                    id="dbchannels.W007",
                )


def _differing_paths(table: Routing) -> Messages:
    """W008: frames, or ends, of WebSockets are waited for on a path that is almost the one on which they open."""
    opened = {path: one for one in table.bound_routes() if (path := _path(one, "websocket.connect"))}
    for one in table.bound_routes():
        for channel in ("websocket.receive", "websocket.disconnect"):
            path = _path(one, channel)
            if not path or path in opened:
                continue
            for other in difflib.get_close_matches(path, opened, n=1, cutoff=0.8):
                if not any(_path(last, channel) == other for last in table.bound_routes()):
                    yield _differing(one, opened[other])


def _differing(one: BoundRoute, opening: BoundRoute) -> checks.CheckMessage:
    return checks.Warning(
        f"{one.route.name} has path={one.shown_filters()['path']} on {one.route.channel}, and "
        f"{opening.route.name} path={opening.shown_filters()['path']} on websocket.connect: what comes on the "
        "connections that the one lets in does not reach the other.",
        hint="Give both the same path, as one constant, or silence dbchannels.W008 if they are different sockets.",
        id="dbchannels.W008",
    )


def _path(bound: BoundRoute, channel: str) -> str:
    """Return the path of a route on the channel, captures without their names; "" for none."""
    if bound.route.channel != channel:
        return ""
    return _NAME.sub(lambda found: found[1] or "", bound.shown_filters().get("path", ""))


def _wrapped_coroutine(bound: BoundRoute) -> Messages:
    """W014: an ``async def`` is under a decorator for plain functions, which has ended before the function begins."""
    consumer = bound.route.consumer
    if iscoroutinefunction(consumer) or not callable(consumer):
        return
    inner = inspect.unwrap(consumer, stop=lambda one: isinstance(one, AsyncToSync))
    if not isinstance(inner, AsyncToSync) and iscoroutinefunction(inner):
        yield checks.Warning(
            f"{bound.route.name} is an async def under a decorator for plain functions, which has ended before the "
            "function begins: a transaction, for one, spans nothing.",
            hint="Write @consumer(..., atomic=True) in place of @transaction.atomic, or make it a plain def.",
            id="dbchannels.W014",
        )
