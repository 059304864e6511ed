"""What becomes of a handshake, as the connect consumer decides."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple

from dbchannels.server.websocket.handshake import refuse_response

log = logging.getLogger("dbchannels.server")


class Accepted(NamedTuple):
    """The verdict of the connect consumer: write the 101."""

    subprotocol: str | None
    headers: list[tuple[str, str]]


class Denied(NamedTuple):
    """The verdict of the connect consumer, or why there is none: answer with this status."""

    status: int
    sentence: str
    headers: list[tuple[str, str]] = []  # noqa: RUF012  (of a NamedTuple, and never changed)


def denied(status: object, headers: Sequence[tuple[str, str]] = ()) -> Denied:
    """Return a refusal. A consumer may name any status from 300 on; for whatever else it names, it is 403.

    Headers that cannot be sent are the consumer's fault, and make it a 500 with a line in the log.
    """
    if not isinstance(status, int) or not 300 <= status <= 599 or status not in set(HTTPStatus):
        status = 403
    try:
        refuse_response(status, "", headers)
    except ValueError as error:
        log.error("A refusal of the connect consumer's cannot be sent as it is: %s", error)
        return Denied(500, _SENTENCES[500])
    return Denied(status, _SENTENCES.get(status, _SENTENCES[403]), list(headers))


_SENTENCES = {
    403: "The site refused this connection.",
    404: "There is no WebSocket at this address.",
    500: "The site's code raised an error, which is in the log.",
    502: "The worker that held this request died.",
    503: "No worker could take this connection in time: try again soon.",
}
