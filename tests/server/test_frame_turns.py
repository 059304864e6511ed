"""Frames of WebSockets take turns by address: a crowd of sockets of one client does not delay those of others."""

from __future__ import annotations

import random

import pytest

from dbchannels.server.budget import MemoryBudget
from dbchannels.server.connection_limits import FairQueue
from dbchannels.server.options import WebSocketLimits
from dbchannels.server.websocket.connection import Connection
from tests.server import test_connection
from tests.server.test_connection import REQUEST, Line, close_frame, until

_slow_machines_too = test_connection._slow_machines_too
MIB = 1_048_576
CROWD, VISITOR = "192.0.2.7", "192.0.2.8"


@pytest.fixture
def queue():
    """Each address may have two frames in the layer."""
    return FairQueue(2)


@pytest.fixture
def new_line(queue):
    budget, made = MemoryBudget(64 * MIB, 2 * MIB, queue), []

    def new(address=CROWD):
        line = Line()
        request = REQUEST._replace(client=(address, 1))
        line.connection = Connection(line.relay, request, WebSocketLimits(), budget)
        made.append(line)
        return line.open()

    yield new
    for line in made:
        line.end()


@pytest.fixture
def crowd(new_line):
    """Three sockets of one address with a frame each, the last of which waits for its turn."""
    lines = [new_line() for _ in range(3)]
    for line in lines:
        line.say("a")
        until(lambda: line.connection._in_flight is not None)  # noqa: B023
    assert [line.texts() for line in lines] == [["a"], ["a"], []]
    return lines


def is_free(queue):
    """Whether nobody has a turn, or waits for one."""
    return not queue._addresses and queue.room == FairQueue(2).room


def test_one_address_has_so_many_frames_in_the_layer(crowd, new_line, queue):
    first, second, third = crowd
    visitor = new_line(VISITOR)
    visitor.say("b")
    until(visitor.texts)
    assert third.connection.in_layer is None and first.connection.in_layer is not None
    first.say("later")  # it has had its turn
    until(lambda: first.connection._inbox)
    first.finish()
    assert third.texts() == ["a"] and first.texts() == ["a"]
    second.finish()
    assert first.texts() == ["a", "later"]
    for line in (first, third, visitor):
        line.finish()
    assert is_free(queue)


@pytest.mark.parametrize("why", ["worker died", "expired", "dead"])
def test_a_turn_ends_with_a_frame_that_is_lost(crowd, why):
    crowd[0].lose(why, "websocket.receive")
    assert crowd[2].texts() == ["a"]


def test_a_frame_that_its_consumer_postpones_lets_others_have_their_turn(crowd, monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.0)  # at once
    first, second, third = crowd
    first.reply(again=1)
    assert third.texts() == ["a"]
    until(lambda: not first.connection._is_postponed)
    assert first.texts() == ["a"] and first.connection.in_layer is None  # it waits for its next turn
    second.finish()
    assert first.texts() == ["a", "a"]


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_frame_that_waits_is_dropped_with_its_socket(crowd, queue, who):
    last = crowd[2]
    if who == "client":
        last.client.close()
    else:
        last.connection.close(1001, "")
        last.client.sendall(close_frame(1001))
    until(last.codes)  # nothing holds up the disconnect
    assert last.texts() == []
    for line in crowd:
        line.finish()
    assert is_free(queue)


def test_a_frame_that_waits_when_its_client_closes_is_consumed(crowd):
    last = crowd[2]
    last.client.sendall(close_frame(1000))
    until(lambda: last.connection.disconnected)
    assert last.codes() == []
    crowd[0].finish()
    assert last.texts() == ["a"]
    last.finish()
    assert last.codes() == [1000]
