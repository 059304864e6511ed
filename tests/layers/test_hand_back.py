"""What a worker took and did not start, or failed at, keeps its place and the options that it was sent with."""

from __future__ import annotations

from dbchannels import codec
from dbchannels.layers.operations import BatchResult, Failure


def numbers(deliveries):
    """Return the field ``number`` of each message."""
    return [codec.decode(one.payload)["number"] for one in deliveries]


def test_what_is_handed_back_keeps_its_priority_and_its_place(layer, new_link):
    link = new_link(layer)
    for number, priority in enumerate((0, 0, -5)):
        layer.send("own", {"number": number}, priority=priority)
    taken = link.claim(["own"], 3, "w1")
    layer.send("own", {"number": 3})
    link.finish("w1", BatchResult(returned=taken))
    assert numbers(link.claim(["own"], 4, "w2")) == [0, 1, 3, 2]


def test_what_is_to_be_tried_again_keeps_its_unique_key(layer, new_link):
    link = new_link(layer)
    layer.send("own", {"number": 0}, unique="a")
    (failed,) = link.claim(["own"], 1, "w1")
    link.finish("w1", BatchResult(failures=[Failure(failed, "traceback", 3600)]))
    layer.send("own", {"number": 1}, unique="a")
    assert layer.channel_statistics("own")["messages_pending"] == 1
