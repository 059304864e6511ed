"""The import of the site's own code: its consumers, its URLconf and its WSGI application."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIHandler
from django.core.servers.basehttp import get_internal_wsgi_application
from django.template import engines
from django.urls import URLResolver, get_resolver

from dbchannels.conf import layer_settings
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.routing.table import Routing, load_routing

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


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
