"""What a layer tells an interface server of messages that nobody will answer."""

from __future__ import annotations

from collections.abc import Iterable

from dbchannels import codec
from dbchannels.layers.operations import Record, Send
from dbchannels.protocol import VANISHED


def notice_sends(lost: Iterable[tuple[str, str]], why: str, expiry: float) -> list[Send]:
    """Return one notice for each lost message: (channel, reply channel) pairs; ``why``: "worker died", "expired".

    The message on the reply channel is ``{"lost": why, "channel": channel}``.
    """
    return [
        Send(reply_channel, codec.encode_trusted({"lost": why, "channel": channel}), "", expiry, certain=True)
        for channel, reply_channel in lost
        if reply_channel
    ]


def disconnect_send(record: Record, path: str, expiry: float) -> Send:
    """Return the ``websocket.disconnect`` of a connection whose server died; it carries what was on record."""
    message = {
        "reply_channel": record.reply_channel,
        "path": path,
        "code": VANISHED,
        "reason": "",
        "order": -1,
    }
    payload = codec.encode_trusted({**message, **record.kept()})
    return Send("websocket.disconnect", payload, record.reply_channel, expiry, certain=True)
