"""Clients that come back get what they missed, each message once and in order."""

from __future__ import annotations

import threading

import pytest

from tests.harness import until
from tests.returning import ReturningEvents, ReturningSocket

SAID = 200
SAY = (
    "import time\nfrom dbchannels import Group\nfor number in range({}):\n"
    "    Group('room-hall', history=10_000).send(text=str(number)); time.sleep({})"
)


@pytest.fixture
def clients(any_site):
    """A WebSocket and an EventSource in one room of a site that serves with two workers."""
    served = any_site.serve("--workers", "2")
    made = [
        ReturningSocket(lambda: served.port, "/room/hall/"),
        ReturningEvents(lambda: served.port, "/room-events/hall"),
    ]
    for client in made:
        assert client.connect() and client.hear()
        assert client.last_id and not client.heard
    yield made
    for client in made:
        client.cut()


def test_clients_that_are_cut_off_again_and_again_hear_everything_once(any_site, clients):
    """They begin before the first message, and are away while many are said."""
    speaker = threading.Thread(target=any_site.shell, args=(SAY.format(SAID, 0.005),))
    speaker.start()
    while any(len(client.heard) < SAID for client in clients):
        for client in clients:
            client.cut()
            assert client.connect()
            enough = min(SAID, len(client.heard) + 20)
            while len(client.heard) < enough:
                assert client.hear()
    speaker.join()
    for client in clients:
        assert client.heard == [str(number) for number in range(SAID)]
        assert client.gaps == 0
    assert "left out" not in any_site.processes[-1].output()


def test_what_was_said_meanwhile_comes_first_and_in_order(any_site, clients):
    for client in clients:
        client.cut()
    until(lambda: any_site.count("membership") == 0, "the clients have left")
    any_site.shell(SAY.format(100, 0))
    for client in clients:
        assert client.connect()
        while len(client.heard) < 100:
            client.hear()
    any_site.shell("from dbchannels import Group\nGroup('room-hall', history=1).send(text='live')")
    for client in clients:
        while len(client.heard) < 101:
            client.hear()
        assert client.heard == [*map(str, range(100)), "live"]


def test_an_id_that_no_server_gave_is_a_gap_and_then_all_that_is_kept(site):
    """A client that does not ask gets plain frames all the while."""
    served = site.serve("--workers", "1")
    plain = served.socket("/room/hall/")
    until(lambda: site.count("membership") == 1, "the client is in the room")
    site.shell(SAY.format(3, 0))
    assert [plain.receive() for _ in range(3)] == ["0", "1", "2"]
    for last_id in ("garbage", "-1", "99999999999999999", "9" * 5000, "%00", "1;2"):
        client = ReturningSocket(lambda: served.port, "/room/hall/")
        client.last_id = last_id
        assert client.connect()
        while len(client.heard) < 3:
            client.hear()
        assert (client.heard, client.gaps) == (["0", "1", "2"], 1), last_id
        assert client.last_id.isdigit()
        client.cut()
    assert plain.is_open()
