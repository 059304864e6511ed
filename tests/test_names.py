"""Names: the rules, and the parts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbchannels import names
from dbchannels.exceptions import InvalidName
from dbchannels.testing.contract.case import raises
from dbchannels.testing.contract.messages import CHANNELS, NO_CHANNELS

PART = "[A-Za-z0-9_.-]"
groups = st.from_regex(rf"\A{PART}{{1,100}}\Z")
channels = st.from_regex(rf"\A{PART}{{1,50}}([!?]{PART}{{0,49}})?\Z")
near_misses = st.text(alphabet="aZ09-_.!?\n \u0663\u00e9'%", max_size=105)


@given(channels)
def test_channels_by_the_rules_are_taken(name):
    assert names.check_channel_name(name) == name


@given(groups)
def test_groups_by_the_rules_are_taken(name):
    assert names.check_group_name(name) == names.check_channel_name(name) == name


@given(near_misses)
def test_what_is_taken_is_by_the_rules(name):
    """The rules said another way: characters counted, not matched."""
    marks = sum(name.count(mark) for mark in "!?")
    plain = name.replace("!", "").replace("?", "")
    ordinary = all(character.isascii() and (character.isalnum() or character in "-_.") for character in plain)
    fits = 0 < len(name) <= 100 and ordinary and name[0] not in "!?"
    assert taken(names.check_channel_name, name) == (fits and marks <= 1)
    assert taken(names.check_group_name, name) == (fits and marks == 0)


def taken(check, name):
    """Whether a check lets a name pass."""
    try:
        return check(name) == name
    except InvalidName:
        return False


@pytest.mark.parametrize("name", CHANNELS)
def test_good_channels(name):
    assert names.check_channel_name(name) == name


@pytest.mark.parametrize("name", NO_CHANNELS, ids=ascii)
@pytest.mark.parametrize("check", [names.check_channel_name, names.check_group_name, names.check_receivable])
def test_bad_names(check, name):
    with raises(InvalidName) as refused:
        check(name)
    assert len(refused.sentence) < 250
    assert refused.sentence.isascii()


def test_the_sentence_says_which_rule():
    for name, words in {
        "n" * 101: "at most 100 characters, and this one has 101",
        7: "must be a str, not int: 7",
        "a\n": r"contains '\n' as character 2",
    }.items():
        with raises(InvalidName) as refused:
            names.check_channel_name(name)
        assert words in refused.sentence


def test_invalid_names_are_value_errors():
    assert issubclass(InvalidName, ValueError)


@given(channels)
def test_the_parts_make_the_whole(name):
    queue, local = names.split(name)
    assert queue + local == name
    assert not local or queue.endswith("!")
    assert names.split(queue) == (queue, "")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("reply.A!B", ("reply.A!", "B")),
        ("reply.A!", ("reply.A!", "")),
        ("body?x", ("body?x", "")),
        ("own", ("own", "")),
    ],
)
def test_parts(name, parts):
    assert names.split(name) == parts


@given(channels)
def test_a_reader_names_the_queue(name):
    queue, local = names.split(name)
    if local:
        with raises(InvalidName) as refused:
            names.check_receivable(name)
        assert f"Receive from {queue}, not from {name}" in refused.sentence
    else:
        assert names.check_receivable(name) == name


@pytest.mark.parametrize(
    "name", ["http.request", "http.", "websocket.receive", "a!", "a!b", "a?", "a?b", "http.a?b"]
)
def test_protocol_channels(name):
    assert names.is_protocol(name)


@pytest.mark.parametrize(
    "name", ["own", "http", "websocket", "https.request", "my.http.request", "websockets.x"]
)
def test_durable_channels(name):
    assert not names.is_protocol(name)


@given(st.from_regex(rf"\A{PART}{{1,77}}[!?]\Z"))
def test_new_names_extend_their_pattern(pattern):
    first, second = names.new_name(pattern), names.new_name(pattern)
    assert first != second
    assert re.fullmatch(re.escape(pattern) + "[A-Za-z0-9_-]{22}", first)
    assert names.check_channel_name(first) == first


@pytest.mark.parametrize("pattern", ["own", "a!b", "a?b", "", "!", "?", "a!?", "a!\n", None, "n" * 78 + "!"])
def test_other_patterns_make_no_names(pattern):
    with raises(InvalidName):
        names.new_name(pattern)


def test_random_parts_are_parts_of_names():
    parts = {names.random_part() for _ in range(1000)}
    assert len(parts) == 1000
    assert all(names.check_group_name(part) and len(part) == 22 for part in parts)
