"""Pages and consumers for the tests of the JavaScript client and of htmx: URLs and routes in one."""

from __future__ import annotations

import json

from django.http import HttpResponse
from django.template import engines
from django.urls import path
from django.utils.html import format_html

from dbchannels import DenyConnection, Group, route

#: What the site is set to, beside its own settings.
SETTINGS = {
    "DEBUG": True,  # static files are served
    "ROOT_URLCONF": "tests.browser.pages",
    "DBCHANNELS": {"default": {"ROUTING": "tests.browser.pages"}},
    "INSTALLED_APPS": ["dbchannels", "django.contrib.staticfiles", "django_htmx", "livesite"],
    "MIDDLEWARE": [],
    "TEMPLATES": [{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
}

CLIENT = """{% load static %}<!doctype html><title>Client</title><link rel="icon" href="data:,">
<script type="module">
  import { Socket } from "{% static 'dbchannels/dbchannels.js' %}";
  window.events = [];
  window.connect = (url, options) => {
    const socket = new Socket(url, options);
    for (const name of ["connecting", "open", "waiting", "closed", "unauthorized"])
      socket.on(name, (detail) => events.push([name, detail]));
    for (const name of ["text", "json"]) socket.on(name, (value) => events.push([name, value]));
    socket.on("binary", (data) => events.push(["binary", [...new Uint8Array(data)]]));
    return (window.socket = socket);
  };
</script>"""
HTMX = {
    2: """{% load static %}<!doctype html><title>htmx</title><link rel="icon" href="data:,">
<script src="{% static 'django_htmx/htmx-2.min.js' %}"></script>
<script src="{% static 'django_htmx/ext/hx-ws-2.min.js' %}"></script>
<div hx-ext="ws" ws-connect="/htmx/">
  <form ws-send><label>Line <input name="line"></label><button>Send</button></form>
  <ul id="lines"></ul>
</div>""",
    4: """{% load static %}<!doctype html><title>htmx</title><link rel="icon" href="data:,">
<script src="{% static 'django_htmx/htmx-4.min.js' %}"></script>
<script src="{% static 'django_htmx/ext/hx-ws-4.min.js' %}"></script>
<div hx-ws:connect="/htmx/">
  <form hx-ws:send><label>Line <input name="line"></label><button>Send</button></form>
  <ul id="lines"></ul>
</div>""",
}


def page(template: str):
    """Return a view of a template."""
    return lambda request: HttpResponse(engines["django"].from_string(template).render())


urlpatterns = [
    path("client/", page(CLIENT)),
    path("htmx/2/", page(HTMX[2])),
    path("htmx/4/", page(HTMX[4])),
]


def echo(message):
    """Send a frame back; ``close 4401`` closes with that code."""
    text = message.get("text")
    if text and text.startswith("close "):
        message.reply_channel.send({"close": int(text.removeprefix("close "))})
    else:
        message.reply_channel.send({"text": text} if text is not None else {"bytes": message["bytes"]})


def answer(message):
    """Answer on the stream that was asked."""
    frame = json.loads(message["text"])
    message.reply_channel.send({"text": json.dumps({**frame, "payload": [frame["payload"]]})})


def refuse(message):
    """Refuse everybody."""
    raise DenyConnection


def enter(message):
    """Watch who comes and goes."""
    Group("room").send({"text": "came"})
    Group("room").add(message.reply_channel)


def leave(message):
    """Tell the others."""
    Group("room").send({"text": f"left {message['code']}"})


def join(message):
    """Take part in what htmx shows."""
    Group("htmx").add(message.reply_channel)


def show(message):
    """Add a line to everybody's page; htmx 2 sends the fields, htmx 4 puts them into ``body``."""
    frame = json.loads(message["text"])
    line = frame.get("body", frame)["line"]
    html = format_html('<ul id="lines" hx-swap-oob="beforeend"><li>{}</li></ul>', line)
    Group("htmx").send({"text": html})


routes = [
    route("websocket.receive", echo, path=r"^/(client/)?echo/$"),
    route("websocket.receive", answer, path=r"^/streams/$"),
    route("websocket.connect", refuse, path=r"^/refused/$"),
    route("websocket.connect", enter, path=r"^/room/$"),
    route("websocket.disconnect", leave, path=r"^/room/$"),
    route("websocket.connect", join, path=r"^/htmx/$"),
    route("websocket.receive", show, path=r"^/htmx/$"),
]
