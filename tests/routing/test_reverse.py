"""The path of a route from its name, its consumer, or that one's dotted name."""

from __future__ import annotations

import functools
import uuid

import pytest
from django.template import engines
from django.urls import NoReverseMatch

from dbchannels import consumer, include, reverse, route
from dbchannels.routing import table


@pytest.fixture(autouse=True)
def decorated(monkeypatch):
    """The decorators' list, empty, for this test alone."""
    monkeypatch.setattr(table, "_decorated", [])
    monkeypatch.setattr(table, "_loaded", False)
    table.site_routing.cache_clear()
    yield
    table.site_routing.cache_clear()


@pytest.fixture
def routes(settings):
    """Set the site's routes for this test."""

    def use(*entries):
        settings.DBCHANNELS = {"default": {"ROUTING": list(entries)}}

    return use


def join(message, **captures):
    """A consumer."""


def say(message, **captures):
    """Another."""


@pytest.mark.parametrize(
    ("path", "kwargs", "expected"),
    [
        ("/chat/", None, "/chat/"),
        ("/chat/<slug:room>/", {"room": "tea"}, "/chat/tea/"),
        ("/<int:a>/<b>", {"a": 7, "b": "x y"}, "/7/x%20y"),
        ("/<uuid:id>", {"id": uuid.UUID(int=7)}, f"/{uuid.UUID(int=7)}"),
        ("/<path:rest>", {"rest": "a/ü"}, "/a/%C3%BC"),
        ("/100%/<int:a>", {"a": 1}, "/100%25/1"),
        (r"^/chat/(?P<room>\w+)/$", {"room": "tea"}, "/chat/tea/"),
        (r"^/chat/(?P<room>\w+)/(?P<page>\d+)?$", {"room": "tea"}, "/chat/tea/"),
        (r"^/chat/(?P<room>\w+)/(?P<page>\d+)?$", {"room": "tea", "page": 7}, "/chat/tea/7"),
        (r"^/chat/(?P<room>\w+)", {"room": "tea"}, "/chat/tea"),
        ("/<path:rest>", {"rest": "/evil.example/"}, "/%2Fevil.example/"),
    ],
)
def test_it_fills_in_what_a_route_captures(routes, path, kwargs, expected):
    routes(route("websocket.connect", join, path=path, name="room"))
    assert reverse("room", kwargs) == reverse(join, kwargs) == reverse(f"{__name__}.join", kwargs) == expected


def test_prefixes_of_includes_stand_in_front(routes):
    inner = [route("own", join, path="/<slug:room>/", name="room")]
    middle = [include(inner, path="^/x(?P<number>[0-9])")]
    routes(include(middle, path="/<int:site>"), include([route("own", say, name="bare")], path="/bare"))
    assert reverse("room", kwargs={"site": 3, "number": 1, "room": "tea"}) == "/3/x1/tea/"
    assert reverse("bare") == "/bare"


def test_names_in_a_namespace_are_apart(routes):
    inner = [route("own", join, path="/<slug:room>/", name="room")]
    nested = [include(inner, namespace="deep", path="/deep")]
    routes(
        include(inner, namespace="a", path="/a"),
        include(inner, namespace="b", path="/b"),
        include(nested, namespace="c", path="/c"),
    )
    paths = [reverse(name, {"room": "tea"}) for name in ("a:room", "b:room", "c:deep:room")]
    assert paths == ["/a/tea/", "/b/tea/", "/c/deep/tea/"]
    with pytest.raises(NoReverseMatch):
        reverse("room", {"room": "tea"})


def test_of_several_routes_the_first_that_fits_is_taken(routes):
    routes(
        route("websocket.connect", join, path="/chat/", name="room"),
        route("websocket.connect", join, path="/chat/<int:pk>/", name="room"),
        route("websocket.connect", join, path="/chat/<slug:pk>/", name="room"),
    )
    assert reverse("room") == "/chat/"
    assert reverse(join, {"pk": 7}) == "/chat/7/"
    assert reverse(join, {"pk": "tea"}) == "/chat/tea/"


def test_decorated_consumers_have_names_too(decorated):
    @consumer("websocket.connect", path="/news/<int:pk>/", name="news")
    def read(message, pk): ...

    assert reverse("news", {"pk": 1}) == reverse(read, {"pk": 1}) == "/news/1/"


def test_a_consumer_under_a_decorator_is_the_same(routes):
    wrapped = functools.wraps(join)(lambda message, **captures: None)
    routes(route("own", wrapped, path="/x/"))
    assert reverse(join) == reverse(wrapped) == "/x/"


def test_a_route_that_is_added_later_is_found(routes):
    routes(route("own", join, path="/a/"))
    assert reverse(join) == "/a/"
    consumer("own", path="/b/", name="b")(say)
    assert reverse("b") == "/b/"


def test_templates_have_it_as_a_tag(routes):
    routes(route("own", join, path="/<slug:room>/", name="room"))
    text = '{% load dbchannels %}<a data-socket="{% route_path "room" room=name %}">'
    assert engines["django"].from_string(text).render({"name": "tea"}) == '<a data-socket="/tea/">'


# Errors, in Django's manner.


@pytest.mark.parametrize(
    ("path", "kwargs", "said"),
    [
        ("/chat/<slug:room>/", {}, "with no arguments not found. 1 pattern(s) tried: '/chat/<slug:room>/'"),
        ("/chat/<slug:room>/", {"rom": "a"}, "with keyword arguments {'rom': 'a'} not found."),
        ("/chat/<slug:room>/", {"room": "a/b"}, "with keyword arguments {'room': 'a/b'} not found."),
        ("/chat/<int:pk>/", {"pk": "x"}, "1 pattern(s) tried"),
        (r"^/(?P<a>\w)/(b|c)/$", {"a": "1"}, "1 pattern(s) tried"),
        (r"^/(?P<a>\w+)/(?P<b>\w*)$", {"a": "1/", "b": ""}, "1 pattern(s) tried"),
    ],
)
def test_keywords_that_fit_no_route(routes, path, kwargs, said):
    routes(route("websocket.connect", join, path=path, name="room"))
    with pytest.raises(NoReverseMatch) as refused:
        reverse("room", kwargs)
    assert str(refused.value).startswith("Reverse for 'room' ")
    assert said in str(refused.value)


def test_a_name_that_nothing_has(routes):
    routes(route("own", join, path="/"))
    with pytest.raises(
        NoReverseMatch, match=r"'chat' not found\. It is neither the name of a route nor a consumer"
    ):
        reverse("chat")
    with pytest.raises(NoReverseMatch, match=r"test_reverse\.say' not found"):
        reverse(say)


def test_a_route_without_a_path(routes):
    routes(route("own", join, kind="a", name="room"))
    with pytest.raises(NoReverseMatch, match="Its route has no filter on the path: add path="):
        reverse("room")
