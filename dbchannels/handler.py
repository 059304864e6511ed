"""Views are consumers: an ``http.request`` message becomes a Django request, and its response messages.

The request is Django's own WSGIRequest, made of a WSGI environment (PEP 3333), so middleware, sessions, uploads
and everything else find what they know.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core import signals
from django.core.handlers.base import BaseHandler
from django.core.handlers.wsgi import WSGIRequest
from django.http import FileResponse, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import set_script_prefix

from dbchannels import codec
from dbchannels.exceptions import ResponseLater
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.link import Link
from dbchannels.layers.operations import Operation, Send
from dbchannels.layers.outages import is_unavailable
from dbchannels.message import Message
from dbchannels.request_body import open_body
from dbchannels.streaming import CHUNK, ChunkWriter

log = logging.getLogger("dbchannels.handler")


class ViewHandler(BaseHandler):
    """Runs the site's middleware and views. The middleware is loaded at the first request."""

    def respond(self, message: Message, link: Link, layer: BaseLayer) -> list[Operation]:
        """Run the view; return the sending of its response. A long one is sent in chunks as it is made."""
        if self._middleware_chain is None:
            self.load_middleware()
        with open_body(message, link, layer.options["expiry"]) as body:
            environ = {
                **make_environ(message),
                "wsgi.input": body,
                "dbchannels.reply_channel": message.reply_channel,
            }
            return self._respond(environ, message, link, layer)

    def _respond(
        self, environ: dict[str, Any], message: Message, link: Link, layer: BaseLayer
    ) -> list[Operation]:
        set_script_prefix(environ["SCRIPT_NAME"] + "/" if environ["SCRIPT_NAME"] else "/")
        signals.request_started.send(sender=type(self), environ=environ)
        response = self.response_to(environ)
        try:
            if getattr(response, "_answered_later", False):
                return [_reply(layer, message, {"later": True})]
            if response.streaming or len(response.content) > CHUNK:
                return self._stream(message, response, link, layer)
            return [_reply(layer, message, {**_head(response), "content": response.content})]
        finally:
            response.close()  # and with it the signal request_finished

    def response_to(self, environ: dict[str, Any]) -> HttpResponseBase:
        """Return the response to a WSGI environment."""
        try:
            request = WSGIRequest(environ)
        except UnicodeDecodeError:
            log.warning("Bad Request (UnicodeDecodeError)", exc_info=sys.exc_info())
            return HttpResponse("The address is not UTF-8.", status=400, content_type="text/plain")
        request.reply_channel = environ.get("dbchannels.reply_channel")  # type: ignore[attr-defined]
        _seen.outage = None
        response = self.get_response(request)
        if _seen.outage is not None and response.status_code == 500 and not settings.DEBUG:
            response.close()
            response = HttpResponse(
                _AWAY, status=503, content_type="text/plain", headers={"Retry-After": "5"}
            )
        response._handler_class = type(self)  # type: ignore[attr-defined]
        response._answered_later = hasattr(request, "_answered_later")  # type: ignore[attr-defined]
        return response

    def make_view_atomic(self, view: Any) -> Any:
        """Take a view that raises ResponseLater for one that returns: what it wrote and sent is kept.

        The middleware sees an empty response, which nobody gets; sessions are saved as ever.
        """

        def taken(request: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return view(request, *args, **kwargs)
            except ResponseLater:
                return _later(request)

        async def awaited(request: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return await view(request, *args, **kwargs)
            except ResponseLater:
                return _later(request)

        wrapped: Any = awaited if iscoroutinefunction(view) else taken
        # The one mark of a view that the base class looks for; functools.wraps would take 3 % of a trivial request.
        wrapped._non_atomic_requests = getattr(view, "_non_atomic_requests", frozenset())
        return super().make_view_atomic(wrapped)

    def _stream(
        self, message: Message, response: HttpResponseBase, link: Link, layer: BaseLayer
    ) -> list[Operation]:
        writer = ChunkWriter(
            send=lambda fields: not link.apply([_reply(layer, message, fields)]),
            receive_flow=lambda: _flow(message, link),
        )
        writer.run(_head(response), _pieces(response))
        return []


def _later(request: Any) -> HttpResponse:
    request._answered_later = True
    return HttpResponse()


_AWAY = "The site's database cannot be used now: try again soon."
# Connection exceptions, insufficient resources (a full disk, too many connections), and a server that stops:
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_AWAY_CODES = ("08", "53", "57P")


class Seen(threading.local):
    """What the request under way in a thread has raised because its database cannot be used: not the site's fault."""

    outage: BaseException | None = None


_seen = Seen()


def _look(**_: Any) -> None:
    error = sys.exc_info()[1]
    if error is not None and is_outage(error):
        _seen.outage = error


signals.got_request_exception.connect(_look)


def is_outage(error: BaseException) -> bool:
    """Whether an error of Django's says that PostgreSQL cannot be used now; without a code it was not reached."""
    if not is_unavailable(error):
        return False
    cause = error.__cause__
    codes = [
        getattr(cause, name) for name in ("sqlstate", "pgcode") if hasattr(cause, name)
    ]  # psycopg 3 and 2
    return bool(codes) and (codes[0] is None or codes[0].startswith(_AWAY_CODES))


def _pieces(response: HttpResponseBase) -> Iterator[bytes]:
    if not response.streaming:
        content = response.content
        return (content[start : start + CHUNK] for start in range(0, len(content), CHUNK))
    if isinstance(response, FileResponse):
        response.block_size = CHUNK  # Django reads it at each block
    return iter(response)


def _flow(message: Message, link: Link) -> list[dict[str, Any]]:
    channel = message.get("flow_channel")
    return [codec.decode(one.payload) for one in link.receive_many([channel], 100)] if channel else []


def _reply(layer: BaseLayer, message: Message, fields: dict[str, Any]) -> Operation:
    assert message.reply_channel is not None
    return Send(
        message.reply_channel.name, codec.encode_trusted(fields), "", layer.options["expiry"], certain=True
    )


def _head(response: HttpResponseBase) -> dict[str, Any]:
    """Return the status, its words, and the headers as (name, value) bytes, cookies last."""
    headers = [[name.encode("ascii"), value.encode("latin-1")] for name, value in response.items()]
    headers += [
        [b"Set-Cookie", cookie.OutputString().encode("latin-1")] for cookie in response.cookies.values()
    ]
    return {"status": response.status_code, "reason": response.reason_phrase, "headers": headers}


def make_environ(message: Message | dict[str, Any]) -> dict[str, Any]:
    """Return the WSGI environment of an ``http.request`` message (PEP 3333)."""
    root_path = _utf_8(message.get("root_path", ""))
    path = message.get("path_bytes") or _utf_8(message["path"])
    path = path.removeprefix(root_path) if (path + b"/").startswith(root_path + b"/") else path
    body = message.get("body", b"")
    client, server = message.get("client") or ["", 0], message.get("server") or ["localhost", 80]
    environ = {
        "REQUEST_METHOD": message["method"],
        "SCRIPT_NAME": root_path.decode("latin-1"),
        "PATH_INFO": path.decode("latin-1"),
        "QUERY_STRING": message["query_string"].decode("latin-1"),
        "SERVER_NAME": str(server[0]),
        "SERVER_PORT": str(server[1]),
        "SERVER_PROTOCOL": f"HTTP/{message['http_version']}",
        "REMOTE_ADDR": str(client[0]),
        "REMOTE_PORT": str(client[1]),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": message.get("scheme", "http"),
        "wsgi.input": BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    size = message.get("body_size", len(body))
    # As from any WSGI server: "0" where the client said so, and no key where it sent no body. That of chunks is known.
    if size or any(name in (b"content-length", b"transfer-encoding") for name, _ in message["headers"]):
        environ["CONTENT_LENGTH"] = str(size)
    for name, value in message["headers"]:
        _add_header(environ, name.decode("latin-1"), value.decode("latin-1"))
    return environ


def _add_header(environ: dict[str, Any], name: str, value: str) -> None:
    """Names with an underscore are dropped: ``X_A`` and ``X-A`` would be one key, so one could forge the other."""
    if "_" in name or name == "content-length":
        return
    key = name.upper().replace("-", "_")
    if key != "CONTENT_TYPE":
        key = f"HTTP_{key}"
    joiner = "; " if key == "HTTP_COOKIE" else ","
    environ[key] = f"{environ[key]}{joiner}{value}" if key in environ else value


def _utf_8(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
