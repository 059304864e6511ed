"""What a layer does for open WebSockets: whose they are, what is kept with them, and closing them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dbchannels import codec, names
from dbchannels.layers.operations import Identify, Keep, Operation, Record, Send


class WebSockets:
    """A part of every layer. Their records are the server's, made and deleted by it, and go with the connection."""

    options: dict[str, Any]

    def identify(self, channel: str, user_id: str) -> None:
        """Note whose WebSocket has this reply channel; "" for nobody known. No error when it has gone meanwhile."""
        self.check_text("user's id", names.check_user_id(user_id))
        self._submit([Identify(names.check_channel_name(channel), user_id)])

    def keep(self, channel: str, *, session: bytes | None = None, login: str | None = None) -> None:
        """Keep an encoded channel session, or who is logged in, with a WebSocket; see ``operations.Record``."""
        self._submit([Keep(names.check_channel_name(channel), session, login)])

    def close_connections(self, channels: Iterable[str], code: int) -> None:
        """Close the WebSockets that have these reply channels; of those that have gone nothing is said."""
        payload, expiry = codec.encode_trusted({"close": code}), self.options["expiry"]
        # Certain: a logout neither fails nor is ignored because a server has much to read.
        closing = [Send(channel, payload, "", expiry, certain=True) for channel in channels]
        if closing:
            self._submit(closing)

    def connections(
        self, after: str = "", limit: int = 500, *, watched: bool = False, **fields: Sequence[str]
    ) -> list[Record]:
        """Return what is on record of the WebSockets whose fields each have one of the values given for them.

        Fields are ``reply_channel``, ``server``, ``session_digest`` and ``login``. They come by reply channel, from the
        first one after ``after`` on, ``limit`` at most; with ``watched`` without those of whom nobody is logged in. A
        layer that keeps no records knows no sessions of WebSockets.
        """
        return []

    def check_text(self, what: str, text: str) -> None:
        raise NotImplementedError

    def _submit(self, operations: Sequence[Operation], immediately: bool = False) -> None:
        raise NotImplementedError
