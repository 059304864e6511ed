"""How Django sees a request of the layer: as a WSGI environment, with a handler that knows the layer.

The environment (PEP 3333) goes to the site's own WSGI application, see ``application``. So middleware, sessions,
uploads, and what wraps or patches Django's handler, work as behind any WSGI server.
"""

from __future__ import annotations

import sys
from functools import cache
from io import BytesIO
from typing import Any
from wsgiref.util import FileWrapper

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core import signals
from django.core.handlers.base import BaseHandler
from django.http import HttpResponse
from django.http.response import HttpResponseBase

from dbchannels import names
from dbchannels.channel import Channel
from dbchannels.exceptions import ResponseLater
from dbchannels.layers.health import is_unavailable
from dbchannels.message import Message
from dbchannels.protocol import CHUNK


class RequestContext:
    """What the layer and Django's handler tell each other about one request.

    It is one object in the environ, because what wraps the handler may pass on a copy of the environ.
    """

    def __init__(self, reply_channel: Channel | None = None) -> None:
        self.reply_channel = reply_channel  # None: the request is not the layer's
        self.answered_later = False  # the view has raised ResponseLater
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
        raise ResponseLater("Nobody can answer this request later: let a worker run its view.") from error
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


def make_environ(message: Message | dict[str, Any]) -> dict[str, Any]:
    """Return the WSGI environment of an ``http.request`` message (PEP 3333)."""
    fields = message.content if isinstance(message, Message) else message
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
        "wsgi.input": BytesIO(body),
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
