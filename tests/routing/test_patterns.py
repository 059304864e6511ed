"""Patterns of fields: paths and regular expressions, and which of them take what others take."""

from __future__ import annotations

import re
import uuid

import pytest
from django.urls import converters

from dbchannels.exceptions import InvalidConfiguration
from dbchannels.routing.patterns import compile_pattern, joined, stray_capture
from dbchannels.routing.routes import Filters
from dbchannels.testing.contract.case import raises


def captured(text, value, whole=True):
    """Return what the pattern captures of a value; None when it does not match."""
    found = Filters({"path": text}, whole=whole).match({"path": value}.get)
    return found and found[0]


# The two kinds.


@pytest.mark.parametrize(
    "text", ["^/chat/", "/chat/$", "/(a|b)/", "/x?", ".*", "/a+", "[ab]", "a{2}", r"a\.b", "a|b"]
)
def test_one_such_character_makes_a_regular_expression(text):
    assert not compile_pattern("path", text).is_path


@pytest.mark.parametrize(
    "text", ["", "/", "/robots.txt", "/chat/", "/<slug:room>/", "photo", "/a-b_c~d,e;f=g&h@i:j!'/"]
)
def test_all_others_are_paths(text):
    assert compile_pattern("path", text).is_path


def test_a_compiled_one_is_a_regular_expression_with_its_flags():
    assert captured(re.compile("/Chat/(?P<room>x)", re.IGNORECASE), "/cHAT/X") == {"room": "X"}
    assert not compile_pattern("path", re.compile("/chat/")).is_path


# Paths.


@pytest.mark.parametrize(
    ("text", "value", "whole", "matches"),
    [
        (r"^/(?P<a>\w+)/$", "/tea/", True, True),
        (r"^/(?P<a>\w+)/$", "/tea/\n", True, False),
        (re.compile(r"^/(?P<a>\w+)/$"), "/tea/\n", True, False),
        (r"^/(?P<a>\w+)/", "/tea/\n", True, True),
        (r"^/(?P<a>\w+)\$", "/tea$\n", True, True),
        (r"^/(?P<a>\w+)/$", "/tea/\n", False, True),
    ],
)
def test_a_dollar_at_the_end_lets_no_newline_pass(text, value, whole, matches):
    assert (captured(text, value, whole) == {"a": "tea"}) is matches


def test_a_path_is_the_whole_field():
    assert captured("/chat/", "/chat/") == {}
    for value in ("/chat/x", "/chat", "/chat/\n", "/a/chat/"):
        assert captured("/chat/", value) is None


def test_its_characters_mean_themselves():
    assert captured("/robots.txt", "/robots.txt") == {}
    assert captured("/robots.txt", "/robotsAtxt") is None
    assert captured("/100%/%(a)s/".replace("(a)", ""), "/100%/%s/") == {}


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("/<room>/", "/tea room/", {"room": "tea room"}),
        ("/<str:room>/", "/tea/", {"room": "tea"}),
        ("/<slug:room>/<int:page>", "/tea/012", {"room": "tea", "page": 12}),
        ("/<path:rest>", "/a/b/", {"rest": "a/b/"}),
        ("/<uuid:id>", f"/{uuid.UUID(int=7)}", {"id": uuid.UUID(int=7)}),
        ("/<room>/", "/a/b/", None),
        ("/<slug:room>/", "/tea room/", None),
        ("/<int:pk>/", "/-1/", None),
        ("/<int:pk>/", "/" + "9" * 5000 + "/", None),  # what int() refuses with a ValueError
    ],
)
def test_captures_go_through_djangos_converters(text, value, expected):
    assert captured(text, value) == expected


@pytest.fixture
def converter(monkeypatch):
    """Register a converter of the site's own for this test."""

    class Even:
        regex = "[0-9]+"

        def to_python(self, value):
            if int(value) % 2:
                raise ValueError("odd")
            return int(value)

        def to_url(self, value):
            return f"{value:d}"

    monkeypatch.setattr(converters, "REGISTERED_CONVERTERS", {})
    converters.register_converter(Even, "even")
    yield
    converters.get_converters.cache_clear()


def test_a_value_error_of_a_sites_own_converter_means_no_match(converter):
    assert captured("/<even:n>", "/4") == {"n": 4}
    assert captured("/<even:n>", "/5") is None


def test_any_field_can_be_matched_and_numbers_as_text():
    filters = Filters({"kind": "photo", "size": "<int:size>"})
    assert filters.match({"kind": "photo", "size": 7}.get)[0] == {"size": 7}
    assert filters.match({"kind": "photos", "size": 7}.get) is None


def test_in_an_include_a_path_is_the_beginning():
    found = Filters({"path": "/<slug:site>/chat"}, whole=False).match({"path": "/tea/chat/green/"}.get)
    assert found == ({"site": "tea"}, {"path": "/green/"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "/<nuber:pk>/",
            "names the converter 'nuber', which is not registered: use one of int, path, slug, str",
        ),
        ("/<:pk>/", "names the converter '', which"),
        ("/<int:>/", "captures '', which is not a name"),
        ("/<int: pk>/", "captures ' pk', which is not a name"),
        ("/<1a>/", "captures '1a', which is not a name"),
        ("/<a>/<int:a>/", "captures 'a', which is used twice"),
        ("/<room/", "has a '<' without its other half"),
        ("/room>/", "has a '>' without its other half"),
        ("/<int:a:b>/", "has a '<' without its other half"),
    ],
)
def test_a_wrong_path_is_one_sentence(text, said):
    with raises(InvalidConfiguration) as refused:
        compile_pattern("path", text)
    assert said in refused.sentence and repr(text) in refused.sentence


# A mixture of both.


@pytest.mark.parametrize(
    ("key", "text", "stray"),
    [
        ("path", "^/chat/<slug:room>/$", "<slug:room>"),
        ("path", "/chat/<room>/?", "<room>"),
        ("path", r"^/chat/(?P<room>\w+)/(?<=/)$", ""),
        ("path", r"^/\<b>/$", ""),
        ("path", "/chat/<slug:room>/", ""),
        ("text", "^<b>", ""),
        ("text", "^<int:b>", "<int:b>"),
        ("text", "^<no:b>", ""),
    ],
)
def test_a_paths_capture_in_a_regular_expression_is_seen(key, text, stray):
    assert stray_capture(key, compile_pattern(key, text)) == stray


# What takes what others take.


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("/chat/", "/chat/"),
        ("^/x$", "^/x$"),
        (".*", "/chat/"),
        ("^", "^/x$"),
        ("/<slug:room>/", "/new/"),
        (r"^/\w+/$", "/new/"),
        ("/<slug:room>/", "/<int:pk>/"),
        ("/<room>/<x>", "/<slug:a>/<uuid:b>"),
        ("/<path:rest>", "/<int:pk>"),
    ],
)
def test_an_earlier_one_covers_a_later_one(earlier, later):
    assert compile_pattern("path", earlier).covers(compile_pattern("path", later))


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("/new/", "/<slug:room>/"),
        ("/<int:pk>/", "/<slug:room>/"),
        ("/<int:pk>/", "/new/"),
        ("/<uuid:a>/", "/<int:a>/"),
        ("/a/<slug:room>/", "/b/<slug:room>/"),
        ("/<slug:a>/", "/<slug:a>/<slug:b>"),
        (r"^/\w+/$", r"^/[a-z]+/$"),  # known to nobody who does not read them
        ("/<slug:room>/", r"^/new/$"),
    ],
)
def test_others_do_not_as_far_as_is_known(earlier, later):
    assert not compile_pattern("path", earlier).covers(compile_pattern("path", later))


def test_nested_paths_are_one():
    chain = [compile_pattern("path", "/<slug:site>", whole=False), compile_pattern("path", "/<int:pk>/")]
    one = joined(chain)
    assert (one.text, one.whole, list(one.converters)) == ("/<slug:site>/<int:pk>/", True, ["site", "pk"])
    assert one.regex.match("/tea/7/") and not one.regex.match("/tea/7/x")
    assert joined([chain[0], compile_pattern("path", "^/x$")]) is None
    assert joined([chain[0], compile_pattern("path", "/<int:site>")]) is None
