"""The limits of one socket: how long it may stay, what it may send, what waits for it."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

import gevent
import pytest

from dbchannels.server import budget
from dbchannels.server.budget import FRAME_OVERHEAD, SOCKET_OVERHEAD, MemoryBudget, Share, UnsentFrames
from dbchannels.server.options import ServerConfig, WebSocketLimits
from dbchannels.server.websocket.framing import Closed, encode_frame
from dbchannels.server.websocket.messages import Outgoing
from dbchannels.server.websocket.transport import PINGS_WITHIN, Transport
from tests.harness import CLOSE, TEXT, client_frame, server_frame

PING, PONG = 9, 10
HELLO = Outgoing(None, encode_frame(TEXT, b"hello"), None, "", None, [])


class Peer:
    """A transport, and the client's end of its socket."""

    def __init__(self, budget=None, heartbeat=0, **limits):
        self.client, server = socket.socketpair()
        self.client.setblocking(False)
        server.setblocking(False)
        self.events, self.gone = [], []
        self.budget = budget or MemoryBudget(ServerConfig.max_websocket_memory, WebSocketLimits().max_memory)
        self.transport = Transport(
            server,
            self._take,
            WebSocketLimits(**limits),
            Share(self.budget),
            heartbeat=heartbeat,
        )
        self.transport.read()
        self._read = b""

    def _take(self, event):
        if isinstance(event, Closed) and self.transport.closed:
            self.gone.append(event.code)
        else:
            self.events.append(event)

    def send(self, *frames):
        """Send as a client does; return when the transport has read it all."""
        data = b"".join(frames)
        before = self.transport._heard_at
        self.client.sendall(data)
        until(lambda: self.transport._heard_at > before or self.gone)

    def frames(self):
        """What has come from the server since the last time."""
        found = []
        with suppress(BlockingIOError):
            self._read += self.client.recv(1_000_000)
        while (frame := server_frame(self._read)) is not None:
            found.append(frame[:2])
            self._read = frame[2]
        return found

    def closed_with(self):
        """The code of the close frame, which is the last that came; None without one."""
        frames = self.frames()
        return int.from_bytes(frames[-1][1][:2], "big") if frames and frames[-1][0] == CLOSE else None

    def after(self, seconds):
        """Let the transport look after its deadlines so much later than it was opened."""
        self.transport.tick(self.transport._opened_at + seconds)


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "This did not come true within 10 s."
        gevent.sleep(0.001)


@pytest.fixture(autouse=True)
def _slow_machines_too(monkeypatch):
    """One turn of the hub suffices for whatever a test sends."""
    monkeypatch.setattr(budget, "SOCKET_SLICE", 10.0)
    monkeypatch.setattr(budget, "SLICE", 10.0)


@pytest.fixture
def new_peer():
    made = []

    def new(*given, **limits):
        made.append(Peer(*given, **limits))
        return made[-1]

    yield new
    for peer in made:
        peer.transport.drop()
        peer.client.close()


# How long it may stay.


def test_without_limits_of_time_a_socket_stays_for_days(new_peer):
    peer = new_peer(silence=10_000_000)
    peer.after(1_000_000)
    assert [opcode for opcode, _ in peer.frames()] == [PING]


def test_a_lifetime_ends_with_1001(new_peer):
    peer = new_peer(lifetime=50)
    peer.after(49)
    assert peer.closed_with() is None
    peer.after(51)
    assert peer.closed_with() == 1001


def test_a_busy_socket_has_no_longer_life(new_peer):
    peer = new_peer(lifetime=50)
    peer.send(client_frame(TEXT, b"still here"))
    peer.after(51)
    assert peer.closed_with() == 1001


def test_a_socket_on_which_nothing_is_said_is_closed_with_1001(new_peer):
    peer = new_peer(idle_timeout=50)
    peer.after(49)
    assert peer.closed_with() is None
    peer.after(51)
    assert peer.closed_with() == 1001


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_message_of_either_side_breaks_the_idleness(new_peer, who):
    peer = new_peer(idle_timeout=50)
    peer.transport._message_at -= 40
    if who == "client":
        peer.send(client_frame(TEXT, b"hello"))
    else:
        peer.transport.send(HELLO)
    peer.after(49)
    assert peer.closed_with() is None


def test_pings_and_pongs_do_not_break_the_idleness(new_peer):
    peer = new_peer(idle_timeout=50)
    peer.transport._message_at -= 40
    peer.send(client_frame(PING, b""), client_frame(PONG, b""))
    peer.after(11)
    assert peer.closed_with() == 1001


def test_a_client_that_asks_for_heartbeats_has_them_and_nobody_else(new_peer):
    asking, other = new_peer(heartbeat=15, ping_interval=1_000), new_peer(ping_interval=1_000)
    started = asking.transport._beat_at
    for seconds in range(0, 60, 2):
        asking.transport.tick(started + seconds)
        other.after(seconds)
    assert asking.frames() == [(TEXT, b"\0heartbeat")] * 3 and other.frames() == []


def test_a_closed_socket_has_no_heartbeat(new_peer):
    peer = new_peer(heartbeat=5)
    peer.transport.close(1001, "")
    peer.transport.tick(time.monotonic() + 4.9)
    peer.transport.tick(time.monotonic() + 20)
    assert [opcode for opcode, _ in peer.frames()] == [CLOSE]


def test_who_was_asked_to_go_is_asked_once_and_dropped_in_the_end(new_peer):
    peer = new_peer(lifetime=50)
    peer.after(51)
    peer.after(52)
    assert [opcode for opcode, _ in peer.frames()] == [CLOSE]
    peer.transport.tick(time.monotonic() + 6)
    assert peer.gone == [1006]


# Pings.


def test_the_server_pings_as_often_as_is_said(new_peer):
    peer = new_peer(ping_interval=5)
    peer.after(4)
    assert peer.frames() == []
    peer.after(5.1)
    peer.after(5.2)
    assert peer.frames() == [(PING, b"")]


def test_a_silence_is_as_long_as_is_said(new_peer):
    peer = new_peer(ping_interval=5, silence=7)
    peer.after(6.9)
    assert not peer.gone
    peer.after(7.1)
    assert peer.gone == [1006]


def test_as_many_pings_as_may_be_are_taken(new_peer):
    peer = new_peer(max_pings=100)
    peer.send(client_frame(PING, b"") * 100)
    assert CLOSE not in {opcode for opcode, _ in peer.frames()}


@pytest.mark.parametrize("reads", [[101], [50, 51], [1] * 101])
def test_a_flood_of_pings_is_closed_with_1008(new_peer, reads):
    peer = new_peer(max_pings=100)
    for number in reads:
        peer.send(client_frame(PING, b"") * number)
    assert peer.closed_with() == 1008


def test_pings_are_counted_anew_after_a_while(new_peer):
    peer = new_peer(max_pings=100)
    peer.send(client_frame(PING, b"") * 100)
    peer.transport._pings_since -= PINGS_WITHIN + 1
    peer.send(client_frame(PING, b"") * 100)
    assert CLOSE not in {opcode for opcode, _ in peer.frames()}


def test_of_one_flood_no_more_is_read_than_may_be(new_peer):
    peer = new_peer(max_pings=100)
    peer.send(client_frame(PING, b"") * 1000)
    assert peer.events == [Closed(1008, "There are too many pings.", abrupt=True)]
    assert peer.transport._protocol.pings_left == -1


# The end of one that has failed: what it has sent, or still sends, is in nobody's way.


def failed(new_peer):
    """A peer whose flood of pings has failed the connection, and who has not read the Close."""
    peer = new_peer(max_pings=100)
    peer.send(client_frame(PING, b"") * 101)
    assert len(peer.events) == 1
    return peer


def test_after_a_failure_nothing_is_answered_and_the_close_stays_readable(new_peer):
    peer = failed(new_peer)
    for _ in range(50):
        peer.client.send(client_frame(PING, b"") * 1000)
        gevent.sleep(0.001)
    assert len(peer.events) == 1 and not peer.gone
    assert [opcode for opcode, _ in peer.frames()][-1] == CLOSE
    assert peer.client.recv(1) == b""  # the server will say no more


def test_who_has_failed_is_gone_when_the_client_closes(new_peer):
    peer = failed(new_peer)
    peer.client.close()
    until(lambda: peer.gone)


def test_who_has_failed_and_never_stops_is_dropped(new_peer, monkeypatch):
    monkeypatch.setattr("dbchannels.server.websocket.transport.LINGERING", 100_000)
    peer = failed(new_peer)
    peer.client.send(bytes(90_000))
    gevent.sleep(0.01)
    assert not peer.gone
    peer.client.send(bytes(20_000))
    until(lambda: peer.gone)


def test_what_is_discarded_of_a_crowd_takes_its_turns_too(new_peer, monkeypatch):
    peer = failed(new_peer)
    monkeypatch.setattr(budget, "SLICE", -1.0)  # this turn has no time left
    peer.client.send(b"x" * 1000)
    gevent.sleep(0.01)
    assert peer.transport._discarded == 0 and not peer.transport._reader.active
    monkeypatch.setattr(budget, "SLICE", 10.0)
    until(lambda: peer.transport._discarded == 1000)
    assert peer.transport._reader.active


def test_who_has_failed_and_does_not_close_is_dropped_after_five_seconds(new_peer):
    peer = failed(new_peer)
    peer.transport.tick(time.monotonic() + 4)
    assert not peer.gone
    peer.transport.tick(time.monotonic() + 6)
    assert peer.gone == [1006]


# Messages.


def test_the_size_of_a_message_is_what_is_said(new_peer):
    peer = new_peer(max_size=200_000)
    peer.send(client_frame(TEXT, b"x" * 200_000))
    until(lambda: peer.events == ["x" * 200_000])
    peer.send(client_frame(TEXT, b"x" * 200_001)[:14])
    assert peer.events[1:] == [Closed(1009, "The message is too large.", abrupt=True)]
    assert peer.closed_with() == 1009


def test_the_number_of_fragments_is_what_is_said(new_peer):
    peer = new_peer(max_fragments=3)
    first = bytes([client_frame(TEXT, b"")[0] & 0x7F]) + client_frame(TEXT, b"")[1:]
    more = bytes([client_frame(0, b"")[0] & 0x7F]) + client_frame(0, b"")[1:]
    peer.send(first, more, client_frame(0, b"x"))
    assert peer.events == ["x"]
    peer.send(first, more, more, more)
    assert peer.closed_with() == 1009


# A client that does not read.


def blocked(peer):
    """Fill the socket, so that the next frame waits."""
    while not peer.transport._frames:
        peer.transport.send(HELLO._replace(frame=b"\x82\x7e\xff\xff" + bytes(65_535)))
    return peer


def test_as_many_frames_wait_as_is_said(new_peer):
    peer = blocked(new_peer(waiting_frames=5))
    for _ in range(4):
        peer.transport.send(HELLO)
    assert not peer.gone
    peer.transport.send(HELLO)
    assert peer.gone == [1013]


def test_as_many_bytes_wait_as_is_said(new_peer):
    peer = blocked(new_peer(waiting_bytes=100_000))
    peer.transport.send(HELLO._replace(frame=bytes(100_000 - peer.transport._waiting)))
    assert not peer.gone
    peer.transport.send(HELLO)
    assert peer.gone == [1013]


def test_a_full_socket_has_as_long_as_is_said(new_peer):
    peer = blocked(new_peer(send_timeout=3))
    peer.transport.tick(peer.transport._blocked_at + 2.9)
    assert not peer.gone
    peer.transport.tick(peer.transport._blocked_at + 3.1)
    assert peer.gone == [1013]


def test_a_frame_that_the_socket_takes_at_once_is_not_counted(new_peer, monkeypatch):
    peer = new_peer()
    monkeypatch.delattr(UnsentFrames, "add")
    peer.transport.send(HELLO)
    assert peer.frames() == [(TEXT, b"hello")]


@pytest.mark.parametrize("end", ["reads", "leaves", "is dropped", "pings"])
def test_what_waits_is_counted_whole_until_it_is_sent_or_the_socket_ends(new_peer, end):
    peer = blocked(new_peer())
    unsent = peer.budget.unsent
    assert unsent.used == 65_539 + FRAME_OVERHEAD + SOCKET_OVERHEAD > peer.transport._waiting
    peer.transport.send(HELLO)
    if end == "pings":  # its pong waits as well
        used = unsent.used
        peer.send(client_frame(PING, b"x" * 100))
        until(lambda: unsent.used == used + 102 + FRAME_OVERHEAD + SOCKET_OVERHEAD)
    if end in ("reads", "pings"):
        until(lambda: peer.frames() == [] and not peer.transport._frames)
    elif end == "leaves":
        peer.client.close()
        until(lambda: peer.gone)
    else:
        peer.transport.drop()
    assert (unsent.used, peer.transport.charged, len(unsent._frames)) == (0, 0, 0)


def test_all_that_do_not_read_hold_no_more_than_the_total(new_peer):
    """100 clients with a frame of 500 kB for each; two that hold less are left alone."""
    budget = MemoryBudget(4_000_000, WebSocketLimits().max_memory)
    good = [blocked(new_peer(budget)) for _ in range(2)]
    bad = [new_peer(budget) for _ in range(100)]
    for peer in bad:
        peer.transport.send(HELLO._replace(frame=encode_frame(TEXT, b"x" * 500_000)))
        gevent.sleep(0)
        assert budget.unsent.used <= 4_000_000
    assert not any(peer.gone for peer in good) and [peer.gone for peer in bad[:90]] == [[1013]] * 90
    for peer in bad + good:
        peer.transport.drop()
    assert budget.unsent.used == 0


def test_one_that_does_not_read_costs_the_others_nothing(new_peer):
    """99 members get every frame of a broadcast; the one that is stuck is dropped and reported once."""
    stuck, members = blocked(new_peer()), [new_peer() for _ in range(99)]
    frame = HELLO._replace(frame=encode_frame(TEXT, b"x" * 20_000))
    for _ in range(100):
        for peer in (stuck, *members):
            peer.transport.send(frame)
        for peer in members:
            assert len(peer.frames()) == 1
    assert stuck.gone == [1013]
    assert not any(peer.gone for peer in members)
