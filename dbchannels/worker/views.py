"""Run the site's views for requests of the layer: the WSGI environment and body, Django's handler, and the response.

The environment (PEP 3333) goes to the site's own WSGI application, see ``site_application``. So middleware, sessions,
uploads, and what wraps or patches Django's handler, work as behind any WSGI server.
"""

from __future__ import annotations

import io
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from functools import cache
from itertools import chain, islice
from typing import IO, Any
from wsgiref.util import FileWrapper

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core import signals
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.base import BaseHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.servers.basehttp import get_internal_wsgi_application
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.template import engines
from django.urls import URLResolver, get_resolver

from dbchannels import codec, names
from dbchannels.channel import Channel, received_channel
from dbchannels.conf import layer_settings
from dbchannels.events import EventStream
from dbchannels.exceptions import InvalidConfiguration, LayerUnavailable, ResponseLater
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.health import is_unavailable
from dbchannels.layers.link import Link
from dbchannels.layers.operations import Operation, Send
from dbchannels.protocol import (
    BODY,
    CHUNK,
    CLOSED,
    LATER,
    OFFSET,
    SINCE,
    STALLED,
    UNTIL,
    WINDOW,
    Fields,
    chunk,
    with_length,
)
from dbchannels.routing.table import Routing, load_routing
from dbchannels.worker.response_stream import ChunkWriter, FileSender

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

ASK_AGAIN = 1.0  # seconds without a chunk of a body until it is asked for again


class ApplicationViews:
    """Calls the application, from any number of threads; without one, the site's own is imported when it is needed."""

    def __init__(
        self, application: Application | None = None, *, threads: bool = True, files: FileSender | None = None
    ) -> None:
        teach_django()
        self._application = application
        self._files = files  # None: there is no server to send files to
        # As PEP 3333 has it; django-debug-toolbar keeps its history only where one process answers all requests.
        self._processes = {"wsgi.multithread": threads, "wsgi.multiprocess": not threads}

    def load(self) -> Application:
        """Return the application; raises InvalidConfiguration when it cannot be imported."""
        if self._application is None:
            self._application = site_application()
        return self._application

    def respond(self, message: Fields, link: Link, layer: BaseLayer) -> list[Operation]:
        """Answer a request in a worker; return the sending of the response. A long one is sent while it is made."""
        reply_channel = message["reply_channel"]

        def send(fields: Fields) -> bool:
            return not link.apply([layer.reply(reply_channel, fields)])

        def receive_flow() -> list[Fields]:
            channel = message.get("flow_channel")
            return [codec.decode(one.payload) for one in link.receive_many([channel], 100)] if channel else []

        context = RequestContext(received_channel(reply_channel, layer.alias))
        with open_body(message, link, layer.options["expiry"]) as body:
            environ = {**make_environ(message), **self._processes, "wsgi.input": body}
            response = Response(self.load(), environ, context)
            try:
                content = response.content
                if context.answered_later:
                    return [layer.reply(reply_channel, context.events_head or {LATER: True})]
                if isinstance(content, bytes) and len(content) <= CHUNK:
                    return [layer.reply(reply_channel, {**response.head, "content": content})]
                if self._files and not response.written:
                    head = self._files.send(reply_channel, response.head, response.result)
                    if head is not None:
                        return [layer.reply(reply_channel, head)]
                writer = ChunkWriter(send, receive_flow)
                if isinstance(content, bytes):
                    # Without its length the server would take it for a stream, which may have no end.
                    writer.run(with_length(response.head, len(content)), [content])
                else:
                    writer.run(response.head, content)
                return []
            finally:
                response.close()

    def __call__(self, message: Fields) -> Generator[Fields, None, None]:
        """Answer a request in a thread of the server; yield the messages of the response.

        The body is bytes, or an object to read ``body_size`` bytes from.
        """
        body = message["body"]
        stream = {} if isinstance(body, bytes) else {"wsgi.input": body}
        environ = {
            **make_environ({**message, "body": b""} if stream else message),
            **stream,
            **self._processes,
        }
        response = Response(self.load(), environ, RequestContext())
        try:
            if isinstance(response.content, bytes):
                yield {**response.head, **chunk(response.content, more=False)}
                return
            yield {**response.head, **chunk(b"")}
            for piece in response.content:
                yield chunk(piece)
            yield chunk(b"", more=False)
        finally:
            response.close()


class Response:
    """The answer of the application to one request: the head as fields, the content whole or in pieces. Close it."""

    head: Fields
    content: bytes | Iterable[bytes]

    def __init__(self, application: Application, environ: dict[str, Any], context: RequestContext) -> None:
        self.head = {}
        self._begun = False
        self.written: list[bytes] = []  # by the function that PEP 3333 has for old applications
        environ[names.REQUEST_CONTEXT] = context
        self.result = application(environ, self._start)
        try:
            if context.whole or isinstance(self.result, (list, tuple)):
                self.content = b"".join([*self.written, *self.result])
            else:
                pieces = iter(self.result)
                # A generator gives its status with its first piece; a response of Django's has given it.
                first = list(islice(pieces, 0 if self.head else 1))
                self._begun = True
                self.content = chain(self.written, first, pieces)
        except BaseException:
            self.close()
            raise

    def _start(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """Take the status and the headers; until the content begins, those of an error may replace them."""
        if exc_info and self._begun:
            raise exc_info[1].with_traceback(exc_info[2])
        code, _, reason = status.partition(" ")
        # Django begins a cookie with a space.
        pairs = [[name.encode("latin-1"), value.strip(" \t").encode("latin-1")] for name, value in headers]
        self.head = {"status": int(code), "reason": reason, "headers": pairs}
        return self.written.append

    def close(self) -> None:
        """End the response; Django sends its signal request_finished then."""
        if hasattr(self.result, "close"):
            self.result.close()


class RequestContext:
    """What the layer and Django's handler tell each other about one request.

    It is one object in the environ, because what wraps the handler may pass on a copy of the environ.
    """

    def __init__(self, reply_channel: Channel | None = None) -> None:
        self.reply_channel = reply_channel  # None: the request is not the layer's
        self.answered_later = False  # the view has raised ResponseLater, or returned a stream of events
        self.events_head: Fields | None = None  # of such a stream
        self.outage = False  # something was raised because the database cannot be used
        self.whole = False  # Django's response is not streamed


@cache
def teach_django() -> None:
    """Teach Django's handlers in this process ``reply_channel``, ResponseLater, and outages of the database.

    The base class is patched, so subclasses have it too, and handlers that are patched themselves, as by Sentry's SDK.
    """
    get_response, make_view_atomic = BaseHandler.get_response, BaseHandler.make_view_atomic

    def get_response_here(self: BaseHandler, request: Any) -> HttpResponseBase:
        context = _context(request)
        if context is None:
            return get_response(self, request)
        if context.reply_channel is not None:
            request.reply_channel = context.reply_channel
        response = get_response(self, request)
        if isinstance(response, EventStream) and context.reply_channel is not None:
            context.events_head = response.begin(request, context.reply_channel)
            context.answered_later = context.events_head is not None
        if context.outage and response.status_code == 500 and not settings.DEBUG:
            closers = response._resource_closers  # type: ignore[attr-defined]
            response = HttpResponse(
                _UNAVAILABLE, status=503, content_type="text/plain", headers={"Retry-After": "5"}
            )
            response._resource_closers = closers  # type: ignore[attr-defined]
        context.whole = not response.streaming
        return response

    def make_view_atomic_here(self: BaseHandler, view: Any) -> Any:
        return make_view_atomic(self, catching_later(view))

    BaseHandler.get_response = get_response_here  # type: ignore[method-assign]
    BaseHandler.make_view_atomic = make_view_atomic_here  # type: ignore[method-assign]
    signals.got_request_exception.connect(_note_outage)


def _context(request: Any) -> RequestContext | None:
    environ: dict[str, Any] = getattr(request, "environ", {})  # an ASGIRequest has none
    return environ.get(names.REQUEST_CONTEXT)


def catching_later(view: Any) -> Any:
    """Return the view with ResponseLater caught: what the view wrote and sent is kept, even if it is atomic.

    The middleware sees an empty response, which nobody gets. Sessions are saved, and nobody reports an error.
    """

    def caught(request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return view(request, *args, **kwargs)
        except ResponseLater as error:
            return _later(request, error)

    async def awaited(request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await view(request, *args, **kwargs)
        except ResponseLater as error:
            return _later(request, error)

    wrapped: Any = awaited if iscoroutinefunction(view) else caught
    # The one mark of a view that Django looks for; functools.wraps would take 3 % of a trivial request.
    wrapped._non_atomic_requests = getattr(view, "_non_atomic_requests", frozenset())
    return wrapped


def _later(request: Any, error: ResponseLater) -> HttpResponse:
    context = _context(request)
    if context is None or context.reply_channel is None:
        raise ResponseLater("This request cannot be answered later: let a worker run its view.") from error
    context.answered_later = True
    return HttpResponse()


_UNAVAILABLE = "The site's database cannot be used now: try again soon."
# Connection exceptions, insufficient resources (a full disk, too many connections), and a server that stops:
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_UNAVAILABLE_CODES = ("08", "53", "57P")


def _note_outage(request: Any = None, **_: Any) -> None:
    context, error = _context(request), sys.exc_info()[1]
    if context is not None and error is not None and is_outage(error):
        context.outage = True


def is_outage(error: BaseException) -> bool:
    """Whether an error of Django's says that PostgreSQL cannot be used now; without a code it was not reached."""
    if not is_unavailable(error):
        return False
    cause = error.__cause__
    # The names of psycopg 3 and of psycopg2.
    codes = [getattr(cause, name) for name in ("sqlstate", "pgcode") if hasattr(cause, name)]
    return bool(codes) and (codes[0] is None or codes[0].startswith(_UNAVAILABLE_CODES))


def make_environ(fields: Fields) -> dict[str, Any]:
    """Return the WSGI environment of an ``http.request`` message (PEP 3333)."""
    root_path = fields.get("root_path", "").encode("utf-8", "surrogateescape")
    path = fields.get("path_bytes") or fields["path"].encode("utf-8", "surrogateescape")
    path = path.removeprefix(root_path) if (path + b"/").startswith(root_path + b"/") else path
    body = fields.get("body", b"")
    client, server = fields.get("client") or ["", 0], fields.get("server") or ["localhost", 80]
    environ = {
        "REQUEST_METHOD": fields["method"],
        "SCRIPT_NAME": root_path.decode("latin-1"),
        "PATH_INFO": path.decode("latin-1"),
        "QUERY_STRING": fields["query_string"].decode("latin-1"),
        "SERVER_NAME": str(server[0]),
        "SERVER_PORT": str(server[1]),
        "SERVER_PROTOCOL": f"HTTP/{fields['http_version']}",
        "REMOTE_ADDR": str(client[0]),
        "REMOTE_PORT": str(client[1]),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": fields.get("scheme", "http"),
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.run_once": False,
        # Chunks as large as one message holds, even if smaller blocks are asked for.
        "wsgi.file_wrapper": lambda file, block_size=CHUNK: FileWrapper(file, CHUNK),
    }
    size = fields.get("body_size", len(body))
    # As from any WSGI server: "0" where the client said so, and no key without a body. The length of chunks is known.
    if size or any(name in (b"content-length", b"transfer-encoding") for name, _ in fields["headers"]):
        environ["CONTENT_LENGTH"] = str(size)
    for name, value in fields["headers"]:
        # A name with an underscore is dropped: ``X_A`` and ``X-A`` would be one key, so one could forge the other.
        if b"_" not in name and name != b"content-length":
            key = name.decode("latin-1").upper().replace("-", "_")
            key = key if key == "CONTENT_TYPE" else f"HTTP_{key}"
            joiner, text = "; " if key == "HTTP_COOKIE" else ",", value.decode("latin-1")
            environ[key] = f"{environ[key]}{joiner}{text}" if key in environ else text
    return environ


class BodyRest(io.RawIOBase):
    """The body as a stream: its first part, then chunks. Reading raises OSError when no more will come.

    The interface server keeps the whole body and sends no more than a window at once, so neither the database nor the
    worker holds an upload. A chunk that does not come is asked for again: it may be lost with a channel that was full,
    or with a database that crashed.

    ``receive`` returns the chunks that wait on the body's channel, ``ask`` sends a request for more to the server.
    """

    def __init__(
        self, first: bytes, size: int, receive: Callable[[], list[Fields]], ask: Callable[[Fields], None]
    ) -> None:
        self._ready = memoryview(first)
        self._size = size  # bytes of the whole body
        self._received = self._asked_for = len(first)
        self._receive, self._ask = receive, ask
        self._chunks: list[Fields] = []
        self._fetched: IO[bytes] | None = None
        self._error: OSError | None = None  # after what was fetched

    def readable(self) -> bool:
        """The stream can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as one chunk goes; return how many bytes it was, 0 at the end."""
        if not self._ready and self._fetched is not None:
            self._ready = memoryview(self._fetched.read(CHUNK))
            if not self._ready and self._error is not None:
                raise self._error
        elif not self._ready and self._received < self._size:
            self._ready = memoryview(self._next_content())
        taken = self._ready[: len(buffer)]
        buffer[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)

    def fetch(self) -> None:
        """Take all of the rest now. If it breaks off, the reader has the error when it comes to that place."""
        self._fetched = tempfile.SpooledTemporaryFile(WINDOW)  # noqa: SIM115  (`close` closes it)
        try:
            while self._received < self._size:
                self._fetched.write(self._next_content())
        except OSError as error:
            self._error = error
        self._fetched.seek(0)

    def close(self) -> None:
        """Delete what was fetched."""
        if self._fetched is not None:
            self._fetched.close()
        super().close()

    def _next_content(self) -> bytes:
        if self._asked_for - self._received < WINDOW // 2:
            self._ask_for_more()
        heard_at = asked_at = time.monotonic()
        pause = 0.001
        while (content := self._take_chunk()) is None:
            now = time.monotonic()
            if now - heard_at > STALLED:
                raise OSError("The rest of the request's body does not come: the server that has it is gone.")
            if now - asked_at > ASK_AGAIN:
                asked_at = now
                self._ask_for_more(since=self._received)
            time.sleep(pause)
            pause = min(0.05, pause * 1.5)
        self._received += len(content)
        return content

    def _ask_for_more(self, since: int | None = None) -> None:
        until = min(self._size, self._received + WINDOW)
        if until > self._asked_for or since is not None:
            self._asked_for = max(until, self._asked_for)
            again = {} if since is None else {SINCE: since}
            try:
                self._ask({BODY: {UNTIL: self._asked_for, **again}})
            except LayerUnavailable:
                return  # it is asked for again

    def _take_chunk(self) -> bytes | None:
        """Return the content that comes next; a chunk that came before, or comes too early, is left out."""
        if not self._chunks:
            try:
                self._chunks = self._receive()[::-1]
            except LayerUnavailable:
                return None
        while self._chunks:
            chunk = self._chunks.pop()
            if chunk.get(CLOSED):
                raise OSError("The client went away before the request's body was read.")
            content = chunk.get("content")
            if chunk.get(OFFSET) == self._received and isinstance(content, bytes) and content:
                return content
        return None


def open_body(fields: Fields, link: Link, expiry: float) -> IO[bytes]:
    """Return the body of an ``http.request`` message as a stream of bytes; ``expiry`` is of what it sends, in seconds.

    A link that shares its connection with the site's transactions could not read while one is open, and on SQLite
    the server could not write: there the whole body is fetched before the view runs.
    """
    first, channel, reply_channel = (
        fields.get("body", b""),
        fields.get("body_channel"),
        fields["reply_channel"],
    )
    if not channel:
        return io.BytesIO(first)

    def ask(wanted: Fields) -> None:
        link.apply([Send(reply_channel, codec.encode_trusted(wanted), "", expiry)])

    def receive() -> list[Fields]:
        return [codec.decode(one.payload) for one in link.receive_many([channel], 100)]

    rest = BodyRest(first, fields["body_size"], receive, ask)
    if not link.apart:
        rest.fetch()
    return io.BufferedReader(rest, CHUNK)


def load_site(layer: str) -> Routing:
    """Import the consumers, the whole URLconf with its error handlers, and the libraries of template tags.

    Otherwise the first message would import them, when the files may be those of the next deploy.
    """
    routing = load_routing(layer_settings(layer).routing, layer)
    if hasattr(settings, "ROOT_URLCONF"):
        resolver = get_resolver()
        load_urls(resolver)
        for status in (400, 403, 404, 500):
            resolver.resolve_error_handler(status)
    engines.all()
    return routing


def load_urls(resolver: URLResolver) -> None:
    """Import an URLconf and what it includes."""
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLResolver):
            load_urls(pattern)


def site_application() -> Application:
    """Import the application that settings.WSGI_APPLICATION names, or Django's own; raises InvalidConfiguration."""
    if settings.WSGI_APPLICATION is None:
        return WSGIHandler()
    # The site's wsgi.py sets Django up once more, and with it the logs: unless LOGGING says otherwise, that disables
    # every logger that exists already.
    loggers = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    enabled = [one for one in loggers if not one.disabled]
    try:
        return get_internal_wsgi_application()
    except ImproperlyConfigured as error:
        raise InvalidConfiguration(
            f"WSGI_APPLICATION names {settings.WSGI_APPLICATION!r}, which cannot be imported "
            f"({error.__cause__ or error}): correct it, or leave it out for Django's own."
        ) from None
    finally:
        for one in enabled:
            one.disabled = False
