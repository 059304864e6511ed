"""Static files in development, found by Django's finders, read in the hub's native thread pool."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import gevent
from django.conf import settings
from django.contrib.staticfiles import finders
from django.core.exceptions import SuspiciousOperation
from django.http import Http404, HttpRequest
from django.views.static import serve

from dbchannels.protocol import status_reply
from dbchannels.server.http.messages import Request


class DevelopmentFiles:
    """Answers what is below STATIC_URL, as ``runserver`` does; everything else is for the site's views."""

    def __init__(self) -> None:
        self._prefix = urlsplit(settings.STATIC_URL).path

    def __call__(self, request: Request) -> dict[str, Any] | None:
        """Return a whole response as a message, or None when the path is not below STATIC_URL."""
        if not request.path.startswith(self._prefix):
            return None
        answer: dict[str, Any] = gevent.get_hub().threadpool.apply(self._read, (request,))
        return answer

    def _read(self, request: Request) -> dict[str, Any]:
        name = request.path[len(self._prefix) :]
        try:
            found = finders.find(name) if name else None
            if not found or not isinstance(found, str):
                raise Http404
            response = serve(_django_request(request), found.lstrip("/"), document_root="/")
        except (Http404, SuspiciousOperation, OSError, ValueError):  # ../ too, which leads out of the folder
            return status_reply(404, "There is no such static file.")
        if response.streaming:
            content = b"".join(response)
            response.file_to_stream.close()  # and no response.close(): its signal would run the site's code here
        else:
            content = response.content
        headers = [[name.encode("latin-1"), value.encode("latin-1")] for name, value in response.items()]
        return {"status": response.status_code, "headers": headers, "content": content}


def _django_request(request: Request) -> HttpRequest:
    plain: Any = HttpRequest()
    plain.method = request.method
    since = request.header(b"if-modified-since")
    if since is not None:
        plain.META["HTTP_IF_MODIFIED_SINCE"] = since.decode("latin-1")
    return plain  # type: ignore[no-any-return]
