"""What the server makes of a group's history: the order of delivery, clients that are behind, and slow ones."""

from __future__ import annotations

import pytest

from dbchannels import codec
from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.operations import Kept, Missed
from dbchannels.server import history
from dbchannels.server.history import UNKNOWN, HistoryReader, Resume, read_id
from dbchannels.server.http import events
from dbchannels.server.relay import Reply
from dbchannels.server.websocket.handshake import take_parameters

QUEUE = "reply.a!"


class Receiver:
    """A client that has everything up to a position; None: it asks for nothing."""

    def __init__(self, last_id=None):
        self.resume = None if last_id is None else Resume(last_id, now=0)
        self.heard = []
        self.gaps = []
        self.is_slow = False
        self.drained = []

    def deliver(self, position):
        self.heard.append(position)

    def tell_gap(self, position):
        self.gaps.append(position)

    def when_drained(self, call):
        self.drained.append(call)
        if not self.is_slow:
            self.drained.pop()()


class Link:
    """A layer with one group, whose messages are positions."""

    def __init__(self, members):
        self.members = members
        self.positions = []
        self.trimmed = 0
        self.fails = 0
        self.asked = 0  # for so many clients

    def read_history(self, queue, after, limit):
        found = [one for one in self.positions if one > after][:limit]
        return [Kept(one, codec.encode({}), tuple(self.members)) for one in found]

    def missed(self, queue, after, limit, size):
        if self.fails:
            self.fails -= 1
            raise LayerUnavailable
        found = {}
        self.asked += len(after)
        for one, position in after.items():
            start = -1 if position > max(self.positions, default=0) else position
            pairs = [(other, codec.encode({})) for other in self.positions if other > start]
            gap = self.trimmed if self.trimmed > start else None
            found[one] = Missed(pairs[:limit], gap, len(pairs) <= limit)
        return found


class Site:
    """A reader with its clients; the hub's calls wait until ``run``."""

    def __init__(self, **clients):
        self.clients = {QUEUE + name: client for name, client in clients.items()}
        self.link = Link(clients)
        self.calls = []
        self.wakeups = 0
        self.reader = HistoryReader(self.clients, self.calls.append, self._deliver, self._wake)

    def _deliver(self, payload, position, channels):
        for channel in set(channels) & set(self.clients):
            self.clients[channel].deliver(position)

    def _wake(self):
        self.wakeups += 1

    def say(self, *positions):
        self.link.positions += positions

    def read(self):
        """Read once; return whether there may be more."""
        return self.reader.read(self.link, QUEUE, 0.0)

    def run(self):
        """Read and deliver until nothing is left."""
        more, reads = True, 0
        while more or self.calls:
            reads += 1
            assert reads < 1000, "It reads without end."
            more = self.step() or bool(self.reader.behind)

    def step(self):
        """Read once and deliver that; return whether there may be more."""
        more = self.read()
        while self.calls:
            self.calls.pop(0)()
        return more


@pytest.mark.parametrize(
    ("text", "position"),
    [("7", 7), ("0", 0), ("9" * 18, 10**18 - 1)]
    + [(bad, UNKNOWN) for bad in ("9" * 19, "-7", "+7", "7.0", "1_0", "\u0667", " 7", "seven")],
)
def test_an_id_is_a_whole_number(text, position):
    assert read_id(text) == position


@pytest.mark.parametrize(
    ("target", "rest", "last_id"),
    [
        ("/a/?dbchannels-resume=", "/a/", ""),
        ("/a/?dbchannels-resume", "/a/", ""),
        ("/a/?x=1&dbchannels-resume=12&y", "/a/?x=1&y", "12"),
        ("/a/?dbchannels-resume=1&dbchannels-resume=2", "/a/", "2"),
        ("/a/?dbchannels-heartbeat=15&dbchannels-resume=7", "/a/", "7"),
        ("/a/?xdbchannels-resume=7", "/a/?xdbchannels-resume=7", None),
    ],
)
def test_a_client_may_ask_for_ids(target, rest, last_id):
    assert take_parameters(target)[::2] == (rest, last_id)


def test_a_client_that_is_behind_gets_nothing_live_and_then_all_in_order():
    site = Site(plain=Receiver(), back=Receiver("2"))
    plain, back = site.clients.values()
    site.say(1, 2, 3)
    site.run()
    assert (plain.heard, back.heard) == ([1, 2, 3], [])
    site.reader.catch_up(f"{QUEUE}back", "")
    site.say(4)
    site.run()
    site.say(5)
    site.run()
    assert (plain.heard, back.heard) == ([1, 2, 3, 4, 5], [3, 4, 5])


def test_what_was_committed_between_the_two_reads_comes_once():
    """The statement for a client that is behind sees more than what was read for all before it."""
    site = Site(back=Receiver("0"))
    (back,) = site.clients.values()
    site.say(1)
    site.reader.catch_up(f"{QUEUE}back", "")
    read_live = site.link.read_history

    def then_say(*arguments):
        found = read_live(*arguments)
        site.link.positions.append(len(site.link.positions) + 1)
        site.link.read_history = read_live
        return found

    site.link.read_history = then_say
    site.run()
    site.say(3)
    site.run()
    assert back.heard == [1, 2, 3] and not back.resume.is_behind


def test_a_slow_client_gets_a_batch_at_a_time_and_delays_nobody():
    site = Site(slow=Receiver("0"), other=Receiver("0"))
    slow, other = site.clients.values()
    slow.is_slow = True
    site.say(*range(1, 3 * history.MISSED))
    for name in ("slow", "other"):
        site.reader.catch_up(QUEUE + name, "")
    site.run()
    assert len(slow.heard) == history.MISSED and len(other.heard) == 3 * history.MISSED - 1
    site.say(1000)
    site.run()
    assert len(slow.heard) == history.MISSED and other.heard[-1] == 1000
    while slow.drained:
        slow.drained.pop()()
        site.run()
    assert slow.heard == other.heard == site.link.positions


def test_a_gap_is_told_once_and_no_older_id_after_it():
    """Other groups have messages from before the gap, more than a batch; they get its id."""
    site = Site(back=Receiver("2"), unknown=Receiver("9" * 18))
    back, unknown = site.clients.values()
    site.say(*range(3, 100))
    site.link.trimmed = 50
    for name in ("back", "unknown"):
        site.reader.catch_up(QUEUE + name, "")
    site.run()
    assert (back.gaps, back.heard) == ([50], [50] * 47 + list(range(50, 100)))
    site.say(100)
    site.run()
    assert back.heard[-1] == unknown.heard[-1] == 100


def test_who_is_behind_does_not_keep_the_reader_from_its_wakeups():
    """Between two batches the reader waits, until the hub has delivered the first and wakes it."""
    site = Site(**{f"c{number}": Receiver("0") for number in range(2 * history.CLIENTS)})
    site.say(1)
    for channel in site.clients:
        site.reader.catch_up(channel, "")
    assert [site.read() for _ in range(2)] == [False] * 2 and site.link.asked == history.CLIENTS
    woken = site.wakeups
    site.run()
    assert site.wakeups > woken and site.link.asked == 2 * history.CLIENTS


def test_addresses_catch_up_in_turn():
    """A stranger's many sockets delay each other; a client of another address has its place beside five of them."""
    many = 10 * history.CLIENTS
    site = Site(**{f"c{number}": Receiver("0") for number in range(many)}, other=Receiver("0"))
    site.say(*range(1, 3 * history.MISSED))
    for channel in list(site.clients):
        site.reader.catch_up(channel, "192.0.2.1" if channel.endswith("other") else "203.0.113.9")
    other = site.clients[f"{QUEUE}other"]
    while len(other.heard) < len(site.link.positions):
        site.step()
        assert site.link.asked <= 4 * (history.CLIENTS + 1), "The other client waits for the stranger's."


def test_a_client_that_has_left_is_not_read_for():
    site = Site(**{f"c{number}": Receiver("0") for number in range(2 * history.CLIENTS)}, last=Receiver("0"))
    site.say(1)
    for channel in list(site.clients):
        site.reader.catch_up(channel, "")
    for channel in list(site.clients)[:-1]:
        del site.clients[channel]
    site.run()
    assert site.link.asked == 1 and site.clients[f"{QUEUE}last"].heard == [1]


def test_what_an_outage_has_repeated_is_delivered_once():
    """A server with two queues reads for one of them, and then the database is away."""
    site = Site(back=Receiver("0"))
    (back,) = site.clients.values()
    site.say(*range(1, 3 * history.MISSED))
    for _ in range(2):
        site.reader.behind.append(history.Behind(f"{QUEUE}back", "", 0))
        site.read()
    site.run()
    assert back.heard == site.link.positions


def test_many_are_read_for_in_turn_and_who_has_left_is_none():
    count = 2 * history.CLIENTS + 5
    site = Site(**{f"c{number}": Receiver("0") for number in range(count)})
    site.say(1, 2)
    for channel in list(site.clients):
        site.reader.catch_up(channel, "")
    gone = site.clients.pop(f"{QUEUE}c3")
    site.run()
    assert [one.heard for one in site.clients.values()] == [[1, 2]] * (count - 1)
    assert gone.heard == []


def test_an_outage_loses_nobody_who_is_behind():
    site = Site(back=Receiver("0"))
    (back,) = site.clients.values()
    site.say(1)
    site.reader.catch_up(f"{QUEUE}back", "")
    site.link.fails = 1
    with pytest.raises(LayerUnavailable):
        site.read()
    site.run()
    assert back.heard == [1]


# Server-sent events.


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"text": "hi"}, b"id: 7\ndata: hi\n\n"),
        ({"text": "one\ntwo\r\nthree\rfour"}, b"id: 7\ndata: one\ndata: two\ndata: three\ndata: four\n\n"),
        ({"text": "id: 9\n\nevent: x"}, b"id: 7\ndata: id: 9\ndata: \ndata: event: x\n\n"),
        ({"text": "", "event": "price"}, b"id: 7\nevent: price\ndata: \n\n"),
        ({"text": "\udc80"}, b"id: 7\ndata: ?\n\n"),
        ({"close": True}, b"id: 7\n\n"),
        ({"bytes": b"\0"}, b"id: 7\n\n"),
        ({"text": "x", "event": "two\nlines"}, b"id: 7\n\n"),
        ({"text": "x", "event": "ends\n"}, b"id: 7\n\n"),
        ({"text": "x", "event": 7}, b"id: 7\n\n"),
    ],
)
def test_a_message_is_an_event(message, content):
    part = events.part(message, 7)
    assert (part["content"], part["more_content"]) == (content, not message.get("close"))


def test_what_the_site_has_written_itself_stays_as_it_is():
    for message in (
        {"content": b": still here\n\n", "more_content": True},
        {"lost": "full"},
        {"later": True},
        {"taken": True},
    ):
        assert events.part(message, 7) is message


def test_an_event_without_a_history_has_no_id():
    assert events.part({"text": "hi"}, 0)["content"] == b"data: hi\n\n"


def test_an_event_is_made_once_for_all_streams(caplog):
    """Else a message would be in memory, and a mistake in the log, as often as there are streams."""
    reply = Reply({"text": "hi"}, position=7)
    assert reply.event is reply.event
    assert reply.event["content"] == b"id: 7\ndata: hi\n\n"
    mistake = Reply({"bytes": b"hi"})
    assert mistake.event is mistake.event and len(caplog.records) == 1
