"""What can go wrong, one class for each, and each with the sentence that says what to do."""

from __future__ import annotations

from collections.abc import Sequence

from dbchannels.protocol import LOGGED_OUT, NORMAL_CLOSURE, is_close_code


class DBChannelsError(Exception):
    """The base of every error that dbchannels raises on purpose."""


class InvalidName(DBChannelsError, ValueError):
    """A channel's or group's name breaks a rule; the sentence says which."""


class InvalidMessage(DBChannelsError, TypeError):
    """A message holds something that no layer carries; the sentence says where and what to send instead."""


class MessageTooLarge(DBChannelsError):
    """What a message carries is larger than the layer's ``max_message_size``, or all of it 64 KiB larger than that."""

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

    may_pass = False  # it could not be reached or is starting up: to ask again later may help


class DeclaredDead(DBChannelsError):
    """This process is not on record any more, and others have cleaned up after it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The process {name} was declared dead: it must register under a new name.")


class WorkerKilled(DBChannelsError):
    """Each attempt to run a durable message ended its worker; it is not tried again."""

    def __init__(self, attempts: int) -> None:
        super().__init__(
            f"Each of {attempts} attempts to run this message ended its worker, by a kill, a crash or os._exit: see "
            "the logs of that time, mend the consumer, and send the message again."
        )


class UnreadableMessage(DBChannelsError, ValueError):
    """The payload of a message cannot be decoded: no attempt will be better."""

    def __init__(self, reason: object) -> None:
        super().__init__(
            f"The payload cannot be decoded ({safe_repr(str(reason), 200)}): it was not encoded by this version of "
            "dbchannels, or was damaged since. Send the message again."
        )


class TransactionLeftOpen(DBChannelsError):
    """A consumer or a view has ended inside a transaction: that is rolled back, and the message has failed."""

    def __init__(self, aliases: Sequence[str]) -> None:
        super().__init__(
            f"A transaction was left open on the database {' and '.join(map(repr, aliases))}, and rolled back: write "
            "'with transaction.atomic():', which ends it, or commit what you began."
        )


class InvalidConfiguration(DBChannelsError):
    """The DBCHANNELS setting or the routing cannot be used as it stands; the sentence says what to change."""


class ResponseLater(DBChannelsError):
    """Raise it in a view, or a consumer of ``http.request``: its reply channel is answered later, by whoever has it.

    What was sent and written before is kept. The client waits for ``--later-timeout`` of runchannels, then gets 504.
    """


class DenyConnection(DBChannelsError):
    """Raise it in a ``websocket.connect`` consumer: the client is refused with 403 before the handshake ends."""


class WebSocketCloseException(DBChannelsError):
    """Raise it in a ``websocket.*`` consumer: the connection is closed with the code, and a reason of 123 bytes.

    As with every exception, what the consumer has sent is dropped; to say something first, send it with ``close``. In
    ``websocket.connect`` the client is accepted and closed, because a browser's script can read no other refusal.
    """

    def __init__(self, code: int = NORMAL_CLOSURE, reason: str = "") -> None:
        if not isinstance(code, int) or not is_close_code(code):
            raise ValueError(
                f"A WebSocket cannot be closed with {safe_repr(code)}: use 1000, or 3000 to 4999."
            )
        if not isinstance(reason, str):
            raise ValueError(f"The reason of a close is a str, not {safe_repr(reason)}.")
        super().__init__(f"The consumer closes the connection with {code}.")
        self.code, self.reason = code, reason


class LoginEnded(WebSocketCloseException):
    """Who was logged in on this connection is not any more; it is closed with 4401."""

    def __init__(self) -> None:
        super().__init__(LOGGED_OUT)


class ConsumeLater(DBChannelsError):
    """Raise it in a consumer that cannot do its work yet: the message is delivered again a little later.

    What the consumer has sent is dropped. The frames of a connection keep their order: those behind it wait.
    """


class NoClient(DBChannelsError, AttributeError):
    """A message has no session or user: it comes from no client, or the site has none; the sentence says which."""


def safe_repr(value: object, length: int = 60) -> str:
    """Return a value as a sentence shows it: escaped, cut, and by its type where it cannot be shown at all."""
    try:
        text = ascii(value)
    except Exception:  # an int of 5,000 digits, or what somebody's __repr__ raises
        text = f"<{type(value).__name__}>"
    return text if len(text) <= length else text[: length - 3] + "..."
