"""Names of Channels 1 to 4 and of Celery, each with what it is called here.

Checks and errors are worded from this one table. A name that works here as it does there is not in it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_CHANNEL_OPTIONS = {
    "countdown": "write Channel(name, delay=seconds).send({...})",
    "eta": "write Channel(name, deliver_at=datetime).send({...})",
    "queue": "the name of the Channel is the queue",
    "expires": "a message on a channel of your own does not expire: let its consumer look at a time that you send",
}
_OWN_OPTIONS = ("delay", "deliver_at", "priority", "unique", "immediately", "layer")
_SEND = "write Channel(name).send({...})"
_CALL = {"delay": _SEND, "apply_async": _SEND, "send_task": _SEND, "s": _SEND, "si": _SEND}
_SESSIONS = (
    "take the decorator away: message.user, message.http_session and message.channel_session are always there"
)
_CLASSES = "subclass WebsocketConsumer or JsonWebsocketConsumer, whose methods may be async def"

_RUN = "write connect(self, message), receive(self, text=None, bytes=None) and disconnect(self, code)"
_ALWAYS_IN_ORDER = "take it away: the frames of a connection are always consumed in order"
_ALWAYS_THERE = "take it away: self.user, self.http_session and self.channel_session are always there"
_DEFINED = {
    "connection_groups": "write groups = [...], or def groups(self, **captures)",
    **dict.fromkeys(("mapping", "method_mapping", "get_handler"), _RUN),
    **dict.fromkeys(("raw_connect", "raw_receive", "raw_disconnect"), _RUN),
    **dict.fromkeys(("websocket_connect", "websocket_receive", "websocket_disconnect"), _RUN),
    **dict.fromkeys(("channel_session_user", "http_user", "http_user_and_session"), _ALWAYS_THERE),
    **dict.fromkeys(("strict_ordering", "slight_ordering"), _ALWAYS_IN_ORDER),
}

#: By the place where a name is used.
NAMES: dict[str, dict[str, str]] = {
    # Attributes and methods that a consumer class defines, and nothing here looks at.
    "class": _DEFINED,
    # Attributes of an instance of such a class.
    "consumer": {
        **_DEFINED,
        "scope": "use self.captures for what the path captures, self.user, self.http_session and self.message",
        "kwargs": "write self.captures",
        "session": "write self.http_session, or self.channel_session for what is kept with the connection",
        "send_json": "subclass JsonWebsocketConsumer, or write self.send(json.dumps(content))",
        "path": 'write self.message["path"]',
        "channel_name": "write self.reply_channel.name",
        "channel_layer": "write Group(name).send({...}), or Channel(name).send({...})",
        "dispatch": "write connect, receive and disconnect",
        "group_send": "write Group(name).send({...}), or self.send_group_json(name, content)",
        "group_add": "write Group(name).add(self.reply_channel), or name it in groups",
        "group_discard": "write Group(name).discard(self.reply_channel)",
        "base_send": "write self.send(text=...)",
        "as_asgi": "write route_class(YourConsumer, path=...)",
        "as_view": "write route_class(YourConsumer, path=...)",
        "as_route": "write route_class(YourConsumer, path=...)",
    },
    # Parameters of a consumer class's methods, and keywords of its send and close.
    "parameter": {
        "text_data": "write text",
        "bytes_data": "write bytes",
        "text_data_json": "subclass JsonWebsocketConsumer, and write receive_json(self, content)",
        "message": "write text for a text frame, or bytes for a binary one",
        "event": "write text for a text frame, or bytes for a binary one",
        "data": "write text for a text frame, or bytes for a binary one",
        "content": "subclass JsonWebsocketConsumer, and write receive_json(self, content)",
        "multiplexer": "write self.send_json(content) in the consumer of a Demultiplexer",
    },
    # Attributes of a message.
    "message": {
        "scope": "use the captures, which are arguments of the consumer, message.user and message.http_session",
        "session": "write message.http_session, or message.channel_session for what is kept with the connection",
        "channel_layer": "write Group(name).send({...}), or Channel(name).send({...})",
        "channel_name": "write message.reply_channel.name",
        "reply": "write message.reply_channel.send({...})",
        "send": "write message.reply_channel.send({...})",
        "path": 'write message["path"]',
        "text": 'write message["text"], or message.get("text")',
        "GET": 'write QueryDict(message["query_string"])',
        "COOKIES": "use message.user, message.http_session or message.channel_session",
        "retry": "raise any exception, or ConsumeLater: the message comes again",
        "request": "write message.attempt",
    },
    # Keys of what is sent to a client.
    "reply": {
        "type": "leave 'type' out, and send what the client is to get, {'text': ...}",
        "text_data": "write 'text'",
        "bytes_data": "write 'bytes'",
        "message": "write 'text'",
        "data": "write 'text'",
        "json": "write 'text': json.dumps(...)",
        "code": "write 'close'",
        "reject_connection": "write 'accept': False",
    },
    # Keys of a response to a request.
    "response": {
        **dict.fromkeys(("body", "text", "bytes", "data", "json"), "write 'content': bytes"),
        "type": "leave 'type' out, and send {'status': ..., 'headers': ..., 'content': ...}",
        "code": "write 'status'",
        "status_code": "write 'status'",
        "content_type": "write 'headers': [[b'Content-Type', b'...']]",
        "more_body": "write 'more_content'",
    },
    # Attributes of a Channel.
    "channel": {
        **_CALL,
        "channel_name": "write name",
        "group_send": "write Group(name).send({...})",
        "as_websocket": "write send({'text': ...})",
    },
    # Attributes of a Group.
    "group": {
        "group_send": "write send({...})",
        "group_add": "write add(channel)",
        "remove": "write discard(channel)",
        "delete": "write clear()",
        "group_channels": "write channels()",
    },
    # Attributes of a layer.
    "layer": {
        "group_send": "write layer.send_group(group, {...})",
        "receive_single": "write layer.receive([channel])",
        "router": "write dbchannels.routing.table.site_routing()",
    },
    # Keywords of a Channel and its send.
    "send": {
        **_CHANNEL_OPTIONS,
        **{one: f"write Channel(name, {one}=...).send({{...}})" for one in _OWN_OPTIONS},
    },
    # Keywords of consumer, route, include and route_class.
    "option": {
        "max_retries": "write retries",
        "default_retry_delay": "write backoff",
        "retry_delay": "write backoff",
        "retry_backoff": "write backoff",
        "retry_backoff_max": "write backoff=function",
        "retry_jitter": "take it away: the usual backoff is jittered",
        "retry_kwargs": "write retries and backoff",
        "autoretry_for": "take it away: a message is tried again whatever its consumer raises",
        "acks_late": "take it away: a message is always acknowledged after its consumer",
        "reject_on_worker_lost": "take it away: a message whose worker dies always comes again",
        "ignore_result": "take it away: what a consumer returns is not kept",
        "bind": "take it away: the message is the first argument, and message.attempt counts",
        "time_limit": "write hard_timeout",
        "soft_time_limit": "write soft_timeout",
        "timeout": "write hard_timeout",
        "rate_limit": "write concurrency",
        "schedule": "write every",
        "run_every": "write every",
        "crontab": "write every",
        **_CHANNEL_OPTIONS,
        **{
            one: f"it belongs to the sender: write Channel(name, {one}=...).send({{...}})"
            for one in _OWN_OPTIONS
        },
    },
    # What is imported of the package.
    "import": {
        **dict.fromkeys(
            (
                "channel_session",
                "channel_session_user",
                "channel_session_user_from_http",
                "channel_and_http_session",
                "channel_and_http_session_user_from_http",
                "http_session",
                "http_session_user",
                "channel_and_http_session_user",
                "AuthMiddlewareStack",
                "AuthMiddleware",
                "SessionMiddlewareStack",
                "CookieMiddleware",
            ),
            _SESSIONS,
        ),
        "enforce_ordering": _ALWAYS_IN_ORDER,
        "allowed_hosts_only": "take it away: the origin is always looked at",
        "AllowedHostsOriginValidator": "take it away: the origin is always looked at",
        "OriginValidator": "take it away: the origin is always looked at",
        "get_channel_layer": 'write channel_layers["default"]',
        "ProtocolTypeRouter": "write routes = [route(...), route_class(...)] in a routing module",
        "URLRouter": "write routes = [route(...), route_class(...)] in a routing module",
        "ChannelNameRouter": "write routes = [route(...), route_class(...)] in a routing module",
        **dict.fromkeys(
            (
                "AsyncWebsocketConsumer",
                "AsyncJsonWebsocketConsumer",
                "SyncConsumer",
                "AsyncConsumer",
                "BaseConsumer",
            ),
            _CLASSES,
        ),
        "WebsocketDemultiplexer": "write Demultiplexer",
        "WebsocketBinding": "write Binding",
        "WebsocketMultiplexer": "write self.send_json(content) in the consumer of a Demultiplexer",
        "database_sync_to_async": "write asgiref.sync.sync_to_async",
        "HttpClient": "write dbchannels.testing.ChannelTestCase",
        "ChannelTestCase": "write dbchannels.testing.ChannelTestCase",
        "WebsocketCommunicator": "write dbchannels.testing.ChannelTestCase",
        "HttpCommunicator": "write dbchannels.testing.ChannelTestCase",
        "ChannelsLiveServerTestCase": "write dbchannels.testing.ChannelLiveServerTestCase",
        "AcceptConnection": "let the consumer return: that accepts",
        "StopConsumer": "let the consumer return",
        "shared_task": "write @consumer(channel)",
        "task": "write @consumer(channel)",
        "periodic_task": "write @consumer(channel, every=...)",
    },
    # Names of a routing module in place of routes.
    "routing": dict.fromkeys(
        ("channel_routing", "websocket_urlpatterns", "urlpatterns", "application"),
        "call the list routes, and make it of route(...) and route_class(...)",
    ),
    # Options of the commands.
    "command": {
        "--only-channels": "write --only",
        "--exclude-channels": "write --exclude",
        "--queues": "write --only",
        "-Q": "write --only",
        "--threads": "start more workers, as with runchannels --workers N",
        "--concurrency": "start more workers, as with runchannels --workers N",
        "-c": "start more workers, as with runchannels --workers N",
        "--beat": "take it away: workers send what has every=... by themselves",
        "-B": "take it away: workers send what has every=... by themselves",
        "--noasgi": "put 'dbchannels' below 'django.contrib.staticfiles' for Django's own runserver",
        "--noworker": "run runchannels --workers 0",
        "--http_timeout": "write --http-timeout, an option of runchannels",
        "-p": "write the address, as 8000 or 0.0.0.0:8000",
        "-b": "write the address, as 8000 or 0.0.0.0:8000",
        "--port": "write the address, as 8000 or 0.0.0.0:8000",
        "-u": "write the address, as unix:/run/site.sock",
        "--root-path": "set FORCE_SCRIPT_NAME",
    },
}


def advice(place: str, name: object) -> str:
    """Return what to do about a name, as the second half of a sentence; "" for one that is not known."""
    return NAMES[place].get(name, "") if isinstance(name, str) else ""


def missing_attribute(place: str, instance: object, name: str) -> Any:
    """Do what ``__getattr__`` does: raise AttributeError, with the attribute's name here where it has one."""
    if hasattr(type(instance), name):  # a property raised an AttributeError of its own: let it do so again
        return object.__getattribute__(instance, name)
    told = advice(place, name)
    text = f"{type(instance).__qualname__!r} object has no attribute {name!r}"
    raise AttributeError(f"{text}: {told}." if told else text, name=name, obj=instance)


def tells_keywords(place: str) -> Callable[[F], F]:
    """Let a function that is called with a keyword of another framework raise a TypeError that says its name here."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            try:
                return function(*arguments, **keywords)
            except TypeError:
                known = function.__code__.co_varnames
                for name in keywords:
                    if name not in known and (told := advice(place, name)):
                        raise TypeError(f"{function.__qualname__}() takes no {name!r}: {told}.") from None
                raise

        return call  # type: ignore[return-value]

    return decorate


def module_names(module: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module: what is imported of it under another framework's name is told its own."""

    def missing(name: str) -> Any:
        if told := advice("import", name):
            raise ImportError(f"{module} has no {name!r}: {told}.", name=name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return missing


def refuse_calls(function: Any, channel: str) -> None:
    """Let ``function.delay(...)`` and the like say that a consumer is run by sending to its channel."""

    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise AttributeError(
            f"{function.__qualname__} is a consumer, and not a task: write Channel({channel!r}).send({{...}})."
        )

    if inspect.isfunction(function):
        for name in ("delay", "apply_async"):
            function.__dict__.setdefault(name, refuse)
