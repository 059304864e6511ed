"""The site's own code: the WSGI application that answers requests, and all that it imports."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable
from itertools import chain, islice
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIHandler
from django.core.servers.basehttp import get_internal_wsgi_application
from django.template import engines
from django.urls import URLResolver, get_resolver

from dbchannels import codec, names
from dbchannels.conf import layer_settings
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.link import Link
from dbchannels.layers.operations import Operation, reply
from dbchannels.message import Message
from dbchannels.protocol import CHUNK, LATER, Fields, chunk
from dbchannels.routing.table import Routing, load_routing
from dbchannels.worker.response_stream import ChunkWriter, FileSender
from dbchannels.worker.views import RequestContext, make_environ, open_body, teach_django

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


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

    def respond(self, message: Message, link: Link, layer: BaseLayer) -> list[Operation]:
        """Answer a request in a worker; return the sending of the response. A long one is sent while it is made."""

        assert message.reply_channel is not None
        reply_channel, expiry = message.reply_channel.name, layer.options["expiry"]

        def send(fields: Fields) -> bool:
            return not link.apply([reply(reply_channel, fields, expiry)])

        def receive_flow() -> list[Fields]:
            channel = message.get("flow_channel")
            return [codec.decode(one.payload) for one in link.receive_many([channel], 100)] if channel else []

        context = RequestContext(message.reply_channel)
        with open_body(message, link, expiry) as body:
            environ = {**make_environ(message), **self._processes, "wsgi.input": body}
            response = Response(self.load(), environ, context)
            try:
                content = response.content
                if context.answered_later:
                    return [reply(reply_channel, {LATER: True}, expiry)]
                if isinstance(content, bytes) and len(content) <= CHUNK:
                    return [reply(reply_channel, {**response.head, "content": content}, expiry)]
                if self._files and not response.written:
                    head = self._files.send(reply_channel, response.head, response.result)
                    if head is not None:
                        return [reply(reply_channel, head, expiry)]
                pieces = [content] if isinstance(content, bytes) else content
                ChunkWriter(send, receive_flow).run(response.head, pieces)
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


def load_site(layer: str) -> Routing:
    """Import the consumers, the whole URLconf with its error handlers, and the libraries of template tags.

    Otherwise the first message would import them, when the files may be those of the next deploy.
    """
    routing = load_routing(layer_settings(layer).routing)
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
