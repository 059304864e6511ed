"""What remains of processes that died and of closed connections: the messages about them, and what is still locked.

A transaction of the site may have locked a connection's record (``identify``) or a membership (``group_add``,
``group_discard``). Closing a connection does not wait for it: locked rows are skipped, and each
clean-up looks for them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from dbchannels import codec
from dbchannels.layers.operations import Record, Send, reply
from dbchannels.protocol import VANISHED, lost

#: Reply channels. Rows of further ones go when a message comes for them, or with their server.
MOST = 100_000
UNFINISHED = " (unfinished)"  # after the name of a dead server some of whose rows were locked


class ClosedConnections:
    """Those that may have left rows behind; shared by the link that writes their end and the one that cleans up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reply_channels: set[str] = set()

    def add(self, reply_channels: Iterable[str]) -> None:
        """Add connections."""
        with self._lock:
            if len(self._reply_channels) < MOST:
                self._reply_channels.update(reply_channels)

    def take(self) -> set[str]:
        """Remove and return all of them."""
        with self._lock:
            taken, self._reply_channels = self._reply_channels, set()
            return taken


def lost_messages(messages: Iterable[tuple[str, str]], why: str, expiry: float) -> list[Send]:
    """Return the replies to messages that nobody will answer: a (channel, reply channel) pair for each.

    ``why`` is WORKER_DIED or EXPIRED of ``protocol``.
    """
    return [
        reply(reply_channel, lost(why, channel), expiry)
        for channel, reply_channel in messages
        if reply_channel
    ]


def disconnect_send(record: Record, path: str, expiry: float) -> Send:
    """Return the ``websocket.disconnect`` of a connection whose server died, with what was on record of it."""
    message = {
        "reply_channel": record.reply_channel,
        "path": path,
        "code": VANISHED,
        "reason": "",
        "order": -1,
    }
    payload = codec.encode_trusted({**message, **record.kept()})
    return Send("websocket.disconnect", payload, record.reply_channel, expiry, certain=True)
