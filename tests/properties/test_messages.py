"""Names and values: what is taken arrives as it was through every layer, and all else is one clear sentence."""

from __future__ import annotations

import datetime
import decimal
import math
import re
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dbchannels import codec, names
from dbchannels.exceptions import InvalidMessage, InvalidName
from dbchannels.testing.contract.case import raises
from dbchannels.testing.contract.messages import exact
from tests.profiles import examples

few = examples(15)
many = examples(150)

ORDINARY = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
part = st.text(ORDINARY, min_size=1, max_size=49)
channels = st.one_of(
    part,
    st.text(ORDINARY, min_size=100, max_size=100),
    st.builds("{}{}{}".format, part, st.sampled_from("!?"), st.text(ORDINARY, max_size=50)),
)
anything = st.one_of(channels, st.text(max_size=102), st.none(), st.integers(), st.binary(max_size=5))

whole = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([-(2**63), 2**63 - 1]))
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10), st.sampled_from(["\0", "\U0001f40d"])
)
plain = st.one_of(texts, whole, st.binary(max_size=10), st.floats(), st.booleans(), st.none())
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4)
)
messages = st.dictionaries(texts, values, max_size=4)

odd = st.one_of(
    plain,
    st.sampled_from(
        ["\ud83d", "half \udc80", 2**63, -(2**63) - 1, 10**30, 1j, range(3), object(), bytearray(b"x")]
    ),
    st.builds(datetime.datetime.now),
    st.builds(uuid.uuid4),
    st.builds(decimal.Decimal),
)
keys = st.one_of(texts, st.sampled_from(["\ud83d", 7, b"k", None, ("a",)]))
oddities = st.recursive(
    odd,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner),
        st.dictionaries(keys, inner, max_size=3),
        st.frozensets(st.integers(), max_size=2),
        inner.map(lambda value: deep(value, 62)),
    ),
    max_leaves=8,
)


#: At a limit or just beyond it; by chance they would come up once in many hundred examples.
EDGES = [
    2**63 - 1,
    2**63,
    -(2**63),
    -(2**63) - 1,
    "\0",
    "\ud83d",
    "\U0001f40d",
    math.nan,
    bytearray(b"x"),
    {1},
    {7: 1},
]


def deep(value, levels):
    """Return a value inside so many lists."""
    for _ in range(levels):
        value = [value]
    return value


# The rules, told another way than the package does.


def is_channel(name):
    """Whether a channel can be called so: characters counted, not matched."""
    if not isinstance(name, str) or not 0 < len(name) <= 100 or name[0] in "!?":
        return False
    return sum(character in "!?" for character in name) <= 1 and all(one in ORDINARY + "!?" for one in name)


def can_be_sent(value, levels=64):
    """Whether a message can hold this so far down."""
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return levels > 0 and all(
            isinstance(key, str) and can_be_sent(key) and can_be_sent(one, levels - 1)
            for key, one in value.items()
        )
    if isinstance(value, (list, tuple)):
        return levels > 0 and all(can_be_sent(one, levels - 1) for one in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return -(2**63) <= value < 2**63
    return value is None or type(value) in (bool, float, bytes)


def as_received(value):
    """Return what comes of a value: a tuple is a list."""
    if isinstance(value, dict):
        return {key: as_received(one) for key, one in value.items()}
    return [as_received(one) for one in value] if isinstance(value, (list, tuple)) else value


@many
@given(anything)
def test_a_name_is_taken_by_its_characters_and_all_else_is_one_sentence(name):
    if is_channel(name):
        assert names.check_channel_name(name) == name
        return
    with raises(InvalidName) as refused:
        names.check_channel_name(name)
    assert refused.sentence.isascii() and len(refused.sentence) < 250


def with_examples(test):
    """Have a test take each edge too, alone, beside others and as deep as can be and deeper."""
    for edge in [*EDGES, deep(0, 63), deep(0, 64)]:
        for message in ({"value": edge}, {"list": [0, {"value": (edge,)}]}, {"deep": deep(edge, 62)}):
            test = example(message)(test)
    return test


@many
@with_examples
@given(st.dictionaries(keys, oddities, max_size=3))
def test_a_message_is_carried_whole_or_refused_with_one_sentence(message):
    if can_be_sent(message):
        assert exact(codec.decode(codec.encode(message))) == exact(as_received(message))
        return
    with raises(InvalidMessage) as refused:
        codec.encode(message)
    assert re.match(r"(A key of )?message", refused.sentence)


def test_the_rule_of_the_test_refuses_and_takes():
    assert can_be_sent({"value": math.nan}) and can_be_sent({"value": deep(0, 63)})
    assert not can_be_sent({"value": deep(0, 64)}) and not can_be_sent({"value": {1}})


# Through each layer.


def test_every_name_gives_back_what_was_sent_to_it(layer):
    @few
    @given(channels)
    def arrives(name):
        queue = name.partition("!")[0] + "!" if "!" in name else name
        layer.send(name, {"to": name})
        layer.group_add("group", name)
        layer.send_group("group", {"by": "group"})
        assert layer.group_channels("group") == [name]
        layer.group_discard("group", name)
        received = [layer.receive([queue]) for _ in range(3)]
        assert received == [(name, {"to": name}), (name, {"by": "group"}), (None, None)]

    arrives()


@pytest.mark.parametrize("channel", ["own", "http.request"])
def test_every_message_arrives_as_it_was(layer, channel):
    @few
    @given(messages)
    def arrives(message):
        message.pop("reply_channel", None)
        layer.send(channel, message)
        layer.send_many([(channel, message), (channel, message)])
        received = [layer.receive([channel])[1] for _ in range(3)]
        assert [exact(one) for one in received] == [exact(message)] * 3

    arrives()
