"""``manage.py channels_send``: send one message to a channel, a WebSocket or a group."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from django.core.management.base import CommandError

from dbchannels import names
from dbchannels.exceptions import DBChannelsError
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.orm import DjangoLayer
from dbchannels.management.output import LayerCommand, consumers_of, counted, near, parse_moment
from dbchannels.models import DurableMessage
from dbchannels.redaction import message_text


class Command(LayerCommand):
    help = "Sends one message to one of the site's own channels, to a WebSocket by its reply channel, or to a group."

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument(
            "words",
            nargs="*",
            metavar="NAME key=value",
            help="the channel, unless --to-group is given, and the fields: a value is JSON, or else a text",
        )
        parser.add_argument("--json", metavar="JSON", help="more fields, as a JSON object")
        parser.add_argument(
            "--to-group", default="", metavar="GROUP", help="send to each channel of this group"
        )
        parser.add_argument("--delay", type=float, metavar="S", help="seconds until the message is due")
        parser.add_argument("--at", metavar="TIME", help="when the message is due: 2026-01-31T08:00")
        parser.add_argument("--priority", type=int, metavar="N", help="the highest is taken first (0)")
        parser.add_argument(
            "--unique", metavar="KEY", help="send nothing while a message with this key waits on the channel"
        )
        super().add_arguments(parser)

    def act(self, layer: BaseLayer, options: dict[str, Any]) -> None:
        if not layer.shared:
            raise CommandError("This layer lives in one process: channels_send needs one on a database.")
        words, group = list(options["words"]), options["to_group"]
        if not group and (not words or "=" in words[0]):
            raise CommandError("Name the channel first: manage.py channels_send NAME key=value.")
        channel = "" if group else words.pop(0)
        message, delivery = fields(words, options["json"]), delivery_of(options)
        if group:
            if delivery:
                raise CommandError(
                    "A message to a group has no delay, priority or unique key: leave them out."
                )
            number = layer.group_count(group)
            layer.send_group(group, message)
            self.stdout.write(
                f"Sent to the group {group}, which has {counted(number, 'channel')}: {text(group, layer, message)}"
            )
            return
        check_target(channel)
        waiting = options["unique"] and isinstance(layer, DjangoLayer)
        if waiting and same(layer, channel, options["unique"]):
            self.stdout.write(
                f"Not sent: a message with the unique key {options['unique']!r} waits on {channel}."
            )
            return
        layer.send(channel, message, **delivery)
        self.stdout.write(f"Sent to {channel}: {text(channel, layer, message)}")
        self.warn_if_unread(layer, channel)

    def warn_if_unread(self, layer: BaseLayer, channel: str) -> None:
        """Warn of a channel that nobody reads."""
        if names.is_protocol(channel):
            if not layer.connections(reply_channel=[channel]):
                self.warn("No open WebSocket has this reply channel.")
            return
        try:
            known = consumers_of(layer.alias)
        except DBChannelsError as error:
            self.warn(
                f"The routing cannot be read, so it is unknown whether a consumer takes {channel}: {error}"
            )
            return
        if channel not in known:
            own = [one for one in known if not names.is_protocol(one)]
            self.warn(f"No consumer takes {channel}, so the message waits.{near(channel, own)}")


def check_target(channel: str) -> None:
    """Refuse a channel whose messages only servers send."""
    queue, local = names.split(names.check_channel_name(channel))
    if names.is_protocol(channel) and not local:
        raise CommandError(
            f"Only servers send to {queue}, since a client waits for the answer: name one of the site's own channels, "
            "or the whole reply channel of a WebSocket."
        )


def fields(words: list[str], given: str | None) -> dict[str, Any]:
    """Return the fields of the message."""
    message: dict[str, Any] = {}
    if given is not None:
        try:
            message = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise CommandError(
                f"--json is not JSON ({error}): write an object, such as '{{\"order\": 7}}'."
            ) from None
        if not isinstance(message, dict):
            raise CommandError("--json takes an object, such as '{\"order\": 7}'.")
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise CommandError(f"{word!r} is not a field: write key=value.")
        try:
            message[key] = json.loads(value)
        except (ValueError, RecursionError):
            message[key] = value
    return message


def delivery_of(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the delivery that were given."""
    at: datetime | None = parse_moment(options["at"]) if options["at"] else None
    given = {
        "delay": options["delay"],
        "deliver_at": at,
        "priority": options["priority"],
        "unique": options["unique"],
    }
    return {name: value for name, value in given.items() if value is not None}


def same(layer: DjangoLayer, channel: str, key: str) -> bool:
    """Whether a message with this unique key waits on the channel."""
    rows = layer.rows(DurableMessage)
    return bool(rows.filter(channel=channel, unique_key=key, claimed_by=None).exists())


def text(channel: str, layer: BaseLayer, message: dict[str, Any]) -> str:
    """Return a message on one line, its secrets masked."""
    return message_text(channel, layer.make_send("own", message).payload, pretty=False)
