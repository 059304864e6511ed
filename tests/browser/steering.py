"""URLs, routes and a middleware for the tests of the admin's acts. Only the site's own processes import this."""

from __future__ import annotations

import time

from django.contrib import admin
from django.http import HttpResponse
from django.urls import path
from livesite.models import Entry

from dbchannels import route


def forbid_inline(get_response):
    """Let the browser refuse scripts and styles that stand in a page."""

    def answer(request):
        response = get_response(request)
        response["Content-Security-Policy"] = "default-src 'self'; img-src 'self' data:"
        return response

    return answer


def page(request):
    """A page without anything: tests open their sockets in it."""
    return HttpResponse('<!doctype html><title>Page</title><link rel="icon" href="data:,">')


def listen(message):
    """Accept."""


def note(message):
    """Write down that it ran."""
    Entry.objects.create(text=f"ran {message['number']}")


def hang(message):
    """Write down that it runs, and do not return."""
    Entry.objects.create(text="hangs")
    time.sleep(3600)


def fail(message):
    """Raise until the test has written that it may work."""
    if not Entry.objects.filter(text="mended").exists():
        raise ValueError(f"order {message['number']} is broken")
    note(message)


urlpatterns = [path("admin/", admin.site.urls), path("page/", page), path("favicon.ico", page)]
routes = [
    route("websocket.connect", listen, path="/watched/"),
    route("notes", note),
    route("hangs", hang),
    route("orders", fail, retries=0),
]
