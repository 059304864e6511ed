"""ChannelTestCase: sends obey transactions, consumers run when they are told to, failures say what was sent."""

from __future__ import annotations

import traceback
from datetime import timedelta
from unittest import mock

import pytest
from django.contrib.auth.models import Group as Model
from django.db import connections, transaction
from django.test import override_settings

from dbchannels import Channel, Group, InvalidMessage, channel_layers, signals
from dbchannels.testing import ChannelTestCase, ChannelTransactionTestCase, use_channels
from dbchannels.worker.worker import Worker
from tests.testing.site import ROUTING


class Rollback(Exception):
    """Leave an atomic block."""


def sent(case):
    """Return what was sent to the channel "a", from its contents."""
    return [one["n"] for one in case.messages if one.channel == "a"]


@override_settings(DBCHANNELS=ROUTING)
class Sending(ChannelTestCase):
    databases = frozenset({"default", "sqlite"})

    @classmethod
    def setUpTestData(cls):
        Channel("a").send({"n": "of the class"})

    def setUp(self):
        block = self.captureMessages()
        self.messages = block.__enter__()
        self.addCleanup(block.__exit__, None, None, None)

    def send(self, *numbers):
        for number in numbers:
            Channel("a").send({"n": number})

    def test_what_is_sent_in_the_test_is_sent_at_once(self):
        self.send(1, 2)
        assert sent(self) == [1, 2]
        assert self.channels.layer.receive(["a"]) == ("a", {"n": 1})

    def test_what_is_sent_in_a_block_is_sent_when_the_outermost_ends(self):
        with transaction.atomic():
            self.send(1)
            with transaction.atomic():
                self.send(2)
            assert sent(self) == []
            assert self.channels.layer.receive(["a"]) == (None, None)
        assert sent(self) == [1, 2]
        assert self.channels.layer.receive(["a"]) == ("a", {"n": 1})

    def test_what_is_sent_in_a_block_that_is_rolled_back_is_never_sent(self):
        with transaction.atomic():
            self.send(1)
            with pytest.raises(Rollback), transaction.atomic():
                self.send(2)
                with transaction.atomic():
                    self.send(3)
                raise Rollback
            self.send(4)
        with pytest.raises(Rollback), transaction.atomic():
            self.send(5)
            raise Rollback
        assert sent(self) == [1, 4]
        assert [self.channels.layer.receive(["a"])[1] for _ in range(3)] == [{"n": 1}, {"n": 4}, None]

    def test_one_decorated_function_is_a_new_block_at_each_call(self):
        @transaction.atomic
        def change(number):
            Group("g").add(f"r!{number}")
            self.send(number)
            return Group("g").channels()

        assert [change(1), change(2)] == [["r!1"], ["r!1", "r!2"]]
        assert sent(self) == [1, 2]

    def test_groups_obey_transactions_too(self):
        Group("g").add("r!1")
        with pytest.raises(Rollback), transaction.atomic():
            Group("g").discard("r!1")
            Group("g").add("r!2")
            assert Group("g").channels() == ["r!2"]
            raise Rollback
        assert Group("g").channels() == ["r!1"]
        with transaction.atomic():
            Group("g").clear()
        assert Group("g").channels() == []

    def test_the_transaction_of_another_database_holds_back_too(self):
        with transaction.atomic(using="sqlite"):
            self.send(1)
            assert sent(self) == []
        assert sent(self) == [1]
        with pytest.raises(Rollback), transaction.atomic(using="sqlite"):
            self.send(2)
            raise Rollback
        assert sent(self) == [1]

    def test_a_view_is_one_more_function_that_sends(self):
        with override_settings(ROOT_URLCONF="tests.testing.urls"):
            assert self.client.get("/send/").status_code == 200
            with pytest.raises(ValueError, match="view failed"):
                self.client.get("/fail/")
        assert sent(self) == ["view"]

    def test_what_cannot_be_sent_is_refused_as_ever(self):
        with pytest.raises(InvalidMessage, match="sorted"):
            Channel("a").send({"n": {1, 2}})

    def test_each_test_begins_with_nothing(self):
        assert self.channels.layer.global_statistics()["messages_pending"] == 0
        assert channel_layers["default"] is self.channels.layer
        assert channel_layers["second"] is self.channels.layers["second"]


@override_settings(DBCHANNELS=ROUTING)
class Asserting(ChannelTestCase):
    def test_the_message_that_was_sent_comes_back_with_its_options(self):
        Channel("work", delay=timedelta(hours=1), priority=3, unique="u").send({"step": 1, "who": "ann"})
        found = self.assertSent("work", step=1)
        assert (found.delay, found.priority, found.unique) == (timedelta(hours=1), 3, "u")
        assert found.content == {"step": 1, "who": "ann"}
        assert self.assertSent(Channel("work"), who=mock.ANY) is found
        self.assertNotSent("work", step=2)
        self.assertNotSent("other")

    def test_what_was_sent_to_a_group_is_told_from_a_channel(self):
        Group("g").send({"text": "hi"})
        assert self.assertSent(Group("g"), text="hi").group == "g"
        self.assertNotSent("g")

    def test_the_failure_shows_what_was_sent_the_nearest_first(self):
        Channel("thumbs").send({"step": 7})
        Channel("work").send({"other": 1})
        Channel("work").send({"step": 7, "who": "ann"})
        with pytest.raises(AssertionError) as raised:
            self.assertSent("work", step=8, who="ann")
        assert str(raised.value).splitlines() == [
            "No message was sent to work with step=8, who='ann'.",
            "3 messages went elsewhere or said something else, the nearest first:",
            "  work {'step': 7, 'who': 'ann'}  (step is 7)",
            "  work {'other': 1}  (step is missing; who is missing)",
            "  thumbs {'step': 7}",
        ]

    def test_the_failure_shows_ten_messages_at_most(self):
        for step in range(12):
            Channel("work").send({"step": step})
        with pytest.raises(AssertionError) as raised:
            self.assertSent("works")
        lines = str(raised.value).splitlines()
        assert len(lines) == 13
        assert lines[-1] == "  and 2 more"

    def test_values_are_compared_as_messages_carry_them(self):
        Channel("work").send({"sizes": (1, 2), "at": {"x": (3,)}})
        self.assertSent("work", sizes=(1, 2), at={"x": [3]})
        self.assertNotSent("work", sizes=(2, 1))

    def test_the_failure_tells_of_an_open_block(self):
        with transaction.atomic():
            Channel("work").send({"step": 1})
            with pytest.raises(AssertionError, match="1 message will be sent when an open atomic"):
                self.assertSent("work")
        self.assertSent("work")

    def test_the_failure_shows_a_message_that_should_not_be(self):
        Channel("work", delay=5).send({"step": 1})
        with pytest.raises(AssertionError, match=r"work with step=1: work \{'step': 1\}, delay 0:00:05"):
            self.assertNotSent("work", step=1)

    def test_captured_is_what_is_sent_in_the_block(self):
        Channel("a").send({})
        with self.captureMessages() as messages:
            Channel("b").send({"n": 1})
            Group("g").send({"n": 2})
        Channel("c").send({})
        assert [(one.channel, one.group, one["n"]) for one in messages] == [("b", "", 1), ("", "g", 2)]
        assert len(messages) == 2 and messages[0].get("missing") is None


@override_settings(DBCHANNELS=ROUTING)
class Draining(ChannelTestCase):
    def test_consumers_run_in_order_until_nothing_waits(self):
        Channel("work").send({"step": 1})
        Channel("exact").send({})
        Channel("work").send({"step": 3})
        with self.captureMessages() as messages:
            with pytest.raises(RuntimeError):
                self.drain()
            assert self.drain() == 3
        assert [(one.channel, one.content) for one in messages] == [
            ("work", {"step": 2}),
            ("done", {"steps": 3}),
            ("work", {"step": 3}),
            ("done", {"steps": 3}),
        ]

    def test_the_highest_priority_of_a_channel_goes_first(self):
        for step, priority in ((5, 0), (6, 1)):
            Channel("work", priority=priority).send({"step": step})
        with self.captureMessages() as messages:
            self.drain()
        assert [one["steps"] for one in messages] == [6, 5]

    def test_what_has_no_consumer_waits_on(self):
        Channel("unread").send({})
        assert self.drain() == 0
        assert self.channels.layer.channel_statistics("unread")["messages_pending"] == 1

    def test_what_a_consumer_raises_is_raised_from_where_it_was(self):
        Channel("flaky").send({})
        with pytest.raises(RuntimeError, match="attempt 1") as raised:
            self.drain()
        assert traceback.extract_tb(raised.value.__traceback__)[-1].name == "flaky"
        self.assertNotSent("done")

    def test_a_message_that_failed_is_tried_again_later_as_ever(self):
        Channel("flaky").send({})
        with self.assertLogs("dbchannels.worker", "ERROR") as logs:
            assert self.drain(delayed=True, raise_exception=False) == 3
        assert len(logs.records) == 2
        assert self.assertSent("done").content == {"attempt": 3}

    def test_one_that_has_failed_for_good_is_a_dead_letter_that_runs_again(self):
        Channel("broken").send({})
        for _ in range(2):
            with pytest.raises(RuntimeError, match="broken"):
                self.drain(delayed=True)
            (number,) = self.channels.layer.dead_letter_ids(["broken"])
            assert self.drain(delayed=True) == 0
            assert self.channels.layer.replay([number]) == 1

    def test_a_dead_letter_is_told_of_and_a_failure_that_is_tried_again_is_not(self):
        told = mock.Mock()
        signals.message_dead.connect(told)
        self.addCleanup(signals.message_dead.disconnect, told)
        Channel("flaky").send({})
        Channel("broken").send({"number": 7})
        with self.assertLogs("dbchannels.worker", "ERROR"):
            self.drain(delayed=True, raise_exception=False)
        (call,) = told.call_args_list
        assert (call.kwargs["sender"], call.kwargs["channel"]) == (Worker, "broken")
        assert (call.kwargs["content"], call.kwargs["attempts"]) == ({"number": 7}, 1)

    def test_an_atomic_consumer_leaves_nothing_of_an_attempt_that_fails(self):
        Channel("exact").send({})
        with pytest.raises(RuntimeError, match="after the row"):
            self.drain()
        assert self.drain(delayed=True) == 1
        assert list(Model.objects.values_list("name", flat=True)) == ["exact 2"]
        assert self.channels.layer.global_statistics()["messages_in_flight"] == 0

    def test_delayed_messages_wait_for_their_time(self):
        Channel("work", delay=timedelta(hours=1)).send({"step": 3})
        assert self.drain() == 0
        self.advance(timedelta(minutes=59))
        assert self.drain() == 0
        self.advance(60)
        assert self.drain() == 1
        Channel("work", delay=timedelta(days=1)).send({"step": 2})
        assert self.drain(delayed=True) == 2

    def test_an_endless_consumer_is_stopped_with_its_name(self):
        Channel("loop").send({})
        with pytest.raises(
            AssertionError, match=r"^20 messages ran and more wait on loop: correct the consumer"
        ):
            self.drain(limit=20)

    def test_one_that_is_endless_by_delays_too(self):
        Channel("tick").send({})
        assert self.drain() == 1
        with pytest.raises(AssertionError, match=r"^5 messages ran and more wait on tick:"):
            self.drain(delayed=True, limit=5)
        assert self.channels.layer.clock() == 5 * 3600

    def test_as_many_as_the_limit_are_no_failure(self):
        Channel("work").send({"step": 1})
        Channel("unread", delay=5).send({})
        assert self.drain(limit=3, delayed=True) == 3


@override_settings(DBCHANNELS=ROUTING)
class Committing(ChannelTransactionTestCase):
    def test_what_is_sent_in_a_block_is_sent_at_commit(self):
        with transaction.atomic():
            Channel("a").send({"n": 1})
            self.assertNotSent("a")
        self.assertSent("a", n=1)

    def test_a_rollback_takes_it_along(self):
        with pytest.raises(Rollback), transaction.atomic():
            Channel("a").send({"n": 1})
            raise Rollback
        self.assertNotSent("a")

    def test_a_consumers_writes_are_committed(self):
        Channel("exact").send({})
        with pytest.raises(RuntimeError):
            self.drain()
        self.drain(delayed=True)
        assert list(Model.objects.values_list("name", flat=True)) == ["exact 2"]
        assert not connections["default"].in_atomic_block


class TestSwapping:
    def test_the_layers_of_before_are_back_afterwards(self):
        with override_settings(DBCHANNELS={"default": {"BACKEND": "memory"}}):
            channel_layers.clear()
            before = channel_layers["default"]
            with use_channels() as outer:
                with use_channels() as inner:
                    Channel("a").send({})
                    assert channel_layers["default"] is inner.layer
                outer.assertNotSent("a")
                inner.assertSent("a")
            assert channel_layers["default"] is before
            channel_layers.clear()
