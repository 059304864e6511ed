"""Django's test client, with WebSockets."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from django.http.request import HttpHeaders
from django.test import Client

from dbchannels.server.http.messages import Request
from dbchannels.server.wsgi_gateway import read_request
from dbchannels.testing.channels import current_channels
from dbchannels.testing.later import LaterHandler
from dbchannels.testing.sockets import ClientSocket

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3's


class ChannelClient(Client):
    """As Django's: sessions, logins and default headers are those of the HTTP requests.

    A view that raises ResponseLater gives an empty response with the attribute ``later``, see LaterAnswer.
    """

    def __init__(self, enforce_csrf_checks: bool = False, *arguments: Any, **options: Any) -> None:
        super().__init__(enforce_csrf_checks, *arguments, **options)
        self.handler = LaterHandler(enforce_csrf_checks)

    def ws(
        self,
        path: str,
        *,
        subprotocols: list[str] | tuple[str, ...] = (),
        secure: bool = False,
        headers: dict[str, str] | None = None,
        query_params: dict[str, Any] | None = None,
    ) -> ClientSocket:
        """Open a WebSocket; its connect consumer has run when this returns.

        ``headers`` and ``query_params`` are as in ``get``. The request is a browser's on a page of the site, so it has
        an Origin. Of an answer's Set-Cookie headers the client keeps the cookies. What the consumer raises is raised
        here, unless the client was made with ``raise_request_exception=False``: then it is the status 500 that a
        browser gets.
        """
        request = self._handshake(path, subprotocols, secure, headers or {}, query_params)
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
        own: Any = self  # what Django's own requests begin with
        environ = own._base_environ(PATH_INFO=own._get_path(parsed), **port)
        query = urlencode(query_params, doseq=True) if query_params else parsed.query
        # What a browser would not write as it is: a path in a test may be any text.
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
