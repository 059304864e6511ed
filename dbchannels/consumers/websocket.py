"""Consumers of a WebSocket as classes: one instance for each message, one method for each kind of message."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, NoReturn, TypeVar, overload

from django.utils.functional import classproperty

from dbchannels import names, other_libraries
from dbchannels.channel import Channel, Group
from dbchannels.exceptions import (
    DenyConnection,
    InvalidConfiguration,
    InvalidName,
    WebSocketCloseException,
    safe_repr,
)
from dbchannels.message import Message
from dbchannels.protocol import EVENT, NORMAL_CLOSURE, UNSUPPORTED_DATA
from dbchannels.redaction import RateLimitedLog
from dbchannels.routing.routes import Include, Route
from dbchannels.routing.table import consumer, include, route
from dbchannels.worker.executor import completed, log_unhandled

GAP = re.compile(r"{([^\W\d]\w*)}")  # in the name of a group: a capture
log = logging.getLogger("dbchannels.worker")
_refused = RateLimitedLog(
    log, "%d WebSocket(s) were refused, as their captures make no name of a group for %s. %s", None
)
#: Names of the methods' own parameters, which no capture may have.
RESERVED = frozenset({"self", "message", "text", "bytes", "content", "code"})


class WebsocketConsumer(other_libraries.ForeignNames):
    """A consumer of WebSockets as a class: write ``connect``, ``receive`` and ``disconnect``, plain or ``async def``.

    Each method for an event of a group has the event's name: ``chat_message(self, event)`` for ``chat.message``.
    An instance lives for one message. Keep state between messages in ``self.channel_session``. The route's captures
    are passed as keywords, and are also in ``self.captures``.
    """

    _place = "consumer"

    CHANNELS: ClassVar[tuple[str, ...]] = names.WEBSOCKET
    #: The names of the groups that a connected client is in, in which ``{room}`` stands for the capture ``room``; or a
    #: method that takes the captures and returns the names. Never build a group name from unchecked client input.
    groups: Any = ()
    #: Options of its routes, as ``consumer`` takes them: ``{"atomic": True}``.
    options: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, message: Message, captures: dict[str, Any]) -> None:
        self.message = message
        self.captures = captures

    @classmethod
    def as_routes(cls, **options_and_filters: Any) -> list[Route]:
        """Return the routes of the class, one for each channel."""
        return [route(channel, cls, **{**cls.options, **options_and_filters}) for channel in cls.CHANNELS]

    @classmethod
    def as_consumer(cls) -> Callable[..., Any]:
        """Return the function that routes call, always the same one."""
        if "_consumer" not in cls.__dict__:

            def consume(message: Message, /, **captures: Any) -> Any:
                return cls(message, captures).consume()

            consume.consumer_class = cls  # type: ignore[attr-defined]
            consume.__module__, consume.__qualname__ = cls.__module__, cls.__qualname__
            cls._consumer = staticmethod(consume)  # type: ignore[attr-defined]
        return cls.__dict__["_consumer"].__func__  # type: ignore[no-any-return]

    # For subclasses to write. Type checkers accept any signature in their place.

    def connect(self, *arguments: Any, **captures: Any) -> Any:
        """``connect(self, message, **captures)``: the handshake. Returning accepts it, DenyConnection refuses it."""

    def receive(self, *arguments: Any, **captures: Any) -> Any:
        """``receive(self, text=None, bytes=None, **captures)``: one frame, text or binary.

        If it has only one of the two parameters, a frame of the other kind closes the connection with 1003.
        """

    def disconnect(self, *arguments: Any, **captures: Any) -> Any:
        """``disconnect(self, code, **captures)``: the connection has ended.

        The close code is 1006 when the client vanished. The client's reason is ``self.message["reason"]``.
        """

    # For subclasses to call.

    @property
    def user(self) -> Any:
        """The logged-in user; see ``Message.user``."""
        return self.message.user

    @property
    def http_session(self) -> Any:
        """The session of the client's cookie; see ``Message.http_session``."""
        return self.message.http_session

    @property
    def channel_session(self) -> Any:
        """The data of this connection; see ``Message.channel_session``."""
        return self.message.channel_session

    @property
    def reply_channel(self) -> Channel:
        """The channel of this client."""
        assert self.message.reply_channel is not None
        return self.message.reply_channel

    def accept(self, subprotocol: str | None = None, headers: Sequence[Sequence[str]] = ()) -> None:
        """Accept the handshake with one of the client's subprotocols, or with headers for the response."""
        accept: dict[str, Any] = {"accept": True, "headers": [list(pair) for pair in headers]}
        self.reply_channel.send({**accept, "subprotocol": subprotocol} if subprotocol else accept)

    def send(
        self,
        text: str | None = None,
        bytes: bytes | None = None,
        close: bool | int | None = None,
        reason: str | None = None,
        **others: NoReturn,
    ) -> None:
        """Send one frame to this client; ``close`` (True, or a code) closes the connection after it."""
        if others:
            other_libraries.refuse_keywords("parameter", f"{type(self).__name__}.send", others)
        fields = {"text": text, "bytes": bytes, "close": close, "reason": reason}
        self.reply_channel.send({key: value for key, value in fields.items() if value is not None})

    def close(self, code: int = NORMAL_CLOSURE, reason: str = "") -> None:
        """Close the connection after the frames sent so far; before the handshake is accepted, refuse it with 403.

        The client receives up to 123 bytes of the reason in UTF-8.
        """
        WebSocketCloseException(code, reason)  # raises ValueError for a code or reason that cannot be sent
        self.reply_channel.send({"close": code, "reason": reason} if reason else {"close": code})

    # Of other frameworks.

    @classproperty
    def as_asgi(cls: Any) -> NoReturn:
        raise AttributeError(
            f"{cls.__qualname__} is no application: write route_class({cls.__name__}, path=...)."
        )

    as_view = as_route = as_asgi

    # Called by the route.

    def consume(self) -> Any:
        """Run the method for the message; return the value of ``connect``, which the worker checks."""
        if taken := RESERVED.intersection(self.captures):
            raise InvalidConfiguration(
                f"The route of {type(self).__qualname__} captures {sorted(taken)[0]!r}, which is another parameter of "
                "its methods: rename the capture."
            )
        return getattr(self, f"consume_{self.message.channel.name.rpartition('.')[2]}")()

    def consume_connect(self) -> Any:
        """Join the groups and run ``connect``; if it raises, neither has happened."""
        self.join_groups()
        return self.call("connect", self.message)

    def consume_receive(self) -> None:
        """Run ``receive`` with the text or the bytes of the frame."""
        if wrong := wrong_receive(type(self)):  # type: ignore[arg-type]
            raise InvalidConfiguration(f"{wrong}.")
        kind = "text" if self.message.get("text") is not None else "bytes"
        if not takes(type(self).receive, kind):
            raise WebSocketCloseException(UNSUPPORTED_DATA)
        self.call("receive", **{kind: self.message[kind]})

    def consume_event(self) -> None:
        """Run the handlers of a group's event."""
        handlers = self.event_handlers(names.event_handler(self.message[EVENT]))
        if not handlers:
            log_unhandled(self.message[EVENT], type(self).__qualname__)
        for handler in handlers:
            completed(handler(self.message["event"]))

    def event_handlers(self, name: str) -> list[Callable[..., Any]]:
        """Return the method of this name that the site has written, or no method: an event runs none of dbchannels'."""
        handler = getattr(type(self), name, None) if name else None
        own = {base for base in type(self).__mro__ if base.__module__.startswith("dbchannels.")}
        return (
            [getattr(self, name)]
            if callable(handler) and not any(hasattr(base, name) for base in own)
            else []
        )

    def consume_disconnect(self) -> None:
        """Run ``disconnect``; the server has already taken the connection out of its groups."""
        self.call("disconnect", self.message["code"])

    def join_groups(self) -> None:
        """Add this client to the groups; refuse it if its captures make an invalid name."""
        if isinstance(self.groups, str):  # each letter would be a group
            raise InvalidConfiguration(
                f"{type(self).__qualname__}.groups is a str: write a list, groups = [{self.groups!r}]."
            )
        try:
            if callable(self.groups):
                given = self.groups(**self.captures)
                named = given if inspect.isgenerator(given) else completed(given)
            else:
                if wrong := wrong_groups(type(self)):  # type: ignore[arg-type]
                    raise InvalidConfiguration(f"{wrong}.")
                named = [GAP.sub(self._fill, name) for name in self.groups]
            groups = [Group(name, layer=self.message.layer) for name in named]
        except InvalidName as error:
            _refused.count(None, type(self).__qualname__, error)
            raise DenyConnection(str(error)) from None
        for group in groups:
            group.add(self.reply_channel)

    def _fill(self, gap: re.Match[str]) -> str:
        text = self.captures.get(gap[1])
        if text in (None, ""):  # an optional part of the path
            raise InvalidName(f"There is no {{{gap[1]}}} in this path.")
        return str(text)

    def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Run a method with the captures, to its end; return its value."""
        return completed(getattr(self, method)(*arguments, **keywords, **self.captures))


@cache
def wrong_groups(of: type[WebsocketConsumer], captures: tuple[str, ...] | None = None) -> str:
    """Return what is wrong with a list of groups, for a route with these captures or for any; "" if nothing is."""
    for name in of.groups:
        for gap in GAP.findall(name) if isinstance(name, str) else ():
            if captures is not None and gap not in captures:
                known = " or ".join(f"{{{one}}}" for one in captures)
                advice = f"write {known}" if known else f"capture it, as in path='/<slug:{gap}>/'"
                return f"{of.__qualname__}.groups has {name!r}, whose {{{gap}}} the route does not capture: {advice}"
        try:
            names.check_group_name(GAP.sub("x", name) if isinstance(name, str) else name)
        except InvalidName as error:
            return f"{of.__qualname__}.groups has {safe_repr(name)}. {str(error).removesuffix('.')}"
    return ""


@cache
def wrong_receive(of: type[WebsocketConsumer], captures: tuple[str, ...] = ()) -> str:
    """Return what is wrong with the parameters of ``receive``, and what to write; "" if nothing is."""
    if takes(of.receive, "text") or takes(of.receive, "bytes"):
        parameters = inspect.signature(of.receive).parameters
        if not parameters.keys().isdisjoint({"text", "bytes"}):
            return ""
        foreigners = [
            one for one in parameters if other_libraries.advice("parameter", one) and one not in captures
        ]
        return f"{of.__qualname__}.receive takes {foreigners[0]!r}: {_RECEIVE}" if foreigners else ""
    return f"{of.__qualname__}.receive takes neither text nor bytes: {_RECEIVE}"


_RECEIVE = "write receive(self, text=None, bytes=None), or one of the two"


@cache
def takes(method: Callable[..., Any], keyword: str) -> bool:
    """Whether a method takes this keyword; with ``**captures`` alone it takes both text and bytes."""
    parameters = inspect.signature(method).parameters
    if keyword in parameters:
        return True
    any_keyword = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    return any_keyword and parameters.keys().isdisjoint({"text", "bytes"})


AnyClass = TypeVar("AnyClass", bound=type[WebsocketConsumer])


@overload
def route_class(consumer_class: type[WebsocketConsumer], /, **options_and_filters: Any) -> Include: ...
@overload
def route_class(**options_and_filters: Any) -> Callable[[AnyClass], AnyClass]: ...
def route_class(
    consumer_class: type[WebsocketConsumer] | None = None, /, **options_and_filters: Any
) -> Include | Callable[[AnyClass], AnyClass]:
    """Route all messages of a WebSocket to one class, in a routing module or as a decorator in ``consumers.py``::

        routes = [route_class(Chat, path=r"^/chat/(?P<room>\\w+)/$")]

        @route_class(path=r"^/chat/(?P<room>\\w+)/$")
        class Chat(WebsocketConsumer): ...

    The options and filters are those of ``route``, and override the class's own ``options``.
    """
    if consumer_class is not None:
        _require_class(consumer_class)
        return include(consumer_class.as_routes(**options_and_filters))

    def register(decorated: AnyClass) -> AnyClass:
        _require_class(decorated)
        for channel in decorated.CHANNELS:
            consumer(channel, **{**decorated.options, **options_and_filters})(decorated)
        return decorated

    return register


def _require_class(given: object) -> None:
    if not isinstance(given, type):
        raise InvalidConfiguration(
            f"route_class takes a WebsocketConsumer, not {safe_repr(given)}: write route(channel, ...) or "
            "@consumer(channel, ...) for a function."
        )
    if not issubclass(given, WebsocketConsumer):
        raise InvalidConfiguration(
            f"route_class takes a WebsocketConsumer, and {given.__module__}.{given.__qualname__} is not one: write "
            f"class {given.__name__}(WebsocketConsumer)."
        )
