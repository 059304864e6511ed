"""``route_class``: the routes of a consumer that is a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from dbchannels.consumers.websocket import WebsocketConsumer
from dbchannels.exceptions import InvalidConfiguration, safe_repr
from dbchannels.routing.table import Include, consumer, include

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

    The options and filters are those of ``route``, and go before the class's own ``options``.
    """
    if consumer_class is not None:
        if not (isinstance(consumer_class, type) and issubclass(consumer_class, WebsocketConsumer)):
            raise InvalidConfiguration(
                f"route_class takes a WebsocketConsumer, not {safe_repr(consumer_class)}: write route(channel, ...) "
                "for a function."
            )
        return include(consumer_class.as_routes(**options_and_filters))

    def register(decorated: AnyClass) -> AnyClass:
        for channel in decorated.CHANNELS:
            consumer(channel, **{**decorated.options, **options_and_filters})(decorated)
        return decorated

    return register
