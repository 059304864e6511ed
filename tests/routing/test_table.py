"""Which consumer runs for a message."""

from __future__ import annotations

import functools
import sys
import types

import pytest

from dbchannels import Message, consumer, include, route
from dbchannels.exceptions import InvalidConfiguration, InvalidName
from dbchannels.routing import table
from dbchannels.routing.table import Routing, load_routing
from dbchannels.testing.contract.case import raises


@pytest.fixture(autouse=True)
def decorated(monkeypatch):
    """The decorators' list, empty, for this test alone."""
    monkeypatch.setattr(table, "_decorated", [])
    monkeypatch.setattr(table, "_loaded", False)
    return table._decorated


@pytest.fixture
def module(monkeypatch):
    """Make a module that can be imported: ``module("chat.routing", routes=[...])``."""

    def make(name, **attributes):
        for position in range(name.count(".") + 1):
            parent = ".".join(name.split(".")[: position + 1])
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        made = sys.modules[name]
        for key, value in attributes.items():
            setattr(made, key, value)
        return made

    return make


def one(message, **captures):
    """A consumer."""
    return ("one", captures)


def two(message, **captures):
    """Another."""
    return ("two", captures)


def run(table, channel="websocket.receive", **content):
    """Return what the consumer of a message returns; None when none matches."""
    found = table.match(channel, content)
    return found and found[0].run(Message(channel, content), found[1])


# Matching.


def test_the_channel_decides():
    table = Routing([route("websocket.receive", one), route("own", two)])
    assert run(table, "websocket.receive") == ("one", {})
    assert run(table, "own") == ("two", {})
    assert run(table, "other") is None


def test_the_first_match_wins():
    table = Routing([route("own", one, kind="a.*"), route("own", two), route("own", one)])
    assert run(table, "own", kind="abc")[0] == "one"
    assert run(table, "own", kind="b")[0] == "two"


def test_filters_match_from_the_start_and_capture():
    table = Routing([route("own", one, path=r"/chat/(?P<room>\w+)/(?P<rest>x)?$", method="GET|POST")])
    assert run(table, "own", path="/chat/tea/", method="GET") == ("one", {"room": "tea"})
    assert run(table, "own", path="/chat/tea/x", method="POST") == ("one", {"room": "tea", "rest": "x"})
    for path, method in (
        ("/a/chat/tea/", "GET"),
        ("/chat/", "GET"),
        ("/chat/tea/", "PUT"),
        ("/chat/tea/y", "GET"),
    ):
        assert run(table, "own", path=path, method=method) is None


def test_a_field_that_is_missing_matches_nothing():
    table = Routing([route("own", one, path=".*")])
    assert run(table, "own") is None
    assert run(table, "own", path=None) is None
    assert run(table, "own", path="") == ("one", {})


def test_fields_that_are_no_text_are_matched_as_text():
    table = Routing([route("own", one, version=r"(?P<major>\d)$")])
    assert run(table, "own", version=3) == ("one", {"major": "3"})
    assert run(table, "own", version=30) is None


def test_each_channel_has_routes_of_its_own():
    table = Routing([route("websocket.receive", one, path="^/chat/$")])
    assert table.match("websocket.connect", {"path": "/chat/"}) is None
    assert table.match("websocket.receive", {"path": "/chat/"}) is not None


def test_channels_are_listed_once_and_in_order():
    table = Routing([route("b", one), include([route("a", one), route("b", two)], path="^/x")])
    assert table.channels() == ["b", "a"]
    assert [entry.name for entry in table.routes()] == [
        f"{__name__}.one",
        f"{__name__}.one",
        f"{__name__}.two",
    ]


# Includes.


def test_an_include_takes_its_part_off():
    inner = [route("own", one, path=r"^/(?P<room>\w+)/$"), route("own", two)]
    table = Routing([include(inner, path=r"^/(?P<site>\w+)/chat")])
    assert run(table, "own", path="/tea/chat/green/") == ("one", {"site": "tea", "room": "green"})
    assert run(table, "own", path="/tea/chat/") == ("two", {"site": "tea"})
    assert run(table, "own", path="/tea/") is None
    assert run(table, "own") is None


def test_includes_nest_and_the_inner_capture_wins():
    innermost = [route("own", one, path=r"^/(?P<name>c)$", kind="k")]
    table = Routing([include([include(innermost, path=r"^/(?P<name>b)")], path=r"^/(?P<name>a)")])
    assert run(table, "own", path="/a/b/c", kind="k") == ("one", {"name": "c"})
    assert run(table, "own", path="/a/b/c") is None


def test_an_include_that_matches_nothing_lets_others_try():
    table = Routing([include([route("own", one, path="^/x$")], path="^/a"), route("own", two, path="^/a/y$")])
    assert run(table, "own", path="/a/y") == ("two", {})


def test_paths_and_converters_are_for_decorators_and_routes_alike(decorated):
    consumer("own", path="/chat/<int:pk>/")(one)
    table = Routing([route("own", two, path="/chat/<slug:room>/new/"), *decorated])
    assert run(table, "own", path="/chat/tea/new/") == ("two", {"room": "tea"})
    assert run(table, "own", path="/chat/7/") == ("one", {"pk": 7})
    assert run(table, "own", path="/chat/7/x") is None


def test_an_include_takes_a_path_off_as_well():
    table = Routing([include([route("own", one, path="/<int:pk>/")], path="/<slug:site>/chat")])
    assert run(table, "own", path="/tea/chat/7/") == ("one", {"site": "tea", "pk": 7})
    assert run(table, "own", path="/tea/chat/x/") is None


def test_fields_that_are_called_as_an_option_are_filtered_by_a_dict():
    table = Routing(
        [
            route("own", one, filters={"name": "a", "every": "<int:days>"}),
            include([], filters={"retries": "x"}),
        ]
    )
    assert run(table, "own", name="a", every=7) == ("one", {"days": 7})
    assert run(table, "own", name="b", every=7) is None


@pytest.mark.parametrize(
    ("key", "value", "near"),
    [
        ("retrys", 3, "retries"),
        ("retry", 3, "retries"),
        ("concurency", 1, "concurrency"),
        ("atomc", True, "atomic"),
        ("evrey", "0 7 * * *", "every"),
        ("evry", "0 7 * * *", "every"),  # as a filter it would be a text that is never there
    ],
)
def test_an_option_that_is_spelled_wrong_is_one_sentence(key, value, near):
    for make in (lambda: route("own", one, **{key: value}), lambda: consumer("own", **{key: value})(one)):
        with raises(InvalidConfiguration) as refused:
            make()
        assert refused.sentence.startswith(
            f"A route on own has the unknown option {key!r}: write {near!r}, or write filters="
        )


def test_a_decorator_that_stands_bare_is_one_sentence():
    with raises(InvalidConfiguration) as refused:
        consumer(one)
    assert refused.sentence.endswith('write @consumer("websocket.receive").')


def test_a_consumer_that_comes_too_late_is_told_of(decorated, caplog):
    consumer("own")(one)
    assert caplog.messages == []
    load_routing()
    consumer("own")(two)
    (said,) = caplog.messages
    assert said.startswith(f"{__name__}.two, a consumer of own, was imported after the routing was loaded")


# What is never reached.


def pairs(*routes):
    """Return the consumers that are never reached, each with the one that stands before it."""
    table = Routing(routes)
    bound = table.bound_routes()
    return [(bound[index].route.consumer, one.route.consumer) for index, one in table.shadowed().items()]


def test_a_route_behind_a_wider_one_is_never_reached():
    assert pairs(route("own", one), route("own", two, path="/x/")) == [(two, one)]
    assert pairs(route("own", one, path="/<slug:a>/"), route("own", two, path="/new/")) == [(two, one)]
    assert pairs(route("own", one, path="^/a$"), route("own", two, kind="x", path="^/a$")) == [(two, one)]
    inner = [route("own", one, path="/<slug:a>/")]
    assert pairs(include(inner, path="/chat"), route("own", two, path="/chat/new/")) == [(two, one)]


def test_routes_that_some_message_reaches_are_none():
    assert pairs(route("own", one, path="/new/"), route("own", two, path="/<slug:a>/")) == []
    assert pairs(route("own", one, kind="x"), route("own", two)) == []
    assert pairs(route("own", one), route("other", two)) == []
    assert pairs(route("own", one, path="^/a$", kind="x"), route("own", two, path="^/a$")) == []


# The forms of a consumer.


def post(content, path, **fields):
    """A consumer in the form of the 2015 post, which takes everything."""
    return {"content": content, "path": path, **fields}


def test_the_2015_form_is_given_keywords():
    def consume(send_channel, content, room):
        return send_channel, content, room

    table = Routing([route("websocket.receive", consume, path=r"^/(?P<room>\w+)/$")])
    found = run(table, path="/tea/", text="hi", reply_channel="reply.a!b", order=1)
    assert found == ("reply.a!b", "hi", "tea")


@pytest.mark.parametrize("name", ["channel", "send_channel", "path", "content", "binary"])
def test_the_first_parameter_tells_the_form(name):
    consume = eval(f"lambda {name}, other=None: ({name}, other)")
    found = run(
        Routing([route("own", consume)]), "own", **{"other": 5, "path": "/", "content": "x", "binary": True}
    )
    expected = {"channel": "own", "send_channel": None, "path": "/", "content": "x", "binary": True}
    assert found == (expected[name], 5)


def test_only_the_first_parameter_tells_the_form():
    table = Routing([route("own", lambda message, content=None: (message["id"], content))])
    assert run(table, "own", id=7, content="x") == (7, None)


def test_captures_win_over_the_servers_keys_and_these_over_a_payloads():
    pattern = r"^/(?P<room>\w+)/(?P<channel>\w+)/$"
    table = Routing([route("own", post, path=pattern)])
    forged = {"room": "forged", "channel": "forged", "send_channel": "forged!x", "user": "kept"}
    message = Message("own", {**forged, "path": "/tea/green/", "text": "hi", "reply_channel": "reply.a!b"})
    entry, captures = table.match("own", message.content)
    found = entry.run(message, captures)
    assert (found["room"], found["channel"], found["send_channel"]) == ("tea", "green", "reply.a!b")
    assert found["user"] == "kept"


def test_fields_that_a_consumer_does_not_take_are_left_out():
    table = Routing([route("own", lambda content: content)])
    assert run(table, "own", content="x", more=1, and_more=2) == "x"


def test_methods_and_partials_are_consumers():
    class Room:
        def say(self, message, **captures):
            return "said"

    table = Routing(
        [route("a", Room().say), route("b", functools.partial(two)), route("c", functools.partial(post))]
    )
    assert run(table, "a") == "said"
    assert run(table, "b") == ("two", {})
    assert run(table, "c", content="x", path="/")["content"] == "x"
    assert all(isinstance(entry.name, str) for entry in table.routes())


# What is refused.


@pytest.mark.parametrize("pattern", ["(", "(?P<a>x)(?P<a>y)", "*", None, 7])
def test_a_wrong_pattern_is_one_sentence(pattern):
    for make in (lambda: route("own", one, path=pattern), lambda: include([], path=pattern)):
        with raises(InvalidConfiguration) as refused:
            make()
        assert f"path={pattern!r}" in refused.sentence


def test_a_wrong_channel_is_refused():
    for make in (lambda: route("two words", one), lambda: consumer("two words")(one)):
        with raises(InvalidName):
            make()


def test_a_consumer_is_callable():
    with raises(InvalidConfiguration) as refused:
        route("own", 7)
    assert "not callable: 7; name a function or a class." in refused.sentence


def test_a_decorator_without_a_channel_names_the_function():
    with raises(InvalidConfiguration) as refused:
        consumer(one)
    assert refused.sentence == '@consumer on one has no channel: write @consumer("websocket.receive").'


# The table of a site.


def test_a_decorated_consumer_stays_a_function(decorated):
    assert consumer("own", path="^/$")(one) is one
    assert [(entry.channel, entry.consumer) for entry in decorated] == [("own", one)]


def test_dbchannels_comes_first_then_the_routing_module_then_apps_in_their_order(module, decorated, settings):
    def named(app):
        def consume(message):
            return app

        consume.__module__ = app
        return consume

    # Imported in another order than that of INSTALLED_APPS, which decides.
    for app in ("nobodys.consumers", "django.contrib.auth.consumers", "dbchannels.consumers"):
        consumer("own")(named(app))
        consumer("own", n="2")(named(app + "2"))
    module("chat.routing", routes=[route("own", one)])
    table = load_routing("chat.routing")
    assert [entry.consumer.__module__ for entry in table.routes()] == [
        "dbchannels.consumers",
        "dbchannels.consumers2",
        __name__,
        "django.contrib.auth.consumers",
        "django.contrib.auth.consumers2",
        "nobodys.consumers",
        "nobodys.consumers2",
    ]


def test_no_routing_module_is_needed(decorated):
    consumer("own")(one)
    assert [entry.consumer for entry in load_routing().routes()] == [one]


@pytest.mark.parametrize("dotted", ["chat.routing", "chat.routing.routes", "chat.routing.others"])
def test_routes_by_module_or_by_name(module, dotted):
    module("chat.routing", routes=[route("own", one)], others=(route("own", one),))
    assert [entry.consumer for entry in load_routing(dotted).routes()] == [one]
    assert [entry.route.consumer for entry in include(dotted).bound_routes()] == [one]


def test_routes_may_be_given_as_a_list():
    assert load_routing([route("own", one)]).channels() == ["own"]


def test_a_consumer_by_its_dotted_name(module):
    module("chat.consumers", join=one)
    assert route("own", "chat.consumers.join").consumer is one


@pytest.mark.parametrize(
    "load",
    [
        lambda: load_routing("no.such.routing"),
        lambda: include("no.such.routing"),
        lambda: route("own", "no.such.consumer"),
        lambda: route("own", "undotted"),
    ],
)
def test_what_cannot_be_imported_is_one_sentence(load):
    with raises(InvalidConfiguration) as refused:
        load()
    assert "cannot be imported" in refused.sentence


@pytest.mark.parametrize("load", [load_routing, include, lambda name: route("own", f"{name}.one")])
def test_an_attribute_error_of_a_module_is_not_taken_for_a_missing_list(load, tmp_path, monkeypatch):
    (tmp_path / "mistaken.py").write_text("import math\nmath.no_such_name\nroutes = []\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AttributeError, match="no_such_name"):
        load("mistaken")


@pytest.mark.parametrize("attributes", [{}, {"routes": 7}, {"routes": "own"}])
def test_a_module_without_a_list_is_one_sentence(module, attributes):
    made = module("chat.routing", **attributes)
    module("chat", routing=made)
    with raises(InvalidConfiguration) as refused:
        load_routing("chat.routing")
    assert "chat.routing has no list called 'routes'" in refused.sentence


# Duplicates.


def duplicates(table):
    """Return the routes that are in the table a second time."""
    bound = table.bound_routes()
    return [bound[index].route for index, one in table.shadowed().items() if bound[index].key() == one.key()]


def test_the_same_route_twice_is_a_duplicate():
    twice = route("own", one, path="^/$")
    table = Routing(
        [twice, route("own", one, path="^/$"), route("own", one), route("other", one), route("own", two)]
    )
    assert [(entry.channel, entry.consumer) for entry in duplicates(table)] == [("own", one)]
    assert len(duplicates(Routing([twice, twice, twice]))) == 2


def test_the_order_of_filters_makes_no_difference():
    table = Routing([route("own", one, a="1", b="2"), route("own", one, b="2", a="1")])
    assert len(duplicates(table)) == 1


def test_the_same_routes_under_other_prefixes_are_none():
    inner = [route("own", one)]
    assert duplicates(Routing([include(inner, path="^/a"), include(inner, path="^/b"), *inner])) == []
    assert len(duplicates(Routing([include(inner, path="^/a"), include(inner, path="^/a")]))) == 1


def test_two_functions_of_one_name_are_none():
    assert duplicates(Routing([route("own", lambda message: 1), route("own", lambda message: 2)])) == []


# Options.


@pytest.mark.parametrize("options", [{"retries": -1}, {"retries": "2"}, {"backoff": "soon"}])
def test_an_option_that_cannot_be_used_is_one_sentence(options):
    with raises(InvalidConfiguration) as refused:
        route("own", one, **options)
    assert "A route on own" in refused.sentence


def test_protocol_messages_are_not_tried_again():
    with raises(InvalidConfiguration) as refused:
        route("websocket.receive", one, retries=2)
    assert "at most once" in refused.sentence


def test_an_option_of_another_type_or_range_is_told_what_fits():
    for given, advice in [
        ({"retries": "3"}, "has retries = '3': write a whole number from 0 to 32000, such as 5."),
        ({"hard_timeout": "3"}, "write seconds, such as 600, at most ten years, or 0 for never."),
        ({"atomic": None}, "has atomic = None: write True or False."),
    ]:
        with raises(InvalidConfiguration) as refused:
            route("own", one, **given)
        assert refused.sentence.endswith(advice)
