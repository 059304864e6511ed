"""Messages as bytes, and what is refused."""

from __future__ import annotations

import collections
import datetime

import msgpack
import pytest
from django.contrib.auth.models import User
from django.utils.functional import lazystr
from django.utils.safestring import mark_safe
from hypothesis import given
from hypothesis import strategies as st

from dbchannels import codec
from dbchannels.exceptions import InvalidMessage, MessageTooLarge, UnreadableMessage
from dbchannels.testing.contract.case import raises
from dbchannels.testing.contract.messages import REFUSED, VALUES, Color, exact

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
leaves = st.one_of(
    texts, st.binary(max_size=20), st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans(), st.none()
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=20,
)
messages = st.dictionaries(texts, values, max_size=5)


@given(messages)
def test_every_message_comes_back_as_it_was(message):
    payload = codec.encode(message)
    assert exact(codec.decode(payload)) == exact(message)
    assert codec.encode_trusted(message) == payload


@given(st.dictionaries(texts, leaves, max_size=20), st.integers(0, 2**63 - 1))
def test_a_field_is_added_to_what_is_encoded_already(message, value):
    payload = codec.with_field(codec.encode(message), "finished", value)
    if payload is None:
        assert not message or len(message) >= 15
    else:
        assert exact(codec.decode(payload)) == exact({**message, "finished": value})


def test_databases_may_give_a_memoryview():
    assert codec.decode(memoryview(codec.encode({"text": "hi"}))) == {"text": "hi"}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_values(value):
    assert exact(codec.decode(codec.encode({"value": value}))) == exact({"value": value})


def test_relatives_become_the_plain_type():
    message = collections.OrderedDict(
        pair=(1, (2,)),
        safe=mark_safe("<b>"),
        number=Color.RED,
        point=collections.namedtuple("P", "x y")(1, 2),
    )
    expected = {"pair": [1, [2]], "safe": "<b>", "number": 3, "point": [1, 2]}
    assert exact(codec.decode(codec.encode(message))) == exact(expected)


@pytest.mark.parametrize(("value", "word"), REFUSED.values(), ids=REFUSED)
def test_other_values_are_refused(value, word):
    for message in ({"value": value}, {"list": [0, {"value": value}]}):
        with raises(InvalidMessage) as refused:
            codec.encode(message)
        assert word in refused.sentence


def test_the_sentence_says_where():
    with raises(InvalidMessage) as refused:
        codec.encode({"users": [{"born": datetime.date(2015, 1, 1)}]})
    assert refused.sentence == "message['users'][0]['born'] contains a date: send its isoformat() instead."


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (User(), "a User: send its primary key"),
        (frozenset(), "a frozenset: send sorted(...) or list(...)"),
        (lazystr("later"), "a lazy text: send str(...) of it"),
        (range(3), "a range: send bytes, str, int"),
    ],
)
def test_the_sentence_says_what_to_send_instead(value, advice):
    with raises(InvalidMessage) as refused:
        codec.encode({"value": value})
    assert advice in refused.sentence


@pytest.mark.parametrize("message", [None, "text", b"bytes", 1, ["list"], (), {1}], ids=repr)
def test_a_message_is_a_dict(message):
    with raises(InvalidMessage) as refused:
        codec.encode(message)
    assert "A message must be a dict" in refused.sentence


def test_long_keys_and_values_are_cut_in_the_sentence():
    for message in ({"k" * 5000: object()}, {("k",) * 5000: 1}):
        with raises(InvalidMessage) as refused:
            codec.encode(message)
        assert len(refused.sentence) < 200


def nested(depth):
    """Return a message with so many levels below it."""
    value = 0
    for _ in range(depth):
        value = [value]
    return {"value": value}


def test_nesting_has_a_limit():
    deepest = nested(codec.MAX_DEPTH - 1)
    assert codec.decode(codec.encode(deepest)) == deepest
    with raises(InvalidMessage) as refused:
        codec.encode(nested(codec.MAX_DEPTH))
    assert "deeper than 64 levels" in refused.sentence


@pytest.mark.parametrize("carried", [{"text": "x" * 1000}, {"text": "é" * 500}, {"bytes": bytes(1000)}])
@pytest.mark.parametrize("envelope", [{}, {"path": "/" + "x" * 8000, "headers": [["a", "b" * 8000]] * 6}])
def test_the_limit_is_of_what_a_message_carries(carried, envelope):
    message = {**envelope, **carried}
    assert codec.decode(codec.encode(message, 1000)) == message
    with raises(MessageTooLarge) as refused:
        codec.encode(message, 999)
    assert "1000 bytes and the limit is 999" in refused.sentence


def test_what_stands_beside_it_has_64_kib():
    most = {"content": b"x" * 1000, "other": bytes(60_000)}
    most["other"] += bytes(1000 + codec.ENVELOPE - len(codec.encode(most)))
    assert len(codec.encode(most, 1000)) == 1000 + codec.ENVELOPE
    with raises(MessageTooLarge) as refused:
        codec.encode({**most, "other": most["other"] + b"x"}, 1000)
    assert f"{1001 + codec.ENVELOPE} bytes and the limit is {1000 + codec.ENVELOPE}" in refused.sentence


@given(st.binary(max_size=200))
def test_foreign_bytes_are_a_value_error(payload):
    """A row that somebody else wrote must not run code, nor end a worker with an error of another kind."""
    try:
        codec.decode(payload)
    except ValueError:
        pass
    except msgpack.exceptions.UnpackException as error:
        pytest.fail(f"{error!r} is no ValueError")


def test_an_error_without_words_is_named():
    with raises(UnreadableMessage) as refused:
        codec.decode(b"\xc1")
    assert refused.sentence.startswith("The payload cannot be decoded ('FormatError')")
