"""Windows on a site without a server: what the worker does with a message, done in the test itself."""

from __future__ import annotations

from itertools import count

from django.test import TestCase, override_settings

from dbchannels import Message, channel_layers
from dbchannels.routing import load_routing

ROUTING = "post2015.routing"
IN_MEMORY = {"default": {"BACKEND": "memory", "ROUTING": ROUTING}}
_numbers = count(1)


@override_settings(DBCHANNELS=IN_MEMORY)
class ConsumerTestCase(TestCase):
    """Consumers run on the layer in memory, which has forgotten everything before each test."""

    def setUp(self):
        channel_layers.reset()
        self.addCleanup(channel_layers.reset)


class Window:
    """The other end of one WebSocket: a reply channel of its own, and what has arrived there."""

    def __init__(self, path: str, query_string: bytes = b"") -> None:
        self.path = path
        self.queue = f"reply.window-{next(_numbers)}!"
        self.deliver("websocket.connect", query_string=query_string, headers=[], order=0)

    @property
    def reply_channel(self) -> str:
        return self.queue + "1"

    def deliver(self, channel: str, **fields) -> None:
        """Route a message and run its consumer. A message that no route takes is an error here."""
        fields = {"reply_channel": self.reply_channel, "path": self.path, **fields}
        message = Message(channel, fields)
        route, captures = load_routing(ROUTING).match(message)
        route.run(message, captures)

    def send(self, text: str) -> None:
        """Send a text frame."""
        self.deliver("websocket.receive", text=text, order=1)

    def send_binary(self, data: bytes) -> None:
        """Send a binary frame."""
        self.deliver("websocket.receive", bytes=data, order=1)

    def close(self) -> None:
        """Close the socket."""
        self.deliver("websocket.disconnect", code=1001, order=2)

    def received(self) -> list[dict]:
        """Take and return the messages that have arrived since the last time."""
        layer = channel_layers["default"]
        arrived = []
        while (message := layer.receive([self.queue])[1]) is not None:
            arrived.append(message)
        return arrived
