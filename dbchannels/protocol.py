"""What servers and workers tell each other: the words, codes and sizes that both sides must agree on.

The messages themselves are described in docs/messages.rst. This module names every key and reason that dbchannels
writes into them on its own account, the close codes of WebSockets, and the responses that no consumer has written.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

Fields = dict[str, Any]

# What a wakeup says: which kind of message waits. For the reader of a reply channel it is the name of the queue.
HTTP, WEBSOCKET, DURABLE = KINDS = ("h", "w", "d")
HISTORY = "history"  # something was sent that is kept; for the readers of all servers

#: The key that makes a message an event, as in Channels. Its value names the method that handles it. An event is for
#: event handlers and for the members of Channels' layer alone, any other message for sockets and requests alone.
EVENT = "type"

# Keys that workers add to a reply, or send alone.
FINISHED = "finished"  # the order of the message whose consumer has ended; the server sends the next one
AGAIN = "again"  # the order of a message whose consumer wants it later
LATER = "later"  # the view has raised ResponseLater
TAKEN = (
    "taken"  # True: a consumer has the request. In a report: the bytes taken by the client, or stored for it
)
ERROR = "error"  # no response comes, or no more of it: the site's code raised
LOST = "lost"  # no answer comes; the value is one of the reasons below, and "channel" says of which message
FROM_DESCRIPTOR = "from_descriptor"  # position and size: the response is a file, whose descriptor was sent
CLOSED = "closed"  # the client has left, so nothing more comes, or is wanted
MORE_CONTENT = "more_content"
EVENT_STREAM = (
    "server_sent_events"  # the response is a stream of them; the value is the client's last id, "" for none
)
# Keys of a worker's request for more of a body, and of the chunks that answer it.
BODY, UNTIL, SINCE, OFFSET = "body", "until", "since", "offset"

# Why a message is lost.
WORKER_DIED, EXPIRED, FULL = "worker died", "expired", "full"
SERVER_STOPS, DECLARED_DEAD = "server stops", "server declared dead"
# Why a response ends in an error.
CONSUMER_RAISED, BROKEN_OFF = "consumer", "broken off"

# What has become of a task, in Django's words. No row has RUNNING: its message is claimed.
READY, RUNNING, FAILED, SUCCESSFUL = "READY", "RUNNING", "FAILED", "SUCCESSFUL"

# Close codes of a WebSocket (RFC 6455, section 7.4.1, and IANA's registry).
NORMAL_CLOSURE, GOING_AWAY, PROTOCOL_ERROR, UNSUPPORTED_DATA = 1000, 1001, 1002, 1003
NO_CODE, VANISHED = 1005, 1006  # the client gave no code; the client vanished. Never sent
INVALID_DATA, POLICY_VIOLATION, TOO_LARGE = 1007, 1008, 1009
INTERNAL_ERROR, SERVICE_RESTART, TRY_AGAIN = 1011, 1012, 1013
LOGGED_OUT = 4401  # the user of the connection is logged out: 4000 and HTTP's 401
STALE_TOKEN = 4410  # the token of a live group is good no more; the page has a new one. 4000 and HTTP's 410

#: The sentences of responses that dbchannels makes, such as when a worker died, the site's code raised, or the time is
#: over; other statuses have their standard phrase.
SENTENCES = {
    403: "The site refused this connection.",
    404: "There is no WebSocket at this address.",
    500: "The site could not answer: its code raised an error, which is in the log.",
    502: "The worker that held this request died; it was not tried again.",
    503: "This request could not be taken now: try again soon.",
    504: "No worker answered this request in time.",
}
#: The statuses of lost requests, by the reason; any other reason is a 503.
LOST_STATUSES = {WORKER_DIED: 502, EXPIRED: 504}

CHUNK = 131_072  # bytes of a body or a response in one message
WINDOW = 1_048_576  # bytes on the way at once: sent, and neither taken nor stored by the other side
STALLED = 60.0  # seconds without a word from the other side, after which the transfer is given up
REPORT_EVERY = 262_144  # bytes between two reports to the worker that streams a response
REPORT_AFTER = 5.0  # seconds after which fewer bytes are reported too
FULL_PAUSE = 0.05  # seconds until a chunk that found its channel full is sent again


class Window:
    """Flow control of a transfer: no more than a window of bytes is on the way."""

    def __init__(self) -> None:
        self.sent = self.taken = 0  # bytes in all

    @property
    def is_open(self) -> bool:
        """Whether more may be sent."""
        return self.sent - self.taken < WINDOW

    def read(self, report: Fields) -> bool:
        """Read a report of the other side; False when nobody wants more."""
        self.taken = max(self.taken, report.get(TAKEN, 0))
        return not report.get(CLOSED)


def is_close_code(code: int) -> bool:
    """Whether a Close frame may carry the code."""
    return NORMAL_CLOSURE <= code <= UNSUPPORTED_DATA or INVALID_DATA <= code <= 1014 or 3000 <= code <= 4999


def reason_phrase(status: int) -> str:
    """Return the standard phrase of a status (RFC 9110, section 15)."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown Status Code"


def is_failure(message: Fields) -> bool:
    """Whether a reply says that no response comes, or no more of it."""
    return ERROR in message or LOST in message


def failure_reply(message: Fields) -> Fields:
    """Return the response to a request whose reply says that no response comes, see ``is_failure``."""
    return status_reply(500 if ERROR in message else LOST_STATUSES.get(message[LOST], 503))


def status_reply(status: int, sentence: str = "", retry_after: int = 5) -> Fields:
    """Return a whole response with one sentence in plain text."""
    headers = [[b"Content-Type", b"text/plain; charset=utf-8"]]
    if status in (503, 504):
        headers.append([b"Retry-After", str(retry_after).encode()])
    text = sentence or SENTENCES.get(status, reason_phrase(status) + ".")
    return {"status": status, "headers": headers, "content": f"{text}\n".encode()}


def is_event(message: Fields) -> bool:
    """Whether a message for a request is an event, and not a response in the form of ASGI, which is a mistake."""
    return EVENT in message and not str(message[EVENT]).startswith("http.") and not is_failure(message)


def lost(why: str, channel: str | None = None) -> Fields:
    """Return the notice that no answer comes to the message that was sent to ``channel``."""
    return {LOST: why} if channel is None else {LOST: why, "channel": channel}


def chunk(content: bytes, more: bool = True) -> Fields:
    """Return a part of a response."""
    return {"content": content, MORE_CONTENT: more}


def with_length(head: Fields, length: int) -> Fields:
    """Return the head of a response that is whole, with this Content-Length in place of any other."""
    others = [pair for pair in head["headers"] if pair[0].lower() != b"content-length"]
    return {**head, "headers": [*others, [b"Content-Length", str(length).encode()]]}


def body_ends() -> Fields:
    """Return the chunk that ends a request's body early, because its client has left."""
    return {**chunk(b"", more=False), CLOSED: True}


def flow_channel(reply_channel: str) -> str:
    """Return the channel for reports on the response to the request with this reply channel."""
    return f"http.flow?{reply_channel.partition('!')[2]}"


def body_channel(reply_channel: str) -> str:
    """Return the channel for the rest of the body of the request with this reply channel."""
    return f"http.request.body?{reply_channel.partition('!')[2]}"
