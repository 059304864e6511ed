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
    """Answers requests below STATIC_URL, as ``runserver`` does; all others are for the site's views."""

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
        except (
            Http404,
            SuspiciousOperation,
            OSError,
            ValueError,
        ):  # also for ../, which leads out of the folder
            return status_reply(404, "There is no such static file.")
        if response.streaming:
            content = b"".join(response)
            response.file_to_stream.close()  # not response.close(), whose signal would run the site's code here
        else:
            content = response.content
        headers = [[name.encode("latin-1"), value.encode("latin-1")] for name, value in response.items()]
        return {"status": response.status_code, "headers": headers, "content": content}
