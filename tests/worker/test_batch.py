"""What a worker has taken and not yet finished, and how much it takes at once."""

from __future__ import annotations

import time

import pytest

from dbchannels.layers.operations import BatchResult, Delivery, Failure, GroupAdd, Result
from dbchannels.testing.contract.case import wait_until
from dbchannels.worker.batch import Batch, BatchSizer


def frame(number):
    """A protocol message."""
    return Delivery("websocket.receive", b"", reply_channel=f"reply.s1!c{number}")


def task(number, attempt=1):
    """A durable message."""
    return Delivery("own", b"", id=number, attempt=attempt)


def did(name):
    """Something that a consumer did."""
    return GroupAdd(name, "own")


@pytest.fixture
def batch():
    """One with three messages, of which none has started."""
    made = Batch()
    made.fill([frame(1), task(2), task(3)])
    return made


def start(batch, number):
    """Start and finish some; return the last one that started."""
    for _ in range(number):
        delivery = batch.start_next()
        batch.finished(Result([], None, True))
    return delivery


# Going through it.


def test_messages_start_in_the_order_in_which_they_were_taken(batch):
    assert [start(batch, 1) for _ in range(3)] == [frame(1), task(2), task(3)]
    assert batch.start_next() is None


def test_what_is_added_comes_last(batch):
    start(batch, 1)
    batch.fill([frame(4)])
    assert [start(batch, 1) for _ in range(3)] == [task(2), task(3), frame(4)]


def test_it_says_whether_some_have_not_started(batch):
    assert batch.waiting
    start(batch, 2)
    assert batch.waiting
    batch.start_next()
    assert not batch.waiting


def test_it_says_how_long_one_has_run(batch):
    assert batch.running()[1] == 0.0
    before = time.monotonic()
    batch.start_next()
    assert wait_until(lambda: batch.running()[1]) <= time.monotonic() - before
    batch.finished(Result([], None, True))
    assert batch.running()[1] == 0.0
    Batch().start_next()
    assert Batch().running()[1] == 0.0


# Reporting.


def test_a_report_holds_what_consumers_did_in_order_and_once(batch):
    for name in ("a", "b"):
        batch.start_next()
        batch.finished(Result([did(name), did(name * 2)], None, True))
    assert list(batch.report().operations) == [did("a"), did("aa"), did("b"), did("bb")]
    assert list(batch.report().operations) == []


def test_durable_messages_alone_are_acknowledged_and_once(batch):
    start(batch, 2)
    assert list(batch.report().acknowledged) == [task(2)]
    start(batch, 1)
    assert list(batch.report().acknowledged) == [task(3)]
    assert list(batch.report().acknowledged) == []


def test_one_that_failed_is_not_acknowledged(batch):
    start(batch, 1)
    failure = Failure(batch.start_next(), "traceback", 1.0)
    batch.finished(Result([], failure, True))
    done = batch.report()
    assert (list(done.acknowledged), list(done.failures)) == ([], [failure])
    assert list(batch.report().failures) == []


def test_what_it_holds_runs_or_waits(batch):
    assert list(batch.report().in_flight) == [frame(1), task(2), task(3)]
    batch.start_next()
    assert list(batch.report().in_flight) == [frame(1), task(2), task(3)]
    batch.finished(Result([], None, True))
    assert list(batch.report().in_flight) == [task(2), task(3)]


def test_without_handing_back_nothing_returns(batch):
    assert list(batch.report().returned) == []
    assert start(batch, 1) == frame(1)


def test_what_has_not_started_is_handed_back_and_what_runs_is_not(batch):
    batch.start_next()
    done = batch.report(hand_back=True)
    assert (list(done.returned), list(done.in_flight)) == ([task(2), task(3)], [frame(1)])
    assert batch.start_next() is None


def test_one_whose_neighbours_were_handed_back_is_still_acknowledged():
    batch = Batch()
    batch.fill([task(1), task(2)])
    batch.start_next()
    batch.report(hand_back=True)
    batch.finished(Result([did("a")], None, True))
    assert batch.report(hand_back=True) == BatchResult([did("a")], [task(1)], [], [], [], [(task(1), 1)])


def test_a_report_of_nothing_is_empty():
    assert Batch().report(hand_back=True) == BatchResult([], [], [], [], [], [])


def test_one_that_was_declared_dead_reports_nothing(batch):
    start(batch, 1)
    batch.start_next()
    batch.finished(Result([did("a")], Failure(task(2), "traceback", None), True))
    batch.clear()
    assert batch.report(hand_back=True) == BatchResult([], [], [], [], [], [])
    assert batch.start_next() is None


# BatchSizer.


def pace_of(*seconds):
    """Return a sizer that has seen messages that took so long."""
    sizer = BatchSizer()
    for one in seconds:
        sizer.ran(one)
    return sizer


def test_the_first_message_is_taken_by_itself():
    assert pace_of().limit == 1


@pytest.mark.parametrize(
    ("seconds", "limit"), [(0.0, 20), (0.0005, 20), (0.003, 6), (0.009, 2), (0.03, 1), (10.0, 1)]
)
def test_a_batch_is_20_ms_of_work_and_20_messages_at_most(seconds, limit):
    assert pace_of(*[seconds] * 100).limit == limit


def test_a_long_one_slows_it_down_at_once_and_quick_ones_speed_it_up_again():
    quick = [0.0] * 100
    assert pace_of(*quick, 1.0).limit == 1
    assert pace_of(*quick, 1.0, *quick).limit == 20


# A consumer that hangs.


def test_what_is_abandoned_ends_once_and_nothing_starts_after_it(batch):
    hung = batch.start_next()
    failed = Result([did("told")], None, False)
    assert batch.time_out(hung, failed)
    assert not batch.time_out(hung, failed)
    batch.finished(Result([did("too late")], None, True))
    assert batch.start_next() is None
    done = batch.report(hand_back=True)
    assert (done.operations, done.acknowledged, done.returned) == ([did("told")], [], [task(2), task(3)])


def test_what_has_ended_cannot_be_abandoned(batch):
    ended = batch.start_next()
    batch.finished(Result([did("a")], None, True))
    assert not batch.time_out(ended, Result([did("b")], None, False))
    assert batch.report().operations == [did("a")]
