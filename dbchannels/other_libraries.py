"""Names of Channels 1 to 4 and of Celery, each with its counterpart in dbchannels.

Checks and errors take their advice from this one table. A name that works the same way here is not in it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

_CHANNEL_OPTIONS = {
    "countdown": "write Channel(name, delay=seconds).send({...})",
    "eta": "write Channel(name, deliver_at=datetime).send({...})",
    "queue": "the name of the Channel is the queue",
    "expires": "a message on a channel of your own does not expire: send a time, and compare it in the consumer",
}
_OWN_OPTIONS = ("delay", "deliver_at", "priority", "unique", "immediately", "layer")
_SEND = "write Channel(name).send({...})"
_CALL = {"delay": _SEND, "apply_async": _SEND, "send_task": _SEND, "s": _SEND, "si": _SEND}
_SESSIONS = (
    "remove the decorator: message.user, message.http_session and message.channel_session are always there"
)
_CLASSES = "subclass WebsocketConsumer or JsonWebsocketConsumer, whose methods may be async def"

_RUN = "write connect(self, message), receive(self, text=None, bytes=None) and disconnect(self, code)"
_ALWAYS_IN_ORDER = "remove it: the frames of a connection are always consumed in order"
_ALWAYS_THERE = "remove it: self.user, self.http_session and self.channel_session are always there"
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
    # Attributes and methods that a consumer class defines and dbchannels ignores.
    "class": _DEFINED,
    # Attributes of an instance of such a class.
    "consumer": {
        **_DEFINED,
        "scope": "use self.captures, self.user, self.http_session, and in connect message.headers and cookies",
        "kwargs": "write self.captures",
        "session": "write self.http_session, or self.channel_session for data of this connection",
        "send_json": "subclass JsonWebsocketConsumer, or write self.send(json.dumps(content))",
        "path": 'write self.message["path"]',
        "channel_name": "write self.reply_channel.name",
        "channel_layer": "write Group(name).send({...}), or Channel(name).send({...})",
        "dispatch": "write connect, receive, disconnect, and a method for each event of a group",
        "group_send": "write Group(name).send({...}) or send_event(...), or self.send_group_json(name, content)",
        "group_add": "write Group(name).add(self.reply_channel), or name it in groups",
        "group_discard": "write Group(name).discard(self.reply_channel)",
        "base_send": "write self.send(text=...)",
        **dict.fromkeys(("as_asgi", "as_view", "as_route"), "write route_class(YourConsumer, path=...)"),
    },
    # Parameters of a consumer class's methods, and keywords of its send and close.
    "parameter": {
        "text_data": "write text",
        "bytes_data": "write bytes",
        **dict.fromkeys(
            ("text_data_json", "content"),
            "subclass JsonWebsocketConsumer, and write receive_json(self, content)",
        ),
        **dict.fromkeys(
            ("message", "event", "data"), "write text for a text frame, or bytes for a binary one"
        ),
        "multiplexer": "write self.send_json(content) in the consumer of a Demultiplexer",
    },
    # Attributes of a message.
    "message": {
        "scope": "use the captures, which are arguments of the consumer, message.user and message.http_session",
        "session": "write message.http_session, or message.channel_session for data of this connection",
        "channel_layer": "write Group(name).send({...}), or Channel(name).send({...})",
        "channel_name": "write message.reply_channel.name",
        **dict.fromkeys(("reply", "send"), "write message.reply_channel.send({...})"),
        "path": 'write message["path"]',
        "text": 'write message["text"], or message.get("text")',
        "GET": 'write QueryDict(message["query_string"])',
        "COOKIES": "write message.cookies",
        "META": "write message.headers or message.client_address",
        "retry": "raise any exception, or ConsumeLater: the message comes again",
        "request": "write message.attempt",
    },
    # Keys of what is sent to a client.
    "reply": {
        **dict.fromkeys(("text_data", "message", "data"), "write 'text'"),
        "bytes_data": "write 'bytes'",
        "json": "write 'text': json.dumps(...)",
        "code": "write 'close'",
        "reject_connection": "write 'accept': False",
    },
    # The ``type`` of what is sent to a client, as to Channels' own server.
    "event": dict.fromkeys(
        ("websocket.send", "websocket.accept", "websocket.close"),
        "leave 'type' out, and send {'text': ...}, {'accept': True} or {'close': True}",
    ),
    # Keys of a response to a request.
    "response": {
        **dict.fromkeys(("body", "text", "bytes", "data", "json"), "write 'content': bytes"),
        "type": "leave 'type' out, and send {'status': ..., 'headers': ..., 'content': ...}",
        **dict.fromkeys(("code", "status_code"), "write 'status'"),
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
    # Attributes of a task of Django.
    "task": {
        **dict.fromkeys(("delay", "s", "si"), "write enqueue(...)"),
        "apply_async": "write using(priority=..., run_after=..., queue_name=...).enqueue(...)",
        "retry": "raise any exception: the task runs again",
    },
    # Attributes of a test case and of its client.
    "test": {
        "get_next_message": "write assertSent(channel), or drain() to run its consumer",
        **dict.fromkeys(
            ("send_and_consume", "consume"),
            "write socket = self.client.ws(path) and socket.send(text), or drain()",
        ),
        "join_group": "write Group(name).add(socket.reply_channel)",
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
        **dict.fromkeys(("default_retry_delay", "retry_delay", "retry_backoff"), "write backoff"),
        **dict.fromkeys(("retry_backoff_max", "min_backoff", "max_backoff"), "write backoff=function"),
        "retry_jitter": "remove it: the usual backoff is jittered",
        "retry_kwargs": "write retries and backoff",
        "autoretry_for": "remove it: a message is tried again whatever its consumer raises",
        "acks_late": "remove it: a message is always acknowledged after its consumer",
        "reject_on_worker_lost": "remove it: a message whose worker dies always comes again",
        "ignore_result": "remove it: return values are not stored",
        **dict.fromkeys(
            ("bind", "pass_context"),
            "remove it: the message is the first argument, and message.attempt counts",
        ),
        **dict.fromkeys(("time_limit", "timeout"), "write hard_timeout"),
        "soft_time_limit": "write soft_timeout",
        "rate_limit": "write concurrency",
        **dict.fromkeys(("schedule", "run_every", "crontab", "cron"), "write every"),
        **dict.fromkeys(("queue_name", "routing_key"), _CHANNEL_OPTIONS["queue"]),
        **dict.fromkeys(("task_name", "actor_name"), "remove it: the channel is the name"),
        "serializer": "remove it: messages are encoded as MessagePack",
        **_CHANNEL_OPTIONS,
        **{one: f"the sender sets it: write Channel(name, {one}=...).send({{...}})" for one in _OWN_OPTIONS},
    },
    # Imports from the package.
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
        **dict.fromkeys(
            ("allowed_hosts_only", "AllowedHostsOriginValidator", "OriginValidator"),
            "remove it: the origin is always checked",
        ),
        "get_channel_layer": 'write channel_layers["default"]',
        **dict.fromkeys(
            ("ProtocolTypeRouter", "URLRouter", "ChannelNameRouter"),
            "write routes = [route(...), route_class(...)] in a routing module",
        ),
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
        **dict.fromkeys(
            ("HttpClient", "ChannelTestCase", "WebsocketCommunicator", "HttpCommunicator"),
            "write dbchannels.testing.ChannelTestCase",
        ),
        "ChannelsLiveServerTestCase": "write dbchannels.testing.ChannelLiveServerTestCase",
        "AcceptConnection": "return from the consumer: that accepts the connection",
        "StopConsumer": "return from the consumer",
        **dict.fromkeys(("shared_task", "task"), "write @consumer(channel)"),
        "periodic_task": "write @consumer(channel, every=...)",
    },
    # Names of a routing module in place of routes.
    "routing": dict.fromkeys(
        ("channel_routing", "websocket_urlpatterns", "urlpatterns", "application"),
        "call the list routes, and make it of route(...) and route_class(...)",
    ),
    # Settings that other libraries read, and dbchannels does not.
    "setting": {
        "CHANNEL_LAYERS": "remove it: the layer is in the site's database, and DBCHANNELS has all its settings",
        "ASGI_APPLICATION": "remove it: runserver and runchannels serve the site's WSGI_APPLICATION",
        "CELERY_BROKER_URL": "remove it: messages are in the site's database",
        "CELERY_RESULT_BACKEND": "remove it: store what a consumer finds in a model of yours",
        **dict.fromkeys(
            ("CELERY_TIMEZONE", "CELERY_ENABLE_UTC"), "remove it: crontab lines are in the site's TIME_ZONE"
        ),
        **dict.fromkeys(
            ("CELERY_BEAT_SCHEDULE", "CELERYBEAT_SCHEDULE"), "write @consumer(channel, every=...)"
        ),
        "CELERY_BEAT_SCHEDULER": "remove it: workers send the periodic messages",
        **dict.fromkeys(
            ("CELERY_TASK_ROUTES", "CELERY_TASK_QUEUES", "CELERY_TASK_DEFAULT_QUEUE"),
            "remove it: the sender names the channel",
        ),
        **dict.fromkeys(
            ("CELERY_TASK_ALWAYS_EAGER", "CELERY_TASK_EAGER_PROPAGATES"),
            "write drain() in a ChannelTestCase: it runs what waits, and raises what a consumer raises",
        ),
        "CELERY_TASK_TIME_LIMIT": "write OPTIONS['hard_timeout'] in the DBCHANNELS setting",
        "CELERY_TASK_SOFT_TIME_LIMIT": "write OPTIONS['soft_timeout'] in the DBCHANNELS setting",
        "CELERY_TASK_ACKS_LATE": "remove it: a message is always acknowledged after its consumer",
        "CELERY_WORKER_CONCURRENCY": "write runchannels --workers N",
        "CELERY_WORKER_PREFETCH_MULTIPLIER": "remove it: waiting messages go to idle workers",
        **dict.fromkeys(
            ("CELERY_ACCEPT_CONTENT", "CELERY_TASK_SERIALIZER", "CELERY_RESULT_SERIALIZER"),
            "remove it: messages are encoded as MessagePack",
        ),
    },
    # Options of the commands.
    "command": {
        **dict.fromkeys(("--only-channels", "--queues", "-Q"), "write --only"),
        "--exclude-channels": "write --exclude",
        **dict.fromkeys(
            ("--threads", "--concurrency", "-c"), "start more workers, as with runchannels --workers N"
        ),
        **dict.fromkeys(("--beat", "-B"), "remove it: workers send messages with every=... by themselves"),
        "--max-tasks-per-child": "write --max-messages",
        "--max-memory-per-child": "write --max-memory, in bytes or as 500M",
        "--noasgi": "put 'dbchannels' below 'django.contrib.staticfiles' for Django's own runserver",
        "--noworker": "run runchannels --workers 0",
        "--http_timeout": "write --http-timeout, an option of runchannels",
        **dict.fromkeys(("-p", "-b", "--port"), "write the address, as 8000 or 0.0.0.0:8000"),
        "-u": "write the address, as unix:/run/site.sock",
        "--root-path": "set FORCE_SCRIPT_NAME",
    },
}


def advice(place: str, name: object) -> str:
    """Return the advice for a name, as the second half of a sentence; "" for an unknown name."""
    return NAMES[place].get(name, "") if isinstance(name, str) else ""


class ForeignNames:
    """Gives advice when a missing attribute of an instance has a name of another framework."""

    _place: ClassVar[str]  # a key of NAMES

    if not TYPE_CHECKING:  # or no type checker would report a name that does not exist

        def __getattr__(self, name: str) -> Any:
            if hasattr(
                type(self), name
            ):  # a property raised an AttributeError: let it raise the same one again
                return object.__getattribute__(self, name)
            told = advice(self._place, name)
            text = f"{type(self).__qualname__!r} object has no attribute {name!r}"
            raise AttributeError(f"{text}: {told}." if told else text, name=name, obj=self)


def refuse_keywords(place: str, function: str, keywords: dict[str, Any]) -> NoReturn:
    """Raise TypeError for unexpected keywords, with advice where there is any."""
    for name in keywords:
        if told := advice(place, name):
            raise TypeError(f"{function}() takes no {name!r}: {told}.")
    raise TypeError(f"{function}() got an unexpected keyword argument {next(iter(keywords))!r}")


def module_names(module: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module, which says what to write instead of a name that is not there."""

    def missing(name: str) -> Any:
        if told := advice("import", name):
            raise ImportError(f"{module} has no {name!r}: {told}.", name=name)
        if name in getattr(sys.modules["dbchannels"], "__all__", ()):
            raise ImportError(f"{module} has no {name!r}: write from dbchannels import {name}.", name=name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return missing


def refuse_calls(function: Any, channel: str) -> None:
    """Let ``function.delay(...)`` and ``apply_async(...)`` say that a consumer runs when its channel is sent to."""

    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise AttributeError(
            f"{function.__qualname__} is a consumer, not a task: write Channel({channel!r}).send({{...}})."
        )

    if inspect.isfunction(function):
        for name in ("delay", "apply_async"):
            function.__dict__.setdefault(name, refuse)
