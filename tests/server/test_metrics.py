"""The metrics of a server, in Prometheus' text format."""

from __future__ import annotations

import json
import time
from itertools import count

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from prometheus_client.parser import text_string_to_metric_families

from dbchannels import measures, samples
from dbchannels.measures import (
    ADDED_AT_ONCE,
    AT_ONCE,
    BOUNDS,
    DEAD,
    DONE,
    FAILED,
    MOST,
    OTHER,
    OTHERS,
    ServerCounts,
)
from dbchannels.samples import read_sample, site_sample
from dbchannels.server import health
from dbchannels.server import metrics as metrics_module
from dbchannels.server.listeners import Address
from dbchannels.server.metrics import METRICS, PIECE, STALE, Metrics
from dbchannels.server.metrics import MOST as MOST_VALUES
from dbchannels.worker.batch import Measures
from tests.clocks import patch_time
from tests.harness import HOST
from tests.server import test_server
from tests.server.test_health import asked
from tests.server.test_server import Client, until

new_site = test_server.new_site


class Source:
    """What a server would tell."""

    def __init__(self):
        self.counts, self.measures, self.sample, self.takers = ServerCounts(), Measures(), "", {}

    def counted(self):
        return (self.measures.copy(), self.measures.events), ()

    def state(self):
        return {"websockets": 3, "connections": 4, "connections_limit": 16_000, "workers_ready": 2}

    def budgets(self):
        return {"request disk": (5, 10)}

    def outages(self):
        return 1

    def site(self):
        return self.sample, self.takers


def parsed(text):
    """Return the values by (name, labels)."""
    families = list(text_string_to_metric_families(text.decode()))
    assert len({one.name for one in families}) == len(families)  # each has one head
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in families
        for one in family.samples
    }


def of(source):
    return parsed(b"".join(Metrics(source).text()))


def test_counters_and_histograms_are_there_by_channel():
    source = Source()
    for outcome, ran in ((DONE, 0.02), (DONE, 700.0), (FAILED, 0.3), (DEAD, 0.3)):
        source.measures.started("own", 0.004)
        source.measures.ended("own", outcome, ran)
    found, own = of(source), (("channel", "own"),)
    assert found["dbchannels_messages_started_total", own] == 4
    assert found["dbchannels_messages_done_total", own] == 2
    assert found["dbchannels_messages_failed_total", own] == 2  # with the one that is dead
    assert found["dbchannels_messages_dead_total", own] == 1
    assert found["dbchannels_message_run_seconds_count", own] == 4
    assert found["dbchannels_message_run_seconds_sum", own] == pytest.approx(700.62)
    buckets = {
        float(labels[1][1]): value
        for (name, labels), value in found.items()
        if name == "dbchannels_message_run_seconds_bucket"
    }
    assert sorted(buckets) == [*BOUNDS, float("inf")]
    assert (buckets[0.01], buckets[0.025], buckets[0.5], buckets[600], buckets[float("inf")]) == (
        0,
        1,
        3,
        3,
        4,
    )


def test_each_metric_is_declared_and_has_help():
    text = b"".join(Metrics(Source()).text()).decode()
    families = {one.name: one for one in text_string_to_metric_families(text)}
    assert set(families) == {f"dbchannels_{name}" for name, *_ in METRICS}
    for name, kind, label, text in METRICS:
        family = families[f"dbchannels_{name}"]
        assert (family.type, family.documentation) == (kind, text)
        assert ("whole site" in text) is name.startswith("site_")
        assert all(label in one.labels or not label for one in family.samples)


def test_gauges_of_the_site_are_those_of_the_newest_sample():
    source, moment = Source(), int(time.time())
    gauges = {"channels": {"own": [5, 1, 2, 30.5, 7]}, "sockets": 9, "servers": 2, "workers": 4}
    source.sample, source.takers = site_sample(moment, 0.01, gauges), {"own": 4}
    found, own = of(source), (("channel", "own"),)
    values = [found[f"dbchannels_site_{one}", own] for one in ("ready", "delayed", "running", "dead_letters")]
    assert values == [5, 1, 2, 7]
    assert found["dbchannels_site_oldest_seconds", own] == 30.5
    assert found["dbchannels_site_takers", own] == 4
    assert found["dbchannels_site_websockets", ()] == 9
    assert found["dbchannels_site_counted_timestamp_seconds", ()] == moment


@pytest.mark.parametrize(
    "data", [{"t": 1, "took": 0.1, "channels": {"own": [1, 0, 0, 0, 0]}}, {}, "nonsense"]
)
def test_old_gauges_are_left_out(data):
    source = Source()
    source.sample = json.dumps(data)
    assert not [name for name, _ in of(source) if name == "dbchannels_site_ready"]
    source.sample = site_sample(int(time.time() - STALE / 2), 5.0, None)  # the count took too long
    assert ("dbchannels_site_counted_timestamp_seconds", ()) in of(source)


@pytest.mark.parametrize(
    "channel", ['a"b', "a\\b", "a\\nb", "a\nb", "a} 1\nforged 2", "a\r", "", "ü", "🐙" * 63, "\\"]
)
def test_a_value_of_a_label_cannot_break_a_line(channel):
    source = Source()
    source.takers = {channel: 1}
    source.measures.started(channel, 0.01)
    found, labels = of(source), (("channel", channel),)
    assert (
        found["dbchannels_site_takers", labels] == found["dbchannels_message_wait_seconds_count", labels] == 1
    )
    assert not [name for name, _ in found if not name.startswith("dbchannels_")]
    source.takers = {channel + "\ud800": 1}  # half of a character, which JSON can carry
    assert of(source)["dbchannels_site_takers", (("channel", channel + "?"),)] == 1


def test_the_number_of_values_of_a_label_is_bounded():
    source = Source()
    for code in range(3000, 5000):
        source.counts.closes[code] += 1
    found = {
        labels: value
        for (name, labels), value in of(source).items()
        if name == "dbchannels_websocket_closes_total"
    }
    assert len(found) == MOST_VALUES + 1 and found[(("code", "3000"),)] == 1
    assert found[(("code", OTHER),)] == 2000 - MOST_VALUES


def crowded():
    source = Source()
    for number in range(MOST + 1):
        source.measures.started(f"channel.{number}", 0.01)
        source.measures.ended(f"channel.{number}", DONE, 0.01)
    return source


def test_a_thousand_channels_are_shown_and_the_text_is_made_seldom():
    metrics = Metrics(crowded())
    text = metrics.text()
    assert metrics.text() is text  # not made again
    found = parsed(b"".join(text))
    assert found["dbchannels_messages_done_total", (("channel", OTHERS),)] == 1
    assert sum(map(len, text)) < 8_000_000


class Slices:
    """What is done between two pauses: ``work`` are the numbers of things."""

    def __init__(self):
        self.work = [0]

    def pause(self, *seconds):
        assert min(seconds, default=1) > 0  # a sleep of 0 ends before the hub has looked at its sockets
        self.work.append(0)

    def count(self, items):
        for item in items:
            self.work[-1] += 1
            yield item


def test_the_text_is_made_in_slices(monkeypatch):
    """The hub's other greenlets have a turn after each piece, and within the reports of workers and the sample."""
    source, slices = Source(), Slices()
    data = measures.report(crowded().measures.copy(), {"renewals": 2})
    gauges = {f"channel.{number}": [1] * 5 for number in range(MOST)}
    source.counted = lambda: (({}, {}), [data] * 3)
    source.sample = site_sample(int(time.time()), 0.01, {"channels": gauges})
    from_json, add = measures.from_json, measures.add
    for module in (measures, samples):
        monkeypatch.setattr(
            module, "from_json", lambda counts, *size: from_json(dict(slices.count(counts.items())), *size)
        )
    monkeypatch.setattr(measures, "add", lambda total, counts: add(total, dict(slices.count(counts.items()))))
    monkeypatch.setattr(metrics_module.gevent, "sleep", slices.pause)
    pieces = Metrics(source).text()
    found = parsed(b"".join(pieces))
    assert found["dbchannels_messages_done_total", (("channel", "channel.7"),)] == 3
    assert found["dbchannels_lease_renewals_total", ()] == 6
    assert found["dbchannels_site_ready", (("channel", "channel.7"),)] == 1
    assert sum(slices.work) == 2 * 3 * (MOST + 1) + MOST + 1  # the sample has all channels together, too
    assert max(slices.work) <= AT_ONCE + ADDED_AT_ONCE  # the rest of one, and the begin of the next
    pauses = 3 * (MOST // AT_ONCE + MOST // ADDED_AT_ONCE) + MOST // AT_ONCE + len(pieces)
    assert len(slices.work) == 1 + pauses
    assert all(PIECE <= len(one) < PIECE + 5_000 for one in pieces[:-1])


def test_what_no_hub_waits_for_is_read_without_pauses():
    text = site_sample(1, 0.01, {"channels": {"one": [1] * 5, "two": [2] * 5}})
    assert read_sample("", text, ["two"])["channels"] == {"two": [2] * 5}
    data = measures.report(crowded().measures.copy(), {})
    assert measures.total([measures.parse_report(data)])[0]["channel.7"][DONE] == 1


def test_a_text_that_took_long_is_kept_for_longer(monkeypatch):
    metrics = Metrics(Source())
    spent = count(
        100.0, 0.5
    )  # seconds of this thread: in each slice, and in each pause, which does not count
    patch_time(monkeypatch, metrics_module, thread_time=lambda: next(spent))
    monkeypatch.setattr(metrics_module, "PIECE", 3_000)
    pieces = metrics.text()
    assert len(pieces) > 1
    assert 10.0 * len(pieces) - 5.0 < metrics.good_until - time.monotonic() <= 10.0 * len(pieces)


# On the probes' port.


@pytest.fixture
def site(new_site):
    return new_site(health_address=Address("127.0.0.1", 0))


def test_the_port_of_the_probes_answers(site):
    answer = asked(site, "/metrics")
    assert (answer.status, answer.header("Content-Type")) == (200, health.CONTENT_TYPE)
    found = parsed(answer.content)
    assert found["dbchannels_connections_limit", ()] > 0
    assert (
        found["dbchannels_budget_limit_bytes", (("budget", "request disk"),)] == site.server.options.max_spool
    )
    assert asked(site, "/metrics", "HEAD").content == b""
    assert asked(site, "/metrics", "POST").status == 405


def test_requests_are_counted_by_their_status(site):
    client = Client(site.server.address[1])
    site.clients.append(client)
    before = dict(site.server.relay.counts.requests)
    client.send_request("GET", "/ x")
    assert client.response().status == 400
    until(lambda: site.server.relay.counts.requests[400] == before.get(400, 0) + 1)


def test_many_who_ask_at_once_have_one_text_made(site, monkeypatch):
    made = []
    metrics = site.server._health._metrics
    pieces = metrics._pieces
    monkeypatch.setattr(metrics, "_pieces", lambda: made.append(None) or pieces())
    answers = []
    jobs = [gevent.spawn(lambda: answers.append(asked(site, "/metrics").content)) for _ in range(8)]
    gevent.joinall(jobs, timeout=60)
    assert len(answers) == 8 and len(set(answers)) == 1
    assert len(made) == 1


def test_those_who_ask_at_the_same_moment_have_one_text_made(site, monkeypatch):
    made, goes_on, served = [], Event(), site.server._health
    monkeypatch.setattr(
        served._metrics, "text", lambda: made.append(None) or (goes_on.wait(60) and [b"text"])
    )
    pairs = [socket.socketpair() for _ in range(health.MOST)]
    for _, client in pairs:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
    greenlets = [gevent.spawn(served._serve, ours, None) for ours, _ in pairs]
    until(lambda: made)
    goes_on.set()
    gevent.joinall(greenlets)
    assert [client.recv(1_000)[:15] for _, client in pairs] == [b"HTTP/1.1 200 OK"] * health.MOST
    assert len(made) == 1
    for pair in pairs:
        for one in pair:
            one.close()


def test_a_text_is_waited_for_however_long_it_takes(site, monkeypatch):
    made, goes_on = [], Event()

    def text():
        made.append(None)
        goes_on.wait(60)
        return [b"text"]

    monkeypatch.setattr(site.server._health._metrics, "text", text)
    monkeypatch.setattr(health, "DEADLINE", 0.05)
    served = site.server._health
    jobs = [gevent.spawn(asked, site, "/metrics") for _ in range(3)]
    until(lambda: len(served._open) == 3 and made)
    with socket.create_connection(
        (HOST, site.server.health_address.port)
    ) as silent:  # comes later, and is closed
        assert silent.recv(1) == b""
    assert len(served._open) == 3
    goes_on.set()
    assert [one.get(timeout=60).content for one in jobs] == [b"text"] * 3
    assert len(made) == 1


def test_a_client_that_reads_nothing_is_left(site, monkeypatch):
    monkeypatch.setattr(site.server._health._metrics, "text", lambda: [bytes(100_000)] * 100)
    monkeypatch.setattr(health, "DEADLINE", 0.2)
    with socket.create_connection((HOST, site.server.health_address.port)) as idle:
        idle.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: site.server._health._open)
        until(lambda: not site.server._health._open)
        assert len(b"".join(iter(lambda: idle.recv(1_000_000), b""))) < 10_000_000
