"""HTTP requests and who answers them: static files, a thread of this process, or a worker behind the layer."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any

import gevent

from dbchannels.protocol import CLOSED, FROM_DESCRIPTOR, MORE_CONTENT, SENTENCES, reason_phrase, status_reply
from dbchannels.server.config import ServerConfig
from dbchannels.server.connection_limits import address_key, is_local
from dbchannels.server.http import messages
from dbchannels.server.http.body import BodyBudget, BodyBuffer, BodyFile, BodyStorageError, BodyUpload
from dbchannels.server.http.direct import DirectExchange, DirectViews
from dbchannels.server.http.exchange import Exchange, Stream, declared_length
from dbchannels.server.http.messages import Request
from dbchannels.server.http.reader import RequestReader
from dbchannels.server.http.response_buffer import ResponseBudget, SentFiles, StoredResponseBuffer
from dbchannels.server.relay import Relay
from dbchannels.server.turns import Turns

log = logging.getLogger("dbchannels.server")

#: Seconds. A worker that had a request in its batch behind a slow one has put it back by then.
WITHDRAW_AGAIN = 0.25

CROWDED = "Too many large responses are on their way to slow clients now: try again soon."
OUTSIDE = "This server's site is not at this path: see its --root-path."

#: Answers a request by itself, in a native thread: (status, headers, content), or None for the site's views.
StaticFiles = Callable[[Request], "tuple[int, list[tuple[str, str]], bytes] | None"]


GiveUp = Callable[[], None]


class InFlightRequests:
    """Counts requests and handshakes from the end of their head to the end of their answer, each by its connection.

    What an unanswered one waits for is given up by a function of its own, which leads to a 503 and does not block;
    one whose answer has begun has none, and is cut with its connection.
    """

    def __init__(self) -> None:
        self.given_up = False  # from now on each is answered 503
        self.lingering = 0  # clients that were answered and have not heard it, because they still send
        self._waits: dict[Hashable, GiveUp | None] = {}

    def __len__(self) -> int:
        return len(self._waits)

    @property
    def is_over(self) -> bool:
        """Whether every client has its answer."""
        return not self._waits and not self.lingering

    def begin(self, connection: Hashable) -> None:
        """Count one from now on."""
        self._waits[connection] = None

    def waits(self, connection: Hashable, give_up: GiveUp | None) -> None:
        """Say how its wait is given up; None: it waits for nothing, or for its client."""
        if connection in self._waits:
            self._waits[connection] = give_up

    def end(self, connection: Hashable) -> None:
        """Count it no more."""
        self._waits.pop(connection, None)

    def give_up(self) -> None:
        """Have each that waits answered, and all that still begin."""
        self.given_up = True
        for give_up in [one for one in self._waits.values() if one is not None]:
            give_up()


class Requests:
    """Answers each by its ``application``, which pywsgi calls in a greenlet of the connection."""

    def __init__(self, relay: Relay, options: ServerConfig, turns: Turns) -> None:
        self.static_files: StaticFiles | None = None
        self.direct: DirectViews | None = None  # where views run, if not in workers
        self.files: SentFiles | None = None  # from workers of this process tree
        self.in_flight = InFlightRequests()
        self._relay, self._options, self.turns = relay, options, turns
        self._storage = BodyBudget(options.max_body_memory, options.max_spool)
        self.responses = ResponseBudget(
            options.max_body_memory, options.max_response_spool, self._may_hold_up
        )

    def application(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request: PEP 3333's interface, as pywsgi calls it."""
        request: Request = environ["dbchannels.request"]
        inlet: RequestReader = environ["dbchannels.inlet"]
        length: int | None = environ["dbchannels.length"]
        spool, handed_on = None, False
        try:
            self._check(request)
            if length != 0 and not self.direct and self._relay.refuses:
                raise messages.Refused(503, SENTENCES[503])  # before the body comes
            if length != 0:
                expected = min(length or 0, self._options.max_body)  # beyond it: 413
                spool = BodyBuffer(self._storage, expected, _share_of(request))
                self.in_flight.waits(inlet, inlet.give_up)
                environ["dbchannels.read_body"](spool.write)
            served = self._serve_static(request)
            if served is not None:
                status, headers, content = served
                start_response(f"{status} {reason_phrase(status)}", headers)
                return [content] if request.method != "HEAD" else []
            handed_on = True
            return self._exchange(request, spool, inlet, start_response)
        except messages.Refused as refused:
            return self._refuse(refused, request, start_response)
        except BodyStorageError as error:
            log.error("The body of a request could not be stored (%s): it was refused.", error)
            return self._refuse(messages.Refused(503, SENTENCES[503]), request, start_response)
        finally:
            if spool is not None and not handed_on:
                spool.close()

    def _may_hold_up(self) -> int:
        """Return how many responses may hold up the worker or the thread that makes them: half of these at most."""
        if self.direct is not None:
            return self.direct.threads // 2
        return self._relay.http_workers // 2 // max(1, self._relay.servers)

    def _check(self, request: Request) -> None:
        if self._options.is_outside(request.path):
            raise messages.Refused(404, OUTSIDE)
        if self.in_flight.given_up:
            raise messages.Refused(503, SENTENCES[503])

    def _serve_static(self, request: Request) -> tuple[int, list[tuple[str, str]], bytes] | None:
        if self.static_files is None or request.method not in ("GET", "HEAD"):
            return None
        return self.static_files(request)

    def _exchange(
        self,
        request: Request,
        spool: BodyBuffer | None,
        inlet: RequestReader,
        start_response: Callable[..., Any],
    ) -> Iterable[bytes]:
        replies = StoredResponseBuffer(self.responses, _share_of(request))
        exchange: Exchange | DirectExchange
        if self.direct:
            exchange = self.direct.exchange(replies)
        else:
            exchange = Exchange(self._relay, self._options.later_timeout, self.turns, replies)
            exchange.on_later = inlet.need_client
        ended = partial(self._end_exchange, exchange, spool, inlet)
        streaming = False
        try:
            inlet.watch(exchange.client_left)
            self.in_flight.waits(inlet, exchange.give_up)
            message = self._request_message(request, exchange, spool)
            begun = exchange.request(message, self._options.http_timeout)
            first, head = self._checked(begun, request)
            # What is answered by its head alone is made no further; a file is not made, and was sent already.
            streamed = first.get(MORE_CONTENT) and (head.has_body or FROM_DESCRIPTOR in first)
            if streamed and not self._begin(exchange, first, head):
                first, head = self._checked(status_reply(503, CROWDED), request)
                streamed = False
            if not streamed:
                if begun.get(MORE_CONTENT):
                    exchange.report({CLOSED: True})  # or its worker would wait to send the rest
                return self._write_whole(first, head, start_response)
            inlet.answered()
            if declared_length(head) is None:  # it may go on for ever
                inlet.need_client()
            self._start_stream(head, request, start_response)
            streaming = True
            return Stream(exchange, first, head, self._options.http_timeout, ended)
        finally:
            if not streaming:
                ended()

    def _begin(
        self, exchange: Exchange | DirectExchange, first: dict[str, Any], head: messages.ResponseHead
    ) -> bool:
        """Let a response in chunks, or from a file, begin; False when there is no room for it."""
        if FROM_DESCRIPTOR not in first or isinstance(exchange, DirectExchange):
            return exchange.begin(declared_length(head))
        if self.files is not None:
            self.files.receive()  # it was sent before the head
        position, size = first[FROM_DESCRIPTOR]
        return exchange.begin_file(position, size if head.has_body else 0)

    def _request_message(
        self, request: Request, exchange: Exchange | DirectExchange, spool: BodyBuffer | None
    ) -> dict[str, Any]:
        body: Any = b"" if spool is None else spool.first
        body_channel = None
        if spool is not None and spool.rest:
            if isinstance(exchange, DirectExchange):
                body = io.BufferedReader(BodyFile(spool))
            else:
                exchange.upload = BodyUpload(self._relay, exchange.body_channel, spool)
                body_channel = exchange.body_channel
        size = 0 if spool is None else spool.size
        channels = (exchange.reply_channel, body, exchange.flow_channel, body_channel)
        return messages.request_message(request, *channels, size)

    def _end_exchange(
        self, exchange: Exchange | DirectExchange, spool: BodyBuffer | None, inlet: RequestReader
    ) -> None:
        self.in_flight.waits(inlet, None)
        inlet.unwatch()
        exchange.close()
        if isinstance(exchange, Exchange) and exchange.is_unanswered:
            gevent.spawn_later(WITHDRAW_AGAIN, exchange.withdraw)
        if spool is not None:
            spool.close()

    def _refuse(
        self, refused: messages.Refused, request: Request, start_response: Callable[..., Any]
    ) -> list[bytes]:
        """Refuse a body that was not read to its end: what follows it is no request."""
        message = status_reply(refused.status, refused.sentence)
        head = messages.response_head(message, request.method)
        head.headers.append(("Connection", "close"))
        return self._write_whole(message, head, start_response)

    def _checked(
        self, message: dict[str, Any], request: Request
    ) -> tuple[dict[str, Any], messages.ResponseHead]:
        """Return a response's first message with its head; one that cannot be sent becomes a 500."""
        try:
            return message, messages.response_head(message, request.method)
        except ValueError as error:
            log.error("A response to %s could not be sent: %s", request.path, error)
            message = status_reply(500)
            return message, messages.response_head(message, request.method)

    def _write_whole(
        self, message: dict[str, Any], head: messages.ResponseHead, start_response: Callable[..., Any]
    ) -> list[bytes]:
        start_response(head.status, head.headers)
        content = message.get("content", b"")
        return [content] if head.has_body and content else []

    def _start_stream(
        self, head: messages.ResponseHead, request: Request, start_response: Callable[..., Any]
    ) -> None:
        """HTTP/1.0 has no chunks: without a length the end of the connection is the response's end."""
        if request.http_version == "1.0" and declared_length(head) is None:
            head.headers.append(("Connection", "close"))
        start_response(head.status, head.headers)


def _share_of(request: Request) -> str:
    """Return whose share of what bodies may take a request counts in; "" for this machine, which has none."""
    address = request.client[0]
    return "" if is_local(address) else address_key(address)
