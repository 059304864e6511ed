"""What each option of a layer takes, and what is said of other values."""

from __future__ import annotations

from datetime import timedelta

import pytest

from dbchannels import conf
from dbchannels.conf import RULES, value_problem
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.layers import ChannelLayers
from dbchannels.testing.contract.case import raises

NAN, INFINITY = float("nan"), float("inf")
NO_NUMBERS = ("10", b"10", None, True, False, NAN, INFINITY, -1, [10], {}, 10j, timedelta(1), 10**400)
#: Values that fit, and values that do not, beside those that fit no number.
VALUES = {
    "expiry": ([0.001, 60, 60.0, 315_360_000], [*NO_NUMBERS, 0, 315_360_001]),
    "group_expiry": ([0.5, 86_400], [*NO_NUMBERS, 0]),
    "capacity": ([None, 1, 10_000, 2**31 - 1], [*set(map(repr, NO_NUMBERS)), 0, -1, 1.5, True, 2**31, NAN]),
    "channel_capacity": (
        [{}, {"http.request": 200, "reports.*": None, "off": 0}],
        [None, [], "http.request", {"own": "5"}, {"own": -1}, {"own": 1.0}, {"own": True}, {7: 5}, {"": 5}],
    ),
    "max_message_size": ([1, 2**20, 2**28], [*NO_NUMBERS, 0, 1.5, 2**28 + 1]),
    "poll_interval": ([None, 0.001, 3600], ["1", True, NAN, INFINITY, 0, -1, 86_401, []]),
    "wakeups": ([True, False], [None, 0, 1, "yes", []]),
    "direct": (
        [{}, {"HOST": "db", "PORT": 5432}, {"PORT": "5432", "OPTIONS": {"sslmode": "require"}}],
        [None, "db", {"host": "db"}, {"HOST": None}, {"OPTIONS": "x"}, {"ENGINE": "x"}, [], {7: "x"}],
    ),
    "lease": ([0.5, 15, 86_400], [*NO_NUMBERS, 0, 0.4, 86_401]),
    "retries": ([0, 5, 32_000], [*NO_NUMBERS, 1.5, 32_001]),
    "soft_timeout": ([0, 0.5, 30], [*NO_NUMBERS, 315_360_001]),
    "hard_timeout": ([0, 600], [*NO_NUMBERS]),
}


def test_every_option_has_a_rule_that_its_default_keeps():
    assert set(RULES) == set(conf.OPTIONS) == set(VALUES)
    assert [value_problem(name, value, "") for name, value in conf.OPTIONS.items()] == [""] * len(RULES)


@pytest.mark.parametrize("name", VALUES)
def test_what_fits_is_taken(name):
    assert [value_problem(name, value, "here") for value in VALUES[name][0]] == [""] * len(VALUES[name][0])


@pytest.mark.parametrize("name", VALUES)
def test_another_value_is_one_sentence_that_says_what_to_write(name):
    for value in VALUES[name][1]:
        sentence = value_problem(name, value, "here")
        assert sentence.startswith(f"here[{name!r}] is ") and sentence.endswith("."), (value, sentence)
        assert f": write {RULES[name].write}" in sentence
        assert "\n" not in sentence and len(sentence) < 250


def test_no_password_is_shown():
    assert "secret" not in value_problem("direct", {"PASSWORD": "secret", "hots": "db"}, "here")


def test_the_first_use_of_a_layer_says_it(settings):
    settings.DBCHANNELS = {"default": {"BACKEND": "memory", "OPTIONS": {"capacity": "10"}}}
    with raises(InvalidConfiguration) as refused:
        ChannelLayers()["default"]
    assert refused.sentence.startswith(
        "DBCHANNELS['default']['OPTIONS']['capacity'] is '10': write a whole number"
    )
