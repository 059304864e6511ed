"""What a client receives when no response comes: because a worker died, the site's code raised, or the time is over."""

from __future__ import annotations

from dbchannels.protocol import ERROR, EXPIRED, LOST, WORKER_DIED, Fields, reason_phrase

#: The sentence of a response that dbchannels makes; other statuses have their standard phrase.
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


def failure_reply(message: Fields) -> Fields:
    """Return the response to a request whose reply says that no response comes, see ``protocol.is_failure``."""
    return status_reply(500 if ERROR in message else LOST_STATUSES.get(message[LOST], 503))


def status_reply(status: int, sentence: str = "", retry_after: int = 5) -> Fields:
    """Return a whole response with one sentence in plain text."""
    headers = [[b"Content-Type", b"text/plain; charset=utf-8"]]
    if status in (503, 504):
        headers.append([b"Retry-After", str(retry_after).encode()])
    text = sentence or SENTENCES.get(status, reason_phrase(status) + ".")
    return {"status": status, "headers": headers, "content": f"{text}\n".encode()}
