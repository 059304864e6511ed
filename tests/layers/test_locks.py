"""On PostgreSQL a process is dead when its lease is over and its lock is free; one of them proves nothing.

But a lock that is held for half a lease longer is that of a process which stands still.
"""

from __future__ import annotations

import pytest
from django.db import connection

from dbchannels.layers.postgresql import sql
from dbchannels.models import Process
from dbchannels.testing.contract.case import wait_until
from tests import kinds

pytestmark = kinds.only("postgresql")

LEASE = 3600  # seconds: nothing ends while a test runs, but by `end_leases`


@pytest.fixture
def long(new_layer):
    """A layer whose leases end when the test says so."""
    return new_layer(lease=LEASE)


def end_leases(ago="1 second"):
    """Let all leases be over for some time."""
    with connection.cursor() as cursor:
        cursor.execute("UPDATE dbchannels_process SET lease_until = now() - %s::interval", [ago])


def ready_cleaner(link):
    """Return the link as one that has been connected for longer than a lease."""
    link.session.execute([("SELECT 1", {})])
    link.session.connected_at -= 2 * LEASE
    return link


def test_a_held_lock_outlives_the_lease(long, new_link):
    worker, cleaner = new_link(long), ready_cleaner(new_link(long))
    worker.register("w1", "worker")
    end_leases()
    cleaner.clean_up()
    assert Process.objects.count() == 1
    worker.close()
    wait_until(lambda: cleaner.clean_up() or not Process.objects.exists())


def test_a_held_lock_speaks_for_half_a_lease(long, new_link):
    worker, cleaner = new_link(long), ready_cleaner(new_link(long))
    worker.register("w1", "worker")
    end_leases("29 minutes")
    cleaner.clean_up()
    assert Process.objects.count() == 1
    end_leases("31 minutes")
    cleaner.clean_up()
    assert not Process.objects.exists()
    assert not worker.renew("w1")


def test_a_worker_that_renews_before_the_cleaner_comes_lives(long, new_link, monkeypatch):
    worker, cleaner = new_link(long), ready_cleaner(new_link(long))
    worker.register("w1", "worker")
    end_leases("1 day")
    run = cleaner.session.execute

    def wake_first(statements):
        if statements[0][0] == sql.UNREGISTER_EXPIRED:
            assert worker.renew("w1")
        return run(statements)

    monkeypatch.setattr(cleaner.session, "execute", wake_first)
    cleaner.clean_up()
    assert Process.objects.count() == 1


def test_a_lease_outlives_the_lock(layer, new_link):
    worker, cleaner = new_link(layer), new_link(layer)
    worker.register("w1", "worker")
    worker.close()
    cleaner.session.execute([("SELECT 1", {})])
    cleaner.session.connected_at -= 3600
    cleaner.clean_up()
    assert Process.objects.count() == 1


def test_a_lock_lost_with_its_session_is_taken_again(long, new_link):
    worker, cleaner = new_link(long), ready_cleaner(new_link(long))
    worker.register("w1", "worker")
    worker.session.close()
    # The lock is free as soon as the backend of the closed session has ended.
    wait_until(lambda: worker.renew("w1") and worker._locked == ("w1", worker.session.generation))
    end_leases()
    cleaner.clean_up()
    assert Process.objects.count() == 1


def test_a_lock_that_a_cleaner_held_for_a_moment_is_taken_later(long, new_link):
    worker, cleaner = new_link(long), ready_cleaner(new_link(long))
    worker.register("w1", "worker")
    worker.session.close()
    key = "(1684169832::bigint << 32) | (SELECT id FROM dbchannels_process)"
    with cleaner.session.transaction():
        take = [(f"SELECT pg_try_advisory_xact_lock({key})", {})]
        wait_until(
            lambda: cleaner.session.execute(take) == [(True,)]
        )  # the server frees it when it sees the session's end
        worker.renew("w1")
    worker.renew("w1")
    end_leases()
    cleaner.clean_up()
    assert Process.objects.count() == 1


def test_nobody_is_declared_dead_right_after_a_reconnect(new_layer, new_link):
    layer = new_layer(lease=3600)
    worker, cleaner = new_link(layer), new_link(layer)
    worker.register("w1", "worker")
    worker.close()
    end_leases()
    cleaner.session.execute([("SELECT 1", {})])
    cleaner.session.connected_at -= 7200
    cleaner.session.close()  # as when the database restarts, which frees everybody's locks
    cleaner.clean_up()
    assert Process.objects.count() == 1
    cleaner.session.connected_at -= 7200
    cleaner.clean_up()
    assert not Process.objects.exists()
