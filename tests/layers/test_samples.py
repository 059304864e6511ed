"""Samples: what workers measured, and what waits in the whole site, kept in the database for an hour."""

from __future__ import annotations

import json
import threading
import time

import pytest

from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.operations import BatchResult, Connect, Failure
from dbchannels.measures import DONE, OTHERS
from dbchannels.models import DurableMessage, Process, Sample
from dbchannels.samples import GAUGES, KEPT, PERIOD, read_sample, site_sample, summarize
from dbchannels.worker.batch import Measures
from dbchannels.worker.sampler import Sampler
from tests import kinds

pytestmark = kinds.on_all_databases


@pytest.fixture
def link(layer, new_link):
    return new_link(layer)


def some(number=1, channel="own"):
    found = Measures()
    for _ in range(number):
        found.started(channel, 0.01)
        found.ended(channel, DONE, 0.02)
    return found


def rows(layer):
    return [(row.source, row.data) for row in layer.rows(Sample).order_by("id")]


def at_next_moment(link, monkeypatch, seconds):
    """Let the layer's clock be at a later time."""
    now = link.clock()
    monkeypatch.setattr(link, "clock", lambda: now + seconds)


def test_a_sample_of_one_source_and_moment_is_written_once(layer, link):
    moment = int(link.clock()) // 10 * 10
    assert link.write_sample(moment, "w1", "first")
    assert not link.write_sample(moment, "w1", "second")
    assert link.write_sample(moment, "w2", "")
    assert rows(layer) == [("w1", "first"), ("w2", "")]


def test_the_clock_is_the_time(link):
    assert abs(link.clock() - time.time()) < 600


def test_a_worker_writes_what_has_changed(layer, link, monkeypatch):
    counters = some(3)
    sampler = Sampler(link, counters)
    before = time.monotonic()
    sampler.look("w1")
    assert before < sampler.due_at < time.monotonic() + PERIOD + 1
    sampler.look("w1")  # not at the same moment
    (sample,) = [one for one in layer.samples(channels=["own"]) if one["source"]]
    assert sample["channels"]["own"][DONE] == sample["all"][DONE] == 3
    assert sample["t"] % PERIOD == 0 and sample["t"] <= link.clock()

    at_next_moment(link, monkeypatch, PERIOD)
    sampler.look("w1")  # nothing has happened
    assert len([one for one in rows(layer) if one[0] == "w1"]) == 1


def test_what_was_measured_in_an_outage_is_written_later(layer, link, monkeypatch):
    counters = some(3)
    sampler, write = Sampler(link, counters), link.write_sample

    def written_without_an_answer(moment, source, data):
        write(moment, source, data)
        raise LayerUnavailable("no answer")

    monkeypatch.setattr(link, "write_sample", written_without_an_answer)
    with pytest.raises(LayerUnavailable):
        sampler.look("w1")
    monkeypatch.setattr(link, "write_sample", write)
    counters.started("own", 0.0)
    counters.ended("own", DONE, 0.0)
    at_next_moment(link, monkeypatch, PERIOD)
    sampler.look("w1")
    counts = [read_sample(*row)["channels"]["own"][DONE] for row in rows(layer) if row[0]]
    assert counts == [3, 1]  # each message once


def test_a_worker_that_ends_writes_the_rest(layer, link):
    sampler = Sampler(link, some(2))
    sampler.look("w1")
    sampler._measures.started("own", 0.0)
    sampler.finish("w1")
    assert [source for source, _ in rows(layer)].count("w1") == 2
    moments = [one["t"] for one in layer.samples()]
    assert max(moments) <= link.clock()  # the last one is seen when its ten seconds are over


def test_one_worker_counts_the_site(layer, link, new_link):
    layer.send_many([("own", {}), ("own", {}), ("other", {})])
    layer.send("own", {}, delay=60)
    layer.send("http.request", {"reply_channel": "reply.a!b"})
    layer.send("reply.a!b", {})
    link.register("w1", Process.WORKER)
    link.register("s1", Process.SERVER, "reply.a!")
    link.apply([Connect("reply.a!b", "s1", "/")])
    (claimed,) = link.claim(["own"], 1, "w1")
    for name in ("w1", "w2"):
        Sampler(new_link(layer), Measures()).look(name)
    (site,) = layer.samples(channels=["http.request", "own", "other", "reply.a!"])
    assert (site["source"], site["all"][0]) == ("", 3)
    channels = site["channels"]
    assert sorted(channels) == ["http.request", "other", "own"]
    ready, delayed, running, oldest, dead = channels["own"]
    assert (ready, delayed, running, dead) == (1, 1, 1, 0)
    assert 0 <= oldest < 600
    assert channels["http.request"][0] == 1
    assert (site["sockets"], site["servers"], site["workers"]) == (1, 1, 1)

    link.finish("w1", BatchResult(failures=[Failure(claimed, "x", None)]))
    assert link.gauges()["channels"]["own"][GAUGES.index("dead")] == 1


def test_the_oldest_is_measured_from_when_it_could_be_taken(layer, link):
    layer.send("own", {})
    later = link.clock() - 3_000
    layer.rows(DurableMessage).update(sent_at=layer.moment(later - 500), ready_at=layer.moment(later))
    assert 2_990 < link.gauges()["channels"]["own"][3] < 3_400


def test_many_names_are_added_up(layer, link, monkeypatch):
    monkeypatch.setattr("dbchannels.measures.MOST", 2)
    monkeypatch.setattr("dbchannels.layers.database.link.MOST", 2)
    for number, name in enumerate(("a", "b", "c", "d"), 1):
        layer.send_many([(name, {})] * number)
    counted = {name: one[0] for name, one in link.gauges()["channels"].items()}
    assert counted == {"d": 4, "c": 3, OTHERS: 3}


def test_after_a_slow_count_the_next_one_waits(layer, link, monkeypatch):
    first, second = Sampler(link, Measures()), Sampler(link, Measures())
    moment, took = int(link.clock()) // 10 * 10, 0.2
    link.write_sample(moment, "", "")
    link.complete_sample(moment, site_sample(moment, took, {"channels": {}}))
    counted = []
    monkeypatch.setattr(link, "gauges", lambda: counted.append(1) or {"channels": {}})
    monkeypatch.setattr(link, "clock", lambda: moment + 30.0)
    first.look("w1")
    assert not counted
    monkeypatch.setattr(link, "clock", lambda: moment + 40.0)
    second.look("w2")
    assert counted


def test_a_sample_that_cannot_be_read_holds_up_nobody(layer, link):
    moment = int(link.clock()) // 10 * 10
    link.write_sample(moment - 10, "", "")
    link.complete_sample(moment - 10, "of another version")
    Sampler(link, Measures()).look("w1")
    assert [one["source"] for one in layer.samples()] == [""]


def test_old_samples_are_deleted(layer, link):
    moment = int(link.clock()) // 10 * 10
    for ago in (KEPT + 100, KEPT - 100):
        assert link.write_sample(moment - ago, "w1", str(ago))
    link.write_sample(moment, "", "")
    link.complete_sample(moment, "{}")
    assert rows(layer) == [("w1", str(KEPT - 100)), ("", "{}")]


def test_the_reader_gives_what_came_since(layer, link):
    moment = int(link.clock()) // 10 * 10
    for ago in (30, 20, 10, 0):
        link.write_sample(moment - ago, "", "")
        link.complete_sample(moment - ago, site_sample(moment - ago, 0, {"channels": {}}))
    link.write_sample(moment - 5, "", "")  # not complete
    assert summarize(layer.samples())["moments"] == [moment - ago for ago in (30, 20, 10, 0)]
    assert [one["t"] for one in layer.samples(since=moment - 20)] == [moment - 10, moment]
    assert json.loads(link.newest_sample())["t"] == moment


def test_without_time_zones(layer, new_link, settings):
    settings.USE_TZ, settings.TIME_ZONE = False, "Asia/Kolkata"
    link = new_link(layer)
    moment = int(link.clock()) // 10 * 10
    assert link.write_sample(moment - KEPT - 10, "", "")
    Sampler(link, some()).look("w1")
    found = summarize(layer.samples())
    assert found["moments"] and found["moments"][-1] - moment in (0, 10)
    assert layer.samples(since=found["moments"][-1]) == []
    assert len(rows(layer)) == 2


def test_of_many_workers_one_counts_the_site(layer, new_link):
    links = [new_link(layer) for _ in range(8)]
    moment, won = int(links[0].clock()) // 10 * 10, []

    def run(link):
        won.append(link.write_sample(moment, "", ""))
        link.close()

    threads = [threading.Thread(target=run, args=(link,)) for link in links]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(won) == [False] * 7 + [True]
