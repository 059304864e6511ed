"""Whether the layer can be used: for which errors it is waited for, and what the log says of an outage."""

from __future__ import annotations

import logging
import threading

import pytest
from django.db import OperationalError

from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers import health
from dbchannels.layers.health import LayerHealth, await_layer, may_pass
from tests.clocks import patch_time

PASSING = [
    'connection to server at "127.0.0.1", port 1 failed: Connection refused',
    'connection to server on socket "/nowhere/.s.PGSQL.5432" failed: No such file or directory',
    'could not translate host name "db" to address: Name or service not known',
    "connection to server failed: FATAL:  the database system is starting up",
    "connection to server failed: FATAL:  the database system is shutting down",
    "connection to server failed: FATAL:  sorry, too many clients already",
    "timeout expired",
    "",
]
FINAL = [
    'FATAL:  password authentication failed for user "site"',
    "connection to server failed: fe_sendauth: no password supplied",
    'FATAL:  Peer authentication failed for user "site"',
    'FATAL:  database "site" does not exist',
    'FATAL:  role "site" does not exist',
    'FATAL:  no pg_hba.conf entry for host "192.0.2.1"',
    'FATAL:  permission denied for database "site"',
    'FATAL:  role "site" is not permitted to log in',
    "FATAL:  no such database: site",
    "FATAL:  bouncer config error",
    "unable to open database file",
    "(1045, \"Access denied for user 'site'@'localhost'\")",
]


@pytest.mark.parametrize(
    ("text", "passes"), [(one, True) for one in PASSING] + [(one, False) for one in FINAL]
)
def test_what_may_pass_is_told_from_what_will_not(text, passes):
    assert may_pass(OperationalError(text)) is passes


class Layer:
    """A layer that cannot be used so many times."""

    def __init__(self, times, passes=True):
        self.left, self.passes, self.checks = times, passes, 0

    def check(self):
        self.checks += 1
        if self.checks <= self.left:
            error = LayerUnavailable("The database is away.")
            error.may_pass = self.passes
            raise error


@pytest.fixture
def slept(monkeypatch):
    """The seconds that were slept, on a clock that knows nothing else."""
    slept = []
    patch_time(monkeypatch, health, sleep=slept.append, monotonic=lambda: sum(slept))
    return slept


def test_a_database_that_comes_is_waited_for_and_told_of_once(slept, caplog):
    layer = Layer(5)
    with caplog.at_level(logging.INFO, "dbchannels.layer"):
        await_layer(layer, 60)
    assert (layer.checks, len(slept)) == (6, 5)
    first, last = caplog.messages
    assert first == "The database is away. Waiting for it for up to 60 s."
    assert last.startswith("The database can be used, after ")


def test_a_database_that_does_not_come_is_waited_for_as_long_as_said(slept):
    with pytest.raises(LayerUnavailable):
        await_layer(Layer(1000), 60)
    assert sum(slept) == pytest.approx(60)
    assert max(slept) <= 3


@pytest.mark.parametrize(("passes", "seconds"), [(False, 60), (True, 0)])
def test_what_waiting_cannot_help_ends_at_once(slept, caplog, passes, seconds):
    layer = Layer(1000, passes)
    with pytest.raises(LayerUnavailable):
        await_layer(layer, seconds)
    assert (layer.checks, slept, caplog.messages) == (1, [], [])


def test_a_database_that_can_be_used_is_not_spoken_of(slept, caplog):
    await_layer(Layer(0), 60)
    assert (slept, caplog.messages) == ([], [])


# What the threads of a process report.


BEGUN = "worker-1: The layer cannot be used now (It is down.); trying again."
ENDED = "worker-1: The layer can be used again"


@pytest.fixture
def reported():
    return LayerHealth(logging.getLogger("dbchannels.server"), "worker-1")


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO, "dbchannels.server")
    return lambda: [record.getMessage().partition(", after")[0] for record in caplog.records]


def fails(reported, thread="publisher"):
    run(thread, lambda: reported.failed(LayerUnavailable("It is down.")))


def works(reported, thread="publisher"):
    run(thread, reported.worked)


def run(name, function):
    thread = threading.Thread(target=function, name=name)
    thread.start()
    thread.join()


def test_it_is_one_line_when_it_begins_and_one_when_it_ends(reported, told):
    for _ in range(50):
        fails(reported)
    assert reported.failing and told() == [BEGUN]
    for _ in range(2):
        works(reported)
    assert not reported.failing and told() == [BEGUN, ENDED]


def test_whichever_threads_see_it(reported, told):
    threads = ("publisher", "receiver", "housekeeper")
    for thread in threads * 3:
        fails(reported, thread)
    for thread in threads:
        assert reported.failing and told() == [BEGUN]
        works(reported, thread)
    assert not reported.failing and told() == [BEGUN, ENDED]


def test_the_next_one_is_told_of_again(reported, told):
    for _ in range(2):
        fails(reported)
        fails(reported)
        works(reported)
    assert told() == [BEGUN, ENDED] * 2


def test_a_connection_that_is_found_dead_and_made_anew_is_no_outage(reported, told):
    for thread in ("receiver", "publisher", "housekeeper"):
        fails(reported, thread)
        assert reported.failing
        works(reported, thread)
    assert told() == []


def test_an_error_of_another_kind_is_noted_and_told_of_elsewhere(reported, told):
    for _ in range(3):
        reported.failed(ValueError("unheard of"))
    assert reported.failing
    reported.worked()
    assert not reported.failing and told() == []


def test_many_threads_at_once_tell_of_it_once(reported, told):
    together = threading.Barrier(16)

    def fail():
        together.wait()
        for _ in range(100):
            reported.failed(LayerUnavailable("It is down."))

    threads = [threading.Thread(target=fail) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told() == [BEGUN]


def test_how_long_it_has_lasted_is_known_for_each_thread(reported, monkeypatch):
    now = [100.0]
    patch_time(monkeypatch, health, monotonic=lambda: now[0])
    assert reported.lasted("publisher", "reader") == 0
    for thread in ("housekeeper", "publisher", "reader", "publisher"):
        fails(reported, thread)
        now[0] += 1
    assert (reported.lasted("publisher", "reader"), reported.lasted("reader"), reported.lasted("other")) == (
        3,
        2,
        0,
    )
    works(reported, "publisher")
    assert reported.lasted("publisher", "reader") == 2
    works(reported, "reader")
    assert reported.lasted("publisher", "reader") == 0 and reported.failing


def test_a_process_that_stops_tries_a_few_times_and_says_once_that_it_gives_up(reported, told, monkeypatch):
    patch_time(monkeypatch, health, sleep=lambda seconds: None)
    stopping, tried = threading.Event(), []

    def attempt():
        tried.append(1)
        if len(tried) == 20:
            stopping.set()
        raise LayerUnavailable("It is down.")

    assert reported.retry(attempt, stopping, 3) is None
    assert len(tried) == 20  # it had tried often enough before
    assert reported.retry(attempt, stopping, 3) is None
    assert len(tried) == 25
    assert told() == [BEGUN, "worker-1 gives up on the layer while stopping (It is down.)."]
