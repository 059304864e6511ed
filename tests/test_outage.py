"""An outage of the layer, as the threads of a process note it."""

from __future__ import annotations

import logging
import threading

import pytest

from dbchannels.exceptions import LayerUnavailable
from dbchannels.outage import Outage

BEGUN = "worker-1: The layer cannot be used now (It is down.); trying again."
ENDED = "worker-1: The layer can be used again"


@pytest.fixture
def outage():
    return Outage(logging.getLogger("dbchannels.server"), "worker-1")


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO, "dbchannels.server")
    return lambda: [record.getMessage().partition(", after")[0] for record in caplog.records]


def fails(outage, thread="publisher"):
    run(thread, lambda: outage.failed(LayerUnavailable("It is down.")))


def works(outage, thread="publisher"):
    run(thread, outage.worked)


def run(name, function):
    thread = threading.Thread(target=function, name=name)
    thread.start()
    thread.join()


def test_it_is_one_line_when_it_begins_and_one_when_it_ends(outage, told):
    for _ in range(50):
        fails(outage)
    assert outage and told() == [BEGUN]
    for _ in range(2):
        works(outage)
    assert not outage and told() == [BEGUN, ENDED]


def test_whichever_threads_see_it(outage, told):
    threads = ("publisher", "receiver", "housekeeper")
    for thread in threads * 3:
        fails(outage, thread)
    for thread in threads:
        assert outage and told() == [BEGUN]
        works(outage, thread)
    assert not outage and told() == [BEGUN, ENDED]


def test_the_next_one_is_told_of_again(outage, told):
    for _ in range(2):
        fails(outage)
        fails(outage)
        works(outage)
    assert told() == [BEGUN, ENDED] * 2


def test_a_connection_that_is_found_dead_and_made_anew_is_no_outage(outage, told):
    for thread in ("receiver", "publisher", "housekeeper"):
        fails(outage, thread)
        assert outage
        works(outage, thread)
    assert told() == []


def test_an_error_of_another_kind_is_noted_and_told_of_elsewhere(outage, told):
    for _ in range(3):
        outage.failed(ValueError("unheard of"))
    assert outage
    outage.worked()
    assert not outage and told() == []


def test_many_threads_at_once_tell_of_it_once(outage, told):
    together = threading.Barrier(16)

    def fail():
        together.wait()
        for _ in range(100):
            outage.failed(LayerUnavailable("It is down."))

    threads = [threading.Thread(target=fail) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told() == [BEGUN]


def test_how_long_it_has_lasted_is_known_for_each_thread(outage, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("dbchannels.outage.time.monotonic", lambda: now[0])
    assert outage.lasted("publisher", "reader") == 0
    for thread in ("housekeeper", "publisher", "reader", "publisher"):
        fails(outage, thread)
        now[0] += 1
    assert (outage.lasted("publisher", "reader"), outage.lasted("reader"), outage.lasted("other")) == (
        3,
        2,
        0,
    )
    works(outage, "publisher")
    assert outage.lasted("publisher", "reader") == 2
    works(outage, "reader")
    assert outage.lasted("publisher", "reader") == 0 and outage
