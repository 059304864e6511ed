"""``manage.py showchannels``: each route on a line, in order, with its filters and options."""

from __future__ import annotations

import io
import json
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command

from dbchannels import consumer, include, route
from dbchannels.routing import table
from dbchannels.testing.contract.case import raises


@pytest.fixture(autouse=True)
def decorated(monkeypatch):
    """The decorators' list, empty, for this test alone."""
    monkeypatch.setattr(table, "_decorated", [])
    monkeypatch.setattr(table, "_loaded", False)


def join(message, **captures):
    """A consumer."""


def tell(message, **captures):
    """Another."""


def soon(attempt):
    """A back-off."""
    return 1


ROUTES = [
    include(
        [
            route("websocket.connect", join, path="/<slug:room>/", name="room"),
            route("own", tell, path="^/x$"),
        ],
        namespace="chat",
        path="/chat",
    ),
    route("own", tell, retries=3, backoff=soon, atomic=True, every=timedelta(minutes=5), kind="photo"),
    route("websocket.connect", tell, path="/chat/new/"),
]


@pytest.fixture
def show(settings):
    """Run the command on ROUTES, or others; return its lines."""

    def run(*arguments, routes=ROUTES):
        settings.DBCHANNELS = {"default": {"ROUTING": routes}}
        out = io.StringIO()
        call_command("showchannels", *arguments, stdout=out)
        return out.getvalue().splitlines()

    return run


def test_each_route_is_a_line_in_its_order(show):
    consumer("late", name="last")(join)
    here = __name__
    assert show() == [
        f"CHANNEL            FILTERS                  {'CONSUMER':{len(here) + 5}}  OPTIONS",
        f"websocket.connect  path=/chat/<slug:room>/  {here}.join  name=chat:room",
        f"own                path=/chat + ^/x$        {here}.tell",
        f"own                kind=photo               {here}.tell  retries=3 backoff={here}.soon atomic every=300 s",
        f"websocket.connect  path=/chat/new/          {here}.tell  NEVER REACHED: behind {here}.join",
        f"late               -                        {here}.join  name=last",
        "http.request       -                        (the site's views)",
    ]


@pytest.mark.parametrize(
    ("patterns", "channels"),
    [
        (["own"], ["own", "own"]),
        (["websocket.*"], ["websocket.connect", "websocket.connect"]),
        (["*.join"], ["websocket.connect"]),
        (["chat:*"], ["websocket.connect"]),
        (["own", "http.*"], ["own", "own", "http.request"]),
    ],
)
def test_patterns_choose_channels_consumers_and_names(show, patterns, channels):
    assert [line.split()[0] for line in show(*patterns)[1:]] == channels


def test_programs_are_given_json(show):
    first, _, third, fourth, views = json.loads("\n".join(show("--json")))
    assert first == {
        "channel": "websocket.connect",
        "durable": False,
        "filters": {"path": "/chat/<slug:room>/"},
        "consumer": f"{__name__}.join",
        "name": "chat:room",
        "options": {},
        "behind": None,
    }
    assert third["durable"] and third["options"] == {
        "retries": 3,
        "backoff": f"{__name__}.soon",
        "atomic": True,
        "every": "300 s",
    }
    assert fourth["behind"] == first["consumer"]
    assert set(views) == set(first)


@pytest.mark.parametrize(
    ("arguments", "routes", "said"),
    [
        (["absent"], ROUTES, "No channel, consumer or name matches: leave out PATTERN to list all."),
        ([], "no.such.routing", "The routing names 'no.such.routing', which cannot be imported"),
        (["--layer", "absent"], ROUTES, "DBCHANNELS has no layer 'absent': add it, or use 'default'."),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(show, arguments, routes, said):
    with raises(CommandError) as refused:
        show(*arguments, routes=routes)
    assert said in refused.sentence
