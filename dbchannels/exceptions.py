"""The errors of dbchannels: one class each, with a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Sequence

from dbchannels.protocol import LOGGED_OUT, NORMAL_CLOSURE, is_close_code


class DBChannelsError(Exception):
    """The base class of all errors of dbchannels."""


class InvalidName(DBChannelsError, ValueError):
    """The name of a channel or group breaks a rule; the message says which."""


class InvalidMessage(DBChannelsError, TypeError):
    """A message contains a value that cannot be sent; the message says where, and what to send instead."""


class MessageTooLarge(DBChannelsError):
    """A message's data is larger than ``max_message_size``, or the whole message more than 64 KiB larger than that."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"The message has {size} bytes and the limit is {limit}: store the data in a model or a file and "
            "send its key, or raise OPTIONS['max_message_size'] in the DBCHANNELS setting."
        )
        self.size, self.limit = size, limit


class ChannelFull(DBChannelsError):
    """A channel has as many unread messages as its capacity allows; the call has sent nothing."""

    def __init__(self, channel: str) -> None:
        super().__init__(
            f"The channel {channel} is full: start more workers, or raise its capacity in "
            "OPTIONS['channel_capacity'] of the DBCHANNELS setting."
        )
        self.channel = channel


class LayerUnavailable(DBChannelsError):
    """The layer's database cannot be used now; the message quotes the database's error."""

    may_pass = False  # the database cannot be reached or is starting up: trying again later may help


class DeclaredDead(DBChannelsError):
    """This process is no longer registered, and others have cleaned up after it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The process {name} was declared dead: it must register under a new name.")


class WorkerKilled(DBChannelsError):
    """Each attempt to run a durable message ended its worker; it is not tried again."""

    def __init__(self, attempts: int) -> None:
        tried = "The only attempt" if attempts == 1 else f"Each of {attempts} attempts"
        super().__init__(
            f"{tried} to run this message ended its worker, by a kill, a crash or os._exit: see the logs of "
            "that time, correct the consumer, and send the message again."
        )


class UnreadableMessage(DBChannelsError, ValueError):
    """The payload of a message cannot be decoded; trying again does not help."""

    def __init__(self, reason: object) -> None:
        super().__init__(
            f"The payload cannot be decoded ({safe_repr(str(reason), 200)}): it was not encoded by this version of "
            "dbchannels, or it was damaged. Send the message again."
        )


class NewerFormat(UnreadableMessage):
    """A later release of dbchannels has encoded the message; a durable one waits for a worker that can decode it."""

    def __init__(self, number: int, newest: int) -> None:
        DBChannelsError.__init__(
            self,
            f"The message is in format {number}, and this process reads formats up to {newest}: update its dbchannels.",
        )


class TransactionLeftOpen(DBChannelsError):
    """A consumer or a view ended inside a transaction, which was rolled back; the message has failed."""

    def __init__(self, aliases: Sequence[str]) -> None:
        super().__init__(
            f"A transaction was left open on the database {' and '.join(map(repr, aliases))} and was rolled back: use "
            "'with transaction.atomic():', which ends it, or commit it yourself."
        )


class InvalidConfiguration(DBChannelsError):
    """The DBCHANNELS setting or the routing cannot be used; the message says what to change."""


class ResponseLater(DBChannelsError):
    """Raise it in a view or a consumer of ``http.request`` whose reply channel will be answered later, by other code.

    Sends and writes made before it are kept. The client gets 504 after ``--later-timeout`` of runchannels.
    """


class DenyConnection(DBChannelsError):
    """Raise it in a ``websocket.connect`` consumer to refuse the handshake with 403."""


class WebSocketCloseException(DBChannelsError):
    """Raise it in a ``websocket.*`` consumer to close the connection with a code and a reason of up to 123 bytes.

    As with every exception, the consumer's sends are dropped; to send a last frame, send it with ``close`` instead. In
    ``websocket.connect`` the client is accepted and then closed, as scripts in a browser can read no other refusal.
    """

    def __init__(self, code: int = NORMAL_CLOSURE, reason: str = "") -> None:
        if not isinstance(code, int) or not is_close_code(code):
            raise ValueError(
                f"A WebSocket cannot be closed with {safe_repr(code)}: use 1000, or 3000 to 4999."
            )
        if not isinstance(reason, str):
            raise ValueError(f"The reason of a close must be a str, not {safe_repr(reason)}.")
        super().__init__(f"The consumer closes the connection with {code}.")
        self.code, self.reason = code, reason


class LoginEnded(WebSocketCloseException):
    """The user of this connection is no longer logged in; the connection is closed with 4401."""

    def __init__(self) -> None:
        super().__init__(LOGGED_OUT)


class ConsumeLater(DBChannelsError):
    """Raise it in a consumer that cannot do its work yet: the message is delivered again a little later.

    The consumer's sends are dropped. The frames of a connection keep their order: later frames wait.
    """


class NoClient(DBChannelsError, AttributeError):
    """A message has no session or user: it comes from no client, or the site has none; the message says which."""


def safe_repr(value: object, length: int = 60) -> str:
    """Return the repr of a value for a sentence: escaped, shortened, and only its type if its repr fails."""
    try:
        text = ascii(value)
    except Exception:  # an int of 5,000 digits, or an error in the object's own __repr__
        text = f"<{type(value).__name__}>"
    return text if len(text) <= length else text[: length - 3] + "..."
