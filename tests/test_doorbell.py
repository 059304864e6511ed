"""Doorbells, waiting for descriptors, and how long to wait before the next try."""

from __future__ import annotations

import os
import threading

import pytest

from dbchannels import backoff
from dbchannels.backoff import Backoff
from dbchannels.waiting import WakeupPipe, wait_readable
from dbchannels.wakeup import Doorbell


@pytest.fixture
def bell():
    """One that is closed at the end."""
    made = Doorbell.new()
    yield made
    for descriptor in made:
        os.close(descriptor)


@pytest.fixture
def pipe():
    """A WakeupPipe that is closed at the end."""
    made = WakeupPipe()
    yield made
    os.close(made.reader)
    os.close(made._writer)


def is_rung(one):
    """Whether somebody has rung."""
    return wait_readable([one.reader], 0) == {one.reader}


# Doorbells.


def test_a_ring_is_heard_until_it_is_silenced(bell):
    assert not is_rung(bell)
    bell.ring()
    assert is_rung(bell)
    bell.silence()
    assert not is_rung(bell)


def test_silence_takes_all_rings(bell):
    for _ in range(1000):
        bell.ring()
    bell.silence()
    assert not is_rung(bell)


def test_of_all_that_one_ring_wakes_one_takes_it(bell):
    bell.ring()
    assert [bell.silence(), bell.silence()] == [True, False]


def test_a_full_bell_can_be_rung_and_then_silenced(bell):
    for _ in range(66_000):  # a pipe of Linux holds 65,536 bytes
        bell.ring()
    assert is_rung(bell)
    bell.silence()
    assert not is_rung(bell)


def test_silence_does_not_wait_for_a_ring(bell):
    bell.silence()
    assert not is_rung(bell)


def test_a_bell_whose_readers_are_gone_can_be_rung():
    bell = Doorbell.new()
    os.close(bell.reader)
    bell.ring()
    os.close(bell.writer)


def test_a_bell_is_given_to_a_child_as_text(bell):
    child = Doorbell.inherited(str(bell))
    assert child == bell
    child.ring()
    assert is_rung(bell)


def test_a_bell_is_inherited_only_by_those_it_is_passed_to(bell):
    assert [os.get_inheritable(descriptor) for descriptor in bell] == [False, False]


def test_inherited_descriptors_never_block():
    reader, writer = os.pipe()
    bell = Doorbell.inherited(f"{reader},{writer}")
    assert [os.get_blocking(descriptor) for descriptor in bell] == [False, False]
    for descriptor in bell:
        os.close(descriptor)


# Waiting.


def test_those_that_can_be_read_are_returned(bell, pipe):
    other = Doorbell.new()
    assert wait_readable([bell.reader, other.reader, pipe.reader], 0) == set()
    bell.ring()
    pipe.ring()
    assert wait_readable([bell.reader, other.reader, pipe.reader], 10) == {bell.reader, pipe.reader}
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


def test_a_high_descriptor_can_be_waited_for(bell):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
    high = os.dup2(bell.reader, 1_500)
    bell.ring()
    assert wait_readable([high], 10) == {1_500}
    os.close(high)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_wakeup_before_the_wait_ends_it(pipe):
    pipe.ring()
    pipe.ring()
    pipe.wait(60)  # would last a minute
    assert not is_rung(pipe)


def test_a_wakeup_from_another_thread_ends_the_wait(pipe):
    ringing = threading.Thread(target=pipe.ring)
    ringing.start()
    pipe.wait(60)
    ringing.join()
    assert not is_rung(pipe)


def test_a_wait_without_a_wakeup_ends_with_the_time(pipe):
    pipe.wait(0.001)
    assert not is_rung(pipe)


def test_a_full_wakeup_pipe_can_be_rung(pipe):
    for _ in range(66_000):
        pipe.ring()
    assert is_rung(pipe)


# Backoff.


@pytest.fixture
def steady(monkeypatch):
    """Take the jitter away."""
    monkeypatch.setattr(backoff.random, "uniform", lambda low, high: 1.0)


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


def test_each_is_jittered_by_a_half():
    delays = {Backoff(1.0).delay() for _ in range(50)}
    assert len(delays) > 1
    assert all(0.5 <= delay <= 1.5 for delay in delays)
