"""The layer contract, fourth part: durable channels."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from datetime import timezone as tz
from functools import partial

from django.utils import timezone

from dbchannels import codec
from dbchannels.exceptions import InvalidMessage
from dbchannels.layers.link import Link
from dbchannels.layers.operations import BatchResult, Delivery, Failure, GroupAdd
from dbchannels.testing.contract.case import (
    DEADLINE,
    SOON,
    LayerCase,
    drain,
    in_thread,
    raises,
    wait_until,
    waiting,
)


def numbers(deliveries: list[Delivery]) -> list[int]:
    """Return the field ``number`` of each message."""
    return [codec.decode(one.payload)["number"] for one in deliveries]


def claim(link: Link, worker: str = "w1", limit: int = 10) -> list[Delivery]:
    """Claim from the channel ``own``."""
    return link.claim(["own"], limit, worker)


class DurableContract(LayerCase):
    """Claiming and finishing, and the options of a send."""

    def test_a_claimed_message_is_nobody_elses(self) -> None:
        layer = self.layer()
        first, second = self.link(layer), self.link(layer)
        layer.send_many([("own", {"number": number}) for number in range(3)])
        claimed = claim(first, limit=2)
        assert numbers(claimed) == [0, 1]
        assert all(one.durable and one.attempt == 1 and one.channel == "own" for one in claimed)
        assert numbers(claim(second, "w2")) == [2]
        assert claim(second, "w2") == []
        assert layer.receive(["own"]) == (None, None)

    def test_a_claim_looks_at_its_channels_only(self) -> None:
        layer, link = self.layer_and_link()
        layer.send_many([("own", {"number": 1}), ("other", {"number": 2}), ("third", {"number": 3})])
        claimed = link.claim(["own", "third"], 10, "w1")
        assert sorted(numbers(claimed)) == [1, 3]

    def test_what_is_acknowledged_is_gone(self) -> None:
        layer, link = self.layer_and_link()
        layer.send_many([("own", {"number": number}) for number in range(2)])
        link.finish("w1", BatchResult(acknowledged=claim(link)))
        assert claim(link) == []
        assert waiting(layer, "own") == 0

    def test_what_failed_is_tried_again_when_it_is_due(self) -> None:
        layer, link = self.layer_and_link()
        layer.send_many([("own", {"number": number}) for number in range(2)])
        soon, late = claim(link)
        link.finish(
            "w1", BatchResult(failures=[Failure(soon, "traceback", SOON), Failure(late, "traceback", 3600)])
        )
        (again,) = wait_until(lambda: claim(link, "w2"))
        assert (numbers([again]), again.attempt) == ([0], 2)
        assert claim(link) == []

    def test_what_could_not_run_waits_without_an_attempt(self) -> None:
        layer, link = self.layer_and_link()
        layer.send("own", {"number": 0})
        link.finish("w1", BatchResult(failures=[Failure(claim(link)[0], "reason", SOON, ran=False)]))
        assert claim(link) == []
        (again,) = wait_until(lambda: claim(link, "w2"))
        assert (numbers([again]), again.attempt) == ([0], 1)

    def test_what_failed_for_good_is_not_tried_again(self) -> None:
        layer, link = self.layer_and_link()
        layer.send("own", {"number": 0})
        # A traceback may hold what a database's text cannot.
        failure = Failure(claim(link)[0], "x" * 100_000 + "NUL \0, half a pair \udc80", None)
        link.finish("w1", BatchResult(failures=[failure]))
        assert claim(link) == []
        assert waiting(layer, "own") == 0

    def test_what_was_not_started_goes_back_unattempted(self) -> None:
        layer, link = self.layer_and_link()
        layer.send_many([("own", {"number": number}) for number in range(3)])
        first, *rest = claim(link)
        link.finish("w1", BatchResult(acknowledged=[first], returned=rest))
        again = claim(link, "w2")
        assert numbers(again) == [1, 2]
        assert [one.attempt for one in again] == [1, 1]

    def test_a_lost_claim_changes_nothing(self) -> None:
        layer, link = self.layer_and_link()
        layer.send("own", {"number": 0})
        (lost,) = claim(link, "w1")
        link.finish("w1", BatchResult(failures=[Failure(lost, "traceback", 0)]))
        (mine,) = claim(link, "w2")
        for late in (
            BatchResult(acknowledged=[lost]),
            BatchResult(returned=[lost]),
            BatchResult(failures=[Failure(lost, "traceback", 0)]),
            BatchResult(failures=[Failure(lost, "traceback", None)]),
            BatchResult(acknowledged=[mine]),
        ):
            link.finish("w1", late)
            assert claim(link, "w3") == []
        link.finish("w2", BatchResult(returned=[mine]))
        (again,) = claim(link, "w3")
        assert again.attempt == 2

    def test_what_consumers_did_is_written_in_order(self) -> None:
        layer, link = self.layer_and_link()
        layer.send("own", {"number": 0})
        operations = [
            layer.make_send("body?x", {"number": 1}),
            layer.make_send("other", {"number": 2}),
            layer.make_send("body?x", {"number": 3}),
            GroupAdd("group", "reply.a!b"),
        ]
        link.finish("w1", BatchResult(operations=operations, acknowledged=claim(link)))
        assert drain(layer, "body?x") == [{"number": 1}, {"number": 3}]
        assert drain(layer, "other") == [{"number": 2}]
        assert layer.group_channels("group") == ["reply.a!b"]

    def test_finishing_never_fails_for_a_full_channel(self) -> None:
        layer, link = self.layer_and_link(capacity=1)
        layer.send("http.full", {})
        layer.send("own", {"number": 0})
        sends = [layer.make_send(name, {}) for name in ("http.full", "http.roomy")]
        dropped = link.finish("w1", BatchResult(operations=sends, acknowledged=claim(link)))
        assert [waiting(layer, name) for name in ("http.full", "http.roomy", "own")] == [1, 1, 0]
        assert dropped == sends[:1]

    def test_finishing_with_room_drops_nothing(self) -> None:
        layer, link = self.layer_and_link()
        assert link.finish("w1", BatchResult()) == []
        sends = [layer.make_send("http.roomy", {}), layer.make_send("reply.a!b", {})]
        assert link.finish("w1", BatchResult(operations=sends)) == []
        assert link.finish("w1", BatchResult(operations=[GroupAdd("group", "own")])) == []

    # At most so many at a time.

    def test_of_a_limited_channel_no_more_workers_hold_some_than_may_run_it(self) -> None:
        layer, link = self.layer_and_link()
        layer.send_many([("own", {"number": number}) for number in range(6)])
        layer.send_many([("other", {"number": number}) for number in range(6, 8)])
        limits = {"own": 2}
        first = link.claim(["own"], 2, "w1", limits)
        assert numbers(first) == [0, 1]
        assert numbers(link.claim(["own"], 2, "w2", limits)) == [2, 3]
        assert numbers(link.claim(["own", "other"], 10, "w3", limits)) == [6, 7]
        assert numbers(link.claim(["own"], 1, "w1", limits)) == [4]  # it runs one after the other
        link.finish("w1", BatchResult(acknowledged=first))
        assert link.claim(["own"], 10, "w3", limits) == []

    def test_the_channels_are_served_in_the_order_in_which_they_are_asked_for(self) -> None:
        layer, link = self.layer_and_link()
        for priority, channel in enumerate(("a", "b", "c", "limited")):
            layer.send_many([(channel, {"number": number}) for number in range(3)])
            layer.send(channel, {"number": 3}, priority=priority)
        for order in (["limited", "quiet", "b", "a"], ["c", "limited", "b"], ["quiet", "a", "limited"]):
            found = link.claim(order, 4, "w1", {"limited": 1, "quiet": 1})
            busy = [channel for channel in order if channel != "quiet"]
            assert {one.channel for one in found} == {busy[0]}, order
            link.finish("w1", BatchResult(returned=found))
        (first,) = link.claim(["limited", "a"], 1, "w1", {"limited": 1})
        assert (first.channel, numbers([first])) == ("limited", [3])  # the one with a priority
        assert {one.channel for one in link.claim(["limited", "a"], 2, "w2", {"limited": 1})} == {"a"}
        link.finish("w1", BatchResult(acknowledged=[first]))
        found = link.claim(["limited", "a"], 5, "w3", {"limited": 1})
        assert sorted(one.channel for one in found) == ["a", "a", "limited", "limited", "limited"]

    def test_two_who_claim_at_once_do_not_exceed_the_limit(self) -> None:
        layer = self.layer()
        layer.send_many([("own", {"number": number}) for number in range(40)])
        claimed: list[Delivery] = []
        holders, start = set[str](), threading.Barrier(4)

        def take(worker: str) -> None:
            link = layer.link()
            start.wait(DEADLINE)
            for _ in range(40):
                found = link.claim(["own"], 1, worker, {"own": 3})
                claimed.extend(found)
                holders.update([worker] if found else [])
            link.close()

        threads = [in_thread(layer, partial(take, f"w{number}")) for number in range(4)]
        for thread in threads:
            thread.join()
        assert sorted(numbers(claimed)) == list(range(40))
        assert len(holders) <= 3

    # Periodic messages.

    def test_a_moment_is_moved_on_by_one_who_then_sends(self) -> None:
        layer = self.layer()
        first, second = self.link(layer), self.link(layer)
        due, now = first.next_time("own", "1 s")
        assert due is None and abs((now - timezone.now()).total_seconds()) < 60
        one, two = now + timedelta(seconds=1), now + timedelta(seconds=2)
        sends = [layer.make_send("own", {"number": 0})]
        assert first.move_time("own", "1 s", None, one, [])
        assert not second.move_time("own", "1 s", None, two, sends)
        assert second.next_time("own", "1 s")[0] == one
        assert second.move_time("own", "1 s", one, two, sends)
        assert not first.move_time("own", "1 s", one, two, sends)
        assert first.next_time("own", "1 s")[0] == two
        assert first.next_time("own", "other")[0] is None
        assert drain(layer, "own") == [{"number": 0}]

    def test_a_moment_goes_when_no_live_worker_has_had_it_for_a_while(self) -> None:
        link = self.link(self.layer())
        _, now = link.next_time("own", "1 s")
        for every in ("1 s", "2 s"):
            assert link.move_time("own", every, None, now, [])
        link.drop_times(now - timedelta(seconds=60))
        _, moved = link.next_time("own", "1 s")
        while (seen := link.keep_times([("own", "1 s"), ("own", "3 s")])) <= moved:
            """A clock may be coarse."""
        link.drop_times(seen)
        found = [link.next_time("own", every)[0] for every in ("1 s", "2 s", "3 s")]
        assert found == [now, None, None]

    # Options of a send.

    def test_a_delayed_message_waits_for_its_time(self) -> None:
        layer, link = self.layer_and_link()
        layer.send("own", {"number": 0}, delay=3600)
        layer.send("own", {"number": 1}, delay=timedelta(seconds=SOON))
        layer.send("own", {"number": 2}, deliver_at=timezone.now() + timedelta(hours=1))
        layer.send("own", {"number": 3}, deliver_at=timezone.now() - timedelta(hours=1))
        claimed: list[Delivery] = []
        wait_until(lambda: claimed.extend(claim(link)) or len(claimed) == 2)
        assert sorted(numbers(claimed)) == [1, 3]
        assert claim(link) == []
        assert waiting(layer, "own") == 2

    def test_the_highest_priority_is_taken_first(self) -> None:
        layer, link = self.layer_and_link()
        for number, priority in enumerate((0, 5, -5, 5)):
            layer.send("own", {"number": number}, priority=priority)
        assert numbers(claim(link, limit=3)) == [1, 3, 0]
        assert numbers(claim(link)) == [2]

    def test_a_moment_of_another_age_is_now(self) -> None:
        layer, link = self.layer_and_link()
        east, west = tz(timedelta(hours=14)), tz(timedelta(hours=-12))
        moments = [
            datetime.min.replace(tzinfo=east),
            datetime.min.replace(tzinfo=west),
            datetime(1969, 7, 20),
        ]
        for number, moment in enumerate(moments):
            layer.send("own", {"number": number}, deliver_at=moment)
        assert numbers(claim(link)) == [0, 1, 2]

    def test_options_that_cannot_be_used_are_refused(self) -> None:
        layer = self.layer()
        bad: list[dict[str, object]] = [
            {"delay": -1},
            {"delay": float("nan")},
            {"delay": "1"},
            {"deliver_at": 7},
            {"deliver_at": timezone.now() + timedelta(days=4000)},
            {"delay": 1, "deliver_at": timezone.now()},
            {"priority": 1.5},
            {"priority": True},
            {"priority": 32_768},
            {"unique": 7},
            {"unique": "x" * 101},
            {"unique": "\0"},
        ]
        for options in bad:
            with raises(InvalidMessage):
                layer.send("own", {}, **options)
        for one in ({"delay": 1}, {"priority": 1}, {"unique": "a"}, {"deliver_at": timezone.now()}):
            with raises(InvalidMessage):
                layer.send("http.request", {}, **one)
        assert waiting(layer, "own") == waiting(layer, "http.request") == 0

    def test_a_claim_can_be_acknowledged_once_by_its_worker(self) -> None:
        layer, link = self.layer_and_link()
        layer.send("own", {"number": 0})
        (mine,) = claim(link, "w1")
        assert not layer.acknowledge("w2", mine)
        assert not layer.acknowledge("w1", mine._replace(attempt=2))
        assert layer.acknowledge("w1", mine)
        assert not layer.acknowledge("w1", mine)

    def test_popped_and_not_started_goes_back(self) -> None:
        layer, link = self.layer_and_link()
        layer.send_many([("http.request", {"number": number}) for number in range(3)])
        first, *rest = link.receive_many(["http.request"], 3, "w1")
        link.finish("w1", BatchResult(returned=rest, in_flight=[first]))
        assert [one["number"] for one in drain(layer, "http.request")] == [1, 2]


class UniqueContract(LayerCase):
    """Unique keys: which messages are queued, and which are taken together."""

    def test_a_unique_message_is_not_queued_twice(self) -> None:
        layer, link = self.layer_and_link()
        for number, key in enumerate(("a", "a", "b", "")):
            layer.send("own", {"number": number}, unique=key)
        layer.send("other", {"number": 4}, unique="a")
        assert numbers(claim(link)) == [0, 2, 3]
        assert waiting(layer, "other") == 1

    def test_a_full_channel_takes_no_unique_message(self) -> None:
        layer = self.layer(channel_capacity={"own": 1})
        layer.send("own", {"number": 0}, unique="a")
        with raises(layer.ChannelFull):
            layer.send("own", {"number": 1}, unique="b")
        assert numbers(claim(self.link(layer))) == [0]

    def test_a_unique_key_is_free_when_its_message_starts_to_run(self) -> None:
        layer, link = self.layer_and_link()
        layer.send("own", {"number": 0}, unique="a")
        running = claim(link)
        layer.send("own", {"number": 1}, unique="a")
        layer.send("own", {"number": 2}, unique="a")
        assert numbers(claim(link)) == [1]
        link.finish("w1", BatchResult(acknowledged=running))

    def test_of_several_with_one_key_the_first_takes_the_others_along(self) -> None:
        """The first does their work, as they were sent before it runs: they came together when it was given back."""
        layer, link = self.layer_and_link()
        layer.send("own", {"number": 0}, unique="a")
        taken = claim(link)
        for number, priority in ((1, 5), (2, 3)):
            layer.send("own", {"number": number}, unique="a" if number == 1 else "", priority=priority)
        layer.send("own", {"number": 3}, unique="b")
        layer.send("other", {"number": 4}, unique="a")
        link.finish("w1", BatchResult(returned=taken))
        assert waiting(layer, "own") == 4
        assert numbers(claim(link, limit=2)) == [2, 0]
        assert numbers(claim(link)) == [3]
        assert (waiting(layer, "own"), waiting(layer, "other")) == (0, 1)

    def test_one_that_is_to_be_tried_again_goes_along_too(self) -> None:
        layer, link = self.layer_and_link()
        layer.send("own", {"number": 0}, unique="a")
        failed = claim(link)
        layer.send("own", {"number": 1}, unique="a")
        link.finish("w1", BatchResult(failures=[Failure(one, "traceback", 3600) for one in failed]))
        assert numbers(claim(link)) == [1]
        assert waiting(layer, "own") == 0

    def test_who_receives_the_first_has_received_the_others(self) -> None:
        layer, link = self.layer_and_link()
        layer.send("own", {"number": 0}, unique="a")
        taken = claim(link)
        layer.send_many([("own", {"number": 1})])
        layer.send("own", {"number": 2}, unique="a")
        link.finish("w1", BatchResult(returned=taken))
        assert [one["number"] for one in drain(layer, "own")] == [0, 1]

    def test_of_a_limited_channel_too_the_first_takes_the_others_along(self) -> None:
        layer, link = self.layer_and_link()
        layer.send("own", {"number": 0}, unique="a")
        taken = claim(link)
        layer.send("own", {"number": 1}, unique="a", priority=5)
        link.finish("w1", BatchResult(returned=taken))
        assert numbers(link.claim(["own"], 10, "w1", {"own": 3})) == [0]
        assert waiting(layer, "own") == 0
