"""Consumers of a WebSocket whose frames are JSON (RFC 8259) in both directions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar

from django.core.serializers.json import DjangoJSONEncoder

from dbchannels.channel import Group
from dbchannels.consumers.websocket import WebsocketConsumer

_NAMES = {dict: "an object", list: "an array", str: "a string", bool: "true or false", object: "any value"}


class JsonWebsocketConsumer(WebsocketConsumer):
    """A WebsocketConsumer whose frames are JSON: write ``receive_json`` instead of ``receive``; use ``send_json``.

    An invalid frame does not reach ``receive_json``. It is answered by ``{"error": {"code": ..., "message": ...}}``,
    and the connection stays open. The codes are ``invalid_json`` and ``invalid_content``.
    """

    #: The type of a frame's value: ``dict``, ``list``, ``str``, a tuple of types, or ``object`` for any value.
    content_type: ClassVar[Any] = dict
    #: In a demultiplexer, the name of the stream.
    stream = ""

    def receive_json(self, *arguments: Any, **captures: Any) -> Any:
        """``receive_json(self, content, **captures)``: the value of one frame."""

    def send_json(self, content: Any, close: bool | int | None = None, reason: str | None = None) -> None:
        """Send a value to this client; dates, UUIDs and decimals are written as by Django's serializers."""
        self.send(text=self.frame(content, self.stream)["text"], close=close, reason=reason)

    def send_group_json(self, group: str, content: Any) -> None:
        """Send a value to all members of a group; in a demultiplexer, on this stream."""
        Group(group, layer=self.message.layer).send(self.frame(content, self.stream))

    def send_error(self, code: str, sentence: str) -> None:
        """Send an error for a frame; override it to use another format, or to close the connection."""
        stream = {"stream": self.stream} if self.stream else {}
        self.send(text=self.encode_json({**stream, "error": {"code": code, "message": sentence}}))

    @classmethod
    def frame(cls, content: Any, stream: str = "") -> dict[str, str]:
        """Return the message that sends a value, for example to a Group from a view."""
        return {"text": cls.encode_json({"stream": stream, "payload": content} if stream else content)}

    @classmethod
    def encode_json(cls, content: Any) -> str:
        """Return a value as JSON. Raises ValueError for NaN and infinity, which JSON does not have."""
        return json.dumps(content, cls=DjangoJSONEncoder, allow_nan=False)

    @classmethod
    def decode_json(cls, text: str) -> Any:
        """Return the value of a JSON text; raises ValueError for every other text, and for nesting that is too deep.

        A number too large for a float is refused too: it would become infinity, which cannot be sent.
        """
        try:
            content = json.loads(text, parse_constant=_refuse, parse_float=_finite)
            if "\\u" in text:  # it may contain half of a surrogate pair, which no database stores
                json.dumps(content, ensure_ascii=False).encode()
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        return content

    # Called by the route.

    def receive(self, text: str | None = None, bytes: bytes | None = None, **captures: Any) -> None:
        if text is None:
            self.send_error("invalid_json", "The frame is binary: send JSON as text.")
            return
        try:
            content = self.decode_json(text)
        except ValueError as error:
            self.send_error("invalid_json", f"The frame is not JSON: {str(error)[:100]}.")
            return
        self.consume_json(content)

    def consume_json(self, content: Any) -> None:
        """Run ``receive_json`` if the value has the right type."""
        if not isinstance(content, self.content_type):
            types = self.content_type if isinstance(self.content_type, tuple) else (self.content_type,)
            wanted = " or ".join(_NAMES.get(one, one.__name__) for one in types)
            kind = "null" if content is None else _NAMES.get(type(content), "a number")
            self.send_error("invalid_content", f"Send {wanted}, not {kind}.")
            return
        self.call("receive_json", content)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("it contains a number that is too large")
    return number


def _refuse(constant: str) -> None:
    raise ValueError(f"it contains {constant}")


class Demultiplexer(JsonWebsocketConsumer):
    """Lets several consumers share one WebSocket. A frame ``{"stream": "chat", "payload": ...}`` goes to one of them::

        class Site(Demultiplexer):
            consumers = {"chat": ChatConsumer, "news": NewsConsumer}

    The payload is the consumer's ``content``, and its ``send_json`` adds the name of the stream. Other keys of a frame
    are ignored. All consumers are connected and disconnected with the socket, in this order, with the captures of its
    route. If one refuses, the socket is refused; if the ``disconnect`` of one raises, the others still run. An event
    of a group runs the method of each consumer that has one. Further error codes are ``invalid_frame`` and
    ``unknown_stream``.
    """

    #: By the name of the stream.
    consumers: ClassVar[Mapping[str, type[JsonWebsocketConsumer]]] = {}

    def consume_connect(self) -> Any:
        returned = [super().consume_connect()]
        returned += [one.consume_connect() for one in map(self._inner, self.consumers)]
        return False if False in returned else None

    def event_handlers(self, name: str) -> list[Callable[..., Any]]:
        inner = [one for stream in self.consumers for one in self._inner(stream).event_handlers(name)]
        return super().event_handlers(name) + inner

    def consume_disconnect(self) -> None:
        with ExitStack() as ends:  # runs all of them, the last one first
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
