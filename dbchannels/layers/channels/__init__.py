"""A channel layer for Channels 4 on the site's own database: ``CHANNEL_LAYERS`` without Redis.

``ChannelLayer`` has the coroutines that Channels documents; any number of event loops and threads may call them. The
process behind it has one relay, see ``relay``, whatever the number of consumers: three threads with a session each, of
which one LISTENs, and a session for event loops, see ``local``. A process that only sends has the publisher's session
alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import Any
from weakref import WeakSet

try:
    from channels.layers import BaseChannelLayer
except ImportError as error:
    raise ImportError(
        "dbchannels.layers.channels needs Channels 4: pip install 'dbchannels[channels]'."
    ) from error
from django.db import connections
from django.db.backends.base.base import NO_DB_ALIAS, BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.models import Q

from dbchannels import codec, conf, names
from dbchannels import exceptions as errors
from dbchannels.exceptions import InvalidConfiguration, InvalidMessage, InvalidName
from dbchannels.layers import make_layer
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.channels.relay import ChannelFull, ChannelsRelay, MessageTooLarge, shown, stored
from dbchannels.layers.operations import GroupAdd, GroupDiscard, Send, SendGroup
from dbchannels.layers.orm import DjangoLayer
from dbchannels.models import Membership, Process, ProtocolMessage
from dbchannels.protocol import EVENT

__all__ = ["ChannelFull", "ChannelLayer", "MessageTooLarge"]

log = logging.getLogger("dbchannels.layer")

UNTYPED = ""  # the key around a message without a type that was sent to a channel, and not to a group

_layers: WeakSet[ChannelLayer] = WeakSet()


def _after_fork() -> None:
    for layer in _layers:
        layer.forget()


os.register_at_fork(after_in_child=_after_fork)


def _end_sessions(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    """End our sessions before a test runner drops its database: a connection to no database is made for that alone."""
    if connection.alias == NO_DB_ALIAS:
        for layer in _layers:
            layer.stop()


connection_created.connect(_end_sessions)


class ChannelLayer(BaseChannelLayer):  # type: ignore[misc]  # Channels has no types
    """The layer for CHANNEL_LAYERS. CONFIG takes ``expiry`` (60 s), ``group_expiry`` (86,400 s), ``capacity`` (100),
    ``channel_capacity`` (a dict of globs or compiled patterns), and ``layer``, an alias of the DBCHANNELS setting.

    A call returns when its message is written, or delivered in this process. That happens at once, on sessions of its
    own, never in a transaction of the caller. If the database cannot be used, a call waits for about ten seconds, and
    then raises LayerUnavailable.
    """

    extensions = ("groups", "flush")
    ChannelFull = ChannelFull
    MessageTooLarge = MessageTooLarge

    def __init__(self, **config: Any) -> None:
        for problem in conf.channel_layer_problems("CONFIG of dbchannels' channel layer", config):
            raise InvalidConfiguration(problem)
        options = {**conf.CHANNEL_LAYER, **config}
        super().__init__(options["expiry"], options["capacity"])
        self.channel_capacity = self.compile_capacities(options["channel_capacity"] or {})
        self.group_expiry = options["group_expiry"]
        settings = conf.layer_settings(options["layer"])
        globs = {
            one + "[?]": most
            for one, most in (options["channel_capacity"] or {}).items()
            if isinstance(one, str)
        }
        own = {
            "expiry": float(self.expiry),
            "group_expiry": float(self.group_expiry),
            "channel_capacity": {**globs, "*[?]": self.capacity, **settings.options["channel_capacity"]},
        }
        self._settings = settings._replace(options={**settings.options, **own})
        self._layer = self._make_layer()
        self._limit: int = settings.options["max_message_size"]
        self._inherited: list[ChannelsRelay | None] = []
        self._relay: ChannelsRelay | None = None
        self._starting = threading.Lock()
        _layers.add(self)

    def _make_layer(self) -> BaseLayer:
        layer = make_layer(self._settings)
        # Compiled patterns count too, which the layer's own options do not know.
        layer.capacity = self._capacity_of_queue  # type: ignore[method-assign]
        return layer

    def _capacity_of_queue(self, channel: str) -> int | None:
        if channel.endswith("?"):
            return self.get_capacity(shown(channel))  # type: ignore[no-any-return]
        return BaseLayer.capacity(self._layer, channel)

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send a message to a channel. Raises ChannelFull, MessageTooLarge or LayerUnavailable."""
        self.require_valid_channel_name(channel)
        if isinstance(message, dict) and EVENT not in message:
            message = {UNTYPED: message}
        send = Send(
            stored(names.check_channel_name(channel)),
            self._encode(message),
            "",
            self._layer.options["expiry"],
        )
        relay = self._started()
        relay.check_room(channel)
        await relay.write(send)

    async def receive(self, channel: str) -> dict[str, Any]:
        """Wait for the next message of a channel; process-specific ones are those that this process has made."""
        self.require_valid_channel_name(channel)
        queue, local = names.split(names.check_channel_name(channel))
        relay = self._started()
        if "!" not in channel:
            relay.open("specific")
        elif not local or not relay.has(queue):
            raise InvalidName(
                f"{channel} is not a channel of this process: receive from one that new_channel() made."
            )
        while True:
            try:
                message = codec.decode(await relay.receive(channel))
            except errors.UnreadableMessage as error:
                log.error("A message on %s could not be read and was left out: %s", channel, error)
                continue
            if EVENT in message:
                return message
            if UNTYPED in message:
                return message[UNTYPED]  # type: ignore[no-any-return]
            # It was sent to the group for the WebSockets of dbchannels.

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return a new channel of this process."""
        return names.check_channel_name(self._started().open(prefix) + names.random_part())

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel to a group; a channel of a live process stays until it is discarded."""
        await self._change(GroupAdd, group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        """Remove a channel from a group. It is no error if it is not a member."""
        await self._change(GroupDiscard, group, channel)

    async def _change(self, kind: type[GroupAdd | GroupDiscard], group: str, channel: str) -> None:
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        relay = self._started()
        await relay.write(kind(names.check_group_name(group), stored(names.check_channel_name(channel))))
        relay.note_group(group, channel, added=kind is GroupAdd)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send a message, which has a ``type``, to each channel of a group; those that are full are left out."""
        self.require_valid_group_name(group)
        payload = self._encode(message)
        if EVENT not in message:
            raise InvalidMessage(
                "A message to a group names the method that handles it: add a 'type', such as 'chat.message'. For "
                "WebSockets of dbchannels, use Group(...).send()."
            )
        await self._started().write(SendGroup(names.check_group_name(group), payload))

    def _encode(self, message: dict[str, Any]) -> bytes:
        try:
            return codec.encode(message, self._limit)
        except errors.MessageTooLarge as error:
            raise MessageTooLarge(error.size, error.limit) from None

    async def flush(self) -> None:
        """Delete all messages and groups of Channels' layers on this database. Those of dbchannels' own stay."""
        await asyncio.get_running_loop().run_in_executor(None, self._flush)

    def _flush(self) -> None:
        layer = self._layer
        if not isinstance(layer, DjangoLayer):
            layer.flush()
            return
        try:
            queues = layer.rows(Process).filter(kind=Process.CHANNELS).values_list("queue", flat=True)
            of_channels = Q(channel__endswith="?") | Q(channel__in=list(queues))
            layer.rows(Membership).filter(of_channels).delete()
            layer.rows(ProtocolMessage).filter(of_channels).delete()
        finally:
            connections[layer.database].close()  # of the executor's thread

    async def close(self) -> None:
        """End the threads and sessions of this process. The next call starts them again, with other channels."""
        await asyncio.get_running_loop().run_in_executor(None, self.stop)

    def stop(self) -> None:
        """Do what ``close`` does, and wait for it."""
        with self._starting:
            relay, self._relay = self._relay, None
        if relay is not None:
            relay.stop()

    def _started(self) -> ChannelsRelay:
        """Return the relay of this process."""
        if self._relay is not None:
            return self._relay
        with self._starting:
            if self._relay is None:
                self._relay = ChannelsRelay(self._layer, self.get_capacity)
            return self._relay

    def forget(self) -> None:
        """Drop the parent's relay in a forked child, but keep its connections: closing them would end its sessions."""
        self._inherited.append(self._relay)
        self._relay, self._starting, self._layer = None, threading.Lock(), self._make_layer()
