"""Readers of this process tree are rung for after the commit, and only the others are told by a NOTIFY."""

from __future__ import annotations

import pytest

from dbchannels.layers.operations import BatchResult, Send, SendGroup
from dbchannels.models import Process
from dbchannels.wakeup import WakeupPipe
from tests import kinds

pytestmark = [kinds.only("postgresql"), pytest.mark.usefixtures("layer")]

NEAR, FAR = "reply.near!", "reply.far!"


@pytest.fixture
def patient(new_layer):
    """A layer whose readers find nothing without being woken."""
    return new_layer(poll_interval=3600)


@pytest.fixture
def listener(patient, new_link):
    """One that hears every NOTIFY."""
    link = new_link(patient)
    link.wait(0)
    return link


@pytest.fixture
def wakeup():
    """The pipe of the reader nearby."""
    return WakeupPipe.new()


@pytest.fixture
def writer(patient, new_link, listener, wakeup):
    """A link that has that pipe at hand."""
    link = new_link(patient)
    link.local_wakeups = {NEAR: wakeup}
    return link


def heard(listener):
    """Return what was notified; what is sent last says when to stop."""
    listener.layer.send("reply.last!one", {})
    found = set()
    while "reply.last!" not in found:
        found |= listener.wait(10)
    return found - {"reply.last!"}


def one(channel, unlike=""):
    return Send(channel, b"\x80", unlike, 60)


@pytest.mark.parametrize(
    "sends",
    [
        [one(f"{NEAR}a")],
        [one(f"{NEAR}a"), one(f"{NEAR}a")],
        [one(f"{NEAR}a"), one(f"{NEAR}b", "other")],
    ],
    ids=["one", "alike", "several"],
)
def test_who_is_near_is_rung_for_and_not_notified(writer, listener, wakeup, sends):
    writer.finish("w1", BatchResult(sends, [], [], [], []))
    assert wakeup.drain()
    assert heard(listener) == set()
    assert len(writer.receive_many([NEAR], 10)) == len(sends)


def test_who_is_far_is_notified_in_the_same_write(writer, listener, wakeup):
    writer.apply([one(f"{NEAR}a"), one(f"{FAR}b"), one("http.request")])
    assert wakeup.drain()
    assert heard(listener) == {FAR, "h"}


def test_a_broadcast_is_told_to_both(writer, listener, wakeup):
    for channel in (f"{NEAR}a", f"{FAR}b"):
        listener.layer.group_add("room", channel)
    writer.apply([SendGroup("room", b"\x80")])
    assert wakeup.drain()
    assert heard(listener) == {FAR}


def test_nobody_is_rung_for_what_was_not_written(writer, wakeup):
    writer.session.execute = lambda statements: 1 / 0
    with pytest.raises(ZeroDivisionError):
        writer.apply([one(f"{NEAR}a")])
    assert not wakeup.drain()


def test_what_is_for_others_alone_wakes_nobody(writer, listener, wakeup):
    writer.apply([one("http.request")])
    assert not wakeup.drain()
    assert heard(listener) == {"h"}


def test_who_is_near_is_rung_for_where_nothing_is_notified(new_layer, new_link, wakeup):
    link = new_link(new_layer(wakeups=False))
    link.local_wakeups = {NEAR: wakeup}
    link.apply([one(f"{NEAR}a")])
    assert wakeup.drain()


def test_a_layers_own_sends_notify_everybody(patient, writer, listener, wakeup):
    patient.send(f"{NEAR}a", {})
    assert heard(listener) == {NEAR}
    assert not wakeup.drain()


def test_the_workers_on_record_are_known(writer):
    assert writer.workers() == {}
    writer.register("w1", Process.WORKER)
    writer.register("s1", Process.SERVER, FAR)
    assert writer.workers() == {"w1": {"takes": [], "runs": "", "since": ""}}
