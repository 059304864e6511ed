"""The DBCHANNELS setting."""

from __future__ import annotations

from datetime import timedelta

import pytest

from dbchannels import conf
from dbchannels.conf import RULES, value_problem
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.layers import ChannelLayers
from dbchannels.testing.contract.case import raises


def problems(settings, value):
    """Return what is said of a setting."""
    settings.DBCHANNELS = value
    return conf.problems()


def test_none_is_needed(settings):
    del settings.DBCHANNELS
    assert conf.problems() == []
    layer = conf.layer_settings()
    assert layer == ("default", None, "default", None, conf.OPTIONS)
    assert layer.options is not conf.OPTIONS


def test_what_is_not_given_has_its_default(settings):
    settings.DBCHANNELS = {"default": {"ROUTING": "site.routing", "OPTIONS": {"capacity": 5}}}
    layer = conf.layer_settings()
    assert (layer.backend, layer.database, layer.routing) == (None, "default", "site.routing")
    assert layer.options == {**conf.OPTIONS, "capacity": 5}


def test_defaults_are_what_the_documentation_says():
    assert conf.OPTIONS == {
        "expiry": 60,
        "group_expiry": 86_400,
        "history_expiry": 604_800,
        "result_ttl": 86_400,
        "capacity": 10_000,
        "channel_capacity": {},
        "max_message_size": 2**20,
        "poll_interval": None,
        "wakeups": True,
        "direct": {},
        "lease": 15,
        "retries": 5,
        "soft_timeout": 30,
        "hard_timeout": 600,
    }


@pytest.mark.parametrize("short", conf.SHORT_BACKENDS)
def test_short_names_of_backends(settings, short):
    settings.DBCHANNELS = {"default": {"BACKEND": short}}
    assert conf.problems() == []
    assert conf.layer_settings().backend == conf.SHORT_BACKENDS[short]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"BACKENDS": "memory"}, ["DBCHANNELS['default']", "'BACKENDS'", "'BACKEND'"]),
        ({"routing": "x"}, ["'routing'", "'ROUTING'"]),
        ({"OPTION": {}}, ["'OPTION'", "'OPTIONS'"]),
        ({"zzz": 1}, ["'zzz'", "BACKEND, DATABASE, ROUTING, OPTIONS"]),
        ({7: 1}, ["7", "BACKEND, DATABASE, ROUTING, OPTIONS"]),
        ({"OPTIONS": {"expire": 1}}, ["['OPTIONS']", "'expire'", "'expiry'"]),
        ({"OPTIONS": {"Capacity": 1}}, ["'Capacity'", "'capacity'"]),
        ({"OPTIONS": {"channel_capacities": {}}}, ["'channel_capacities'", "'channel_capacity'"]),
        ({"OPTIONS": {"pol_interval": 1}, "BACKEND": "database"}, ["'pol_interval'", "'poll_interval'"]),
        ({"OPTIONS": None}, ["['OPTIONS'] must be a dict"]),
        ({"OPTIONS": [("expiry", 1)]}, ["['OPTIONS'] must be a dict"]),
        ({"DATABASE": "elsewhere"}, ["['DATABASE']", "'elsewhere'", "DATABASES"]),
        ({"DATABASE": ["default"]}, ["['DATABASE']", "['default']", "DATABASES"]),
        ({"DATABASE": None}, ["['DATABASE']", "None", "DATABASES"]),
        ({"BACKEND": "redis"}, ["['BACKEND']", "'redis'", "memory", "dotted name"]),
        ({"BACKEND": ["memory"]}, ["['BACKEND']", "['memory']", "memory"]),
        ({"BACKEND": conf.LayerSettings}, ["['BACKEND']", "dotted name"]),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(settings, entry, words):
    (sentence,) = problems(settings, {"default": entry})
    assert all(word in sentence for word in words), sentence
    assert sentence.endswith(".")
    with raises(InvalidConfiguration) as refused:
        conf.layer_settings()
    assert refused.sentence == sentence


def test_every_problem_is_found(settings):
    found = problems(settings, {"default": {"A": 1, "B": 2}, "other": {"OPTIONS": {"C": 3}, "DATABASE": "x"}})
    assert len(found) == 4


@pytest.mark.parametrize("value", [None, [], "memory", {"default": None}, {"BACKEND": "memory"}])
def test_another_shape_is_one_sentence(settings, value):
    assert problems(settings, value) == [
        "DBCHANNELS must be a dict of dicts, as CACHES is: {'default': {...}}."
    ]


def test_a_layer_of_your_own_has_options_of_its_own(settings):
    assert problems(settings, {"default": {"BACKEND": "site.Layer", "OPTIONS": {"shards": 3}}}) == []
    assert conf.layer_settings().options["shards"] == 3


def test_the_values_of_known_options_are_checked_for_it_too(settings):
    (sentence,) = problems(settings, {"default": {"BACKEND": "site.Layer", "OPTIONS": {"lease": "3"}}})
    assert sentence.startswith("DBCHANNELS['default']['OPTIONS']['lease'] is '3': write seconds")


def test_an_alias_that_is_not_there(settings):
    settings.DBCHANNELS = {"default": {}}
    with raises(InvalidConfiguration) as refused:
        conf.layer_settings("other")
    assert "no layer 'other'" in refused.sentence


# The values of the options.

NAN, INFINITY = float("nan"), float("inf")
NO_NUMBERS = ("10", b"10", None, True, False, NAN, INFINITY, -1, [10], {}, 10j, timedelta(1), 10**400)
#: Values that fit, and values that do not, beside those that fit no number.
VALUES = {
    "expiry": ([0.001, 60, 60.0, 315_360_000], [*NO_NUMBERS, 0, 315_360_001]),
    "result_ttl": ([1, 86_400, 315_360_000], [*NO_NUMBERS, 0, 0.5, 315_360_001]),
    "group_expiry": ([0.5, 86_400], [*NO_NUMBERS, 0]),
    "history_expiry": ([0.5, 604_800], [*NO_NUMBERS, 0]),
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
