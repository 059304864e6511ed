"""Clients that say nothing, read nothing, or send what no client should: nobody else notices."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from tests.benchmarks.crowd import Crowd
from tests.harness import LiveSite, Served, Socket, client_frame, until

pytestmark = pytest.mark.postgresql

ROOM = "/room/faults/"
PING = 9


def enter(served: Served, number: int) -> list[Socket]:
    """Open sockets in the room."""
    sockets = [served.socket(ROOM) for _ in range(number)]
    assert [one.status for one in sockets] == [101] * number
    return sockets


def left(site: LiveSite) -> list[str]:
    """Return the codes of those that have left the room."""
    return [text.split()[2] for text in site.entries() if text.startswith("left ")]


def test_who_reads_nothing_is_dropped_and_the_others_have_every_word(site: LiveSite) -> None:
    served = site.serve("--workers", "2", "--ws-waiting-bytes", "200000")
    *members, stuck = enter(served, 6)
    stuck.raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for number in range(100):  # more than the kernel holds for anybody
        word = f"{number}" + "x" * 100_000
        members[0].send(word)
        assert [one.receive() for one in members] == [word] * 5
    until(lambda: left(site) == ["1013"], "the one that reads nothing has left")
    assert site.count("membership") == 5
    assert [one.ask("still here") for one in members[:1]] == ["still here"]


def test_idle_sockets_are_asked_whether_they_live_and_stay(site: LiveSite) -> None:
    served = site.serve("--workers", "2", "--ws-ping-interval", "1", "--ws-silence", "6")
    with closing(Crowd(served.port)) as crowd:
        opened = crowd.open(300, "/echo/")
        mute = served.socket("/echo/")
        crowd.run(
            lambda one, data: None,
            until=lambda: len(crowd.pings) == 300 and min(crowd.pings.values()) >= 4,
            seconds=60,
        )
        assert [one for one in opened if crowd.pings[one] < 4] == []
        assert mute.closed() == 1006  # it has answered nothing
        records = "SELECT count(*) FROM dbchannels_connection"
        until(lambda: site.rows(records) == [(300,)], "the mute one is off the record")
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ 'publisher|receiver|housekeeper'"
        )
        assert site.rows(query) == [(3,)]


def test_a_limit_of_the_command_line_closes_that_socket_alone(site: LiveSite) -> None:
    limits = ("--ws-max-pings", "50", "--ws-max-fragments", "50", "--ws-max-size", "1000")
    served = site.serve("--workers", "1", *limits)
    good = served.socket("/echo/")
    for sent, code in (
        (client_frame(PING, b"") * 51, 1008),
        (b"\x01\x80" + bytes(4) + (b"\x00\x80" + bytes(4)) * 50, 1009),
        (client_frame(2, bytes(1001))[:8], 1009),
    ):
        bad = served.socket("/echo/")
        bad.raw.sendall(sent)
        assert bad.closed() == code
        assert good.ask("hello") == "hello"
