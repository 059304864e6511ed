"""The code of docs/events.rst runs, and does what the page says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from django.urls import path

from dbchannels import Channel
from dbchannels.routing import table
from dbchannels.testing import ChannelTestCase, LaterAnswer
from tests.docs import pages

HEADLINES: list[SimpleNamespace] = []


class Headline:
    """A model, as far as the view uses it."""

    objects: Any = None

    @classmethod
    def filter(cls, pk__gt: str) -> type[Headline]:
        cls.after = int(pk__gt)
        return cls

    @classmethod
    def order_by(cls, name: str) -> type[Headline]:
        return cls

    @classmethod
    def first(cls) -> Any:
        return next((one for one in HEADLINES if one.pk > cls.after), None)


Headline.objects = Headline


def code(caption: str) -> str:
    """Return the code of a block."""
    (found,) = (one.code for one in pages.blocks("events", "python") if one.caption == caption)
    return found


@pytest.fixture(autouse=True)
def site(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The site of the page: its views, and its consumers."""
    monkeypatch.setattr(table, "_decorated", [])
    monkeypatch.setattr(table, "_loaded", False)
    models = ModuleType("news.models")
    models.Headline = Headline  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "news", ModuleType("news"))
    monkeypatch.setitem(sys.modules, "news.models", models)
    views: dict[str, dict[str, Any]] = {}
    for caption in ("news/views.py", "news/views.py: with stored headlines", "news/events.py"):
        exec(code(caption), views.setdefault(caption, {"__name__": "news.views"}))
    for caption in ("news/consumers.py", "news/consumers.py: who leaves"):
        exec(code(caption), {"__name__": "news.consumers"})
    urls = ModuleType("news.urls")
    urls.urlpatterns = [  # type: ignore[attr-defined]
        path("next/", views["news/views.py"]["next_headline"]),
        path("publish/", views["news/views.py"]["publish"]),
        path("newer/", views["news/views.py: with stored headlines"]["next_headline"]),
        path("events/", views["news/events.py"]["events"]),
        path("publish-event/", views["news/events.py"]["publish"]),
    ]
    settings.ROOT_URLCONF = urls
    HEADLINES.clear()
    yield
    table.site_routing.cache_clear()


class Polls(ChannelTestCase):
    def test_all_who_wait_are_answered(self) -> None:
        waiting = [self.client.get("/next/").later for _ in range(2)]
        assert not waiting[0].arrived
        assert self.client.post("/publish/", {"text": "Tea!"}).content == b"Published."
        for later in waiting:
            response = later.receive()
            assert json.loads(response.content) == {"text": "Tea!"}
            assert response["Content-Type"] == "application/json"

    def test_a_headline_that_is_there_is_the_answer(self) -> None:
        HEADLINES.append(SimpleNamespace(pk=7, text="Tea!"))
        response = self.client.get("/newer/?after=6")
        assert response.json() == {"id": 7, "text": "Tea!"}
        waits = self.client.get("/newer/?after=7").later
        self.client.post("/publish/", {"text": "Coffee!"})
        assert json.loads(waits.receive().content) == {"text": "Coffee!"}


class Events(ChannelTestCase):
    def stream(self) -> LaterAnswer:
        later: LaterAnswer = self.client.get("/events/").later
        return later

    def test_each_message_of_the_group_is_a_part(self) -> None:
        later = self.stream()
        self.client.post("/publish-event/", {"text": "Tea!"})
        self.client.post("/publish-event/", {"text": "two\nlines"})
        assert later.content == b'data: "Tea!"\n\ndata: "two\\nlines"\n\n'
        assert not later.arrived

    def test_a_comment_is_sent_to_all(self) -> None:
        later = self.stream()
        Channel("events.comment").send({})
        assert self.drain() == 1
        assert later.content == b": still here\n\n"

    def test_a_consumer_learns_who_left(self) -> None:
        self.stream().leave()
        self.assertSent("log", left="/events/")
