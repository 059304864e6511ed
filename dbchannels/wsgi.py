"""The site's views, run by workers, for any WSGI server: each request becomes a message, which a worker answers.

Run ``gunicorn dbchannels.wsgi:application`` with DJANGO_SETTINGS_MODULE in its environment. Or replace Django's
``get_wsgi_application`` in the site's own ``wsgi.py``::

    from dbchannels.wsgi import get_wsgi_application

    application = get_wsgi_application()
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import django

MAX_BODY = 1_114_112  # bytes: 1 MiB, and 64 KiB for the form around it

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def get_wsgi_application(
    layer: str = "default", *, http_timeout: float = 60.0, max_body: int = MAX_BODY
) -> Application:
    """Set up Django and return the application (PEP 3333).

    * ``layer``: an alias in DBCHANNELS.
    * ``http_timeout``: seconds until a worker starts to answer, and between two parts of its answer.
    * ``max_body``: the most bytes of a request's body.

    Raises InvalidConfiguration for a layer that no worker can reach, and for invalid settings.
    """
    django.setup(set_prefix=False)
    from dbchannels.server.wsgi_gateway import Gateway

    return Gateway(layer, http_timeout=http_timeout, max_body=max_body)


_made: list[Application] = []
_making = threading.Lock()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The application with its defaults; Django is set up at the first request."""
    if not _made:
        with _making:
            if not _made:
                _made.append(get_wsgi_application())
    return _made[0](environ, start_response)
