"""The layer contract: messages with a unique key."""

from __future__ import annotations

from dbchannels.layers.operations import Done, Failure
from dbchannels.testing.contract.case import LayerCase, drain, raises, waiting
from dbchannels.testing.contract.durable import claim, numbers


class UniqueContract(LayerCase):
    """What is queued once, and what goes along with it."""

    def test_a_unique_message_is_not_queued_twice(self) -> None:
        layer = self.layer()
        link = self.link(layer)
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
        layer = self.layer()
        link = self.link(layer)
        layer.send("own", {"number": 0}, unique="a")
        running = claim(link)
        layer.send("own", {"number": 1}, unique="a")
        layer.send("own", {"number": 2}, unique="a")
        assert numbers(claim(link)) == [1]
        link.finish("w1", Done(acknowledged=running))

    def test_of_several_with_one_key_the_first_takes_the_others_along(self) -> None:
        """Those were sent before it runs, so that it does their work: they met when the first was handed back."""
        layer = self.layer()
        link = self.link(layer)
        layer.send("own", {"number": 0}, unique="a")
        taken = claim(link)
        for number, priority in ((1, 5), (2, 3)):
            layer.send("own", {"number": number}, unique="a" if number == 1 else "", priority=priority)
        layer.send("own", {"number": 3}, unique="b")
        layer.send("other", {"number": 4}, unique="a")
        link.finish("w1", Done(returned=taken))
        assert waiting(layer, "own") == 4
        assert numbers(claim(link, limit=2)) == [2, 0]
        assert numbers(claim(link)) == [3]
        assert (waiting(layer, "own"), waiting(layer, "other")) == (0, 1)

    def test_one_that_is_to_be_tried_again_goes_along_too(self) -> None:
        layer = self.layer()
        link = self.link(layer)
        layer.send("own", {"number": 0}, unique="a")
        failed = claim(link)
        layer.send("own", {"number": 1}, unique="a")
        link.finish("w1", Done(failures=[Failure(one, "traceback", 3600) for one in failed]))
        assert numbers(claim(link)) == [1]
        assert waiting(layer, "own") == 0

    def test_who_receives_the_first_has_received_the_others(self) -> None:
        layer = self.layer()
        link = self.link(layer)
        layer.send("own", {"number": 0}, unique="a")
        taken = claim(link)
        layer.send_many([("own", {"number": 1})])
        layer.send("own", {"number": 2}, unique="a")
        link.finish("w1", Done(returned=taken))
        assert [one["number"] for one in drain(layer, "own")] == [0, 1]

    def test_of_a_limited_channel_too_the_first_takes_the_others_along(self) -> None:
        layer = self.layer()
        link = self.link(layer)
        layer.send("own", {"number": 0}, unique="a")
        taken = claim(link)
        layer.send("own", {"number": 1}, unique="a", priority=5)
        link.finish("w1", Done(returned=taken))
        assert numbers(link.claim(["own"], 10, "w1", {"own": 3})) == [0]
        assert waiting(layer, "own") == 0
