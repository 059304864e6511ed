"""From a request to its response: by a static file, a thread of this process, or a worker behind the layer."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import gevent
from django.conf import settings
from django.contrib.staticfiles import finders
from django.core.exceptions import SuspiciousOperation
from django.http import Http404, HttpRequest
from django.views.static import serve

from dbchannels.protocol import (
    CHUNK,
    CLOSED,
    FROM_DESCRIPTOR,
    MORE_CONTENT,
    SENTENCES,
    chunk,
    status_reply,
)
from dbchannels.server.connection_limits import FairQueue, address_key, first_kept, is_local
from dbchannels.server.http.body import (
    BodyBudget,
    BodyBuffer,
    BodyFile,
    BodyStorageError,
    BodyUpload,
    in_thread,
)
from dbchannels.server.http.direct import DirectExchange, DirectViews
from dbchannels.server.http.exchange import BrokenOff, Exchange, Message, Stream
from dbchannels.server.http.messages import Refused, Request, ResponseHead, checked_response, request_message
from dbchannels.server.http.reader import RequestReader
from dbchannels.server.http.response_buffer import ResponseBudget, SentFiles, StoredResponseBuffer
from dbchannels.server.options import ServerConfig
from dbchannels.server.relay import Relay

log = logging.getLogger("dbchannels.server")

# Seconds until a request is withdrawn again: a worker that had it in a batch behind a slow one has put it back by then.
WITHDRAW_AGAIN = 0.25

CROWDED = "Too many large responses are on their way to slow clients now: try again soon."

FILE = "file"  # in the message of a static file that is too large for it: the StaticFile

#: Answers a request in a native thread: a response as a message, or None for the site's views.
StaticFiles = Callable[[Request], "Message | None"]
GiveUp = Callable[[], None]
Response = tuple[ResponseHead, "list[bytes] | StaticFile | Stream"]


class InFlightRequests(dict[RequestReader, "GiveUp | None"]):
    """The requests and handshakes by their connections, from the end of a head to the end of its response.

    The value is a function that gives up what the request waits for, so that it is answered 503, and that does not
    block. It is None when the request waits for nothing, or for its client, whose connection is cut then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.given_up = False  # from now on each is answered 503
        self.streams: set[Exchange] = set()  # of events, which have no end of their own
        self.streams_end = False  # from now on each ends at once
        self.lingering = 0  # clients that have their response and still send, so they may not have seen it

    @property
    def is_over(self) -> bool:
        """Whether every client has its response."""
        return not self and not self.lingering

    def begin_stream(self, exchange: Exchange) -> None:
        """Count a stream of events."""
        self.streams.add(exchange)
        if self.streams_end:
            self.end_stream(exchange)

    def end_stream(self, exchange: Exchange) -> None:
        """End a stream of events."""
        self.streams.discard(exchange)
        exchange.end_events()

    def end_streams(self) -> None:
        """End all streams of events, and all that still begin."""
        self.streams_end = True
        for exchange in list(self.streams):
            self.end_stream(exchange)

    def give_up(self) -> None:
        """Answer all that wait, and all that still begin, by 503."""
        self.given_up = True
        for give_up in [one for one in self.values() if one is not None]:
            give_up()


class Requests:
    """Makes the response to each request, in the greenlet of its connection."""

    def __init__(self, relay: Relay, options: ServerConfig, turns: FairQueue) -> None:
        self.static_files: StaticFiles | None = None
        self.direct: DirectViews | None = None  # where views run, if not in workers
        self.files: SentFiles | None = None  # from workers of this process tree
        self.in_flight = InFlightRequests()
        self.turns = turns
        self._relay, self._options = relay, options
        self.bodies = BodyBudget(options.max_body_memory, options.max_spool)
        self.responses = ResponseBudget(
            options.max_body_memory, options.max_response_spool, self._may_hold_up
        )

    def _may_hold_up(self) -> int:
        """Return how many responses may hold up the worker or the thread that makes them: at most half of them."""
        if self.direct is not None:
            return self.direct.threads // 2
        house = self._relay.housekeeper
        return house.http_workers // 2 // max(1, house.servers)

    def respond(self, request: Request, reader: RequestReader) -> Response:
        """Read the request's body and return its response, which must be closed unless it is a list.

        Raises Refused, after which the connection ends, and ConnectionError when the client leaves.
        """
        unavailable = reader.unread and not self.direct and self._relay.refuses  # do not read the body then
        if unavailable or self.in_flight.given_up:
            raise Refused(503, SENTENCES[503])
        body: BodyBuffer | None = None
        try:
            if reader.unread:
                expected = min(reader.length or 0, self._options.max_body)  # a larger one is refused by 413
                body = BodyBuffer(self.bodies, expected, _share_of(request))
                self.in_flight[reader] = reader.give_up
                reader.read_body(body.write)
            if (
                self.static_files
                and request.method in ("GET", "HEAD")
                and (found := self.static_files(request))
            ):
                file = found.pop(FILE, None)
                head, found = checked_response(found, request)
                if file is not None and head.has_body:
                    return head, file
                return head, [found["content"]] if head.has_body else []
            owned, body = body, None
            return self._exchange(request, owned, reader)
        except BodyStorageError as error:
            log.error("The body of a request could not be stored (%s): it was refused.", error)
            raise Refused(503, SENTENCES[503]) from None
        finally:
            if body is not None:
                body.close()

    def _exchange(self, request: Request, body: BodyBuffer | None, reader: RequestReader) -> Response:
        """Let the site answer. ``body`` is closed with the exchange."""
        buffer = StoredResponseBuffer(self.responses, _share_of(request))
        exchange: Exchange | DirectExchange
        if self.direct:
            exchange = DirectExchange(self.direct, buffer)
        else:
            exchange = Exchange(self._relay, self._options.later_timeout, self.turns, buffer)
            exchange.on_later = reader.need_client
        ended = partial(self._end_exchange, exchange, body, reader)
        stream: Stream | None = None
        try:
            reader.watch(exchange.client_left)
            self.in_flight[reader] = exchange.give_up
            first = exchange.request(self._message(request, exchange, body), self._options.http_timeout)
            head, checked = checked_response(first, request)
            # A response without a body need not be made to its end. A file needs no worker any more.
            if checked.get(MORE_CONTENT) and (head.has_body or FROM_DESCRIPTOR in checked):
                if self._begin(exchange, buffer, checked, head):
                    stream = Stream(exchange, checked, head, self._options.http_timeout, ended)
                    if isinstance(exchange, Exchange) and exchange.resume is not None:
                        self.in_flight.begin_stream(exchange)
                    reader.answered()
                    if head.length is None:  # the response may have no end
                        reader.need_client()
                    return head, stream
                head, checked = checked_response(status_reply(503, CROWDED), request)
            if first.get(MORE_CONTENT):
                exchange.report({CLOSED: True})  # else its worker would wait to send the rest
            return head, [checked.get("content", b"")] if head.has_body else []
        finally:
            if stream is None:
                ended()

    def _begin(
        self,
        exchange: Exchange | DirectExchange,
        buffer: StoredResponseBuffer,
        first: Message,
        head: ResponseHead,
    ) -> bool:
        """Begin a response in chunks, or from a file. Return False when there is no room for it."""
        if FROM_DESCRIPTOR not in first or isinstance(exchange, DirectExchange):
            return buffer.begin(exchange.report, head.length, exchange.is_made)
        if self.files is not None:
            self.files.receive()  # it was sent before the head
        exchange.is_made = True
        position, size = first[FROM_DESCRIPTOR]
        return buffer.begin_file(position, size if head.has_body else 0)

    def _message(
        self, request: Request, exchange: Exchange | DirectExchange, body: BodyBuffer | None
    ) -> Message:
        content: Any = b"" if body is None else body.first
        channel = None
        if body is not None and body.rest:
            if isinstance(exchange, DirectExchange):
                content = io.BufferedReader(BodyFile(body))
            else:
                channel = exchange.body_channel
                exchange.upload = BodyUpload(self._relay, channel, body)
        size = 0 if body is None else body.size
        return request_message(request, exchange.reply_channel, content, exchange.flow_channel, channel, size)

    def _end_exchange(
        self, exchange: Exchange | DirectExchange, body: BodyBuffer | None, reader: RequestReader
    ) -> None:
        self.in_flight[reader] = None
        reader.unwatch()
        is_unanswered = exchange.close()
        if isinstance(exchange, Exchange):
            self.in_flight.streams.discard(exchange)
            if is_unanswered:
                gevent.spawn_later(WITHDRAW_AGAIN, exchange.withdraw)
        if body is not None:
            body.close()


def _share_of(request: Request) -> str:
    """Return whose share of the budgets a request counts in: an address, or "" for this machine, which has no share."""
    address = request.client[0]
    return "" if is_local(address) else address_key(address)


class StaticFile:
    """The content of a static file, which is read at its client's pace."""

    def __init__(self, file: Any, size: int) -> None:
        self._file, self._size = file, size

    def __iter__(self) -> Iterator[bytes]:
        left = self._size
        while left:
            content = in_thread(self._file.read, min(CHUNK, left))
            if not content:  # it became shorter
                raise BrokenOff
            left -= len(content)
            yield content

    def close(self) -> None:
        self._file.close()


class DevelopmentFiles:
    """Answers requests below STATIC_URL, as ``runserver`` does; all others are for the site's views."""

    def __init__(self) -> None:
        self._prefix = urlsplit(settings.STATIC_URL).path

    def __call__(self, request: Request) -> dict[str, Any] | None:
        """Return a response as a message, or None when the path is not below STATIC_URL."""
        if not request.path.startswith(self._prefix):
            return None
        answer: dict[str, Any] = gevent.get_hub().threadpool.apply(self._read, (request,))
        return answer

    def _read(self, request: Request) -> dict[str, Any]:
        name = request.path[len(self._prefix) :]
        asked: Any = HttpRequest()  # what Django's view looks at
        asked.method = request.method
        since = request.header(b"if-modified-since")
        if since is not None:
            asked.META["HTTP_IF_MODIFIED_SINCE"] = since.decode("latin-1")
        try:
            found = finders.find(name) if name else None
            if not found or not isinstance(found, str):
                raise Http404
            response: Any = serve(asked, found.lstrip("/"), document_root="/")
        except (Http404, SuspiciousOperation, OSError, ValueError):  # ../ too, which leads out of the folder
            return status_reply(404, "There is no such static file.")
        headers = [[name.encode("latin-1"), value.encode("latin-1")] for name, value in response.items()]
        message = {"status": response.status_code, "headers": headers}
        if not response.streaming:
            return {**message, "content": response.content}
        file, size = response.file_to_stream, int(response["Content-Length"])
        if request.method == "HEAD":
            content = b""
        elif size <= CHUNK:
            content = file.read()
        elif file.fileno() < first_kept():
            return {**message, **chunk(b""), FILE: StaticFile(file, size)}
        else:
            message = status_reply(503)
            content = message["content"]
        file.close()  # not response.close(), whose signal would run the site's code here
        return {**message, "content": content}
