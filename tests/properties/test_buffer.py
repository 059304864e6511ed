"""The order of buffered sends: what a consumer does in any order, against a list that says what must come of it."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from django.db import transaction
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from dbchannels.testing.contract.case import drain
from tests import kinds
from tests.profiles import examples

CHANNEL = "body?x"
GROUP = "group"
MEMBERS = ("body?x", "reply.a!b")


class Consumer(RuleBasedStateMachine):
    """One consumer, with what it sends, adds and discards outside of and inside ``atomic()``, blocks within blocks.

    The model is a list of operations in the order in which they must take effect. A block that is rolled back takes
    away what was done inside it, and nothing else.
    """

    layer = None

    def __init__(self):
        super().__init__()
        self.layer.flush()
        self.stack = ExitStack()
        self.buffer = self.stack.enter_context(self.layer.buffered())
        self.number = 0
        self.expected = []
        self.blocks = []  # of each open block: the transaction, and what was expected when it began

    def next_number(self):
        self.number += 1
        return self.number

    @rule()
    def send(self):
        number = self.next_number()
        self.layer.send(CHANNEL, {"number": number})
        self.expected.append(("send", number))

    @rule(count=st.integers(0, 3))
    def send_many(self, count):
        numbers = [self.next_number() for _ in range(count)]
        self.layer.send_many([(CHANNEL, {"number": number}) for number in numbers])
        self.expected += [("send", number) for number in numbers]

    @rule(member=st.sampled_from(MEMBERS))
    def add(self, member):
        self.layer.group_add(GROUP, member)
        self.expected.append(("add", member))

    @rule(member=st.sampled_from(MEMBERS))
    def discard(self, member):
        self.layer.group_discard(GROUP, member)
        self.expected.append(("discard", member))

    @rule()
    def broadcast(self):
        number = self.next_number()
        self.layer.send_group(GROUP, {"number": number})
        self.expected.append(("broadcast", number))

    @rule()
    def refused(self):
        with pytest.raises(TypeError):
            self.layer.send_many([(CHANNEL, {"number": 0}), (CHANNEL, {"value": object()})])

    @precondition(lambda self: self.layer.transactional and len(self.blocks) < 3)
    @rule()
    def begin(self):
        block = transaction.atomic(using=self.layer.database)
        block.__enter__()
        self.blocks.append((block, len(self.expected)))

    @precondition(lambda self: self.blocks)
    @rule()
    def end(self):
        self.blocks.pop()[0].__exit__(None, None, None)

    @precondition(lambda self: self.blocks)
    @rule()
    def roll_back(self):
        block, length = self.blocks.pop()
        error = RuntimeError("the site's code")
        block.__exit__(RuntimeError, error, None)
        del self.expected[length:]

    def teardown(self):
        while self.blocks:
            self.end()
        self.stack.close()
        self.layer.write(self.buffer.pending())
        sent, replies, members = outcome(self.expected)
        assert [one["number"] for one in drain(self.layer, CHANNEL)] == sent
        assert [one["number"] for one in drain(self.layer, "reply.a!")] == replies
        assert sorted(self.layer.group_channels(GROUP)) == sorted(members)


def outcome(operations):
    """Return what each of the two channels gets, and who is in the group in the end."""
    received = {member: [] for member in MEMBERS}
    members = set()
    for verb, value in operations:
        if verb == "send":
            received[CHANNEL].append(value)
        elif verb == "broadcast":
            for member in members:
                received[member].append(value)
        elif verb == "add":
            members.add(value)
        else:
            members.discard(value)
    return received[MEMBERS[0]], received[MEMBERS[1]], members


@kinds.only("sqlite", "memory")
def test_what_a_consumer_does_takes_effect_in_its_order(layer):
    machine = type("Machine", (Consumer,), {"layer": layer})
    run_state_machine_as_test(
        machine,
        settings=examples(60, stateful_step_count=20),
    )
