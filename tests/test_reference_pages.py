"""The code of docs/routing.rst, docs/live-models.rst, docs/signals.rst and the storage of docs/javascript.rst runs.

The tables of docs/messages.rst name the fields that the server makes and reads.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import textwrap
import types
from pathlib import Path

import django
import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.core import mail
from django.db.models.signals import post_save
from django.template import engines

from dbchannels import Binding, Channel, Group, Message, reverse, signals
from dbchannels.layers.operations import Connect, Disconnect, Send
from dbchannels.protocol import EVENT
from dbchannels.routing import table
from dbchannels.routing.routes import ConsumerOptions
from dbchannels.routing.table import Routing, load_routing
from dbchannels.server.http.messages import RESPONSE_KEYS, Request, connect_message, request_message
from dbchannels.server.relay import Reply
from dbchannels.server.websocket.connection import Connection
from dbchannels.server.websocket.messages import KEYS
from tests import kinds
from tests.blog import models
from tests.blog.models import Post

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page):
    """Return the code of a page by caption."""
    text = (DOCS / f"{page}.rst").read_text()
    found = re.findall(r"\.\. code-block:: python\n   :caption: (.*)\n\n((?:   .*\n|\n)+)", text)
    return {caption: textwrap.dedent(code) for caption, code in found}


@pytest.fixture
def module(monkeypatch):
    """Make modules that can be imported: ``module("chat.consumers", code)``."""
    monkeypatch.setattr(table, "_decorated", [])
    monkeypatch.setattr(table, "_loaded", False)
    table.site_routing.cache_clear()

    def make(name, code="", **attributes):
        for parent in (name.rpartition(".")[0], name):
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        made = sys.modules[name]
        vars(made).update(attributes)
        exec(code, vars(made))
        setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], made)
        return made

    yield make
    table.site_routing.cache_clear()


# docs/routing.rst.


@pytest.fixture
def site(module, settings):
    """The site of docs/routing.rst."""
    code = blocks("routing")
    for name in ("news.consumers.follow", "news.consumers.follow_all", "photos.consumers.make_thumbnail"):
        parent, _, function = name.rpartition(".")
        module(parent, f"def {function}(message, **captures): return captures")
    module("photos.consumers", "def forget(message, upload): return upload")
    module("chat.consumers", code["chat/consumers.py"])
    module("news.routing", code["news/routing.py"])
    module("example.routing", code["mysite/routing.py"])
    settings.DBCHANNELS = {"default": {"ROUTING": "example.routing"}}
    return load_routing("example.routing")


@pytest.mark.parametrize(
    ("channel", "fields", "consumer", "captures"),
    [
        ("websocket.connect", {"path": "/chat/tea/"}, "join", {"room": "tea"}),
        ("websocket.receive", {"path": "/chat/tea/"}, "say", {"room": "tea"}),
        ("websocket.connect", {"path": "/en/news/7/"}, "follow", {"language": "en", "pk": 7}),
        ("websocket.connect", {"path": "/en/news/"}, "follow_all", {"language": "en"}),
        ("thumbnails", {"kind": "photo"}, "make_thumbnail", {}),
        ("http.disconnect", {"path": f"/uploads/{'0' * 32}/"}, "forget", {"upload": "0" * 32}),
    ],
)
def test_the_routes_of_the_page_match(site, channel, fields, consumer, captures):
    route, found = site.match(channel, fields)
    assert (route.consumer.__name__, found) == (consumer, captures)


@pytest.mark.parametrize(
    ("channel", "fields"),
    [("websocket.connect", {"path": "/chat/tea"}), ("thumbnails", {"kind": "photos"}), ("thumbnails", {})],
)
def test_what_the_page_says_matches_nothing(site, channel, fields):
    assert site.match(channel, fields) is None


def test_the_page_reverses_them(site):
    lines = re.findall(r"^reverse\((.*)\)  # (.*)$", blocks("routing")["anywhere"], re.MULTILINE)
    assert len(lines) == 4
    for arguments, path in lines:
        assert eval(f"reverse({arguments})", {"reverse": reverse}) == eval(path)


def test_the_page_reverses_them_in_a_template(site):
    (code,) = re.findall(r":caption: a template\n\n   (.*)\n", (DOCS / "routing.rst").read_text())
    assert engines["django"].from_string(code).render() == "/chat/tea/"


def test_the_page_names_every_option():
    page = (DOCS / "routing.rst").read_text()
    options = page[page.index("Each keyword that is no option (") : page.index("is a filter on the field")]
    assert set(re.findall(r"``(\w+)``", options)) == {*ConsumerOptions.__dataclass_fields__, "name"} - {
        "channel"
    }


# docs/live-models.rst.


@pytest.fixture
def blog(module, layer):
    """The blog of docs/live-models.rst, and what a socket of it is sent."""
    code = blocks("live-models")
    receivers = list(post_save.receivers)
    module("blog.models", "", **{name: getattr(models, name) for name in ("Post", "Tag")})
    made = module("blog.bindings", code["blog/bindings.py"])
    yield code, made
    for binding in vars(made).values():
        if isinstance(binding, type) and issubclass(binding, Binding) and binding.model:
            binding.disconnect()
    post_save.receivers[:] = receivers
    post_save.sender_receivers_cache.clear()


def frames(layer):
    """Return what the socket was sent."""
    found = []
    while (received := layer.receive(["reply.b!"]))[0] is not None:
        found.append(json.loads(received[1]["text"]))
    return found


on_default = kinds.only("postgresql", "memory")


@on_default
def test_a_socket_is_told_of_posts(module, layer, blog):
    code, _ = blog
    old = Post.objects.create(title="Old", blog="tea")
    module("blog.consumers", code["blog/consumers.py"])
    route, captures = Routing(table._decorated).match("websocket.connect", {"path": "/blog/tea/"})
    message = Message("websocket.connect", {"path": "/blog/tea/", "reply_channel": "reply.b!1"})
    route.run(message, captures)
    post = Post.objects.create(title="Tea", price="1.5", blog="tea")
    post.delete()
    shown, created, deleted = frames(layer)
    assert (shown["pk"], shown["action"]) == (old.pk, "create")
    assert (created["data"]["title"], created["data"]["price"], deleted["data"]) == ("Tea", "1.50", {})
    (example,) = re.findall(r"^    (\{.*\})$", (DOCS / "live-models.rst").read_text(), re.MULTILINE)
    wanted = json.loads(example)
    wanted["pk"] = wanted["data"]["id"] = created["pk"]
    assert created == wanted


@on_default
def test_bulk_operations_are_told_of(layer, blog):
    code, made = blog
    for name in ("tea", "milk"):
        Group(f"blog-{name}").add(f"reply.b!{name}")
    exec(code["after a bulk operation"], {**vars(made)})
    assert [frame["action"] for frame in frames(layer)].count("create") == 4
    assert set(Post.objects.values_list("blog", "public")) == {("milk", False)}


@on_default
def test_permissions_of_the_page(module, layer, blog, new_link):
    code, made = blog
    link, users = new_link(layer), [User.objects.create(username=name) for name in ("ann", "bob")]
    for caption in ("to the author only", "to permitted users"):
        exec(code[f"blog/bindings.py: {caption}"], vars(made))
    consumers = module("blog.consumers", code["blog/consumers.py: the moderators' page"])
    for user in users:
        channel = f"reply.b!{user.username}"
        link.apply([Connect(channel, "server", "/")])
        consumers.moderate(types.SimpleNamespace(reply_channel=Channel(channel), user=user))
    Group(f"author-{users[1].pk}").add("reply.b!own")
    Post.objects.create(title="a", public=False, author=users[0])
    assert len(frames(layer)) == 1
    Post.objects.create(title="b", secret="x", author=users[1])
    assert sorted(frame["data"].get("secret", "") for frame in frames(layer)) == ["", "", "x"]
    link.apply([Disconnect(f"reply.b!{user.username}") for user in users])


@on_default
def test_a_binding_is_silenced_for_a_while(layer, blog):
    code, made = blog
    Group("blog-tea").add("reply.b!1")
    exec(code["in a test, or before a large import"], vars(made))
    assert frames(layer) == []
    Post.objects.create(title="Sent")
    assert [frame["data"]["title"] for frame in frames(layer)] == ["Sent"]


def test_the_page_imports_its_bindings_in_ready(module):
    config = module("blog.apps", blocks("live-models")["blog/apps.py"]).BlogConfig
    module("blog.bindings")
    assert config.ready(types.SimpleNamespace()) is None
    assert apps.get_app_config("blog").label == "blog"


# docs/messages.rst.


def fields_below(heading):
    """Return the fields of the first table below a heading of docs/messages.rst."""
    below = (DOCS / "messages.rst").read_text().partition(f"\n{heading}\n")[2]
    rows = re.search(r"    field +\w+\n    =+ +=+\n((?:    .*\n)+?)    =+ +=+\n", below)[1]
    return set(re.findall(r"^    ``(\w+)``", rows, re.MULTILINE))


def test_the_page_has_every_field_of_a_request():
    request = Request("GET", "/%ff", "1.1", [], "http", ("::1", 1), ("::1", 2))
    assert fields_below("``http.request``") == set(request_message(request, "reply.a!b", b"", "http.flow?b"))
    assert fields_below("``websocket.connect``") == set(connect_message(request, "reply.a!b"))


def test_the_page_has_every_field_of_a_frame():
    class Server:
        name, has_sessions, sent = "a", False, []

        open = staticmethod(lambda connection: "reply.a!b")
        send = staticmethod(lambda *operations: Server.sent.extend(operations))
        make_send = staticmethod(
            lambda channel, fields: Server.sent.append(fields) or Send(channel, b"", "", 60)
        )

    request = Request("GET", "/", "1.1", [], "http", ("::1", 1), ("::1", 2))
    connection = Connection(Server, request)
    for data in ("text", b"bytes"):
        connection._send_frame(data)
    connection._send("websocket.disconnect", {"code": 1000, "reason": ""})
    connection.disconnected = False
    connection._set_in_flight(None)
    connection.deliver(Reply({EVENT: "a"}))
    text, binary, end, event = (one for one in Server.sent if isinstance(one, dict))
    assert fields_below("``websocket.event``") == set(event)
    assert fields_below("``websocket.receive``") == {*text, *binary}
    assert fields_below("``websocket.disconnect``") == {*end, "session"}


def test_the_page_has_every_key_of_a_reply():
    assert fields_below("Response") == RESPONSE_KEYS
    assert fields_below("Replies") == KEYS | {EVENT}


# docs/javascript.rst.


def test_the_storage_of_the_page_rewrites_imports(tmp_path, settings):
    settings.DEBUG = False
    made = {}
    exec(blocks("javascript")["mysite/storage.py, named by STORAGES"], made)
    page = (DOCS / "javascript.rst").read_text()
    (line,) = re.findall(r"``(import \{ Socket \} from\s\"\S+\")``", page)
    for name, text in (("dbchannels/dbchannels.js", "export const Socket = 1;"), ("own/own.js", f"{line};")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    storage = made["StaticFilesStorage"](location=str(tmp_path), base_url="/static/")
    done = list(
        storage.post_process({path: (storage, path) for path in ("dbchannels/dbchannels.js", "own/own.js")})
    )
    assert all(processed is True for _, _, processed in done)
    written = (tmp_path / storage.stored_name("own/own.js")).read_text()
    assert storage.stored_name("dbchannels/dbchannels.js").rpartition("/")[2] in written


# docs/signals.rst.


def test_the_receivers_of_the_page_are_called(settings, caplog):
    settings.ADMINS = ["ann@example.com"] if django.VERSION >= (6, 0) else [("Ann", "ann@example.com")]
    made = {}
    exec(blocks("signals")["shop/signals.py"], made)
    message = Message("own", {})
    try:
        with caplog.at_level(logging.INFO, "shop"), signals.sending(blocks, message):
            pass
        said = {"channel": "own", "content": {}, "attempts": 6, "error": "as asked for"}
        answers = signals.message_dead.send_robust(None, **said)
    finally:
        signals.consumer_finished.disconnect(made["measure"])
        signals.message_dead.disconnect(made["alarm"])
    assert caplog.messages[0].startswith("blocks on own took 0.0")
    assert [answer for receiver, answer in answers if receiver is made["alarm"]] == [None]
    assert [one.subject for one in mail.outbox] == ["[Django] A message on own has failed for good"]


def test_the_page_has_every_signal_with_its_arguments():
    page = (DOCS / "signals.rst").read_text()
    listed = re.findall(r"^``(\w+)``  ", page, re.MULTILINE)
    made = {name for name, value in vars(signals).items() if isinstance(value, signals.Signal)}
    assert set(listed) == made - {"Signal"}
