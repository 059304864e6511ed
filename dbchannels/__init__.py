"""Channels for Django on nothing but the site's own database.

A *consumer* takes one message from a named *channel* and sends any number of messages to others. The names
below are all that a site needs; everything else is machinery.

``Channel``
    ``Channel("thumbnails").send({"id": 7})`` puts a message on a channel.
``Group``
    ``Group("room-1").send({"text": "hi"})`` sends one message to every channel that was added.
``Message``
    What a consumer is given: the fields of the message, its channel, and the channel to reply on.
``consumer``, ``route``, ``include``
    Say which function consumes which messages: as a decorator in ``consumers.py``, or in a routing module.
``Binding``
    Sends what happens to the instances of a model to groups.
``reverse``
    ``reverse("room", kwargs={"room": "tea"})`` gives the path of the route that has this name.
``WebsocketConsumer``, ``JsonWebsocketConsumer``, ``Demultiplexer``, ``route_class``
    Consumers as classes, one for all messages of a WebSocket.
``channel_layers``
    The configured layers by alias, ``channel_layers["default"]``, for code that wants the layer itself.
"""

from dbchannels.bindings.binding import Binding
from dbchannels.channel import Channel, Group
from dbchannels.consumers import Demultiplexer, JsonWebsocketConsumer, WebsocketConsumer, route_class
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
from dbchannels.foreign import module_names
from dbchannels.layers import channel_layers
from dbchannels.message import Message
from dbchannels.routing.reverse import reverse
from dbchannels.routing.table import consumer, include, route

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
    "include",
    "reverse",
    "route",
    "route_class",
]

__version__ = "0.1.0"

__getattr__ = module_names(__name__)
