"""Server-sent events: messages to a group as the parts of a response (HTML standard, section 9.2)."""

from __future__ import annotations

import logging
from typing import Any

from dbchannels.exceptions import safe_repr
from dbchannels.protocol import EVENT_STREAM, LATER, MORE_CONTENT, TAKEN, chunk, is_failure
from dbchannels.server.history import Resume

log = logging.getLogger("dbchannels.server")

KEEP_ALIVE = (
    15.0  # seconds without an event, after which a comment is sent: proxies close what is silent for longer
)
COMMENT = b":\n\n"


def event(text: str, position: int = 0, kind: str = "") -> bytes:
    """Return one event; ``position`` becomes its id."""
    head = (f"id: {position}\n" if position else "") + (f"event: {kind}\n" if kind else "")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\ndata: ")
    return f"{head}data: {lines}\n\n".encode("utf-8", "replace")


def begin(head: dict[str, Any], now: int) -> tuple[Resume, dict[str, Any]]:
    """Return how far the client has come, and the first message of the response; ``now`` is the server's position.

    A new client gets its first id, without an event.
    """
    resume = Resume(head[EVENT_STREAM], now)
    content = f"id: {now}\n\n".encode() if resume.is_new else COMMENT
    return resume, {**{key: value for key, value in head.items() if key != EVENT_STREAM}, **chunk(content)}


def part(message: dict[str, Any], position: int) -> dict[str, Any]:
    """Return a message as a part of the response: the event that a WebSocket would get as a text frame.

    ``event`` names its kind, and ``close`` ends the response. A part that the site has written itself stays as it is.
    """
    if is_failure(message) or message.keys() & {"content", MORE_CONTENT, LATER, TAKEN}:
        return message
    text, kind = message.get("text"), message.get("event", "")
    if isinstance(text, str) and isinstance(kind, str) and not {"\r", "\n"} & set(kind):
        return chunk(event(text, position, kind), more=not message.get("close"))
    if not message.get("close"):
        log.warning(
            "A message is no event, and was left out (%s): write a 'text'.", safe_repr(sorted(message))
        )
    # The id alone makes no event. Without it, a client would come back to the same end again and again.
    return chunk(f"id: {position}\n\n".encode() if position else b"", more=not message.get("close"))
