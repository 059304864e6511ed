"""Clients that come back get what they missed, each message once and in order."""

from __future__ import annotations

import secrets
import threading

import pytest

from tests.endtoend.conftest import emptied
from tests.harness import connect_slow, until
from tests.returning import ReturningEvents, ReturningSocket

SAID = 200
SAY = (
    "import time\nfrom dbchannels import Group\nfor number in range({1}):\n"
    "    Group('room-{0}', history=10_000).send(text=str(number)); time.sleep({2})"
)
BEFORE = """
from dbchannels import Group
for number in range(60):
    Group("room-{0}", history=60).send(text="x" * 100_000)
Group("late-{0}", history=10).send(text="before")
"""
JOIN = """
from dbchannels import Group
Group("late-{0}").add("{1}")
Group("late-{0}", history=10).send(text="after")
"""


@pytest.fixture
def room():
    """The name of a room that no other test is in."""
    return secrets.token_hex(4)


@pytest.fixture
def clients(any_served, room):
    """A WebSocket and an EventSource in one room of a site that serves with two workers."""
    made = [
        ReturningSocket(lambda: any_served.port, f"/room/{room}/"),
        ReturningEvents(lambda: any_served.port, f"/room-events/{room}"),
    ]
    for client in made:
        assert client.connect() and client.hear()
        assert client.last_id and not client.heard
    yield made
    for client in made:
        client.cut()


def test_clients_that_are_cut_off_again_and_again_hear_everything_once(any_served, room, clients):
    """They begin before the first message, and are away while many are said."""
    before = len(any_served.output())
    speaker = threading.Thread(target=any_served.site.shell, args=(SAY.format(room, SAID, 0.005),))
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
    assert "left out" not in any_served.output()[before:]


def test_what_was_said_meanwhile_comes_first_and_in_order(any_served, room, clients):
    site = any_served.site
    for client in clients:
        client.cut()
    until(lambda: site.count("membership") == 0, "the clients have left")
    site.shell(SAY.format(room, 100, 0))
    for client in clients:
        assert client.connect()
        while len(client.heard) < 100:
            client.hear()
    site.shell(f"from dbchannels import Group\nGroup('room-{room}', history=1).send(text='live')")
    for client in clients:
        while len(client.heard) < 101:
            client.hear()
        assert client.heard == [*map(str, range(100)), "live"]


@pytest.mark.parametrize(
    ("kind", "path"), [(ReturningSocket, "/room/{0}/"), (ReturningEvents, "/room-events/{0}")]
)
def test_a_group_that_a_client_joins_while_it_is_behind_counts_from_then_on(any_served, room, kind, path):
    """It has missed 6 MB and takes nothing, so it is behind until it reads."""
    site = any_served.site
    client = kind(lambda: any_served.port, path.format(room), connect_slow)
    assert client.connect() and client.hear()
    client.cut()
    until(lambda: site.count("membership") == 0, "the client has left")
    site.shell(BEFORE.format(room))
    assert client.connect()
    ((channel,),) = site.rows("SELECT channel || recipient FROM dbchannels_membership")
    site.shell(JOIN.format(room, channel))
    while client.heard[-1:] != ["after"]:
        assert client.hear()
    assert len(client.heard) == 61 and "before" not in client.heard
    assert client.gaps == 0
    client.cut()


def test_an_id_that_no_server_gave_is_a_gap_and_then_all_that_is_kept(served, room):
    """A client that does not ask gets plain frames all the while."""
    site = emptied(served).site
    plain = served.socket(f"/room/{room}/")
    until(lambda: site.count("membership") == 1, "the client is in the room")
    site.shell(SAY.format(room, 3, 0))
    assert [plain.receive() for _ in range(3)] == ["0", "1", "2"]
    for last_id in ("garbage", "-1", "99999999999999999", "9" * 5000, "%00", "1;2"):
        client = ReturningSocket(lambda: served.port, f"/room/{room}/")
        client.last_id = last_id
        assert client.connect()
        while len(client.heard) < 3:
            client.hear()
        assert (client.heard, client.gaps) == (["0", "1", "2"], 1), last_id
        assert client.last_id.isdigit()
        client.cut()
    assert plain.is_open()
