"""Whatever is given in place of what is meant: it is taken, or refused by an error of ours in one sentence."""

from __future__ import annotations

import collections
import datetime
from functools import partial

import pytest
from django.utils.functional import lazystr

from dbchannels import Channel, DBChannelsError, Group, conf, consumer, include, route, route_class
from dbchannels.routing import table
from dbchannels.routing.table import OPTIONS, Routing, load_routing
from tests import kinds

pytestmark = kinds.only("memory")

VALUES = [
    None,
    True,
    5,
    -1,
    1.5,
    float("nan"),
    float("inf"),
    10**5000,
    "x",
    "",
    ".x",
    "é\n",
    b"x",
    [],
    [1],
    {},
    {"a": 1},
    {1: "a"},
    set(),
    object(),
    print,
    int,
    lazystr("later"),
    datetime.timedelta(days=1),
    datetime.time(3),
    datetime.datetime(2026, 1, 1),
    collections.OrderedDict(),
]
DELIVERY = ("delay", "deliver_at", "priority", "unique", "layer")


def on_channel(**options):
    Channel("own", **options).send({})


def with_setting(settings, value):
    settings.DBCHANNELS = value
    load_routing(conf.layer_settings().routing)


def calls(settings, value):
    """Yield what to call it, and a call that takes the value."""
    for option in sorted(OPTIONS):
        yield f"route({option}=)", partial(route, "own", print, **{option: value})
        yield f"include({option}=)", partial(include, [], **{option: value})
    yield "route(filter)", partial(route, "own", print, kind=value)
    yield "route(channel)", partial(route, value, print)
    yield "route(consumer)", partial(route, "own", value)
    yield "consumer(channel)", lambda: consumer(value)(print)
    for function in (include, route_class, Routing, load_routing, Channel, Group):
        yield function.__name__, partial(function, value)
    yield "include(namespace=)", partial(include, [], namespace=value)
    for option in DELIVERY:
        yield f"Channel({option}=)", partial(on_channel, **{option: value})
    yield "Group(layer=)", lambda: Group("room", layer=value).send({})
    yield "Channel.send", lambda: Channel("own").send(value)
    yield "Group.add", lambda: Group("room").add(value)
    yield "Group.send", lambda: Group("room").send(value)
    yield "DBCHANNELS", partial(with_setting, settings, value)
    yield "an entry of DBCHANNELS", partial(with_setting, settings, {"default": value})
    for key in ("BACKEND", "DATABASE", "ROUTING", "OPTIONS"):
        yield f"DBCHANNELS {key}", partial(with_setting, settings, {"default": {key: value}})
    for key in conf.OPTIONS:
        yield f"DBCHANNELS {key}", partial(with_setting, settings, {"default": {"OPTIONS": {key: value}}})


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_it_is_taken_or_refused_in_one_sentence(layer, settings, monkeypatch, value):
    monkeypatch.setattr(table, "_decorated", [])
    wrong = []
    for name, call in calls(settings, value):
        try:
            call()
        except DBChannelsError as error:
            sentence = str(error)
            if not sentence.endswith(".") or "\n" in sentence or len(sentence) > 600:
                wrong.append((name, sentence))
        except Exception as error:
            wrong.append((name, f"{type(error).__name__}: {error!s:.100}"))
    settings.DBCHANNELS = {}
    assert wrong == []
