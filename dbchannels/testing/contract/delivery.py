"""The layer contract, second part: who receives a message, in which order and until when, and how many may wait."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from django.db import transaction

from dbchannels.exceptions import InvalidMessage, InvalidName
from dbchannels.layers.operations import GroupAdd, Withdraw
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


class DeliveryContract(LayerCase):
    """Sending and receiving, order, capacity, expiry, delay, transactions."""

    def test_a_message_is_received_once(self) -> None:
        layer = self.layer()
        for channel in ("own", "http.request", "http.request.body?x"):
            layer.send(channel, {"on": channel})
            assert layer.receive([channel]) == (channel, {"on": channel})
            assert layer.receive([channel]) == (None, None)

    def test_nothing_comes_from_nowhere(self) -> None:
        layer = self.layer()
        layer.send("own", {})
        assert layer.receive([]) == (None, None)
        assert layer.receive(["other", "http.request", "reply.a!"]) == (None, None)

    def test_receiving_looks_at_every_channel(self) -> None:
        layer = self.layer()
        for channel in ("own", "other", "http.request", "reply.a!b"):
            layer.send(channel, {})
        channels = ["own", "other", "http.request", "reply.a!", "empty"]
        received = {layer.receive(channels)[0] for _ in range(4)}
        assert received == {"own", "other", "http.request", "reply.a!b"}

    def test_a_process_specific_channel_gives_its_full_name(self) -> None:
        layer = self.layer()
        for local in ("b", "c", "b"):
            layer.send(f"reply.a!{local}", {})
        assert [layer.receive(["reply.a!"])[0] for _ in range(3)] == ["reply.a!b", "reply.a!c", "reply.a!b"]

    def test_one_reader_receives_in_order(self) -> None:
        layer = self.layer()
        for channel, queue in (("body?x", "body?x"), ("reply.a!b", "reply.a!")):
            for number in range(10):
                layer.send(channel, {"number": number})
            layer.send_many((channel, {"number": number}) for number in range(10, 30))
            assert [message["number"] for message in drain(layer, queue)] == list(range(30))

    def test_a_link_receives_in_order_and_no_more_than_asked(self) -> None:
        layer, link = self.layer_and_link()
        layer.send_many(("body?x", {"number": number}) for number in range(7))
        batches = [link.receive_many(["body?x"], 3) for _ in range(4)]
        assert [len(batch) for batch in batches] == [3, 3, 1, 0]
        payloads = [delivery.payload for batch in batches for delivery in batch]
        assert payloads == [layer.make_send("x", {"number": number}).payload for number in range(7)]

    def test_two_readers_never_receive_the_same(self) -> None:
        layer = self.layer()
        links = [self.link(layer), self.link(layer)]
        layer.send_many(("http.request", {"number": number}) for number in range(20))
        found = [
            one.payload for turn in range(20) for one in links[turn % 2].receive_many(["http.request"], 3)
        ]
        assert len(found) == len(set(found)) == 20

    def test_a_busy_channel_does_not_starve_a_quiet_one(self) -> None:
        layer = self.layer()
        for busy, quiet in (("http.busy", "http.quiet"), ("busy", "quiet")):
            layer.send_many((busy, {}) for _ in range(30))
            layer.send(quiet, {})
            received = set()
            for _ in range(31):  # the oldest first, or by chance: it does not miss the quiet one 31 times
                received.add(layer.receive([busy, quiet])[0])
                layer.send(busy, {})
            assert received == {busy, quiet}

    def test_a_reader_that_waits_gets_what_comes(self) -> None:
        layer = self.layer()
        for channel in ("own", "http.request", "body?x"):
            sender = in_thread(layer, lambda channel=channel: layer.send(channel, {}))
            assert wait_until(lambda channel=channel: layer.receive([channel], block=True)[0]) == channel
            sender.join(DEADLINE)

    def test_what_comes_between_two_waits_ends_the_next(self) -> None:
        layer, link = self.layer_and_link()
        link.wait(0.01)
        layer.send("http.request", {})
        started = time.monotonic()
        link.wait(DEADLINE)
        assert time.monotonic() - started < DEADLINE / 2

    def test_a_link_that_waits_returns(self) -> None:
        layer, link = self.layer_and_link()
        link.wait(0.01)
        sender = in_thread(layer, lambda: layer.send("http.request", {}))

        def received() -> Any:
            link.wait(DEADLINE)
            return link.receive_many(["http.request"], 1)

        assert wait_until(received)
        sender.join(DEADLINE)

    # Several at once.

    def test_many_are_sent_together_or_not_at_all(self) -> None:
        layer = self.layer()
        layer.send_many([("own", {"number": 1}), ("http.request", {"number": 2}), ("own", {"number": 3})])
        assert sorted(one["number"] for one in drain(layer, "own", "http.request")) == [1, 2, 3]
        with raises(InvalidMessage):
            layer.send_many([("own", {}), ("own", {"value": object()})])
        with raises(InvalidName):
            layer.send_many([("own", {}), ("not one", {})])
        layer.send_many([])
        assert drain(layer, "own", "http.request") == []

    # Capacity.

    def test_a_full_channel_refuses_until_one_is_received(self) -> None:
        layer = self.layer(capacity=3)
        for number in range(3):
            layer.send("http.request", {"number": number})
        with raises(layer.ChannelFull) as refused:
            layer.send("http.request", {"number": 3})
        assert "http.request" in refused.sentence
        layer.send("http.other", {})
        assert layer.receive(["http.request"])[1] == {"number": 0}
        layer.send("http.request", {"number": 4})
        assert [one["number"] for one in drain(layer, "http.request")] == [1, 2, 4]

    def test_capacity_goes_by_name_and_by_pattern(self) -> None:
        capacities = {"http.request": 1, "http.*": 2, "mail": 1, "reports.*": 2, "free.*": None}
        layer = self.layer(capacity=3, channel_capacity=capacities)
        expected = {"http.request": 1, "http.other": 2, "mail": 1, "reports.daily": 2, "websocket.receive": 3}
        for channel, capacity in expected.items():
            for _ in range(capacity):
                layer.send(channel, {})
            with raises(layer.ChannelFull):
                layer.send(channel, {})
        for channel in ("own", "free.one"):
            for _ in range(5):
                layer.send(channel, {})

    def test_process_specific_channels_share_a_capacity(self) -> None:
        layer = self.layer(channel_capacity={"reply.*": 2})
        layer.send("reply.a!b", {})
        layer.send("reply.a!c", {})
        with raises(layer.ChannelFull):
            layer.send("reply.a!d", {})
        layer.send("reply.b!b", {})

    def test_when_one_channel_is_full_nothing_is_sent(self) -> None:
        layer = self.layer(capacity=1)
        layer.send("http.full", {"number": 0})
        sends = [("http.roomy", {}), ("own", {}), ("http.full", {}), ("reply.a!b", {})]
        with raises(layer.ChannelFull):
            layer.send_many(sends)
        assert [waiting(layer, name) for name, _ in sends] == [0, 0, 1, 0]

    def test_a_batch_is_never_cut(self) -> None:
        layer = self.layer(capacity=3)
        try:
            layer.send_many(("http.request", {}) for _ in range(5))
        except layer.ChannelFull:
            assert waiting(layer, "http.request") == 0
        else:
            assert waiting(layer, "http.request") == 5

    def test_a_link_returns_the_sends_to_full_channels(self) -> None:
        layer = self.layer(capacity=1)
        layer.send("http.full", {})
        link = self.link(layer)
        assert link.apply([]) == []
        sends = [layer.make_send(name, {}) for name in ("http.roomy", "http.full", "reply.a!b")]
        assert [send.channel for send in link.apply([GroupAdd("group", "own"), *sends])] == ["http.full"]
        assert [waiting(layer, name) for name in ("http.roomy", "http.full", "reply.a!")] == [1, 1, 1]
        assert layer.group_channels("group") == ["own"]

    # Expiry and delay.

    def test_unread_protocol_messages_expire(self) -> None:
        layer = self.layer(expiry=SOON)
        for channel in ("http.request", "body?x", "reply.a!b", "own"):
            layer.send(channel, {})
        wait_until(lambda: layer.global_statistics()["messages_pending"] == 1)
        assert layer.receive(["http.request", "body?x", "reply.a!"]) == (None, None)
        assert layer.receive(["own"]) == ("own", {})

    def test_expired_messages_make_room(self) -> None:
        layer, link = self.layer_and_link(expiry=SOON, capacity=1)
        layer.send("http.request", {"number": 1})

        def sent() -> bool:
            link.clean_up()
            try:
                layer.send("http.request", {"number": 2})
            except layer.ChannelFull:
                return False
            return True

        wait_until(sent)

    def test_what_is_withdrawn_is_not_received(self) -> None:
        layer, link = self.layer_and_link()
        for channel in ("http.request", "http.disconnect"):
            for local in ("b", "c", "d"):
                layer.send(channel, {"reply_channel": f"reply.a!{local}"})
        assert drain(layer, "http.disconnect") and layer.receive(["http.request"])[0]
        layer.send("http.disconnect", {"reply_channel": "reply.a!c"})
        taken, waits, never = (Withdraw("http.request", f"reply.a!{local}") for local in ("b", "c", "e"))
        assert link.apply([taken, waits, never]) == []
        assert drain(layer, "http.request") == [{"reply_channel": "reply.a!d"}]
        assert drain(layer, "http.disconnect") == [{"reply_channel": "reply.a!c"}]

    def test_a_delayed_message_comes_when_it_is_due(self) -> None:
        layer = self.layer()
        layer.send("own", {"number": 1}, delay=SOON)
        layer.send("own", {"number": 2}, delay=timedelta(milliseconds=50))
        layer.send("own", {"number": 3}, delay=3600)
        layer.send("own", {"number": 4}, delay=timedelta(hours=1))
        layer.send("own", {"number": 5})
        received = {wait_until(lambda: layer.receive(["own"])[1])["number"] for _ in range(3)}
        assert received == {1, 2, 5}
        assert layer.receive(["own"]) == (None, None)

    def test_protocol_messages_cannot_be_delayed(self) -> None:
        layer = self.layer()
        for channel in ("http.request", "websocket.receive", "body?x", "reply.a!b"):
            with raises(InvalidMessage) as refused:
                layer.send(channel, {}, delay=1)
            assert channel in refused.sentence
        assert layer.global_statistics()["messages_pending"] == 0

    # The whole layer.

    def test_flush_empties_the_layer(self) -> None:
        layer = self.layer()
        for channel in ("own", "http.request", "body?x", "reply.a!b"):
            layer.send(channel, {})
            layer.group_add("group", channel)
        layer.send("own", {}, delay=3600)
        layer.flush()
        assert layer.receive(["own", "http.request", "body?x", "reply.a!"]) == (None, None)
        assert layer.group_channels("group") == []
        assert layer.global_statistics()["messages_pending"] == 0

    def test_statistics_count_what_waits(self) -> None:
        layer = self.layer()
        nothing = {"messages_pending": 0, "messages_in_flight": 0, "messages_max_age": 0}
        assert layer.global_statistics() == nothing
        layer.send_many([("own", {}), ("own", {}), ("http.request", {})])
        wait_until(lambda: layer.channel_statistics("own")["messages_max_age"] > 0.01)
        assert layer.global_statistics()["messages_pending"] == 3
        assert layer.channel_statistics("own")["messages_pending"] == 2
        assert layer.channel_statistics("http.request")["messages_pending"] == 1
        assert layer.channel_statistics("empty") == nothing
        layer.receive(["own"])
        assert layer.channel_statistics("own")["messages_pending"] == 1

    def test_the_layer_says_what_it_is(self) -> None:
        layer = self.layer()
        layer.check()
        assert layer.describe()
        assert {"groups", "flush", "statistics"} <= set(layer.extensions)

    # Transactions.

    def test_what_is_rolled_back_was_never_sent(self) -> None:
        layer = self.layer()
        if layer.transactional:
            for channel in ("own", "http.request", "reply.a!b"):
                with transaction.atomic(using=layer.database):
                    layer.send(channel, {})
                    layer.group_add("group", channel)
                    transaction.set_rollback(True, using=layer.database)
            assert layer.global_statistics()["messages_pending"] == 0
            assert layer.group_channels("group") == []

    def test_what_is_sent_in_a_transaction_comes_at_commit(self) -> None:
        layer = self.layer()
        if layer.transactional:
            link = self.link(layer)
            seen: list[Any] = []
            with transaction.atomic(using=layer.database):
                layer.send("http.request", {})
                reader = in_thread(layer, lambda: seen.append(link.receive_many(["http.request"], 1)))
                reader.join(DEADLINE)
            assert seen == [[]]
            assert len(link.receive_many(["http.request"], 1)) == 1
