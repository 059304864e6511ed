"""Consumers that hang: the log says where, and their worker is replaced, its message failed and nobody kept waiting."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest
from django.db import transaction

from dbchannels import Channel, channel_layers, route
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.models import DeadLetter, DurableMessage
from dbchannels.routing.table import Routing
from dbchannels.testing.contract.case import drain, in_thread, wait_until, waiting
from dbchannels.worker import watchdog
from dbchannels.worker.batch import BatchSizer
from dbchannels.worker.response_stream import last_progress
from dbchannels.worker.worker import ProcessContext, Worker
from tests import kinds


class Site:
    """One worker in a thread, whose consumers hang until the test has ended."""

    def __init__(self, layer):
        self.layer, self.replaced, self.release, self.ran = layer, threading.Event(), threading.Event(), []

    def hang(self, message, **captures):
        Channel("out").send({"from": "the one that hung"})
        self.ran.append(message.channel.name)
        self.release.wait(60)

    def start(self, *routes, **options):
        process = ProcessContext(replace=self.replaced.set)
        self.worker = Worker(channel_layers["default"], Routing(routes), process=process, **options)
        self.thread = in_thread(self.layer, self.worker.run)

    def end(self):
        self.release.set()
        self.worker.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def site(layer):
    made = Site(layer)
    yield made
    made.end()


def failed(layer, model):
    """Return the one row."""
    return model.objects.using(layer.database).get()


@kinds.on_databases
def test_the_log_says_once_where_a_consumer_stands(layer, site, caplog):
    site.start(route("own", site.hang, soft_timeout=0.05))
    with caplog.at_level(logging.WARNING, "dbchannels.worker"):
        layer.send("own", {})
        wait_until(lambda: "self.release.wait(60)" in caplog.text)
        wait_until(lambda: site.worker._watchdog._logged)
    assert caplog.text.count("has run for 0.05 s (soft_timeout)") == 1
    stack = caplog.messages[0].splitlines()[1:]
    assert all(line.startswith("      ") for line in stack)  # the first one as well
    assert not site.replaced.is_set()


@kinds.on_databases
def test_the_stack_begins_at_the_sites_code(layer, site, caplog):
    def hang():
        site.release.wait(20)

    def decorated(message):
        hang()

    site.start(route("own", transaction.atomic(decorated), soft_timeout=0.5))
    with caplog.at_level(logging.WARNING, "dbchannels.worker"):
        layer.send("own", {})
        wait_until(lambda: "site.release.wait(20)" in caplog.text)
    frames = [line for line in caplog.messages[0].splitlines() if 'File "' in line]
    assert [one.rpartition(" ")[2] for one in frames[:2]] == ["decorated", "hang"]
    assert "threading.py" in frames[2]


@kinds.on_databases
def test_the_stack_of_a_coroutine_begins_at_the_sites_code(layer, site, caplog):
    async def pause():
        while not site.release.is_set():
            await asyncio.sleep(0.1)

    async def wait(message):
        await pause()

    site.start(route("own", wait, soft_timeout=0.3))
    with caplog.at_level(logging.WARNING, "dbchannels.worker"):
        layer.send("own", {})
        wait_until(lambda: "soft_timeout" in caplog.text)
    frames = [line for line in caplog.messages[0].splitlines() if 'File "' in line]
    assert [one.rpartition(" ")[2] for one in frames[:2]] == ["wait", "pause"]


def test_a_stack_without_the_sites_code_is_shown_whole():
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    watching = watchdog.Watchdog(None, None, None, None, None)
    watching._watched = thread.ident
    assert "in wait\n" in watching._stack()
    release.set()
    thread.join()
    assert watching._stack() == "(nowhere)"


@kinds.on_databases
def test_a_hung_message_has_failed_and_its_worker_is_replaced(layer, site):
    site.start(route("own", site.hang, hard_timeout=0.1, retries=1, backoff=3600))
    layer.send("own", {})
    assert site.replaced.wait(10)
    message = failed(layer, DurableMessage)
    assert (message.claimed_by, message.attempts, message.due_at is None) == (None, 1, False)
    site.release.set()  # it comes to itself after all: nothing of it counts
    site.end()
    assert (site.ran, waiting(layer, "own"), drain(layer, "out")) == (["own"], 1, [])


@kinds.on_databases
def test_one_that_hangs_at_its_last_attempt_is_a_dead_letter_that_says_where(layer, site):
    site.start(route("own", site.hang, hard_timeout=0.1, retries=0))
    layer.send("own", {})
    assert site.replaced.wait(10)
    error = failed(layer, DeadLetter).error
    assert "had not ended after 0.1 s (hard_timeout)" in error and "self.release.wait(60)" in error


@kinds.on_databases
def test_those_behind_it_go_to_another_worker(layer, site, monkeypatch):
    monkeypatch.setattr(
        BatchSizer, "limit", property(lambda self: 10, lambda self, learned: None), raising=False
    )
    layer.send_many([("own", {"number": number}) for number in range(3)])
    site.start(route("own", site.hang, hard_timeout=0.2, retries=0))
    assert site.replaced.wait(10)
    assert waiting(layer, "own") == 2


@kinds.on_databases
def test_results_are_written_though_the_last_of_the_batch_hangs(layer, site, monkeypatch):
    monkeypatch.setattr(
        BatchSizer, "limit", property(lambda self: 10, lambda self, learned: None), raising=False
    )
    monkeypatch.setattr("dbchannels.worker.worker.WRITE_AFTER", float("inf"))
    layer.send_many([("quick", {}), ("own", {})])
    site.start(
        route("quick", lambda message: Channel("out").send({"from": "quick"})), route("own", site.hang)
    )
    wait_until(lambda: drain(layer, "out") == [{"from": "quick"}])
    assert failed(layer, DurableMessage).channel == "own"
    assert site.ran == ["own"] and site.worker._batch.running()[0]


@pytest.mark.parametrize(
    ("channel", "answer"),
    [
        ("http.request", {"error": "consumer"}),
        ("websocket.connect", {"accept": False, "status": 500, "finished": 0}),
        ("websocket.receive", {"finished": 0}),
    ],
)
@kinds.on_databases
def test_the_client_of_a_hung_consumer_is_answered(layer, site, channel, answer):
    site.start(route(channel, site.hang, hard_timeout=0.1))
    layer.send(channel, {"reply_channel": "reply.s!c", "path": "/", "order": 0})
    assert site.replaced.wait(10)
    assert drain(layer, "reply.s!") == [answer]


@kinds.on_databases
def test_without_time_outs_a_consumer_may_run_for_ever(layer, site):
    site.start(route("own", site.hang, soft_timeout=0, hard_timeout=0))
    layer.send("own", {})
    wait_until(lambda: site.ran and site.worker._batch.running()[1] > 0.2)
    assert site.worker._executor.timeouts() == (0, 0)
    assert not site.replaced.is_set()


@kinds.only("memory")
def test_a_response_that_goes_on_does_not_hang_and_one_that_stops_does(layer, site, caplog):
    def go_on(message):
        last_progress[threading.get_ident()] = time.monotonic() + 3600  # from now on, for an hour
        site.hang(message)

    site.start(route("http.request", go_on, soft_timeout=0.2, hard_timeout=0.3))
    layer.send("http.request", {"reply_channel": "reply.s!c", "path": "/"})
    wait_until(lambda: site.ran and site.worker._batch.running()[1] > 0.5)
    assert not site.replaced.is_set() and "soft_timeout" not in caplog.text
    last_progress[site.thread.ident] = time.monotonic()
    assert site.replaced.wait(10)


@kinds.on_databases
def test_the_settings_hold_where_the_consumer_says_nothing(layer, site):
    site.start(route("own", site.hang))
    assert site.worker._executor.timeouts() == (30, 600)


@pytest.mark.parametrize("value", [-1, "10", float("nan"), float("inf"), True])
def test_a_time_out_is_seconds(value):
    for name in ("soft_timeout", "hard_timeout"):
        with pytest.raises(InvalidConfiguration, match=f"A route on own has {name} = .*: write seconds"):
            route("own", print, **{name: value})


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_a_concurrency_is_a_number_from_1(value):
    with pytest.raises(InvalidConfiguration, match=r"has concurrency = .*: write a whole number from 1"):
        route("own", print, concurrency=value)


def test_of_two_routes_the_smaller_concurrency_counts():
    routes = [
        route("own", print, concurrency=3),
        route("own", print, concurrency=2, kind="a"),
        route("b", print),
    ]
    assert Routing(routes).concurrency() == {"own": 2}


@kinds.on_databases
def test_a_worker_takes_no_more_of_a_limited_channel_than_may_run(layer, site, new_link):
    site.start(route("own", site.hang, concurrency=1), route("free", site.hang))
    layer.send_many([("own", {}), ("own", {})])
    wait_until(lambda: site.ran)
    other = Worker(channel_layers["default"], site.worker.routing, only=["own", "free"])
    assert other._take() == []
    layer.send("free", {})
    assert [one.channel for one in other._take()] == ["free"]
    other.link.close()


@kinds.only("postgresql")
def test_its_thread_closes_its_connections(layer, site, monkeypatch):
    closed, close_all = [], watchdog.connections.close_all
    monkeypatch.setattr(
        watchdog.connections,
        "close_all",
        lambda: (closed.append(threading.current_thread().name), close_all()),
    )
    site.start(route("own", site.hang))
    site.end()
    assert "watchdog" in closed
