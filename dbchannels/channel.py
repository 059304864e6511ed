"""``Channel`` and ``Group``: what a site's code sends to."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.http.response import HttpResponseBase

from dbchannels import foreign, names
from dbchannels.exceptions import InvalidMessage
from dbchannels.layers import channel_layers
from dbchannels.layers.base import BaseLayer

Fields = dict[str, Any]

_OPTIONS = frozenset({"delay", "deliver_at", "priority", "unique", "immediately", "layer"})
_DEFAULTS: Fields = {"delay": 0, "deliver_at": None, "priority": 0, "unique": ""}


class Channel:
    """A named channel. Sending is an INSERT in the caller's transaction: seen at commit, never after a rollback.

    On the site's own channels ``delay`` (a timedelta, or seconds) or ``deliver_at`` (a datetime) makes what is sent
    due later, the highest ``priority`` is taken first, and with ``unique``, a key, nothing is queued while a message
    with that key waits. ``immediately`` writes at once where a consumer's sends otherwise wait for its end. Raises
    InvalidName; ``send`` raises InvalidMessage for an option that cannot be used.
    """

    @foreign.tells_keywords("send")
    def __init__(
        self,
        name: str,
        *,
        delay: timedelta | float = 0,
        deliver_at: datetime | None = None,
        priority: int = 0,
        unique: str = "",
        immediately: bool = False,
        layer: str = "default",
    ) -> None:
        self.name = names.check_channel_name(name)
        given = {"delay": delay, "deliver_at": deliver_at, "priority": priority, "unique": unique}
        self._delivery = {key: value for key, value in given.items() if value != _DEFAULTS[key]}
        self._immediately = immediately
        self._layer = layer

    def send(self, message: Fields | HttpResponseBase | None = None, /, **fields: Any) -> None:
        """Send one message: ``send({"text": "hi"})``, or its fields as keywords, ``send(content="hi")``.

        The reply channel of an ``http.request`` takes a response of Django's too: ``send(JsonResponse(...))``.
        Raises InvalidMessage, MessageTooLarge or ChannelFull, and then nothing was sent.
        """
        content = _fields(message, fields)
        if isinstance(message, HttpResponseBase) and "!" not in self.name:
            raise InvalidMessage(
                f"A response goes to the reply channel of a request, not to {self.name}: send a dict there."
            )
        _layer(self._layer).send(self.name, content, immediately=self._immediately, **self._delivery)

    def identify(self, user: Any) -> None:
        """Say whose WebSocket this reply channel is of: a user, or a primary key; None or an anonymous one: nobody.

        It is part of the caller's transaction, and ``Group.users`` goes by it. Nothing happens where no open
        WebSocket has the channel. Raises InvalidName for a key that is no short, printable text.
        """
        key = getattr(user, "pk", user)
        _layer(self._layer).identify(self.name, "" if key is None else str(key))

    if not TYPE_CHECKING:  # or no type checker would find a name that is not there

        def __getattr__(self, name: str) -> Any:
            return foreign.missing_attribute("channel", self, name)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Channel({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Channel) and (self.name, self._layer) == (other.name, other._layer)

    def __hash__(self) -> int:
        return hash((self.name, self._layer))


class Group:
    """A named set of channels; what is sent to it goes to each that is in it when ``send`` is called.

    The channel of a connection leaves all its groups when the connection ends. With ``immediately`` what a consumer
    does does not wait for the consumer's end: to tell of the progress of long work, or to be in a group before it reads
    what it shows first. Raises InvalidName.
    """

    @foreign.tells_keywords("send")
    def __init__(self, name: str, *, immediately: bool = False, layer: str = "default") -> None:
        self.name = names.check_group_name(name)
        self._immediately = immediately
        self._layer = layer

    def add(self, channel: Channel | str) -> None:
        """Put a channel in; once, however often it is added."""
        _layer(self._layer).group_add(self.name, _name(channel), immediately=self._immediately)

    def discard(self, channel: Channel | str) -> None:
        """Take a channel out; no error when it is not in there."""
        _layer(self._layer).group_discard(self.name, _name(channel), immediately=self._immediately)

    def send(self, message: Fields | HttpResponseBase | None = None, /, **fields: Any) -> None:
        """Send one message to every channel; one that is full goes without. Raises as Channel.send, never Full."""
        content = _fields(message, fields)
        _layer(self._layer).send_group(self.name, content, immediately=self._immediately)

    def clear(self) -> None:
        """Take every channel out."""
        _layer(self._layer).group_clear(self.name)

    def channels(self) -> list[str]:
        """Return the names of the channels in the group."""
        return _layer(self._layer).group_channels(self.name)

    def count(self) -> int:
        """Return how many channels are in the group."""
        return _layer(self._layer).group_count(self.name)

    def users(self) -> list[str]:
        """Return who is present: the primary keys, as text, of the users whose WebSockets are in the group.

        Each is there once, however many windows are open. Known are those that a consumer has named by
        ``message.reply_channel.identify(user)``.
        """
        return _layer(self._layer).group_users(self.name)

    if not TYPE_CHECKING:  # or no type checker would find a name that is not there

        def __getattr__(self, name: str) -> Any:
            return foreign.missing_attribute("group", self, name)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Group({self.name!r})"


def _layer(alias: str) -> BaseLayer:
    return channel_layers[alias]


def _name(channel: Channel | str) -> str:
    # Not str(channel): of a message without a reply channel that would be a channel called "None".
    return channel.name if isinstance(channel, Channel) else channel


def _fields(message: Fields | HttpResponseBase | None, fields: Fields) -> Fields:
    for name in fields:
        if (told := foreign.advice("send", name)) and (message is not None or name in _OPTIONS):
            # As a field it would be sent, and change nothing.
            raise InvalidMessage(
                f"send() takes no {name!r}: {told}; a field of that name goes into the dict."
            )
    if message is None:
        return fields
    if fields:
        raise InvalidMessage("Send a dict or keywords, not both: send({...}) or send(text=...).")
    return _response_fields(message) if isinstance(message, HttpResponseBase) else message


def _response_fields(response: Any) -> Fields:
    """Return a response of Django's as the one message that answers a request."""
    if response.streaming:
        raise InvalidMessage(
            "A streamed response is no message: send its head, and then its parts, each with 'more_content': True."
        )
    if callable(getattr(response, "render", None)):
        response = response.render()
    headers = [[name.encode("ascii"), value.encode("latin-1")] for name, value in response.items()]
    cookies = [one.OutputString().encode("latin-1") for one in response.cookies.values()]
    return {
        "status": response.status_code,
        "reason": response.reason_phrase,
        "headers": headers + [[b"Set-Cookie", cookie] for cookie in cookies],
        "content": response.content,
    }
