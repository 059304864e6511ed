"""Which request goes to the layer next."""

from __future__ import annotations

import random
import weakref

import pytest

from dbchannels.server.connection_limits import REQUESTS, TOGETHER, FairQueue

PROXY, LOCAL, HERE, THERE = "192.0.2.1", "127.0.0.1", "198.51.100.7", "203.0.113.9"


class Bench:
    """Requests that are told when they start."""

    def __init__(self, per_address=None):
        self.turns = FairQueue(per_address, lambda address: address == PROXY)
        self.started = []

    def enter(self, address, number=1):
        return [
            self.turns.enter(address, lambda name=(address, one): self.started.append(name))
            for one in range(number)
        ]

    def count(self, address):
        return sum(one == address for one, _ in self.started)


def test_an_address_has_so_many_at_once_and_the_next_ones_in_order():
    bench = Bench(2)
    turns = bench.enter(HERE, 5)
    assert bench.started == [(HERE, 0), (HERE, 1)] and bench.turns.waiting(HERE) == 3
    turns[1].leave()
    turns[1].leave()
    assert bench.started[2:] == [(HERE, 2)]
    turns[3].leave()  # it did not start yet, and never does
    turns[0].leave()
    assert bench.started[3:] == [(HERE, 4)] and bench.turns.waiting(HERE) == 0


def test_a_turn_that_has_started_holds_nothing_of_its_request():
    """A timer may know it for a minute, and a flood of handshakes that are reset must not stay for so long."""

    class Request:
        def start(self):
            pass

    request = Request()
    known = weakref.ref(request)
    turn = FairQueue(None).enter(HERE, request.start)
    del request
    assert turn.started and known() is None


@pytest.mark.parametrize(
    ("per_address", "address", "number"),
    [
        (None, HERE, REQUESTS),
        (None, "2001:db8::1", REQUESTS),
        (None, LOCAL, TOGETHER * REQUESTS),
        (None, "::1", TOGETHER * REQUESTS),
        (None, "", TOGETHER * REQUESTS),  # a Unix socket's
        (None, PROXY, TOGETHER * REQUESTS),
        (3, HERE, 3),
        (3, LOCAL, 3),
        (3, PROXY, TOGETHER * 3),
    ],
)
def test_how_many_there_are_at_once(per_address, address, number):
    bench = Bench(per_address)
    bench.enter(address, 200)
    assert bench.count(address) == number


def test_a_network_of_ipv6_is_one_address():
    bench = Bench(2)
    for last in range(5):
        bench.enter(f"2001:db8::{last}")
    bench.enter("2001:db8:0:1::1")
    assert [address for address, _ in bench.started] == ["2001:db8::0", "2001:db8::1", "2001:db8:0:1::1"]


def test_addresses_take_turns():
    bench = Bench(50)
    floods = [turn for number in range(10) for turn in bench.enter(f"192.0.2.{10 + number}", 50)]
    assert len(bench.started) == TOGETHER * 50
    bench.enter(HERE, 2)
    for turn in floods[:22]:
        turn.leave()
    # One of each address that waits, and so after ten others, though 300 came before.
    last = [address for address, _ in bench.started[200:]]
    assert [place for place, address in enumerate(last) if address == HERE] == [6, 13]


def test_nothing_is_left_whatever_happens():
    bench, dice, open_turns = Bench(3), random.Random(1), []
    for _ in range(2_000):
        if open_turns and dice.random() < 0.5:
            open_turns.pop(dice.randrange(len(open_turns))).leave()
        else:
            open_turns += bench.enter(f"192.0.2.{dice.randrange(2, 8)}")
        started = [turn for turn in open_turns if turn.started]
        assert len(started) + bench.turns.room == TOGETHER * 3
        addresses = [turn.address.key for turn in started]
        assert all(addresses.count(one) <= 3 for one in addresses)
        waits = {turn.address.key for turn in open_turns if not turn.started}
        assert not bench.turns.room or all(addresses.count(one) == 3 for one in waits)
    for turn in open_turns:
        turn.leave()
    assert bench.turns.room == TOGETHER * 3 and not bench.turns._addresses and not bench.turns._next
