"""The code of docs/groups.rst, docs/background.rst and docs/deploying.rst runs, and does what they say."""

from __future__ import annotations

import json
import logging.config
import re
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.db.models.signals import post_save
from django.test import RequestFactory

from dbchannels import Channel, DenyConnection, Group, Message, codec
from dbchannels.conf import OPTIONS
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.operations import Connect, Send
from dbchannels.routing.interval import Entry
from dbchannels.routing.routes import ConsumerOptions, Route
from dbchannels.routing.table import Routing
from dbchannels.worker.schedule import Timetable
from tests import kinds
from tests.blog.models import Post, Tag
from tests.docs import pages

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Route]:
    """What the decorators of the page's code register."""
    routes: list[Route] = []
    monkeypatch.setattr("dbchannels.routing.table._decorated", routes)
    return routes


@pytest.fixture
def run(found: list[Route]) -> Run:
    """Run the block of a page with this caption, or one that begins so, with names that its surroundings have."""

    def block(page: str, caption: str, **names: Any) -> dict[str, Any]:
        blocks = pages.blocks(page, "python")
        exact = [one.code for one in blocks if one.caption == caption]
        (code,) = exact or (one.code for one in blocks if one.caption.startswith(caption))
        namespace = {"__name__": "shop.consumers", **names}
        exec(code, namespace)
        return namespace

    return block


def consume(routing: Routing, channel: str, **fields: Any) -> None:
    """Route a message, and run its consumer."""
    matched = routing.match(channel, fields)
    assert matched is not None
    route, captures = matched
    route.run(Message(channel, fields), captures)


def pending(layer: BaseLayer, channel: str) -> float:
    return layer.channel_statistics(channel)["messages_pending"]


on_layers = kinds.only("postgresql", "memory")


# Background work.


@on_layers
def test_what_a_view_sends_is_consumed(
    layer: BaseLayer, run: Run, found: list[Route], capsys: pytest.CaptureFixture[str]
) -> None:
    view = run("background", "shop/views.py")["order"]
    run("background", "shop/consumers.py")
    assert view(RequestFactory().get("/")).content == b"Thank you."
    channel, fields = layer.receive(["invoices"])
    assert channel is not None and fields is not None
    consume(Routing(found), channel, **fields)
    assert capsys.readouterr().out == "an invoice for order 7\n"


@on_layers
def test_a_send_has_these_options(layer: BaseLayer, run: Run) -> None:
    run("background", "options of a send")
    run("background", "options of a send")
    assert pending(layer, "reminders") == 4
    assert layer.receive(["reminders"]) == (None, None)
    assert pending(layer, "invoices") == 2
    assert pending(layer, "search") == 1


def test_a_consumer_has_these_options(run: Run, found: list[Route]) -> None:
    run("background", "options of a consumer")
    options = [one.options for one in found]
    assert (options[0].retries, options[0].backoff) == (3, 60)
    assert (options[1].concurrency, options[1].hard_timeout) == (1, 3600)


def test_the_page_explains_every_option_of_a_consumer() -> None:
    listed = re.findall(r"^``(\w+)``$", pages.text("background"), re.MULTILINE)
    assert set(ConsumerOptions.__dataclass_fields__) - {"channel"} <= set(listed)


def test_the_defaults_of_a_consumer_are_as_said() -> None:
    page = re.sub(r"\s+", " ", pages.text("background"))
    assert f"tried again; {OPTIONS['retries']} by default." in page
    assert f"where the consumer is; {OPTIONS['soft_timeout']:g} by default." in page
    assert f"its worker is replaced; {OPTIONS['hard_timeout']:g} by default." in page


def test_a_periodic_message_says_when_it_was_due(
    run: Run, found: list[Route], capsys: pytest.CaptureFixture[str]
) -> None:
    run("background", "shop/consumers.py: periodic messages")
    cleanup, newsletter = (one.options.interval() for one in found)
    assert cleanup is not None and str(newsletter) == "0 7 * * 1"
    due, sent = datetime(2026, 11, 28, 12, tzinfo=timezone.utc), list[Send]()
    link: Any = SimpleNamespace(
        next_time=lambda channel, every: (due, due), move_time=lambda *moved: sent.extend(moved[-1])
    )
    Timetable([Entry("cleanup", cleanup)], link).send_due()
    consume(Routing(found), "cleanup", **codec.decode(sent[0].payload))
    assert capsys.readouterr().out == "due at 2026-11-28T12:00:00+00:00\n"


def test_a_consumer_skips_a_cancelled_order(
    run: Run, found: list[Route], capsys: pytest.CaptureFixture[str]
) -> None:
    class Order:
        wanted: ClassVar[set[int]] = {7}

        class objects:
            @staticmethod
            def filter(pk: int, cancelled: bool) -> Any:
                order = SimpleNamespace(pk=pk) if (pk in Order.wanted) is not cancelled else None
                return SimpleNamespace(first=lambda: order)

    run("background", "shop/consumers.py: only if", Order=Order)
    for order in (7, 8):
        consume(Routing(found), "reminders", order=order)
    assert capsys.readouterr().out == "please pay order 7\n"


@kinds.only("postgresql")
def test_messages_are_cancelled_by_code(layer: BaseLayer, run: Run) -> None:
    for channel in ("exports", "exports", "other"):
        Channel(channel).send({})
    run("background", "shop/exports.py")["cancel_exports"](AnonymousUser())
    assert (pending(layer, "exports"), pending(layer, "other")) == (0, 1)


@on_layers
def test_an_atomic_consumer_sends_what_it_sends(layer: BaseLayer, run: Run, found: list[Route]) -> None:
    run("background", "shop/consumers.py: exactly once")
    assert found[0].options.atomic
    consume(Routing(found), "payments", payment=3)
    assert layer.receive(["receipts"]) == ("receipts", {"payment": 3})


# Groups.


@on_layers
def test_a_channel_is_in_a_group_until_it_is_taken_out(layer: BaseLayer) -> None:
    message = Message("websocket.connect", {"reply_channel": "reply.a!b"})
    (code,) = (one.code for one in pages.blocks("groups", "python") if one.caption == "in a consumer")
    added, discarded = code.split("room.discard")
    exec(added, names := {"message": message})
    assert names["room"].channels() == ["reply.a!b"]
    exec("room.discard" + discarded, names)
    assert names["room"].channels() == []


@on_layers
def test_a_view_shows_who_is_here(layer: BaseLayer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, _ = User.objects.get_or_create(username="ann")
    User.objects.get_or_create(username="ben")
    link = layer.link()
    link.apply([Connect("reply.a!b", "server", "/")])
    link.close()
    Channel("reply.a!b").identify(ann)
    Group("room-garden").add("reply.a!b")
    shown: dict[str, Any] = {}
    monkeypatch.setattr("django.shortcuts.render", lambda request, name, context: shown.update(context))
    run("groups", "a view")["who_is_here"](RequestFactory().get("/"))
    assert list(shown["here"]) == [ann]


@on_layers
def test_a_user_is_reached_in_every_window(layer: BaseLayer, run: Run, found: list[Route]) -> None:
    ann, _ = User.objects.get_or_create(username="ann")
    join = run("groups", "notes/consumers.py")["join"]
    for name in ("a", "b"):
        join(SimpleNamespace(user=ann, reply_channel=Channel(f"reply.a!{name}")))
    with pytest.raises(DenyConnection):
        join(SimpleNamespace(user=AnonymousUser(), reply_channel=Channel("reply.a!c")))
    run("groups", "anywhere", user=ann)
    told = [layer.receive(["reply.a!"]) for _ in range(2)]
    assert sorted(told) == [(f"reply.a!{name}", {"text": "Your export is ready."}) for name in ("a", "b")]
    assert layer.receive(["reply.a!"]) == (None, None)


@on_layers
def test_a_saved_post_is_sent_to_its_readers(
    layer: BaseLayer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post_save, "receivers", [])
    monkeypatch.setattr(post_save, "sender_receivers_cache", type(post_save.sender_receivers_cache)())
    monkeypatch.setitem(sys.modules, "blog", sys.modules["tests.blog"])
    monkeypatch.setitem(sys.modules, "blog.models", sys.modules["tests.blog.models"])
    receiver = run("groups", "blog/receivers.py")["send_post"]  # connected weakly
    Group("blog").add("reply.a!b")
    post = Post.objects.create(title="Kick-off")
    Tag.objects.create(name="no post").delete()
    _, message = layer.receive(["reply.a!"])
    assert message is not None
    assert json.loads(message["text"]) == {"id": post.pk, "title": "Kick-off"}
    assert layer.receive(["reply.a!"]) == (None, None)
    assert receiver is not None
    post.delete()


@on_layers
def test_progress_is_sent_before_the_consumer_returns(layer: BaseLayer, run: Run, found: list[Route]) -> None:
    Group("export-7").add("reply.a!b")
    run("groups", "exports/consumers.py")
    with layer.buffered() as buffer:
        consume(Routing(found), "exports", export=7)
        assert buffer.pending() == []
        told = [layer.receive(["reply.a!"])[1] for _ in range(4)]
    assert told == [{"text": f"{percent} %"} for percent in (25, 50, 75, 100)]


@on_layers
def test_a_channel_of_ones_own_in_a_group_is_consumed(
    layer: BaseLayer, run: Run, found: list[Route], capsys: pytest.CaptureFixture[str]
) -> None:
    run("groups", "archive/consumers.py")
    run("groups", "once, in the shell")
    Group("room-garden").send({"text": "hello"})
    channel, fields = layer.receive(["archive"])
    assert channel == "archive" and fields is not None
    consume(Routing(found), channel, **fields)
    assert capsys.readouterr().out == "to be kept: hello\n"


@on_layers
def test_who_joins_first_and_then_reads_is_in_the_group_before(layer: BaseLayer, run: Run) -> None:
    class Line:
        class objects:
            @staticmethod
            def filter(room: str) -> list[str]:
                return Group(f"room-{room}").channels()

    join = run("groups", "in a consumer, before it reads", Line=Line)["join"]
    with layer.buffered() as buffer:
        join(Message("websocket.connect", {"reply_channel": "reply.a!b"}), "garden")
        assert Group("room-garden").channels() == ["reply.a!b"]
        assert buffer.pending() == []


# Deploying.


def test_the_log_has_the_tracebacks_of_views(run: Run) -> None:
    setting = run("deploying", "tracebacks of views")["LOGGING"]
    handler = logging.config.DictConfigurator(setting).configure_handler(setting["handlers"]["console"])
    assert isinstance(handler, logging.StreamHandler)
    assert setting["loggers"]["django.request"]["handlers"] == ["console"]
    assert setting["disable_existing_loggers"] is False  # or that of the server would be silent


def test_production_has_these_settings(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "of /etc/site.env")
    names = run("deploying", "settings.py")
    assert names["DEBUG"] is False
    assert names["SESSION_COOKIE_SECURE"] and names["CSRF_COOKIE_SECURE"]


@on_layers
def test_a_monitor_prints_the_statistics(
    layer: BaseLayer, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    Channel("own").send({})
    run("deploying", "for your own")
    printed = capsys.readouterr().out
    for word in re.findall(r"messages_\w+", pages.text("deploying")):
        assert word in printed
    assert "'messages_pending': 1" in printed
