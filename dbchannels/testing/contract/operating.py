"""The layer contract, fifth part: statistics, and dead letters that run again."""

from __future__ import annotations

from dbchannels.layers.base import BaseLayer
from dbchannels.layers.link import Link
from dbchannels.layers.operations import BatchResult, Failure
from dbchannels.testing.contract.case import SOON, LayerCase, in_thread, process_name, wait_until
from dbchannels.testing.contract.durable import claim, numbers


def statistics(layer: BaseLayer, channel: str) -> tuple[float, float]:
    """Return how many messages of a channel wait, and how many are in flight."""
    found = layer.channel_statistics(channel)
    return found["messages_pending"], found["messages_in_flight"]


def make_dead_letters(link: Link, number: int, channel: str = "own") -> None:
    """Send this many messages, and let each fail for good."""
    layer = link.layer
    layer.send_many([(channel, {"number": one}) for one in range(number)])
    failed = [Failure(one, "traceback", None) for one in link.claim([channel], number, "w1")]
    link.finish("w1", BatchResult(failures=failed))
    assert len(layer.dead_letter_ids([channel])) == number


class OperatingContract(LayerCase):
    """Statistics, and replay."""

    # Statistics.

    def test_what_is_claimed_is_held_until_it_is_finished(self) -> None:
        layer, link = self.layer_and_link()
        layer.send_many([("own", {"number": number}) for number in range(3)])
        first, second = claim(link, limit=2)
        assert statistics(layer, "own") == (1, 2)
        assert layer.global_statistics()["messages_in_flight"] == 2
        assert statistics(layer, "other") == (0, 0)
        link.finish("w1", BatchResult(acknowledged=[first], returned=[second]))
        assert statistics(layer, "own") == (2, 0)

    def test_what_a_worker_holds_counts_until_it_is_finished(self) -> None:
        layer, link = self.layer_and_link()
        worker = process_name("worker")
        link.register(worker, "worker")
        layer.send_many([("http.request", {}), ("http.request", {}), ("websocket.receive", {})])
        link.receive_many(["http.request"], 1, worker)
        assert statistics(layer, "http.request") == (1, 1)
        in_flight = link.receive_many(["http.request", "websocket.receive"], 2, worker)
        assert statistics(layer, "websocket.receive") == (0, 1)
        link.finish(worker, BatchResult(in_flight=in_flight[:1]))
        assert layer.global_statistics()["messages_in_flight"] == 1
        link.finish(worker, BatchResult())
        assert layer.global_statistics()["messages_in_flight"] == 0
        link.unregister(worker)

    def test_flush_forgets_what_is_in_flight(self) -> None:
        layer, link = self.layer_and_link()
        layer.send_many([("own", {}), ("http.request", {})])
        assert len(claim(link)) == len(link.receive_many(["http.request"], 1, "w1")) == 1
        layer.flush()
        assert layer.global_statistics()["messages_in_flight"] == 0

    def test_a_delayed_message_waits_and_has_no_age_before_its_time(self) -> None:
        layer = self.layer()
        layer.send("own", {}, delay=3600)
        assert layer.channel_statistics("own")["messages_max_age"] == 0
        assert statistics(layer, "own") == (1, 0)
        layer.send("own", {}, delay=SOON)
        age = wait_until(lambda: layer.channel_statistics("own")["messages_max_age"])
        assert age > SOON / 2
        assert layer.global_statistics()["messages_pending"] == 2

    # Dead letters that run again.

    def test_a_replayed_dead_letter_runs_from_the_first_attempt(self) -> None:
        layer, link = self.layer_and_link()
        make_dead_letters(link, 3)
        first, second, third = layer.dead_letter_ids()
        assert layer.replay([first, third]) == 2
        assert layer.dead_letter_ids() == [second]
        again = claim(link, "w2")
        assert (numbers(again), [one.attempt for one in again]) == ([0, 2], [1, 1])
        link.finish("w2", BatchResult(acknowledged=again))
        assert statistics(layer, "own") == (0, 0)

    def test_a_dead_letter_is_replayed_once(self) -> None:
        layer = self.layer()
        make_dead_letters(self.link(layer), 2)
        ids = layer.dead_letter_ids()
        assert layer.replay([*ids, *ids, 987_654_321]) == 2
        assert layer.replay(ids) == layer.replay([]) == 0
        assert statistics(layer, "own") == (2, 0)

    def test_two_that_replay_at_once_replay_each_letter_once(self) -> None:
        layer = self.layer()
        make_dead_letters(self.link(layer), 100)
        ids, moved = layer.dead_letter_ids(), []
        threads = [in_thread(layer, lambda: moved.append(layer.replay(ids))) for _ in range(4)]
        for thread in threads:
            thread.join()
        assert (len(moved), sum(moved)) == (4, 100)
        assert statistics(layer, "own") == (100, 0)
        assert layer.dead_letter_ids() == []

    def test_dead_letters_are_listed_by_channel(self) -> None:
        layer, link = self.layer_and_link()
        make_dead_letters(link, 1, "own")
        make_dead_letters(link, 2, "other")
        assert len(layer.dead_letter_ids(["other", "absent"])) == 2
        assert len(layer.dead_letter_ids()) == 3

    def test_a_full_channel_takes_back_its_dead_letters(self) -> None:
        layer = self.layer(channel_capacity={"own": 1})
        make_dead_letters(self.link(layer), 1)
        layer.send("own", {"number": 1})
        assert layer.replay(layer.dead_letter_ids()) == 1
        assert statistics(layer, "own") == (2, 0)
