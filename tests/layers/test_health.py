"""A database that is away at the start: for which errors it is waited for, and for how long."""

from __future__ import annotations

import logging

import pytest
from django.db import OperationalError

from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers import health
from dbchannels.layers.health import await_layer, may_pass

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
    monkeypatch.setattr(health.time, "sleep", slept.append)
    monkeypatch.setattr(health.time, "monotonic", lambda: sum(slept))
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
