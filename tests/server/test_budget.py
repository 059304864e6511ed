"""What all WebSockets together may take: memory, and the hub's time."""

from __future__ import annotations

import queue
import zlib
from contextlib import suppress

import gevent
import pytest

from dbchannels.layers.operations import Send
from dbchannels.layers.relay import next_batch
from dbchannels.server import budget as budget_module
from dbchannels.server.budget import (
    FRAME_OVERHEAD,
    LEAST_ROOM,
    RESERVED,
    SOCKET_OVERHEAD,
    HubTime,
    MemoryBudget,
    Share,
    UnsentFrames,
)
from dbchannels.server.options import WebSocketLimits
from dbchannels.server.websocket.connection import INBOX, Connection
from dbchannels.server.websocket.framing import STEP
from dbchannels.server.websocket.handshake import negotiate
from dbchannels.server.websocket.transport import STALLED_DEADLINE
from tests.server.test_connection import (
    BINARY,
    REQUEST,
    TEXT,
    Line,
    frame,
    pushed,
    until,
)
from tests.server.test_framing import client

KIB, MIB = 1024, 1_048_576
TOTAL = 64 * MIB
FRAGMENT = client(BINARY, b"x" * 1000, fin=False)


def budget_of(total, per_connection):
    """A budget of which nothing is spare."""
    budget = MemoryBudget(total, per_connection)
    budget.total = total
    return budget


@pytest.fixture
def new_lines():
    """Connections of one budget."""
    made = []

    def add(budget, **limits):
        made.append(Line())
        made[-1].connection = Connection(made[-1].relay, REQUEST, WebSocketLimits(**limits), budget)
        return made[-1]

    def new(number, total=MIB, per_connection=256 * KIB, **limits):
        budget = budget_of(total, per_connection)
        return budget, [add(budget, **limits) for _ in range(number)]

    new.add = add
    yield new
    for line in made:
        line.end()


def unfinished(size, opcode=BINARY):
    """The beginning of a message: its fragments, so many bytes in all."""
    return client(opcode, b"x" * 1000, fin=False) + client(0, b"x" * 1000, fin=False) * (size // 1000)


# Memory.


def test_each_may_hold_what_is_free_and_no_more_than_its_share():
    budget = budget_of(100 * KIB, 40 * KIB)
    one, other = Share(budget), Share(budget)
    assert one.room() == 40 * KIB
    one.hold(70 * KIB)
    assert (one.room(), other.room()) == (-40 * KIB, 30 * KIB)
    one.hold(30 * KIB)
    assert other.room() == RESERVED  # a connection that holds nothing is read whatever the others hold
    other.hold(RESERVED)
    assert other.room() == 0
    one.hold(-100 * KIB)
    assert (budget.used, other.room()) == (RESERVED, 40 * KIB - RESERVED)


def test_one_address_leaves_as_much_as_it_holds():
    budget = budget_of(100 * KIB, 40 * KIB)
    crowd = [Share(budget, f"2001:db8::{number}") for number in range(1000)]  # one network
    for share in crowd[:3] * 40:
        share.hold(KIB if share.has_room() else 0)
    assert budget.used == 50 * KIB
    assert (crowd[0].has_room(), crowd[-1].room()) == (False, RESERVED)
    assert [Share(budget, client).room() for client in ("192.0.2.1", "127.0.0.1", "")] == [40 * KIB] * 3
    crowd[0].hold(-crowd[0].held)
    assert crowd[1].has_room()
    del crowd, share
    assert not budget._addresses


def test_who_waits_goes_on_when_there_is_room_and_the_first_may_finish():
    budget = budget_of(100 * KIB, 60 * KIB)
    shares, went_on = [Share(budget) for _ in range(4)], []
    for share in shares:
        share.hold(25 * KIB)
        budget.wait(share, lambda share=share: went_on.append(shares.index(share)))
    gevent.sleep(0.01)
    assert went_on == [0]
    assert [share.room() >= LEAST_ROOM for share in shares] == [True, False, False, False]
    shares[0].hold(35 * KIB)
    shares[0].hold(-60 * KIB)  # it had its message consumed
    gevent.sleep(0.01)
    assert went_on == [0, 1]
    for share in shares[1:]:
        share.hold(-25 * KIB)
    gevent.sleep(0.01)
    assert went_on == [0, 1, 2, 3] and budget.used == 0


class Slow:
    """A socket of which only the frames that it has not taken are known."""

    def __init__(self, unsent):
        self.unsent, self.charged, self.frames, self.code = unsent, 0, [], None

    def add(self, frame):
        self.frames.append(frame)
        self.unsent.add(self, frame)
        return self

    def take(self):
        self.unsent.remove(self, self.frames.pop(0))

    def drop(self, code):
        self.code = code
        while self.frames:
            self.take()


def test_a_frame_that_waits_for_many_counts_once_and_each_is_charged_its_part():
    unsent, frame = UnsentFrames(TOTAL), bytes(MIB)
    size = MIB + FRAME_OVERHEAD
    crowd = [Slow(unsent).add(frame) for _ in range(1000)]
    assert unsent.used == size + 1000 * SOCKET_OVERHEAD
    assert all(size / 2000 < slow.charged - SOCKET_OVERHEAD < size / 500 for slow in crowd)
    for slow in crowd[1:]:
        slow.take()
    assert unsent.used == crowd[0].charged == size + SOCKET_OVERHEAD  # the last one is charged all of it
    crowd[0].drop(1006)
    assert (unsent.used, {slow.charged for slow in crowd}) == (0, {0})
    assert not unsent._frames and not any(unsent._by_charge)


def test_the_same_frame_twice_for_one_socket_counts_once_and_is_freed():
    unsent, frame = UnsentFrames(TOTAL), bytes(1000)
    slow = Slow(unsent).add(frame).add(frame)
    assert unsent.used == slow.charged == 1000 + FRAME_OVERHEAD + SOCKET_OVERHEAD
    slow.take()
    slow.take()
    assert unsent.used == slow.charged == 0


def test_those_that_hold_most_are_dropped_and_members_of_a_large_group_are_not():
    unsent, broadcast = UnsentFrames(8 * MIB), bytes(MIB)
    small = [Slow(unsent).add(bytes(1000)) for _ in range(100)]
    members = [Slow(unsent).add(broadcast) for _ in range(1000)]
    large = [Slow(unsent).add(bytes(MIB)) for _ in range(20)]
    until(lambda: unsent.used <= unsent.total)
    assert {slow.code for slow in small + members} == {None}
    assert [slow.code for slow in large] == [1013] * 14 + [None] * 6  # those that waited for longest


def test_a_few_that_share_large_frames_hold_them():
    unsent = UnsentFrames(8 * MIB)
    small = [Slow(unsent).add(bytes(20_000)) for _ in range(100)]
    groups = [[Slow(unsent) for _ in range(9)] for _ in range(20)]
    for group in groups:
        frame = bytes(MIB)
        for slow in group:
            slow.add(frame)
    until(lambda: unsent.used <= unsent.total)
    assert {slow.code for slow in small} == {None}


def test_the_first_member_of_a_broadcast_is_not_taken_for_the_only_one():
    unsent, broadcast = UnsentFrames(2 * MIB), bytes(MIB)
    large = Slow(unsent)
    for _ in range(16):
        large.add(bytes(MIB // 10))
    members = [Slow(unsent).add(broadcast) for _ in range(1000)]
    until(lambda: unsent.used <= unsent.total)
    assert large.code == 1013 and {slow.code for slow in members} == {None}


def test_a_frame_costs_the_same_however_many_are_slow(monkeypatch):
    """At most three changes of a charge for each that comes or goes, and no look at the others."""
    unsent, changes = UnsentFrames(TOTAL), []
    charge = unsent._charge
    monkeypatch.setattr(unsent, "_charge", lambda *given: changes.append(1) or charge(*given))
    frame = bytes(1000)
    crowd = [Slow(unsent).add(frame) for _ in range(1000)]
    assert len(changes) <= 3 * 1000
    for slow in [*crowd, *crowd[:500]] * 2:
        slow.take() if slow.frames else slow.add(frame)
    assert len(changes) <= 3 * 4000


def test_a_crowd_that_is_dropped_takes_many_turns(monkeypatch):
    monkeypatch.setattr(budget_module, "SLICE", 0.0)
    unsent = UnsentFrames(MIB)
    crowd = [Slow(unsent).add(bytes(MIB)) for _ in range(5)]
    gevent.sleep(0)
    assert {slow.code for slow in crowd} == {None}
    monkeypatch.setattr(budget_module, "SLICE", 10.0)
    gevent.sleep(0)
    assert {slow.code for slow in crowd} == {1013}


def test_those_that_waited_for_room_go_on_one_after_another():
    """Each is a turn of its own, so the rest may wait for a later loop."""
    budget = budget_of(100 * KIB, 60 * KIB)
    shares, went_on = [Share(budget) for _ in range(4)], []
    shares[0].hold(100 * KIB)
    for share in shares[1:]:
        share.hold(RESERVED)
        budget.wait(share, lambda share=share: went_on.append(share))
    budget.first = shares[0]
    gevent.sleep(0.01)
    shares[0].hold(-100 * KIB)
    budget._resume()
    assert went_on == [] and len(budget.hub_time._waiting) >= 3
    gevent.sleep(0.01)
    assert went_on == shares[1:]


def test_a_crowd_with_unfinished_messages_holds_no_more_than_its_budget_and_ends(new_lines):
    budget, lines = new_lines(20)
    data = unfinished(200 * KIB)
    for line in lines:
        line.open()
        pushed(line, data)
    assert budget.used <= budget.total + 21 * RESERVED
    sent = [line.connection._share.held for line in lines]
    assert min(sent) >= RESERVED - LEAST_ROOM
    late = new_lines.add(budget).open()
    late.say("I am heard")
    until(late.texts)
    for line in lines:
        line.connection.tick(line.connection.opened_at + STALLED_DEADLINE + 20)
    assert {line.closed_with() for line in lines} <= {1013, 1008}
    for line in lines:
        line.finish()
    assert budget.used == late.connection._share.held
    late.connection.tick(late.connection.opened_at + STALLED_DEADLINE + 20)
    assert not late.connection.closed


def test_messages_of_a_crowd_that_do_not_all_fit_are_all_consumed(new_lines):
    budget, lines = new_lines(12)
    message, sent = frame(BINARY, b"x" * 60_000) * 4, [0] * 12
    for line in lines:
        line.open()

    def finish():
        gevent.sleep(0.001)
        for line in lines:
            if line.connection._in_flight is not None:
                line.finish()

    def go_on():
        for index, line in enumerate(lines):
            with suppress(BlockingIOError):
                sent[index] += line.client.send(message[sent[index] :]) if sent[index] < len(message) else 0
            assert budget.used <= budget.total + budget.per_connection + 12 * RESERVED
        finish()
        return all(len(line.sent("websocket.receive")) == 4 for line in lines)

    until(go_on)
    for line in lines:
        line.drop()
    until(lambda: finish() or all(line.is_over() for line in lines))
    assert budget.used == 0


def test_a_bomb_is_inflated_in_steps_and_no_further_than_there_is_room(new_lines, monkeypatch):
    budget, (line,) = new_lines(1, total=200 * KIB, per_connection=200 * KIB, max_size=MIB)
    line.connection.deflate = negotiate([(b"sec-websocket-extensions", b"permessage-deflate")])
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = stream.compress(bytes(MIB)) + stream.flush(zlib.Z_SYNC_FLUSH)
    bomb = client(BINARY, content[:-4])
    line.open(bytes([bomb[0] | 0x40]) + bomb[1:])
    until(lambda: budget.used > 200 * KIB - LEAST_ROOM)
    gevent.sleep(0.01)
    assert budget.used <= 200 * KIB * 9 // 8  # a bytearray grows by a little more than is asked for
    line.connection.tick(line.connection.opened_at + STALLED_DEADLINE + 1)
    assert line.closed_with() == 1013 and line.codes() == [1013]
    line.finish()
    assert budget.used == 0 and STEP == 64 * KIB


def test_taking_apart_stops_at_the_inbox_and_goes_on_from_there(new_lines):
    budget, (line,) = new_lines(1)
    line.open(b"".join(frame(TEXT, b"%d" % number) for number in range(1_000)))
    until(lambda: len(line.connection._inbox) == INBOX)
    assert len(line.texts()) == 1 and budget.used > 900 * 8  # what was not taken apart counts too
    for _ in range(999):
        line.finish()
        until(lambda: line.connection._in_flight is not None)
    assert line.texts() == [str(number) for number in range(1_000)]
    line.finish()
    assert budget.used == 0


@pytest.mark.parametrize(
    "data",
    [
        unfinished(3000),
        client(TEXT, b"", fin=False),
        client(BINARY, b"", fin=False) + client(0, b"", fin=False),
        frame(TEXT, b"x" * 100)[:1],
        frame(TEXT, b"x" * 100)[:-100],
    ],
    ids=["fragments", "an empty fragment", "empty fragments", "half a header", "a header"],
)
def test_a_message_that_is_not_finished_in_time_closes_1008(new_lines, data):
    _, (line,) = new_lines(1, ping_interval=50)
    line.open(data)
    line.connection.tick(line.connection.opened_at + 29)
    assert not line.received()
    line.connection.tick(line.connection.opened_at + 32)
    assert line.closed_with() == 1008 and line.codes() == [1008]


def test_a_message_has_its_time_only_while_the_socket_is_read(new_lines):
    _, (line,) = new_lines(1, ping_interval=5_000)
    line.open(frame(TEXT, b"x") * (INBOX + 1) + unfinished(3000))
    until(lambda: len(line.connection._inbox) == INBOX)
    line.connection.tick(line.connection.opened_at + 1_000)
    assert not line.connection.closed and not line.received()


@pytest.mark.parametrize("end", ["drop", "close"])
def test_all_is_free_when_the_client_leaves(new_lines, end):
    budget, (line,) = new_lines(1)
    line.open(frame(TEXT, b"x" * 1000) * 10 + unfinished(50_000))
    until(lambda: budget.used > 50_000)
    if end == "drop":
        line.client.close()
    else:
        line.connection.close(1001, "")
        line.client.sendall(client(0, b"") + client(8, b"\x03\xe9"))
    until(lambda: line.connection.closed)
    line.finish()
    line.finish()
    assert line.is_over() and budget.used == 0


# Time.


def test_sockets_go_one_after_another_and_leave_the_hub_its_turns(monkeypatch):
    clock = iter(range(1_000_000))
    monkeypatch.setattr(
        budget_module.time, "perf_counter", lambda: next(clock) * budget_module.SOCKET_SLICE / 4
    )
    hub_time, done, others = HubTime(), [], []

    def work(name, steps):
        def go():
            while steps:
                if hub_time.is_over():
                    hub_time.add(go)
                    return
                done.append((name, len(others)))
                steps.pop()

        return go

    ticker = gevent.get_hub().loop.check()
    ticker.start(lambda: others.append(1))
    for name in "abc":
        hub_time.run(work(name, list(range(30))))
    until(lambda: len(done) == 90)
    ticker.stop()
    names = [name for name, _ in done]
    assert names != sorted(names)  # none waits until another one is through
    assert len({turn for _, turn in done}) > 5  # the loop turned meanwhile


def test_what_raises_does_not_hold_up_those_behind_it():
    hub_time, done = HubTime(), []
    hub_time.add(lambda: 1 / 0)
    hub_time.add(lambda: done.append(1))
    until(lambda: done)


# What the database gets at once.


def test_large_messages_are_written_few_at_a_time():
    outbox, batches = queue.SimpleQueue(), []
    for _ in range(10):
        outbox.put([Send("websocket.receive", bytes(MIB), "reply.s!c", 60)])
    for _ in range(10):
        outbox.put([Send("websocket.receive", b"small", "reply.s!c", 60)])
    outbox.put(None)
    ended = False
    while not ended:
        batch, ended = next_batch(outbox)
        batches.append(len(batch))
    assert batches == [1] * 10 + [10]
