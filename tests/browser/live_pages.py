"""Pages with live groups for the tests in the browser: URLs and views, those of docs/live-fragments.rst among them.

Only the site's own processes import this. ``/plain/``, ``/turbo/`` and ``/htmx/`` are the examples of the page, each
with a group and templates of its own, which the test puts into the settings.
"""

from __future__ import annotations

import sys
import time
from types import ModuleType
from unittest import mock

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import redirect
from django.template import engines
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from livesite.models import Entry
from livesite.people import log_in, log_out

from dbchannels import Group
from tests.docs import pages

CLIENT = """<!doctype html><title>Page</title><link rel="icon" href="data:,">{% load dbchannels static %}
<p id="a">a</p><ul id="lines"><li id="first">first</li></ul>
<div id="box"><input id="field"></div>
{% live_group "room-garden" %}<script nonce="{{ request.csp_nonce }}" src="{% static 'listen.js' %}"></script>"""

sys.modules["chat"] = sys.modules["chat.models"] = models = ModuleType("chat.models")
models.Line = Entry


def example(kind):
    """Return the view of the page, for one of its examples."""
    (code,) = (one.code for one in pages.blocks("live-fragments", "python") if one.caption == "chat/views.py")
    exec(
        code.replace('"chat/', f'"{kind}/').replace("room-garden", f"room-{kind}"),
        names := {"__name__": __name__},
    )
    return names["room"]


def csp(get_response):
    """Let the browser refuse scripts that stand in a page, except where htmx and Turbo add a style to it.

    On ``/client/`` a script needs the nonce.
    """

    def answer(request):
        scripts = "'self'"
        if request.path == "/client/":
            request.csp_nonce = "of-this-page"
            scripts = "'nonce-of-this-page'"
        response = get_response(request)
        if not request.path.startswith(("/htmx/", "/turbo/")):
            policy = f"default-src 'self'; img-src data:; script-src {scripts}"
            response["Content-Security-Policy"] = policy
        return response

    return answer


def client(request):
    """A page whose token is two hours old: on the first visit, or whenever ``?always`` is given.

    A script that comes for a new token is answered as ``?then`` says: with a status, "login" or "sso". With ``?other``
    its group is another one.
    """
    first = request.headers["Sec-Fetch-Dest"] == "document"
    then = request.GET.get("then", "")
    if not first and then == "login":
        return redirect("/members/")
    if not first and then == "sso":
        return redirect("https://sso.invalid/")
    if not first and then:
        return HttpResponse(status=int(then))
    then = time.time() - 7200 if "old" in request.GET and (first or "always" in request.GET) else time.time()
    with mock.patch("time.time", return_value=then):
        template = CLIENT.replace("room-garden", "other") if "other" in request.GET else CLIENT
        return HttpResponse(engines["django"].from_string(template).render({}, request))


@csrf_exempt
def send(request):
    """Send a text to the group of the page, or to another, and with ``?keep`` into its history.

    ``close 1012`` closes the sockets.
    """
    text = request.body.decode()
    name = request.GET.get("group", "room-garden")
    if text.startswith("close "):
        Group(name).send({"close": int(text.removeprefix("close "))})
    else:
        Group(name, history=100 if "keep" in request.GET else None).send({"text": text})
    return HttpResponse(status=204)


def login_page(request):
    return HttpResponse("<!doctype html>Log in")


def nothing(request):
    return HttpResponse(status=204)


urlpatterns = [
    path("favicon.ico", nothing),
    *(path(f"{kind}/", example(kind)) for kind in ("plain", "turbo", "htmx")),
    path("client/", client),
    path("members/", login_required(client, login_url="/login/")),
    path("login/", login_page),
    path("login/<str:name>/", log_in),
    path("logout/", log_out),
    path("send/", send),
]
