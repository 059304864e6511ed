"""What can go wrong, one class for each, and each with the sentence that says what to do."""

from __future__ import annotations


class DBChannelsError(Exception):
    """The base of every error that dbchannels raises on purpose."""


class InvalidName(DBChannelsError, ValueError):
    """A channel's or group's name breaks a rule; the sentence says which."""


class InvalidMessage(DBChannelsError, TypeError):
    """A message holds something that no layer carries; the sentence says where and what to send instead."""


class MessageTooLarge(DBChannelsError):
    """A message is larger than the layer's ``max_message_size``, in bytes once encoded."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"The message has {size} bytes and the limit is {limit}: store the data in a model or a file and "
            "send its key, or raise OPTIONS['max_message_size'] in the DBCHANNELS setting."
        )
        self.size, self.limit = size, limit


class ChannelFull(DBChannelsError):
    """A channel holds as many unread messages as its capacity allows; nothing of the call was sent."""

    def __init__(self, channel: str) -> None:
        super().__init__(
            f"The channel {channel} is full: start workers that read it, or raise its capacity in "
            "OPTIONS['channel_capacity'] of the DBCHANNELS setting."
        )
        self.channel = channel


class LayerUnavailable(DBChannelsError):
    """The layer's database cannot be used now; the sentence carries the database's own words."""


class WorkerKilled(DBChannelsError):
    """Each attempt to run a durable message ended its worker; it is not tried again."""

    def __init__(self, attempts: int) -> None:
        super().__init__(
            f"Each of {attempts} attempts to run this message ended its worker, by a kill, a crash or os._exit: see "
            "the logs of that time, mend the consumer, and send the message again."
        )


class InvalidConfiguration(DBChannelsError):
    """The DBCHANNELS setting or the routing cannot be used as it stands; the sentence says what to change."""


class ResponseLater(DBChannelsError):
    """Raise it in a view, or a consumer of ``http.request``: its reply channel is answered later, by whoever has it.

    What was sent and written before is kept. The client waits for ``--later-timeout`` of runchannels, then gets 504.
    """


class DenyConnection(DBChannelsError):
    """Raise it in a ``websocket.connect`` consumer: the client is refused with 403 before the handshake ends."""


def shown(value: object, length: int = 60) -> str:
    """Return a value as a sentence shows it: escaped, cut, and by its type where it cannot be shown at all."""
    try:
        text = ascii(value)
    except Exception:  # an int of 5,000 digits, or what somebody's __repr__ raises
        text = f"<{type(value).__name__}>"
    return text if len(text) <= length else text[: length - 3] + "..."
