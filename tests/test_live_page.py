"""The admin's live page: who sees it, what its socket and its JSON say, and what it costs."""

from __future__ import annotations

import json
import re

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connections
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from dbchannels.admin import live
from dbchannels.consumers import route_class
from dbchannels.layers import orm
from dbchannels.layers.overview import ChannelStatus
from dbchannels.measures import DONE, SIZE
from dbchannels.models import ChannelState, Sample
from dbchannels.samples import read_sample, sample, site_sample
from tests import kinds
from tests.clocks import patch_time
from tests.visitors import Visitor, new_session, new_user

pytestmark = kinds.on_databases
PAGE, DATA = "admin:dbchannels_channelstate_live", "admin:dbchannels_channelstate_live_data"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Give each test an overview that nobody has read."""
    monkeypatch.setattr(live, "cached", live.Cached())


@pytest.fixture
def operator(anna):
    """Somebody who may see the channels."""
    anna.is_staff = True
    anna.save()
    anna.user_permissions.add(Permission.objects.get(codename="view_channelstate"))
    return anna


@pytest.fixture
def ask(layer, new_link, work_off):
    """Open the page's socket in a session, send frames, and return what it is told."""

    def opened(session, *frames, between=lambda: None):
        visitor = Visitor(layer, new_link(layer), session.session_key)
        ticket = live.ticket_for(User(pk=session["_auth_user_id"]))
        path, route = reverse(PAGE), route_class(live.LivePage, path=live.PATH)
        visitor.opens(path)
        work_off(route)
        for frame in frames:
            between()
            whole = {"ticket": ticket, **frame} if isinstance(frame, dict) else frame
            visitor.says(frame if isinstance(frame, str) else json.dumps(whole), path)
            work_off(route)
        visitor.ends()
        return visitor.told()

    return opened


def get(name, who=None, **parameters):
    """Return the answer to a request."""
    client = Client()
    if who is not None:
        client.force_login(who)
    return client.get(reverse(name), parameters)


def test_the_page_has_a_figure_for_each_chart_and_no_script_inside(operator):
    page = get(PAGE, operator)
    text = page.content.decode()
    assert (page.status_code, text.count("<figure")) == (200, len(live.CHARTS))
    assert 'src="/static/dbchannels/live.js"' in text and reverse(DATA) in text


@pytest.mark.parametrize("name", [PAGE, DATA])
def test_others_are_refused(anna, name):
    assert get(name).status_code == 302
    anna.is_staff = True
    anna.save()
    assert get(name, anna).status_code == 403


def test_the_socket_refuses_who_may_not_see_the_page(ask, anna):
    (refused,) = ask(new_session(anna))
    assert refused == {"accept": False, "status": 403}


def test_the_socket_tells_what_waits_and_what_was_measured(ask, layer, operator):
    now = live.time.time()
    layer.send_many([("own", {}), ("own", {})])
    layer.pause("own", "ann")
    numbers = [0.0] * SIZE
    numbers[DONE] = 20
    moment = int(now) // 10 * 10
    for source, data in (("", site_sample(moment, 0.01, None)), ("w1", sample(moment, {"own": numbers}, 10))):
        layer.rows(Sample).create(at=layer.moment(moment), source=source, data=data)
    *_, answer = ask(new_session(operator), {"since": 0, "channel": "own"})
    data = json.loads(answer["text"])
    (own,) = [one for one in data["channels"] if one["channel"] == "own"]
    assert (own["ready"], own["state"], own["alarming"]) == (2, "paused", True)
    assert own["url"] == reverse("admin:dbchannels_channelstate_change", args=["own"])
    # A thread of another test may write samples of later moments.
    assert (data["channel"], data["series"]["values"]["out"][0]) == ("own", 2.0)
    assert data["ask_in"] >= live.AGAIN
    assert json.loads(get(DATA, operator, channel="own").content)["series"]["values"]["out"][0] == 2.0
    assert json.loads(get(DATA, operator).content)["series"]["values"]["workers"][0] is None
    assert moment not in json.loads(get(DATA, operator, since=moment + 10).content)["series"]["moments"]


def test_an_hour_of_many_channels_fits_into_a_frame(layer):
    now, channels = int(live.time.time()) // 10 * 10, [f"channel-{number}" for number in range(60)]
    layer.send_many([(f"{name}-{'x' * 80}", {}) for name in channels for _ in range(2)])
    layer.send_many([(f"channel-{number}", {}) for number in range(200)])
    gauges = {"channels": {name: [3, 1, 2, 0.123456, 4] for name in channels}}
    moments = range(now - 3_000, now, 10)
    layer.rows(Sample).bulk_create(
        Sample(at=layer.moment(one), source="", data=site_sample(one, 0.01, gauges)) for one in moments
    )
    for channel in ("", "channel-7", "none"):
        found = live.live_data(0, channel)
        layer.make_send("reply.a!b", live.LivePage.frame(found))  # raises for what is too large
        assert found["series"]["values"]["ready"] == [{"": 180, "none": 0}.get(channel, 3)] * len(moments)
    assert (len(found["channels"]), found["more"]) == (live.ROWS, 160)
    assert sum(one["ready"] == 2 for one in found["channels"]) == 60  # the longest queues


def test_the_table_has_first_what_needs_a_person(layer):
    many = [ChannelStatus(f"own.{number:03}", ready=5, workers=["w1"]) for number in range(live.ROWS)]
    paused = ChannelStatus("zoo", pause=ChannelState(channel="zoo"))
    found = live._table(
        [*many, ChannelStatus("alone", delayed=1), paused, ChannelStatus("reply.*!", ready=9)]
    )
    names = [one["channel"] for one in found["channels"]]
    assert (names[0], names[-1], found["more"]) == ("alone", "zoo", 2)
    assert names == sorted(names)


@pytest.mark.parametrize("channel", ["", "channel-7", "none"])
def test_the_database_cuts_out_what_a_page_shows(layer, monkeypatch, channel):
    moment, texts = int(live.time.time()) // 10 * 10, []
    gauges = {"channels": {f"channel-{number}": [number, 0, 0, 0, 0] for number in range(1_000)}}
    layer.rows(Sample).create(at=layer.moment(moment), source="", data=site_sample(moment, 0.01, gauges))
    monkeypatch.setattr(orm, "read_sample", lambda *row: texts.append(row[1]) or read_sample(*row))
    found = live.live_data(0, channel)
    assert found["series"]["values"]["ready"] == [{"": 499_500, "channel-7": 7, "none": 0}[channel]]
    if not channel or connections[layer.database].vendor == "postgresql":
        assert texts[0].count("\n") == (channel == "channel-7")


@pytest.mark.parametrize(
    "frame", ["[]", "{", {}, {"since": 0, "channel": 1}, {"since": "now"}, {"since": -1}, {"since": None}]
)
def test_a_frame_that_makes_no_sense_gets_an_error(ask, operator, frame):
    *_, answer = ask(new_session(operator), frame)
    assert "error" in json.loads(answer["text"])


@pytest.mark.parametrize("since", ["now", "1e999", "nan", "-1e300"])
def test_a_moment_that_makes_no_sense_is_refused(operator, since):
    assert get(DATA, operator, since=since).status_code == 400


def test_the_socket_closes_when_the_permission_ends(ask, operator):
    *_, answer = ask(new_session(operator), {"since": 0}, between=operator.user_permissions.clear)
    assert answer["close"] == 4403


@pytest.mark.parametrize("ticket", [None, 1, "made up", "of another user"])
def test_the_socket_serves_only_who_was_shown_the_page(ask, operator, ticket):
    if ticket == "of another user":
        ticket = live.ticket_for(new_user("berta"))
    *_, answer = ask(new_session(operator), {"since": 0, "ticket": ticket})
    assert answer == {"close": 4403}


def test_the_page_has_the_ticket_of_its_user(operator):
    ticket = re.search(r'data-ticket="([^"]+)"', get(PAGE, operator).content.decode())[1]
    assert live.has_ticket(operator, ticket)


def test_many_pages_read_the_channels_once(layer, operator):
    with CaptureQueriesContext(connections[layer.database]) as first:
        live.live_data()
    with CaptureQueriesContext(connections[layer.database]) as later:
        for _ in range(20):
            live.live_data(live.time.time())
    assert len(first) <= 6
    assert len(later) == 20  # the samples alone


def test_a_page_asks_less_often_when_the_queries_take_long(layer, monkeypatch):
    clock = iter([1000.0, 1000.5, 1080.0, 1099.0, 1099.01])
    with monkeypatch.context() as patched:  # the end of the test looks at the clock too
        patch_time(patched, live, monotonic=lambda: next(clock))
        first = live.cached.get()
        assert live.cached.again == 100.0
        assert live.cached.get() is first  # after 80 s
        assert live.cached.get() is not first  # after 99 s
        assert live.cached.again == live.AGAIN
