"""The state of every channel and process, as the admin and the commands show it."""

from __future__ import annotations

import json

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext

from dbchannels.layers.operations import BatchResult, Failure
from dbchannels.layers.overview import folded, overview
from dbchannels.models import DurableMessage, Process
from tests import kinds

pytestmark = kinds.on_all_databases


def states(layer):
    """Return the states by channel, and assert that they take at most five queries."""
    with CaptureQueriesContext(connections[layer.database]) as queries:
        found = {one.channel: one for one in overview(layer).channels}
    assert len(queries) <= 5
    return found


def test_without_a_row_there_is_no_channel(layer):
    assert overview(layer) == ([], [], "")


def test_each_message_counts_where_it_stands(layer, new_link):
    link = new_link(layer)
    layer.send_many([("own", {"number": number}) for number in range(6)])
    layer.send("own", {}, delay=3600)
    layer.send("own", {}, priority=7)
    layer.send("other", {}, delay=3600)
    first, *_ = link.claim(["own"], 3, "w1")
    link.finish("w1", BatchResult(failures=[Failure(first, "traceback", None)]))
    found = states(layer)
    own, other = found["own"], found["other"]
    assert (own.ready, own.delayed, own.running, own.dead) == (4, 1, 2, 1)
    assert own.oldest is not None and own.oldest >= 0 and own.durable and own.unattended and not own.more
    assert (other.ready, other.delayed, other.oldest) == (0, 1, None)


def test_channels_that_are_not_looked_at_are_not_left_out_in_silence(layer, monkeypatch):
    layer.send_many([(f"own.{number}", {}) for number in range(3)])
    assert len(overview(layer).channels) == 3 and not overview(layer).note
    monkeypatch.setattr("dbchannels.layers.overview.MOST_CHANNELS", 2)
    found = overview(layer)
    bounded = connections[layer.database].vendor == "postgresql"
    assert len(found.channels) == (2 if bounded else 3)
    assert ("are missing" in found.note) == bounded


def test_messages_of_clients_count_and_reply_queues_are_counted_together(layer, new_link):
    link = new_link(layer)
    link.register("w1", Process.WORKER)
    for channel in ("http.request", "http.request", "reply.a!1", "reply.b!2", "http.flow?x", "http.flow?y"):
        layer.send(channel, {})
    link.receive_many(["http.request"], 1, "w1")
    found = states(layer)
    assert {name: one.ready for name, one in found.items()} == {
        "http.request": 1,
        "reply.*!": 2,
        "http.flow?*": 2,
    }
    assert found["http.request"].running == 1 and not found["http.request"].durable
    assert found["http.request"].unattended and not found["reply.*!"].unattended
    assert [folded(name) for name in ("own", "reply.a.b!", "x!y", "x?")] == ["own", "reply.a.*!", "*!", "x?*"]


def test_delayed_messages_that_no_worker_has_seen_become_due(layer):
    layer.send("own", {}, delay=3600)
    layer.rows(DurableMessage).update(due_at=layer.now())
    own = states(layer)["own"]
    assert (own.ready, own.delayed) == (1, 0)
    assert own.oldest is not None and own.oldest < 60


def test_a_pause_is_shown_even_without_messages(layer):
    layer.pause("own", "ann")
    own = states(layer)["own"]
    assert own.pause is not None and own.pause.paused_by == "ann"
    assert not own.unattended


@pytest.mark.parametrize("work", ["", "[]", "{", '{"takes": null}', '{"takes": [1]}'])
def test_what_a_worker_of_another_version_records_is_no_error(layer, new_link, work):
    link = new_link(layer)
    link.register("w1", Process.WORKER)
    link.record_work("w1", work)
    ((process,), channels) = (overview(layer).processes, overview(layer).channels)
    assert process.alive and process.takes == [] and channels == []


def test_live_workers_take_what_they_have_recorded(layer, new_link):
    link = new_link(layer)
    for name in ("w1", "w2"):
        link.register(name, Process.WORKER)
        link.record_work(name, json.dumps({"takes": ["own"], "runs": "own"}))
    link.register("s1", Process.SERVER, "reply.s1!")
    layer.rows(Process).filter(name="w2").update(lease_until=layer.rows(Process).get(name="w2").started_at)
    layer.send("own", {})
    channels, processes, _ = overview(layer)
    assert [(one.channel, one.workers, one.unattended) for one in channels] == [("own", ["w1"], False)]
    assert [(one.name, one.alive) for one in processes] == [("s1", True), ("w1", True), ("w2", False)]
    assert processes[1].work["runs"] == "own"
