"""Pages and consumers for the tests of the JavaScript client and of htmx: URLs and routes in one.

Only the site's own processes import this: it takes consumers from docs/javascript.rst, and registers them.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

from django.http import HttpResponse
from django.template import engines
from django.urls import path

from dbchannels import Demultiplexer, DenyConnection, Group, JsonWebsocketConsumer, event_stream, route

PAGE = (Path(__file__).parents[2] / "docs" / "javascript.rst").read_text()


def block(caption: str) -> str:
    """Return the code of the block in docs/javascript.rst with this caption."""
    return textwrap.dedent(re.findall(rf":caption: {caption}\n\n((?:   .*\n|\n)+)", PAGE)[0])


CLIENT = """{% load static %}
<script type="module">
  import { Socket } from "{% static 'dbchannels/dbchannels.js' %}";
  window.events = [];
  window.connect = (url, options) => {
    const socket = new Socket(url, options);
    for (const name of ["connecting", "open", "waiting", "closed", "unauthorized", "gap"])
      socket.on(name, (detail) => events.push([name, detail]));
    for (const name of ["text", "json"]) socket.on(name, (value) => events.push([name, value]));
    socket.on("binary", (data) => events.push(["binary", [...new Uint8Array(data)]]));
    return (window.socket = socket);
  };
  window.listen = (url) => {
    const source = (window.source = new EventSource(url));
    for (const name of ["open", "gap"]) source.addEventListener(name, () => events.push([name, {}]));
    source.onmessage = ({ data }) => events.push(["text", data]);
  };
</script>"""
HTMX_4 = """{% load static %}<script src="{% static 'django_htmx/htmx-4.min.js' %}"></script>
<script src="{% static 'django_htmx/ext/hx-ws-4.min.js' %}"></script>
<div hx-ws:connect="/htmx/">
  <form hx-ws:send><label>Line <input name="line"></label><button>Send</button></form>
  <ul id="lines"></ul>
</div>"""
START = '<!doctype html><title>Page</title><link rel="icon" href="data:,">'


def page(template: str):
    """Return a view of a template."""
    return lambda request: HttpResponse(engines["django"].from_string(START + template).render())


urlpatterns = [
    path("client/", page(CLIENT)),
    path("news-events/", lambda request: event_stream("news")),
    path("docs/", page(block("a page"))),
    path("login/", page("Log in")),
    path("htmx/2/", page(block("htmx"))),
    path("htmx/4/", page(HTMX_4)),
]


def echo(message):
    """Send a frame back; ``close 4401`` closes with that code."""
    text = message.get("text")
    if text and text.startswith("close "):
        message.reply_channel.send({"close": int(text.removeprefix("close "))})
    else:
        message.reply_channel.send({"text": text} if text is not None else {"bytes": message["bytes"]})


class Chat(JsonWebsocketConsumer):
    """Send each payload back, with one's own name."""

    def receive_json(self, content):
        self.send_json({"chat": content})


class Streams(Demultiplexer):
    """Two streams of one kind."""

    consumers = {"chat": Chat, "other": Chat}  # noqa: RUF012


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


def chat(message):
    """Tell everybody on the page of the documentation; or have them log in."""
    if json.loads(message["text"])["line"] == "log out":
        Group("garden").send({"close": 4401})
    Group("garden").send({"text": message["text"]})


def sit(message):
    """Take part in that."""
    Group("garden").add(message.reply_channel)


def join_news(message):
    """Get the news, and what was missed of them."""
    Group("news").add(message.reply_channel)


exec(
    block("consumers.py"), {"__name__": "tests.browser.documented"}
)  # which routes them, by their decorators

routes = [
    route("websocket.receive", echo, path=r"^/(client/)?echo/$"),
    *Streams.as_routes(path=r"^/streams/$"),
    route("websocket.connect", refuse, path=r"^/refused/$"),
    route("websocket.connect", enter, path=r"^/room/$"),
    route("websocket.disconnect", leave, path=r"^/room/$"),
    route("websocket.connect", join_news, path=r"^/news/$"),
    route("websocket.connect", sit, path=r"^/chat/garden/$"),
    route("websocket.receive", chat, path=r"^/chat/garden/$"),
]
