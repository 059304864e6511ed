"""What the log says when messages wait because every worker that takes them is busy."""

from __future__ import annotations

import logging

import pytest

from dbchannels.layers.operations import read_work
from dbchannels.server import housekeeper
from dbchannels.server.housekeeper import Overload
from tests import kinds
from tests.clocks import patch_time

SINCE = "2026-11-28 14:03:02"


def work(takes, runs=""):
    return {"takes": takes.split(), "runs": runs, "since": SINCE if runs else ""}


class Heads:
    """A link whose channels have these messages: ``heads.waiting = {"own": [3, 4]}``."""

    def __init__(self):
        self.waiting = {}
        self.asked = []

    def heads(self, channels):
        self.asked.append(channels)
        last = max((one for ids in self.waiting.values() for one in ids), default=0)
        return {channel: (ids[0], last) for channel, ids in self.waiting.items() if channel in channels}


@pytest.fixture
def look(monkeypatch, caplog):
    """Look after so many seconds: ``look(5, {"w1": work(...)}, own=[1, 2])``; returns the lines that are new."""
    clock, link, one = [0.0], Heads(), Overload()
    patch_time(monkeypatch, housekeeper, monotonic=lambda: clock[0])

    def look(seconds, workers, **waiting):
        clock[0] += seconds
        link.waiting = waiting
        caplog.clear()
        with caplog.at_level(logging.WARNING, "dbchannels.server"):
            one.look(link, workers)
        return caplog.messages

    look.link = link
    return look


BUSY = {"w1": work("own http.request", "exports"), "w2": work("own", "own"), "w3": work("http.request")}


def test_the_log_says_once_what_the_busy_workers_run_and_since_when(look):
    assert look(0, BUSY, own=[1, 2]) == look(29, BUSY, own=[1, 2]) == []
    (line,) = look(1, BUSY, own=[2])
    assert line == (
        "Messages on own have waited for 30 s, because every worker that takes them is busy: "
        f"w1 runs exports since {SINCE}, w2 runs own since {SINCE}. "
        "Start more workers, with --workers or runworker."
    )
    assert look(30, BUSY, own=[2]) == []
    assert look(1, BUSY) == look(1, BUSY, own=[3]) == []
    assert len(look(30, BUSY, own=[3])) == 1  # another time


def test_a_queue_that_moves_on_is_none_that_waits(look):
    for number in range(10):
        assert look(20, BUSY, own=[2 * number, 2 * number + 1]) == []


def test_a_channel_that_an_idle_worker_takes_is_not_looked_at(look):
    for _ in range(3):
        assert look(30, {**BUSY, "w4": work("own")}, own=[1]) == []
    assert look.link.asked == []


def test_workers_that_have_told_nothing_do_not_matter(look):
    assert look(0, {"old": read_work("")}) == []
    assert look(0, {**BUSY, "old": read_work("")}, own=[1]) == []
    assert len(look(30, {**BUSY, "old": read_work("")}, own=[1])) == 1


def test_of_very_many_workers_some_are_named(look):
    many = {f"w{number:03}": work("own", "own") for number in range(50)}
    look(0, many, own=[1])
    (line,) = look(30, many, own=[1])
    assert line.count(" runs ") == Overload.NAMED and ", ...." in line


# What the layers know.


@kinds.only("postgresql", "sqlite")
def test_the_heads_of_queues_are_what_waits_and_is_due(layer, new_link):
    link = new_link(layer)
    layer.send("delayed", {}, delay=60)
    layer.send_many([("own", {"number": number}) for number in range(3)])
    layer.send("http.request", {})
    (first, last) = link.heads(["own", "delayed", "empty"])["own"]
    assert last >= first + 2
    link.claim(["own"], 1, "w1")
    heads = link.heads(["own", "delayed", "http.request", "websocket.receive"])
    assert heads["own"] == (first + 1, last)
    assert set(heads) == {"own", "http.request"}
