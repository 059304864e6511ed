"""Django's test client, with WebSockets, and with requests that are answered later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from django.http import HttpRequest, HttpResponse
from django.http.request import HttpHeaders
from django.http.response import HttpResponseBase
from django.test import Client
from django.test.client import ClientHandler

from dbchannels import names
from dbchannels.channel import Channel
from dbchannels.other_libraries import ForeignNames
from dbchannels.protocol import EVENT_STREAM, MORE_CONTENT, chunk, is_event
from dbchannels.server.history import Resume
from dbchannels.server.http import events
from dbchannels.server.http.messages import Request
from dbchannels.server.relay import Reply
from dbchannels.server.websocket.handshake import take_parameters
from dbchannels.server.wsgi_gateway import read_request
from dbchannels.testing.channels import Channels, current_channels, in_use
from dbchannels.testing.sockets import ClientSocket
from dbchannels.worker.views import RequestContext, teach_django

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3's


class ChannelClient(ForeignNames, Client):
    """Django's test client, which opens WebSockets too, with the same sessions, logins and default headers.

    A view that raises ResponseLater gives an empty response with the attribute ``later``, see LaterAnswer.
    """

    _place = "test"

    def __init__(self, enforce_csrf_checks: bool = False, *arguments: Any, **options: Any) -> None:
        super().__init__(enforce_csrf_checks, *arguments, **options)
        self.handler = _LaterHandler(enforce_csrf_checks)

    def ws(
        self,
        path: str,
        *,
        subprotocols: list[str] | tuple[str, ...] = (),
        secure: bool = False,
        headers: dict[str, str] | None = None,
        query_params: dict[str, Any] | None = None,
    ) -> ClientSocket:
        """Open a WebSocket and run its connect consumer.

        ``headers`` and ``query_params`` are as in ``get``. The request has the Origin of a page of the site. The client
        stores the cookies of the answer. What the consumer raises is raised here; if the client was made with
        ``raise_request_exception=False``, the socket has the status 500 instead, as for a browser.
        """
        request = self._handshake(path, subprotocols, secure, headers or {}, query_params)
        target, heartbeat, last_id = take_parameters(request.target)
        request = request._replace(target=target, heartbeat=heartbeat, resume=last_id)
        socket = current_channels().connect(request, self.raise_request_exception)
        for name, value in socket.headers:
            if name.lower() == "set-cookie":
                self.cookies.load(value)
        return socket

    def _handshake(
        self,
        path: str,
        subprotocols: list[str] | tuple[str, ...],
        secure: bool,
        headers: dict[str, str],
        query_params: dict[str, Any] | None,
    ) -> Request:
        parsed = urlsplit(str(path))
        port = {"SERVER_PORT": "443", "wsgi.url_scheme": "https"} if secure else {}
        own: Any = self  # for methods of Django's that its stubs do not have
        environ = own._base_environ(PATH_INFO=own._get_path(parsed), **port)
        query = urlencode(query_params, doseq=True) if query_params else parsed.query
        # Quoted as by a browser: a path in a test may be any text.
        environ["QUERY_STRING"] = quote(query, safe="%/:?#[]@!$&'()*+,;=~") or environ.get("QUERY_STRING", "")
        host = environ.get("HTTP_HOST") or environ["SERVER_NAME"]
        asked = {
            "Host": host,
            "Origin": f"{environ['wsgi.url_scheme']}://{host}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": KEY,
            "Sec-WebSocket-Version": "13",
            **({"Sec-WebSocket-Protocol": ", ".join(subprotocols)} if subprotocols else {}),
        }
        given = HttpHeaders.to_wsgi_names(headers)
        environ = {**HttpHeaders.to_wsgi_names(asked), **environ, **given}
        if not environ.get("HTTP_COOKIE"):
            environ.pop("HTTP_COOKIE", None)
        return read_request(environ)


class LaterAnswer:
    """The answer to a request whose view has raised ResponseLater: what is sent to its reply channel."""

    resume: Resume | None = None  # of a stream of events

    def __init__(self, channels: Channels, path: str) -> None:
        self.reply_channel = channels.server.open(self)
        self._channels, self._path = channels, path
        self._messages: list[dict[str, Any]] = []

    def deliver(self, reply: Reply) -> None:
        """Add one message."""
        message = reply.message
        if is_event(message):
            return
        if EVENT_STREAM in message:
            self.resume, message = events.begin(message, self._channels.server.history.position)
            self._channels.server.history.catch_up(self.reply_channel, "")
        elif self.resume is not None:
            message = reply.event
        self._messages.append(message)

    def tell_gap(self, position: int) -> None:
        """Add the event that messages up to a position are gone."""
        self._messages.append(chunk(events.event(str(position), position, "gap")))

    def when_drained(self, call: Callable[[], None]) -> None:
        """Call the function at once: the client takes everything."""
        call()

    @property
    def arrived(self) -> bool:
        """Whether the answer is complete."""
        self._channels.run()
        return bool(self._messages) and not self._messages[-1].get(MORE_CONTENT)

    @property
    def content(self) -> bytes:
        """The content that has arrived so far, for example of a stream of server-sent events."""
        self._channels.run()
        return b"".join(message.get("content", b"") for message in self._messages)

    def receive(self) -> HttpResponse:
        """Return the answer. Fails if it is not complete."""
        if not self.arrived:
            sentences = [f"The request of {self._path} was not answered.", *self._channels.explain()]
            raise AssertionError(" ".join(sentences))
        self.close()
        response = HttpResponse(self.content, status=self._messages[0].get("status", 200))
        for name, value in self._messages[0].get("headers", ()):
            response[_text(name)] = _text(value)
        return response

    def leave(self) -> None:
        """Leave without waiting for the answer, and run the consumers of ``http.disconnect``."""
        self.close()
        fields = {"reply_channel": self.reply_channel, "path": self._path}
        server = self._channels.server
        server.send(server.make_send("http.disconnect", fields))
        self._channels.run()

    def close(self) -> None:
        """Ignore further messages."""
        self._channels.server.close(self.reply_channel)


class _LaterHandler(ClientHandler):
    """Django's handler, with what views find on a request in a worker: ``reply_channel``, and ResponseLater."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        teach_django()

    def get_response(self, request: HttpRequest) -> HttpResponseBase:
        """Run the view; if it has raised ResponseLater, the response has the attribute ``later``."""
        if not in_use():
            return super().get_response(request)
        later = LaterAnswer(current_channels(), request.path)
        reply_channel = Channel(later.reply_channel)
        context = RequestContext(reply_channel)
        request.environ[names.REQUEST_CONTEXT] = context  # type: ignore[attr-defined]
        try:
            with current_channels().layer.opening(later.reply_channel):
                response = super().get_response(request)
                if context.events_head is not None:
                    reply_channel.send(context.events_head)
        except BaseException:
            later.close()
            raise
        if context.answered_later:
            response.later = later  # type: ignore[attr-defined]
        else:
            later.close()
        return response


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")
