"""PostgreSQL goes away and comes back, sessions are ended, wakeups are lost: the sockets stay, the rows arrive."""

from __future__ import annotations

from typing import Any

import psycopg2
import pytest

from tests.harness import LiveSite, Served, Socket, gather, until

pytestmark = pytest.mark.postgresql

#: Nobody looks unless woken: what arrives all the same was told by a NOTIFY.
NEVER_LOOK = {"DBCHANNELS": {"default": {"OPTIONS": {"poll_interval": 3600}}}}

#: Whether wakeups arrive is looked at three times a second.
LOOK_AFTER_OFTEN = {"DBCHANNELS": {"default": {"OPTIONS": {"lease": 1.0}}}}


def room(served: Served, number: int) -> list[Socket]:
    """Open sockets in one room."""
    sockets = [served.socket("/room/tea/") for _ in range(number)]
    assert [one.status for one in sockets] == [101] * number
    return sockets


def heard_by_all(sockets: list[Socket], *texts: str) -> None:
    """Let the first one say it; all must hear it, and nothing before it."""
    for text in texts:
        sockets[0].send(text)
    assert gather(sockets, len(texts)) == [list(texts)] * len(sockets)
    for one in sockets:
        one.frames.clear()


def unbroken(site: LiveSite, served: Served, sockets: list[Socket]) -> None:
    """The processes are the same, no socket has closed, and nobody has left."""
    assert served.process.poll() is None
    assert [one.close_code for one in sockets] == [None] * len(sockets)
    assert [text for text in site.entries() if text.startswith("left")] == []
    assert "Traceback" not in served.output()


def listeners(site: LiveSite) -> list[int]:
    """Return the process ids of the sessions that LISTEN."""
    query = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'dbchannels receiver %'"
    return [pid for (pid,) in site.rows(query)]


# Fault 6: the database restarts.


def test_restarts_and_an_outage_close_no_socket(site, server):
    served = site.serve("--workers", "2")
    sockets = room(served, 5)
    heard_by_all(sockets, "before")
    workers = served.workers(2)
    for mode in ("fast", "immediate", "kill"):
        server.restart(mode)
        assert served.get("/").text == "hello"
        heard_by_all(sockets, f"after {mode}")
        unbroken(site, served, sockets)
        assert served.workers() == workers
    with server.outage():
        sockets[0].send("in the dark")
    assert gather(sockets, 1) == [["in the dark"]] * 5
    unbroken(site, served, sockets)


def test_durable_messages_outlive_a_restart(site, server):
    site.send("ledger", *({"text": str(number)} for number in range(100)))
    server.restart("immediate")
    site.serve("--workers", "2")
    until(lambda: len(site.entries()) == 100, "all have run")
    assert sorted(site.entries(), key=int) == [str(number) for number in range(100)]


def test_workers_that_listen_themselves_outlive_a_restart(site, server):
    worker = site.work("--only", "ledger", settings=NEVER_LOOK)
    site.send("ledger", {"text": "before"})
    until(lambda: site.entries() == ["before"], "it has run")
    server.restart()
    until(lambda: site.count("process"), "the server is back")
    for number in range(3):
        site.send("ledger", {"text": str(number)})
    until(lambda: len(site.entries()) == 4, "all have run")
    assert site.entries() == ["before", "0", "1", "2"]
    assert worker.process.poll() is None


# Fault 7: the session that LISTENs is ended.


def test_a_listener_that_is_ended_listens_again(site):
    served = site.serve("--workers", "1", settings=NEVER_LOOK)
    sockets = room(served, 2)
    for number in range(10):
        (before,) = listeners(site)
        assert site.rows(f"SELECT pg_terminate_backend({before})") == [(True,)]
        heard_by_all(sockets, str(number))
        (after,) = until(lambda: listeners(site), "another one listens")
        assert after != before
    unbroken(site, served, sockets)


def test_every_session_ended_at_once_closes_no_socket(site):
    served = site.serve("--workers", "2")
    sockets = room(served, 3)
    for number in range(5):
        site.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        heard_by_all(sockets, str(number))
        assert served.get("/").text == "hello"
    unbroken(site, served, sockets)


# Fault 8: no NOTIFY arrives.


def listening(site: LiveSite) -> Any:
    """Return a session that LISTENs."""
    database = site.database
    connection = psycopg2.connect(
        dbname=database["NAME"],
        user=database["USER"],
        password=database["PASSWORD"],
        host=database["HOST"],
        port=database["PORT"] or None,
    )
    connection.autocommit = True
    connection.cursor().execute("LISTEN dbchannels")
    return connection


def test_without_any_notify_the_poll_delivers(silent_site):
    witness = listening(silent_site)
    served = silent_site.serve("--workers", "2", settings=LOOK_AFTER_OFTEN)
    sockets = room(served, 1)
    heard_by_all(sockets, "one")
    served.wait_for_line("Wakeups do not arrive: the poll finds the messages every 1 s.")
    silent_site.send("ledger", {"text": "durable"})
    until(lambda: "durable" in silent_site.entries(), "a durable message has run")
    assert served.get("/").text == "hello"
    witness.poll()
    assert witness.notifies == []
    unbroken(silent_site, served, sockets)
    witness.close()
    assert served.output().count("Wakeups do not arrive") == 1


# Fault 9: the queue of notifications fills, because a session that LISTENs sits in a transaction.


def test_a_queue_that_fills_is_said_and_past_a_half_nobody_is_notified(filling_site):
    served = filling_site.serve("--workers", "2", settings=LOOK_AFTER_OFTEN)
    served.wait_for_line("queue of notifications is 12 % full")
    sockets = room(served, 2)
    heard_by_all(sockets, "notified")
    filling_site.rows("UPDATE usage SET share = 0.6")
    witness = listening(filling_site)
    heard_by_all(sockets, "one", "two")
    filling_site.send("ledger", {"text": "durable"})
    until(lambda: "durable" in filling_site.entries(), "a durable message has run")
    witness.poll()
    assert (
        len(witness.notifies) <= 2
    )  # of one second, in which the servers and workers may not have asked again
    unbroken(filling_site, served, sockets)
    witness.close()
    assert served.output().count("queue of notifications is") == 1


# Fault 36: another user of the database fills everybody's ears.


def test_garbage_holds_up_nobody_and_nothing_is_printed(site):
    served = site.serve("--workers", "2", settings=NEVER_LOOK)
    sockets = room(served, 2)
    heard_by_all(sockets, "before")
    printed = served.output()
    site.rows("SELECT pg_notify('dbchannels', repeat('x', 7990) || g) FROM generate_series(1, 5000) AS g")
    heard_by_all(sockets, *map(str, range(20)))
    assert served.output() == printed
    unbroken(site, served, sockets)
