"""The site's own code as this process runs it: its WSGI application for ``--http direct``, and all that it imports."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.servers.basehttp import get_internal_wsgi_application
from django.template import engines
from django.urls import URLResolver, get_resolver

from dbchannels.conf import layer_settings
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.handler import make_environ
from dbchannels.routing import Routing, load_routing
from dbchannels.streaming import CHUNK

Message = dict[str, Any]
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class ApplicationViews:
    """Calls the application, from any number of threads at once."""

    def __init__(self, application: Application) -> None:
        self._application = application

    def __call__(self, message: Message) -> Generator[Message, None, None]:
        """Run it for one request; yield the messages of its response. Its ``close`` is called once, at any end."""
        environ = self._environ(message)
        head = Head()
        result = self._application(environ, head.start)
        try:
            yield from _messages(head, result)
        finally:
            if hasattr(result, "close"):
                result.close()

    @staticmethod
    def _environ(message: Message) -> dict[str, Any]:
        """Return the environment; a body may be bytes, or an object to read ``body_size`` of them from."""
        body, size = message["body"], str(message.get("body_size", ""))
        streamed = {} if isinstance(body, bytes) else {"wsgi.input": body, "CONTENT_LENGTH": size}
        environ = make_environ({**message, "body": b""} if streamed else message)
        return {**environ, **streamed, "wsgi.multithread": True, "wsgi.multiprocess": False}


class Head:
    """What the application says of its response before it begins (PEP 3333, ``start_response``)."""

    def __init__(self) -> None:
        self.fields: Message = {}
        self.sent = False
        self.written: list[bytes] = []  # by the function that PEP 3333 has for old applications

    def start(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """Take the status and the headers; they may be replaced by those of an error until they are sent."""
        if exc_info and self.sent:
            raise exc_info[1].with_traceback(exc_info[2])
        code, _, reason = status.partition(" ")
        pairs = [[name.encode("latin-1"), value.encode("latin-1")] for name, value in headers]
        self.fields = {"status": int(code), "reason": reason, "headers": pairs}
        return self.written.append

    def message(self, content: bytes, more_content: bool) -> Message:
        """Return the first message of the response."""
        self.sent = True
        return {**self.fields, "content": content, "more_content": more_content}


def _messages(head: Head, result: Iterable[bytes]) -> Generator[Message, None, None]:
    if isinstance(result, (list, tuple)) or getattr(result, "streaming", True) is False:
        content = b"".join(result)
        yield head.message(b"".join(head.written) + content, False)
        return
    if hasattr(result, "block_size"):  # Django's FileResponse reads it at each block
        result.block_size = CHUNK
    pieces = iter(result)
    # A generator says its status when it is asked for its first piece; a response of Django's has said it.
    first = b"" if head.fields else next(pieces, b"")
    yield head.message(b"".join(head.written) + first, True)
    for piece in pieces:
        yield {"content": piece, "more_content": True}
    yield {"content": b"", "more_content": False}


def load_site(layer: str) -> Routing:
    """Import what would be imported at the first message otherwise, when the files may be those of the next deploy.

    That is the consumers, the whole URLconf with its error handlers, and the libraries of template tags.
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
    try:
        return get_internal_wsgi_application()  # type: ignore[no-any-return]
    except ImproperlyConfigured as error:
        raise InvalidConfiguration(
            f"WSGI_APPLICATION names {settings.WSGI_APPLICATION!r}, which cannot be imported "
            f"({error.__cause__ or error}): correct it, or leave it out for Django's own."
        ) from None
