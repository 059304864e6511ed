"""A WebSocket's consumer whose frames are JSON (RFC 8259), both ways."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, ClassVar

from django.core.serializers.json import DjangoJSONEncoder

from dbchannels.channel import Group
from dbchannels.consumers.websocket import WebsocketConsumer

_NAMES = {dict: "an object", list: "an array", str: "a string", bool: "true or false", object: "any value"}


class JsonWebsocketConsumer(WebsocketConsumer):
    """Write ``receive_json`` in place of ``receive``; send with ``send_json``.

    A frame that is wrong never gets that far. It is answered by ``{"error": {"code": ..., "message": ...}}``, and the
    connection stays open. Codes: ``invalid_json``, ``invalid_content``. What the client sends is the ``content``, and
    no key in it stands for anything else.
    """

    #: What a frame holds: ``dict``, ``list``, ``str``, a tuple of such types, or ``object`` for any value.
    content_type: ClassVar[Any] = dict
    #: In a demultiplexer, the name of its stream.
    stream = ""

    def receive_json(self, *arguments: Any, **captures: Any) -> Any:
        """``receive_json(self, content, **captures)``: one frame's value."""

    def send_json(self, content: Any, close: bool | int | None = None, reason: str | None = None) -> None:
        """Send a value to this client; dates, UUIDs and the like as Django's serializers write them."""
        self.send(text=self.frame(content, self.stream)["text"], close=close, reason=reason)

    def send_group_json(self, group: str, content: Any) -> None:
        """Send a value to all in a group; in a demultiplexer, on this stream of theirs."""
        Group(group, layer=self.message.layer).send(self.frame(content, self.stream))

    def send_error(self, code: str, sentence: str) -> None:
        """Say what is wrong with the frame; a subclass may say it otherwise, or close the connection."""
        stream = {"stream": self.stream} if self.stream else {}
        self.send(text=self.encode_json({**stream, "error": {"code": code, "message": sentence}}))

    @classmethod
    def frame(cls, content: Any, stream: str = "") -> dict[str, str]:
        """Return the message that sends a value, for a Group in a view or a signal handler."""
        return {"text": cls.encode_json({"stream": stream, "payload": content} if stream else content)}

    @classmethod
    def encode_json(cls, content: Any) -> str:
        """Return a value as JSON. Raises ValueError for NaN and infinities, which JSON has not."""
        return json.dumps(content, cls=DjangoJSONEncoder, allow_nan=False)

    @classmethod
    def decode_json(cls, text: str) -> Any:
        """Return the value of a JSON text; raises ValueError for everything else, however deep or long it is.

        A number beyond what a float holds is refused too: it would be an infinity, which cannot be sent on.
        """
        try:
            content = json.loads(text, parse_constant=_refuse, parse_float=_finite)
            if "\\u" in text:  # it may hold half of a surrogate pair, which no database takes
                json.dumps(content, ensure_ascii=False).encode()
        except RecursionError:
            raise ValueError("it is nested too deep") from None
        return content

    # What a route calls.

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
        """Run ``receive_json``, if the value is of the right type."""
        if not isinstance(content, self.content_type):
            self.send_error("invalid_content", f"Send {self._wanted()}, not {_kind(content)}.")
            return
        self.call("receive_json", content)

    def _wanted(self) -> str:
        types = self.content_type if isinstance(self.content_type, tuple) else (self.content_type,)
        return " or ".join(_NAMES.get(one, one.__name__) for one in types)


def _kind(content: Any) -> str:
    if content is None:
        return "null"
    return _NAMES.get(type(content), "a number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("it holds a number that is too large")
    return number


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


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
