"""``Channel`` and ``Group``: where a site's code sends messages."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NoReturn

from django.http.response import HttpResponseBase

from dbchannels import names, other_libraries
from dbchannels.exceptions import InvalidConfiguration, InvalidMessage, safe_repr
from dbchannels.layers import channel_layers
from dbchannels.protocol import EVENT, Fields

_OPTIONS = frozenset({"delay", "deliver_at", "priority", "unique", "immediately", "layer"})
_GROUP_OPTIONS = frozenset({"history", "immediately", "layer"})
_DEFAULTS: Fields = {"delay": 0, "deliver_at": None, "priority": 0, "unique": ""}


class Channel(other_libraries.ForeignNames):
    """A named channel. A send is an INSERT in the caller's transaction: after a rollback it was never sent::

        Channel("invoices", delay=timedelta(minutes=5)).send({"order": 7})

    Options for messages on the site's own channels:

    * ``delay`` (a timedelta, or seconds) or ``deliver_at`` (a datetime): when the message is due;
    * ``priority``: messages with the highest priority are taken first;
    * ``unique``: a key; the message is not queued while another with this key waits.

    By default a consumer's sends are written when it returns. ``immediately=True`` writes them at once. Raises
    InvalidName; ``send`` raises InvalidMessage for an option that cannot be used.
    """

    _place = "channel"

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
        **others: NoReturn,
    ) -> None:
        if others:
            other_libraries.refuse_keywords("send", "Channel.__init__", others)
        self.name = names.check_channel_name(name)
        given = {"delay": delay, "deliver_at": deliver_at, "priority": priority, "unique": unique}
        changed = given != _DEFAULTS
        self._delivery = {key: one for key, one in given.items() if one != _DEFAULTS[key]} if changed else {}
        self._immediately = immediately
        self._layer = _alias(layer)

    def send(self, message: Fields | HttpResponseBase | None = None, /, **fields: Any) -> None:
        """Send one message: ``send({"text": "hi"})``, or its fields as keywords, ``send(content="hi")``.

        The reply channel of an ``http.request`` also takes a Django response: ``send(JsonResponse(...))``. Raises
        InvalidMessage, MessageTooLarge or ChannelFull; then nothing was sent.
        """
        content = _fields(message, fields, "Channel", _OPTIONS)
        if isinstance(message, HttpResponseBase) and "!" not in self.name:
            raise InvalidMessage(
                f"A response can be sent to the reply channel of a request only, not to {self.name}: send a dict."
            )
        channel_layers[self._layer].send(self.name, content, immediately=self._immediately, **self._delivery)

    def identify(self, user: Any) -> None:
        """Record which user this reply channel's WebSocket belongs to, for ``Group.users``.

        ``user`` is a user or a primary key; None or an AnonymousUser removes the record. The change is part of the
        caller's transaction. Without an open WebSocket on this channel nothing happens. Raises InvalidName for a key
        that is not a short, printable text.
        """
        key = getattr(user, "pk", user)
        channel_layers[self._layer].identify(self.name, "" if key is None else str(key))

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Channel({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Channel) and (self.name, self._layer) == (other.name, other._layer)

    def __hash__(self) -> int:
        return hash((self.name, self._layer))


def received_channel(name: str, layer: str) -> Channel:
    """Return the channel of a received message, whose name was checked when the message was sent."""
    channel = Channel.__new__(Channel)
    channel.name, channel._delivery, channel._immediately, channel._layer = name, {}, False, layer
    return channel


class Group(other_libraries.ForeignNames):
    """A named set of channels. A message to the group goes to each channel that is in it at that moment::

        Group("room-garden").add(message.reply_channel)
        Group("room-garden").send({"text": "hi"})

    A connection's channel leaves all its groups when the connection ends. By default a consumer's sends and group
    changes are written when it returns. ``immediately=True`` writes them at once, for example to report progress, or to
    join the group before reading the initial state.

    ``history=100`` keeps the last 100 messages that are sent, ``history=timedelta(hours=1)`` those of the last hour, so
    that a client whose connection breaks gets what it missed. Raises InvalidName; ``send`` raises InvalidMessage for a
    history that is neither.
    """

    _place = "group"

    def __init__(
        self,
        name: str,
        *,
        history: int | timedelta | None = None,
        immediately: bool = False,
        layer: str = "default",
        **others: NoReturn,
    ) -> None:
        if others:
            other_libraries.refuse_keywords("send", "Group.__init__", others)
        self.name = names.check_group_name(name)
        self._history = history
        self._immediately = immediately
        self._layer = _alias(layer)

    def add(self, channel: Channel | str) -> None:
        """Add a channel. Adding it again renews its expiry; it is never added twice."""
        channel_layers[self._layer].group_add(self.name, _name(channel), immediately=self._immediately)

    def discard(self, channel: Channel | str) -> None:
        """Remove a channel; no error if it is not a member."""
        channel_layers[self._layer].group_discard(self.name, _name(channel), immediately=self._immediately)

    def send(self, message: Fields | HttpResponseBase | None = None, /, **fields: Any) -> None:
        """Send one message to every channel, except to full ones.

        Raises InvalidMessage or MessageTooLarge; then nothing was sent.
        """
        content = _fields(message, fields, "Group", _GROUP_OPTIONS)
        kept = {} if self._history is None else {"history": self._history}
        channel_layers[self._layer].send_group(self.name, content, immediately=self._immediately, **kept)

    def send_event(self, event: str, fields: Fields | None = None, /) -> None:
        """Run a method of the consumer class once for each WebSocket of the group::

            Group("room-garden").send_event("chat.message", {"line": 7})  # runs chat_message(self, event)

        The method gets a dict, the fields with the event's name as ``type``. Each run is a message of its own, so
        ``send`` costs much less where all members get the same frame. Raises InvalidMessage, also for a group with a
        history, or MessageTooLarge; then nothing was sent.
        """
        if not names.event_handler(event):
            raise InvalidMessage(
                f"The name of an event must be that of a method, with dots in place of underscores, not "
                f"{safe_repr(event, 60)}: write 'chat.message', for example."
            )
        if fields is not None and not isinstance(fields, dict):
            raise InvalidMessage(f"The fields of an event are a dict, not {safe_repr(fields, 60)}.")
        if fields is not None and EVENT in fields:
            raise InvalidMessage(f"The field {EVENT!r} of an event is its name: give the field another name.")
        self.send({EVENT: event, **(fields or {})})

    def clear(self) -> None:
        """Remove every channel."""
        channel_layers[self._layer].group_clear(self.name)

    def channels(self) -> list[str]:
        """Return the names of the channels in the group."""
        return channel_layers[self._layer].group_channels(self.name)

    def count(self) -> int:
        """Return how many channels are in the group."""
        return channel_layers[self._layer].group_count(self.name)

    def users(self) -> list[str]:
        """Return the primary keys, as text, of the users whose WebSockets are in the group.

        Each user is listed once, however many windows are open. Users are recorded by
        ``message.reply_channel.identify(user)``.
        """
        return channel_layers[self._layer].group_users(self.name)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Group({self.name!r})"


def _alias(layer: object) -> str:
    """Return the alias of a layer: text, as a key of DBCHANNELS must be."""
    if not isinstance(layer, str):
        raise InvalidConfiguration(
            f"The alias of a layer is {safe_repr(layer)}: write a key of DBCHANNELS, as 'default'."
        )
    return layer


def _name(channel: Channel | str) -> str:
    # Not str(channel): without a reply channel, that would be a channel called "None".
    return channel.name if isinstance(channel, Channel) else channel


def _fields(
    message: Fields | HttpResponseBase | None, fields: Fields, kind: str, options: frozenset[str]
) -> Fields:
    for name in fields:
        is_ours = name in options or name in _OPTIONS
        told = f"write {kind}(name, {name}=...).send({{...}})" if name in options else ""
        if (told := told or other_libraries.advice("send", name)) and (message is not None or is_ours):
            # It would be sent as a field, without any effect.
            raise InvalidMessage(f"send() takes no {name!r}: {told}; put a field of that name into a dict.")
    if message is None:
        return fields
    if fields:
        raise InvalidMessage("Send a dict or keywords, not both: send({...}) or send(text=...).")
    if not isinstance(message, HttpResponseBase):
        return message
    response: Any = message
    if hasattr(response, "begin"):
        raise InvalidMessage(
            "A stream of events cannot be sent: return it from a view, and send to its groups."
        )
    if response.streaming:
        raise InvalidMessage(
            "A streaming response cannot be sent as one message: send its head and its parts, each but the last with "
            "'more_content': True."
        )
    if callable(getattr(response, "render", None)):
        response = response.render()
    return {
        "status": response.status_code,
        "reason": response.reason_phrase,
        "headers": response_headers(response),
        "content": response.content,
    }


def response_headers(response: HttpResponseBase) -> list[list[bytes]]:
    """Return the headers of a Django response as a message has them, its cookies among them."""
    headers = [[name.encode("ascii"), value.encode("latin-1")] for name, value in response.items()]
    cookies = [one.OutputString().encode("latin-1") for one in response.cookies.values()]
    return headers + [[b"Set-Cookie", cookie] for cookie in cookies]
