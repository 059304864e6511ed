"""Messages of a later release of dbchannels, in a format that this one does not know."""

from __future__ import annotations

import logging

import msgpack
import pytest

from dbchannels import codec, route
from dbchannels.exceptions import NewerFormat, UnreadableMessage
from dbchannels.layers.operations import Send
from dbchannels.models import DeadLetter, DurableMessage, History, Process, ProtocolMessage
from dbchannels.testing.contract.case import wait_until, waiting
from dbchannels.worker import executor
from tests import kinds

#: As a later release would write: a byte that msgpack never uses, the number, and whatever that format is.
FORMAT_2 = b"\xc1\x02"


def newer(message):
    return FORMAT_2 + codec.encode(message)[::-1]


@pytest.fixture
def later_release(monkeypatch):
    """Call to let this process read format 2."""
    decode = codec.decode

    def decode_both(payload):
        return decode(payload[2:][::-1] if payload[:2] == FORMAT_2 else payload)

    def update():
        monkeypatch.setattr(codec, "FORMAT", 2)
        monkeypatch.setattr(codec, "decode", decode_both)

    return update


def test_a_newer_format_is_one_clear_error():
    with pytest.raises(
        NewerFormat, match="in format 2, and this process reads formats up to 1: update"
    ) as raised:
        codec.decode(newer({"number": 1}))
    assert isinstance(raised.value, UnreadableMessage)
    with pytest.raises(UnreadableMessage) as raised:
        codec.decode(b"\xc1")
    assert not isinstance(raised.value, NewerFormat)


@kinds.on_databases
def test_a_live_process_of_format_1_can_read_all_that_is_written(layer, new_link, monkeypatch):
    """A release with a second format needs writers that know the lowest ``reads`` of the live processes."""
    link = new_link(layer)
    with monkeypatch.context() as release_before:
        release_before.setattr(codec, "FORMAT", 1)
        link.register("old", Process.SERVER, "reply.old!")
    layer.group_add("room", "reply.old!a")
    layer.send("own", {"number": 1})
    layer.send("http.request", {})
    layer.send_group("room", {"text": "plain"})
    layer.send_group("room", {"text": "kept"}, history=1)
    layer.close_connections(["reply.old!a"], 1000)  # as the server encodes its messages
    rows = [one for model in (DurableMessage, ProtocolMessage, History) for one in layer.rows(model)]
    assert len(rows) == 5
    assert all(isinstance(msgpack.unpackb(bytes(one.payload)), dict) for one in rows)


def test_a_durable_message_waits_for_a_worker_that_can_read_it(
    layer, work_off, later_release, monkeypatch, caplog
):
    monkeypatch.setattr(executor, "NEWER_AGAIN", 0.05)
    ran = []

    def consumer(message):
        ran.append((message["number"], message.attempt))

    layer.write([Send("own", newer({"number": number}), "", 60) for number in range(3)])
    layer.send("own", {"number": 3})
    with caplog.at_level(logging.WARNING, "dbchannels"):
        work_off(route("own", consumer))
    assert ran == [(3, 1)]
    assert waiting(layer, "own") == 3
    (line,) = [one.getMessage() for one in caplog.records if "later release" in one.getMessage()]
    assert "on own" in line
    assert "update its dbchannels" in line
    later_release()
    wait_until(lambda: work_off(route("own", consumer)) or len(ran) == 4)
    assert sorted(ran) == [(number, 1) for number in range(4)]
    assert not DeadLetter.objects.using(layer.database).exists()


def test_a_request_is_answered_with_an_error(layer, work_off):
    layer.write([Send("http.request", newer({}), "reply.a!b", 60)])
    work_off()
    channel, answer = layer.receive(["reply.a!"])
    assert (channel, set(answer)) == ("reply.a!b", {"error"})


@kinds.on_databases
def test_each_process_has_on_record_what_it_reads(layer, new_link, later_release):
    link = new_link(layer)
    link.register("old", Process.WORKER)
    later_release()
    link.register("new", Process.SERVER, "reply.new!")
    rows = Process.objects.using(layer.database).order_by("name")
    assert list(rows.values_list("name", "reads")) == [("new", 2), ("old", 1)]
