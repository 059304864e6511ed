"""WebSockets through rows: what one side sends, the other side gets, in order, whatever happens to workers."""

from __future__ import annotations

import os
import secrets
import signal
from pathlib import Path

import pytest

from tests.harness import HOST, LiveSite, Served, Socket, gather, is_running, until

#: Nobody looks unless woken: what arrives all the same was told by a NOTIFY, or on SQLite by a datagram.
NEVER_LOOK = {"DBCHANNELS": {"default": {"OPTIONS": {"poll_interval": 3600}}}}
#: The lease decides nothing while a test runs: who is dead was seen to die.
LONG_LEASE = {"DBCHANNELS": {"default": {"OPTIONS": {"lease": 600}}}}


@pytest.fixture
def room() -> str:
    """The path of a room that no other test is in."""
    return f"/room/{secrets.token_hex(4)}/"


def name(room: str) -> str:
    """Return the room's name."""
    return room.split("/")[2]


def enter(served: Served, room: str, number: int = 1) -> list[Socket]:
    """Open sockets in a room."""
    sockets = [served.socket(room) for _ in range(number)]
    assert [one.status for one in sockets] == [101] * number
    return sockets


def left(site: LiveSite, room: str) -> list[str]:
    """Return the codes that the room's disconnect consumer wrote down."""
    entries = [text.split() for text in site.entries() if text.startswith("left ")]
    return [code for _, where, code in entries if where == name(room)]


def members(site: LiveSite, room: str) -> int:
    """Return how many memberships the room's group has."""
    return site.count("membership", f"\"group\" = 'room-{name(room)}'")


def holder(site: LiveSite, channel: str) -> int:
    """Wait until a worker holds a message of the channel; return its process id."""
    query = (
        "SELECT process.pid FROM dbchannels_inflight AS held JOIN dbchannels_process AS process "
        f"ON process.name = held.worker WHERE held.messages LIKE '{channel} %'"
    )
    return int(until(lambda: site.rows(query), f"a worker holds {channel}")[0][0])


# Frames.


@pytest.mark.parametrize(
    "frame", ["hello", "", "tea \N{TEACUP WITHOUT HANDLE}\0!", "x" * 100_000, b"", b"\0\xff", b"y" * 70_000]
)
def test_a_frame_comes_back_as_it_was(served, frame):
    assert served.socket("/echo/").ask(frame) == frame


def test_a_room_hears_what_is_said_in_it_and_no_other_room(any_served):
    client = any_served.socket("/echo/")
    assert [client.ask(str(number)) for number in range(10)] == [str(number) for number in range(10)]
    anna, bert = enter(any_served, "/room/tea/", 2)
    (carl,) = enter(any_served, "/room/coffee/")
    anna.send("milk?")
    assert (anna.receive(), bert.receive()) == ("milk?", "milk?")
    carl.send("sugar?")
    assert carl.receive() == "sugar?"
    bert.send("yes")
    assert (anna.receive(), bert.receive()) == ("yes", "yes")


def test_frames_stay_in_order_under_load(site, room):
    """Those of each client, and in a room those of a speaker, for everybody."""
    served = site.serve("--workers", "4")
    sockets = [served.socket("/echo/") for _ in range(20)]
    said = [[f"{client}.{number}" for number in range(50)] for client in range(20)]
    for number in range(50):
        for client, socket in enumerate(sockets):
            socket.send(said[client][number])
    assert gather(sockets, 50) == said
    in_room = enter(served, room, 5)
    for number in range(50):
        in_room[0].send(str(number))
    assert gather(in_room, 50) == [[str(number) for number in range(50)]] * 5


# Handshakes.


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/denied/", 403, "The site refused this connection.\n"),
        ("/nowhere/", 404, "There is no WebSocket at this address.\n"),
        ("/broken/", 500, "The site could not answer: its code raised an error, which is in the log.\n"),
    ],
)
def test_a_refusal_comes_before_the_101(served, path, status, sentence):
    refused = served.socket(path)
    assert refused.status == status
    assert sentence in refused.rest()


def test_a_subprotocol_is_chosen_and_words_follow_at_once(served):
    accepted = served.socket("/chosen/", Sec_WebSocket_Protocol="a, b")
    assert accepted.status == 101
    assert b"Sec-WebSocket-Protocol: b" in accepted.head
    assert accepted.receive() == "welcome"


def test_a_forged_origin_is_refused_before_any_consumer_runs(served, room):
    refused = served.socket(room, Origin="https://evil.example")
    assert refused.status == 403
    assert "Origin" in refused.rest()
    assert members(served.site, room) == 0
    assert served.site.count("connection", f"path = '{room}'") == 0


@pytest.mark.parametrize("origin", ["null", "https://127.0.0.1.evil.example", "http://evil.example:80", "x"])
def test_no_other_origin_gets_in(served, room, origin):
    assert served.socket(room, Origin=origin).status == 403


def test_the_sites_own_pages_get_in(served, room):
    assert served.socket(room, Origin=f"http://{HOST}:{served.port}").status == 101
    assert served.socket(room, Origin="http://localhost:8000", Host="localhost:8000").status == 101
    assert served.socket(room, Origin="http://localhost:8000", Host="localhost:1").status == 403


def test_a_host_that_is_not_the_sites_is_refused(served, room):
    refused = served.socket(room, Host="evil.example", Origin="http://evil.example")
    assert refused.status == 400
    assert "ALLOWED_HOSTS" in refused.rest()


def test_no_worker_in_time_refuses_with_when_to_come_again(site):
    served = site.serve("--workers", "0", settings={"DBCHANNELS": {"default": {"OPTIONS": {"capacity": 1}}}})
    first = Socket(served.port, "/echo/", {})
    until(lambda: site.count("protocolmessage") == 1, "one handshake waits")
    refused = served.socket("/echo/")
    assert refused.status == 503
    assert b"Retry-After: 5" in refused.head
    site.work()
    assert first.handshake().status == 101


# The end of a connection.


def test_who_leaves_is_gone_from_everywhere(any_served):
    stays, goes, drops = enter(any_served, "/room/tea/", 3)
    goes.close(4001)
    assert goes.closed() == 4001
    drops.raw.close()
    until(lambda: sorted(left(any_served.site, "/room/tea/")) == ["1006", "4001"], "two have left")
    until(lambda: any_served.site.count("connection") == 1, "one connection on record")
    assert members(any_served.site, "/room/tea/") == 1
    assert stays.ask("still here") == "still here"


def test_an_error_in_a_consumer_ends_no_connection(served, room):
    (client,) = enter(served, room)
    client.send("raise")
    assert client.ask("after") == "after"  # and not what was sent before the error
    assert left(served.site, room) == []


# Transactions.


def test_what_was_rolled_back_is_never_seen(any_served):
    site = any_served.site
    speaker, listener = enter(any_served, "/room/tea/", 2)
    assert speaker.ask("roll-back") == "rolled back"
    assert any_served.get("/send?text=never&roll-back").text == "sent"
    assert any_served.get("/send?text=kept").text == "sent"
    speaker.send("after")
    assert (speaker.receive(), listener.receive()) == ("after", "after")
    until(lambda: site.entries() == ["kept"], "what was committed has run, and nothing else")
    until(lambda: site.count("durablemessage") == 0, "and it is acknowledged")


def test_a_commit_wakes_an_idle_worker_without_any_poll(any_site, room):
    served = any_site.serve("--workers", "1", settings=NEVER_LOOK)
    speaker, listener = enter(served, room, 2)
    for number in range(5):
        speaker.send(str(number))
        assert (speaker.receive(), listener.receive()) == (str(number), str(number))
    any_site.send("ledger", {"text": "from elsewhere"})
    until(lambda: any_site.entries() == ["from elsewhere"], "the worker was woken")


def test_a_commit_wakes_a_worker_without_a_parent(any_site):
    any_site.work("--only", "ledger", settings=NEVER_LOOK)
    for text in ("one", "two"):
        any_site.send("ledger", {"text": text})
        until(lambda text=text: any_site.entries()[-1:] == [text], "the worker was woken")


def test_a_killed_site_leaves_no_socket_that_is_rung_for_ever(site_on_sqlite):
    folder = Path(site_on_sqlite.database["NAME"] + "-wakeups")
    served = site_on_sqlite.serve("--workers", "1", settings=NEVER_LOOK)
    assert [served.get("/").text for _ in range(2)] == ["hello"] * 2  # server and worker were woken
    os.kill(served.process.pid, signal.SIGKILL)
    until(lambda: not is_running(served.process.pid), "it has ended")
    assert len(list(folder.iterdir())) == 1
    worker = site_on_sqlite.work("--only", "ledger", settings=NEVER_LOOK)
    until(lambda: len(list(folder.iterdir())) == 2, "it listens")
    site_on_sqlite.send("ledger", {"text": "after"})
    until(lambda: "after" in site_on_sqlite.entries(), "the worker was woken")
    assert len(list(folder.iterdir())) == 1  # the worker's
    assert worker.terminate() == 0
    assert not folder.exists()


# Workers come and go.


def test_all_workers_stop_and_start_and_no_socket_closes(site, room):
    served = site.serve("--workers", "0")
    workers = [site.work() for _ in range(2)]
    sockets = enter(served, room, 10)
    assert sockets[0].ask("before") == "before"
    assert [worker.terminate() for worker in workers] == [0, 0]
    for socket in sockets:
        socket.send("meanwhile")
    for _ in range(2):
        site.work()
    heard = gather(sockets[1:], 11)
    assert heard == [["before", *["meanwhile"] * 10]] * 9
    assert sockets[0].ask("after") is not None
    assert [socket.close_code for socket in sockets] == [None] * 10


def test_a_worker_killed_in_a_frame_closes_that_socket_alone(any_site):
    served = any_site.serve("--workers", "2", settings=LONG_LEASE)
    victim, first, second = enter(served, "/room/tea/", 3)
    victim.send("sleep 60")
    os.kill(holder(any_site, "websocket.receive"), signal.SIGKILL)
    assert victim.closed() == 1011
    until(lambda: left(any_site, "/room/tea/") == ["1011"], "its disconnect consumer has run")
    until(lambda: members(any_site, "/room/tea/") == 2, "it is in no group")
    first.send("who is here?")
    assert (first.receive(), second.receive()) == ("who is here?", "who is here?")


def test_frames_behind_a_lost_one_are_not_consumed_and_another_worker_is_started(site, room):
    served = site.serve("--workers", "1", settings=LONG_LEASE)
    victim, witness = enter(served, room, 2)
    victim.send("die")
    victim.send("never heard")
    assert victim.closed() == 1011
    assert witness.ask("heard") == "heard"
    until(lambda: left(site, room) == ["1011"], "its disconnect consumer has run")
    before = int(str(witness.ask("pid")))
    os.kill(before, signal.SIGKILL)
    served.wait_for_line("Worker 1 was killed by SIGKILL; starting another in 0.")
    # A statement that it had under way may still take a frame, which then is lost with it, as promised.
    until(lambda: served.workers() not in ([], [before]), "another worker has started")
    after = int(str(witness.ask("pid")))
    assert before != after
    assert not is_running(before)
    assert served.workers() == [after]
    assert served.get("/").text == "hello"


# Messages that their consumer wants later.


def test_a_frame_that_is_wanted_later_keeps_its_place(any_served):
    site = any_served.site
    opening = Socket(any_served.port, "/patient/anna/", {})
    until(lambda: "later anna open" in site.entries(), "the handshake is put off")
    site.note("anna open")
    assert opening.handshake().status == 101
    for text in ("one", "two", "three"):
        opening.send(text)
    until(lambda: site.entries().count("later anna one") > 1, "the first frame is put off twice")
    assert opening.is_open()
    site.note("anna one")
    assert [opening.receive() for _ in range(3)] == ["one", "two", "three"]


# Logins; the faults have more.


def test_a_logout_closes_the_sockets_of_its_session_on_each_database(any_served):
    cookies = [f"sessionid={any_served.get('/log-in/anna').cookies()['sessionid']}" for _ in range(2)]
    here, there = (any_served.socket("/who/", Cookie=cookie) for cookie in cookies)
    assert here.ask("{}") == there.ask("{}") == '{"user": "anna", "count": 1}'
    assert any_served.get("/log-out", Cookie=cookies[0]).text == "out"
    assert here.closed() == 4401
    assert there.ask("{}") == '{"user": "anna", "count": 2}'
    told = 'who {"user": "anna", "count": 1, "code": 4401}'
    until(lambda: told in any_served.site.entries(), "the disconnect consumer knows who it was")
