"""Channels for Django, using only the site's own database.

A *consumer* takes one message from a named *channel* and sends any number of messages to other channels. A site needs
only these names, and the exceptions:

``Channel``
    ``Channel("thumbnails").send({"id": 7})`` puts a message on a channel.
``Group``
    ``Group("room-1").send({"text": "hi"})`` sends a message to every channel that was added to the group.
``Message``
    The argument of a consumer: the fields of the message, its channel, and the channel for replies.
``consumer``, ``route``, ``include``
    Route messages to functions: by a decorator in ``consumers.py``, or in a routing module.
``Binding``
    Sends changes of a model's instances to groups.
``reverse``
    ``reverse("room", kwargs={"room": "tea"})`` returns the path of the route with this name.
``render_to_group``
    ``render_to_group("room-1", "line.html", context)`` sends HTML to the pages with ``{% live_group "room-1" %}``.
``WebsocketConsumer``, ``JsonWebsocketConsumer``, ``Demultiplexer``, ``route_class``
    Consumers as classes, each for all messages of a WebSocket.
``event_stream``
    ``return event_stream("news")`` in a view sends the messages to a group as server-sent events.
``channel_layers``
    The configured layers by alias, such as ``channel_layers["default"]``.
"""

from dbchannels.bindings.binding import Binding
from dbchannels.channel import Channel, Group
from dbchannels.consumers import (
    Demultiplexer,
    JsonWebsocketConsumer,
    WebsocketConsumer,
    render_to_group,
    route_class,
)
from dbchannels.events import event_stream
from dbchannels.exceptions import (
    ChannelFull,
    ConsumeLater,
    DBChannelsError,
    DenyConnection,
    InvalidConfiguration,
    InvalidMessage,
    InvalidName,
    LayerUnavailable,
    LoginEnded,
    MessageTooLarge,
    NoClient,
    ResponseLater,
    WebSocketCloseException,
)
from dbchannels.layers import channel_layers
from dbchannels.message import Message
from dbchannels.other_libraries import module_names
from dbchannels.routing.table import consumer, include, reverse, route

__all__ = [
    "Binding",
    "Channel",
    "ChannelFull",
    "ConsumeLater",
    "DBChannelsError",
    "Demultiplexer",
    "DenyConnection",
    "Group",
    "InvalidConfiguration",
    "InvalidMessage",
    "InvalidName",
    "JsonWebsocketConsumer",
    "LayerUnavailable",
    "LoginEnded",
    "Message",
    "MessageTooLarge",
    "NoClient",
    "ResponseLater",
    "WebSocketCloseException",
    "WebsocketConsumer",
    "channel_layers",
    "consumer",
    "event_stream",
    "include",
    "render_to_group",
    "reverse",
    "route",
    "route_class",
]

__version__ = "0.1.0"

__getattr__ = module_names(__name__)
