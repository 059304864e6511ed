"""On PostgreSQL a process is dead when its lease is over and its lock is free; one of them proves nothing."""

from __future__ import annotations

import time

import pytest
from django.db import connection

from dbchannels.models import Process
from dbchannels.testing.layer_case import wait_until
from tests import kinds

pytestmark = kinds.only("postgresql")

LEASE = 0.05  # seconds


@pytest.fixture
def quick(new_layer):
    """A layer whose leases are over soon."""
    return new_layer(lease=LEASE)


def end_leases():
    """Let all leases be over, as if nobody had renewed for a day."""
    with connection.cursor() as cursor:
        cursor.execute("UPDATE dbchannels_process SET lease_until = now() - interval '1 day'")


def ready_sweeper(link):
    """Return the link once it has been connected for longer than a lease."""
    link.session.run([("SELECT 1", {})])
    wait_until(lambda: time.monotonic() - link.session.connected_at > LEASE)
    return link


def test_a_held_lock_outlives_the_lease(quick, new_link):
    worker, sweeper = new_link(quick), ready_sweeper(new_link(quick))
    worker.register("w1", "worker")
    end_leases()
    sweeper.sweep()
    assert Process.objects.count() == 1
    worker.close()
    wait_until(lambda: sweeper.sweep() or not Process.objects.exists())


def test_a_lease_outlives_the_lock(layer, new_link):
    worker, sweeper = new_link(layer), new_link(layer)
    worker.register("w1", "worker")
    worker.close()
    sweeper.session.run([("SELECT 1", {})])
    sweeper.session.connected_at -= 3600
    sweeper.sweep()
    assert Process.objects.count() == 1


def test_a_lock_lost_with_its_session_is_taken_again(quick, new_link):
    worker, sweeper = new_link(quick), ready_sweeper(new_link(quick))
    worker.register("w1", "worker")
    worker.session.close()
    assert worker.renew("w1")
    end_leases()
    sweeper.sweep()
    assert Process.objects.count() == 1


def test_a_lock_that_a_sweeper_held_for_a_moment_is_taken_later(quick, new_link):
    worker, sweeper = new_link(quick), ready_sweeper(new_link(quick))
    worker.register("w1", "worker")
    worker.session.close()
    key = "(1684169832::bigint << 32) | (SELECT id FROM dbchannels_process)"
    with sweeper.session.transaction():
        take = [(f"SELECT pg_try_advisory_xact_lock({key})", {})]
        wait_until(
            lambda: sweeper.session.run(take) == [(True,)]
        )  # the server frees it when it sees the session's end
        worker.renew("w1")
    worker.renew("w1")
    end_leases()
    sweeper.sweep()
    assert Process.objects.count() == 1


def test_nobody_is_declared_dead_right_after_a_reconnect(new_layer, new_link):
    layer = new_layer(lease=3600)
    worker, sweeper = new_link(layer), new_link(layer)
    worker.register("w1", "worker")
    worker.close()
    end_leases()
    sweeper.session.run([("SELECT 1", {})])
    sweeper.session.connected_at -= 7200
    sweeper.session.close()  # as when the database restarts, which frees everybody's locks
    sweeper.sweep()
    assert Process.objects.count() == 1
    sweeper.session.connected_at -= 7200
    sweeper.sweep()
    assert not Process.objects.exists()
