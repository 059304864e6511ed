"""Pipes that wake, waiting for descriptors, and the pauses between attempts."""

from __future__ import annotations

import os
import threading

import pytest

from dbchannels import wakeup as wakeup_module
from dbchannels.wakeup import Backoff, WakeupPipe, wait_readable
from tests.clocks import patch_time


@pytest.fixture
def wakeup():
    """One that is closed at the end."""
    made = WakeupPipe.new()
    yield made
    for descriptor in made:
        os.close(descriptor)


@pytest.fixture
def pipe():
    """A WakeupPipe that is closed at the end."""
    made = WakeupPipe.new()
    yield made
    os.close(made.reader)
    os.close(made.writer)


def is_notified(one):
    """Whether somebody has rung."""
    return wait_readable([one.reader], 0) == {one.reader}


# Pipes.


def test_a_wakeup_is_there_until_it_is_drained(wakeup):
    assert not is_notified(wakeup)
    wakeup.notify()
    assert is_notified(wakeup)
    wakeup.drain()
    assert not is_notified(wakeup)


def test_draining_takes_all_wakeups(wakeup):
    for _ in range(1000):
        wakeup.notify()
    wakeup.drain()
    assert not is_notified(wakeup)


def test_of_all_that_one_wakeup_wakes_one_takes_it(wakeup):
    wakeup.notify()
    assert [wakeup.drain(), wakeup.drain()] == [True, False]


def test_a_full_pipe_can_be_notified_and_then_drained(wakeup):
    for _ in range(66_000):  # a pipe of Linux holds 65,536 bytes
        wakeup.notify()
    assert is_notified(wakeup)
    wakeup.drain()
    assert not is_notified(wakeup)


def test_draining_does_not_wait_for_a_wakeup(wakeup):
    wakeup.drain()
    assert not is_notified(wakeup)


def test_a_pipe_whose_readers_are_gone_can_be_notified():
    wakeup = WakeupPipe.new()
    os.close(wakeup.reader)
    wakeup.notify()
    os.close(wakeup.writer)


def test_a_pipe_is_given_to_a_child_as_text(wakeup):
    child = WakeupPipe.inherited(str(wakeup))
    assert child == wakeup
    child.notify()
    assert is_notified(wakeup)


def test_a_pipe_is_inherited_only_by_those_it_is_passed_to(wakeup):
    assert [os.get_inheritable(descriptor) for descriptor in wakeup] == [False, False]


def test_inherited_descriptors_never_block():
    reader, writer = os.pipe()
    wakeup = WakeupPipe.inherited(f"{reader},{writer}")
    assert [os.get_blocking(descriptor) for descriptor in wakeup] == [False, False]
    for descriptor in wakeup:
        os.close(descriptor)


# Waiting.


def test_those_that_can_be_read_are_returned(wakeup, pipe):
    other = WakeupPipe.new()
    assert wait_readable([wakeup.reader, other.reader, pipe.reader], 0) == set()
    wakeup.notify()
    pipe.notify()
    assert wait_readable([wakeup.reader, other.reader, pipe.reader], 10) == {wakeup.reader, pipe.reader}
    for descriptor in other:
        os.close(descriptor)


def test_nothing_to_wait_for_ends_with_the_time():
    assert wait_readable([], 0.001) == wait_readable([], -1) == set()


def test_the_end_of_a_pipe_can_be_read():
    reader, writer = os.pipe()
    assert wait_readable([reader], 0) == set()
    os.close(writer)
    assert wait_readable([reader], 10) == {reader}
    os.close(reader)


def test_a_high_descriptor_can_be_waited_for(wakeup):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
    high = os.dup2(wakeup.reader, 1_500)
    wakeup.notify()
    assert wait_readable([high], 10) == {1_500}
    os.close(high)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_wakeup_before_the_wait_ends_it(pipe):
    pipe.notify()
    pipe.notify()
    pipe.wait(60)  # would last a minute
    assert not is_notified(pipe)


def test_a_wakeup_from_another_thread_ends_the_wait(pipe):
    notifying = threading.Thread(target=pipe.notify)
    notifying.start()
    pipe.wait(60)
    notifying.join()
    assert not is_notified(pipe)


def test_a_wait_without_a_wakeup_ends_with_the_time(pipe):
    pipe.wait(0.001)
    assert not is_notified(pipe)


def test_a_full_wakeup_pipe_can_be_rung(pipe):
    for _ in range(66_000):
        pipe.notify()
    assert is_notified(pipe)


# Backoff.


@pytest.fixture
def steady(monkeypatch):
    """Take the jitter away."""
    monkeypatch.setattr(wakeup_module.random, "uniform", lambda low, high: 1.0)


def test_delays_double_up_to_the_most(steady):
    delays = Backoff(0.1, 1.0)
    assert [delays.delay() for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert delays.tries == 6


def test_they_start_anew_once_it_has_worked(steady):
    delays = Backoff(0.1, 1.0)
    for _ in range(3):
        delays.delay()
    delays.reset()
    assert delays.delay() == 0.1


def test_a_long_attempt_counts_towards_the_delay_after_it(steady, monkeypatch):
    now = 100.0
    patch_time(monkeypatch, wakeup_module, monotonic=lambda: now)
    delays = Backoff(1.0, 2.0, from_start=True)
    assert delays.delay() == 1.0
    now += 1.0 + 0.5  # the delay, and an attempt
    assert delays.delay() == 1.5
    now += 1.5 + 7.0
    assert delays.delay() == 0.5  # never none at all
    delays.reset()
    now += 100.0
    assert delays.delay() == 1.0


def test_each_is_jittered_by_a_half():
    delays = {Backoff(1.0).delay() for _ in range(50)}
    assert len(delays) > 1
    assert all(0.5 <= delay <= 1.5 for delay in delays)
