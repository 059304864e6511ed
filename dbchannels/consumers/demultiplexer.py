"""Several consumers over one WebSocket, each with a stream of its own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, ClassVar

from dbchannels.consumers.json import JsonWebsocketConsumer


class Demultiplexer(JsonWebsocketConsumer):
    """Frames are ``{"stream": "chat", "payload": ...}``; the stream's consumer gets the payload as its content::

        class Site(Demultiplexer):
            consumers = {"chat": ChatConsumer, "news": NewsConsumer}

    All of them are connected and disconnected with the socket, in this order, with the captures of its route; when one
    refuses, all are refused, and when the ``disconnect`` of one raises, that of the others has run all the same. What
    they send with ``send_json`` carries the name of their stream. Error codes beside those of JsonWebsocketConsumer:
    ``invalid_frame``, ``unknown_stream``. Other keys of a frame mean nothing.
    """

    #: By the name of the stream.
    consumers: ClassVar[Mapping[str, type[JsonWebsocketConsumer]]] = {}

    def consume_connect(self) -> Any:
        returned = [super().consume_connect()]
        returned += [one.consume_connect() for one in map(self._inner, self.consumers)]
        return False if False in returned else None

    def consume_disconnect(self) -> None:
        with ExitStack() as ends:  # runs all of them, the last one that was put on first
            ends.callback(super().consume_disconnect)
            for stream in reversed(list(self.consumers)):
                ends.callback(self._inner(stream).consume_disconnect)

    def receive_json(self, content: Any, **captures: Any) -> None:
        stream = content.get("stream") if isinstance(content, dict) else None
        if not isinstance(stream, str) or "payload" not in content:
            self.send_error("invalid_frame", 'Send {"stream": "...", "payload": ...}.')
        elif stream not in self.consumers:
            self.send_error("unknown_stream", "There is no such stream.")
        else:
            self._inner(stream).consume_json(content["payload"])

    def _inner(self, stream: str) -> JsonWebsocketConsumer:
        inner = self.consumers[stream](self.message, self.captures)
        inner.stream = stream
        return inner
