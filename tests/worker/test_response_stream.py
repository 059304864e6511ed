"""Responses of any size: in chunks, in order, and no faster than the client takes them."""

from __future__ import annotations

import threading

import pytest

from dbchannels.exceptions import LayerUnavailable
from dbchannels.protocol import CHUNK, WINDOW
from dbchannels.testing.contract.case import wait_until
from dbchannels.worker import response_stream
from dbchannels.worker.response_stream import ChunkWriter
from tests.clocks import patch_time

HEAD = {"status": 200, "headers": []}
END = {"content": b"", "more_content": False}
BROKEN = {"error": "broken off"}


class Client:
    """What is at the other end: it takes all that comes, or what a test lets it take."""

    def __init__(self, greedy=True):
        self.messages = []
        self.reports = []
        self.greedy = greedy
        self.looks = 0
        self.refusals = 0  # so many sends find the reply channel full

    def send(self, fields):
        """Get one message."""
        if self.refusals:
            self.refusals -= 1
            return False
        self.messages.append(fields)
        if self.greedy:
            self.reports.append({"taken": self.size()})
        return True

    def receive_flow(self):
        """Give the reports that wait."""
        self.looks += 1
        given, self.reports = self.reports, []
        return given

    def run(self, pieces):
        """Run a writer to its end."""
        return ChunkWriter(self.send, self.receive_flow).run(HEAD, pieces)

    def start(self, pieces):
        """Run a writer in a thread."""
        thread = threading.Thread(target=self.run, args=[pieces], daemon=True)
        thread.start()
        return thread

    def size(self):
        """Return how many bytes have come."""
        return sum(len(message.get("content", b"")) for message in self.messages)

    def content(self):
        """Return the bytes that have come."""
        return b"".join(message.get("content", b"") for message in self.messages)

    def chunks(self):
        """Return the messages between the head and the end."""
        return self.messages[1:-1]


@pytest.fixture
def client():
    """One that takes all that comes."""
    return Client()


@pytest.fixture
def slow():
    """One that takes what a test lets it take."""
    return Client(greedy=False)


@pytest.fixture
def made():
    """Return a function that makes pieces, and counts those that were asked for."""

    class Pieces:
        count = 0
        closed = False

        def __call__(self, number, size):
            try:
                for position in range(number):
                    self.count += 1
                    yield bytes([position % 251]) * size
            finally:
                self.closed = True

    return Pieces()


# What is sent.


def test_the_head_goes_first_and_the_end_last(client):
    client.run([b"a", b"b"])
    assert client.messages[0] == {**HEAD, "content": b"", "more_content": True}
    assert client.messages[-1] == END
    assert all(message["more_content"] for message in client.messages[:-1])
    assert client.content() == b"ab"


def test_no_pieces_are_a_head_and_an_end(client):
    client.run([])
    assert client.messages == [{**HEAD, "content": b"", "more_content": True}, END]


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * WINDOW + 7])
def test_no_message_is_larger_than_a_chunk_and_no_byte_is_lost(client, size):
    whole = bytes(range(256)) * (size // 256 + 1)
    client.run([whole[:size]])
    assert client.content() == whole[:size]
    assert len(client.chunks()) == -(-size // CHUNK)
    assert all(0 < len(message["content"]) <= CHUNK for message in client.chunks())


def test_many_pieces_come_in_order(client, made):
    client.run(made(500, 10_000))
    assert client.content() == b"".join(made(500, 10_000))


def test_a_lone_piece_goes_out_at_once(client):
    more = threading.Event()

    def pieces():
        yield b"first"
        more.wait(10)
        yield b"second"

    thread = client.start(pieces())
    wait_until(lambda: client.content() == b"first")
    more.set()
    thread.join(10)
    assert client.content() == b"firstsecond"


def test_a_burst_of_small_pieces_makes_few_messages(client):
    made, send = threading.Event(), client.send

    def busy(fields):
        """The first chunk is under way while the burst is made."""
        if fields.get("content"):
            made.wait(10)
        return send(fields)

    def pieces():
        yield from [b"x"] * 10_000
        made.set()

    client.send = busy
    client.run(pieces())
    assert client.content() == b"x" * 10_000
    assert len(client.chunks()) <= 2


# Flow control.


def test_no_more_than_a_window_is_on_the_way(slow, made):
    thread = slow.start(made(100, CHUNK))
    wait_until(lambda: slow.size() == WINDOW and slow.looks > 5)
    assert slow.size() == WINDOW
    # The view is held up too: a window on the way, one with the writer, one queued, and what it has in hand.
    wait_until(lambda: made.count > 16)
    assert made.count <= 3 * WINDOW // CHUNK + 3
    slow.reports.append({"taken": CHUNK})
    wait_until(lambda: slow.size() == WINDOW + CHUNK)
    slow.greedy = True
    slow.reports.append({"taken": WINDOW + CHUNK})
    thread.join(10)
    assert slow.size() == 100 * CHUNK
    assert slow.messages[-1] == END


def test_reports_say_the_total_so_that_an_old_one_does_no_harm(slow, made):
    thread = slow.start(made(3 * WINDOW // CHUNK, CHUNK))
    wait_until(lambda: slow.size() == WINDOW)
    slow.reports += [{"taken": WINDOW}, {"taken": CHUNK}, {}]
    wait_until(lambda: slow.size() == 2 * WINDOW)
    slow.reports += [{"taken": 3 * WINDOW}]
    thread.join(10)
    assert slow.size() == 3 * WINDOW


def test_a_client_that_leaves_while_it_is_waited_for_stops_the_view(slow, made):
    thread = slow.start(made(10_000, CHUNK))
    wait_until(lambda: slow.size() == WINDOW)
    slow.reports.append({"closed": True})
    thread.join(10)
    assert not thread.is_alive()
    assert made.count < 100
    assert END not in slow.messages and BROKEN not in slow.messages


def test_a_client_that_leaves_stops_a_view_of_small_pieces_too(client, made, monkeypatch):
    """An endless stream of a few bytes a second would take hours to fill a window."""
    monkeypatch.setattr(response_stream, "LOOK_EVERY", 0.0)
    client.greedy = False
    client.reports.append({"closed": True})
    client.run(made(1_000_000, 1))
    assert made.count < 1_000_000
    assert client.size() < WINDOW


def test_a_client_that_takes_nothing_for_a_minute_has_left(slow, made, monkeypatch):
    monkeypatch.setattr(response_stream, "STALLED", 0.01)
    slow.run(made(10_000, CHUNK))
    assert made.count < 100
    assert slow.size() == WINDOW


def test_reports_of_one_that_is_slow_but_takes_keep_it(slow, made, monkeypatch):
    monkeypatch.setattr(response_stream, "STALLED", 0.05)
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if sum(pauses) > 0.04:
            pauses.clear()
            slow.reports.append({"taken": slow.size() - WINDOW + CHUNK})

    patch_time(monkeypatch, response_stream, sleep=pause)
    slow.run(made(40, CHUNK))
    assert slow.size() == 40 * CHUNK
    assert slow.messages[-1] == END


def test_it_goes_on_while_pieces_are_sent_and_while_it_waits_for_room(slow, made, monkeypatch):
    """The worker's watch reads it: a response that goes on does not hang, however slow its client is."""
    noted = []
    monkeypatch.setattr(ChunkWriter, "_note_progress", lambda writer: noted.append(slow.size()))
    thread = slow.start(made(2 * WINDOW // CHUNK, CHUNK))
    wait_until(lambda: noted.count(WINDOW) > 5)
    slow.reports.append({"closed": True})
    thread.join(10)
    assert set(range(0, WINDOW, CHUNK)) <= set(noted)


# A full reply channel.


def test_a_chunk_that_finds_no_room_is_sent_again(client, made, monkeypatch):
    monkeypatch.setattr(response_stream, "FULL_PAUSE", 0.0001)
    client.refusals = 5
    client.run(made(20, CHUNK))
    assert client.content() == b"".join(made(20, CHUNK))
    assert client.messages[-1] == END


def test_a_channel_that_stays_full_ends_it(client, made, monkeypatch):
    monkeypatch.setattr(response_stream, "FULL_PAUSE", 0.0001)
    monkeypatch.setattr(response_stream, "STALLED", 0.001)

    def pieces():
        yield b"first"
        wait_until(lambda: client.content() == b"first")
        client.refusals = 1_000_000
        yield from made(10_000, CHUNK)

    client.run(pieces())
    assert client.content() == b"first"
    assert made.count < 100


# What goes wrong.


def test_an_exception_in_the_pieces_breaks_it_off(client):
    def pieces():
        yield b"first"
        raise RuntimeError("The view's own words.")

    with pytest.raises(RuntimeError, match="own words"):
        client.run(pieces())
    assert client.content() == b"first"
    assert client.messages[-1] == BROKEN
    assert END not in client.messages


@pytest.mark.parametrize("empty", [0, 3])
def test_an_exception_before_the_first_piece_has_sent_nothing(client, empty):
    """So its client gets a 500; a piece without content says nothing yet."""

    def pieces():
        yield from [b""] * empty
        raise RuntimeError("The view's own words.")

    with pytest.raises(RuntimeError, match="own words"):
        client.run(pieces())
    assert client.messages == []


def test_the_layers_exception_is_raised_and_stops_the_pieces(client, made):
    send = client.send

    def broken(fields):
        if client.size() > 10 * CHUNK:
            raise LayerUnavailable("The database has gone for a walk.")
        return send(fields)

    client.send = broken
    with pytest.raises(LayerUnavailable):
        client.run(made(10_000, CHUNK))
    assert made.count < 100


def test_a_head_that_cannot_be_sent_asks_for_no_second_piece(client, made):
    def broken(fields):
        raise LayerUnavailable("The database has gone for a walk.")

    client.send = broken
    with pytest.raises(LayerUnavailable):
        client.run(made(10, CHUNK))
    assert made.count == 1


def test_no_thread_is_left(client, slow, made, monkeypatch):
    monkeypatch.setattr(response_stream, "STALLED", 0.01)
    before = threading.active_count()
    client.run(made(3, 10))
    slow.run(made(100, CHUNK))
    assert threading.active_count() == before
