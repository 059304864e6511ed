"""Fault 10: a transaction that somebody forgot keeps every deleted row in the tables, and what it has locked."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from tests.harness import LiveSite
from tests.soak import stranger

pytestmark = pytest.mark.postgresql


def test_all_arrive_though_a_stranger_holds_a_transaction_open(site: LiveSite) -> None:
    found = stranger.stranger(site, seconds=1.0, parts=2)
    assert found.tally[1:] == (0, 0)
    assert all(one.messages and one.echoes for one in [found.before, *found.during])


@contextmanager
def locked_connection(site: LiveSite, path: str) -> Iterator[None]:
    """Hold a transaction open that has locked the records of the WebSockets with this path."""
    with closing(site.connect()) as connection:
        connection.autocommit = False
        cursor = connection.cursor()
        cursor.execute("SELECT FROM dbchannels_connection WHERE path = %s FOR UPDATE", [path])
        assert cursor.rowcount == 1
        yield
        connection.rollback()


def test_one_client_waits_for_a_strangers_lock_and_is_told_when_the_worker_dies(site: LiveSite) -> None:
    served = site.serve("--workers", "1")
    held, other = served.socket("/named/held/"), served.socket("/named/other/")
    assert [one.ask("hello") for one in (held, other)] == ["hello"] * 2
    with locked_connection(site, "/named/held/"):
        for text in ("1", "2"):
            held.send(text)
        assert [other.ask(str(number)) for number in range(20)] == [str(number) for number in range(20)]
        assert served.get("/visits").text == "1"
        assert not held.frames
    assert [held.receive(), held.receive()] == ["1", "2"]
    assert site.rows("SELECT user_id FROM dbchannels_connection ORDER BY path") == [("2",), ("19",)]
    with locked_connection(site, "/named/held/"):
        held.send("3")
        assert other.ask("20") == "20"  # so that the first frame has run
        (worker,) = served.workers(1)
        os.kill(worker, signal.SIGKILL)
        assert held.closed() == 1011
        assert other.ask("21") == "21"
