"""The options of the server, and their ranges."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields, replace

import pytest

from dbchannels.exceptions import InvalidConfiguration
from dbchannels.server.options import (
    DEFAULTS,
    FLAGS,
    LaunchConfig,
    ServerConfig,
    WebSocketLimits,
    add_options,
    size,
)


def config(**given):
    return LaunchConfig.from_options(given).server


def limits(*arguments):
    parser = argparse.ArgumentParser()
    add_options(parser)
    return config(**vars(parser.parse_args(arguments))).websocket


def test_without_options_the_defaults_hold():
    assert limits() == WebSocketLimits() == config().websocket


@pytest.mark.parametrize("name", [one.name for one in fields(WebSocketLimits)])
def test_each_limit_is_an_option(name):
    value = type(getattr(WebSocketLimits(), name))(
        3_000_000 if name == "max_memory" else 30
    )  # that is 2 MiB at least
    given = limits("--ws-" + name.replace("_", "-"), str(int(value)))
    assert given == replace(WebSocketLimits(), **{name: value})
    assert type(getattr(given, name)) is type(value)


@pytest.mark.parametrize("name", ["idle-timeout", "lifetime"])
def test_0_is_no_limit_of_time(name):
    assert limits(f"--ws-{name}", "0") == WebSocketLimits()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ws-max-size", "0"], "--ws-max-size takes a number above 0"),
        (["--ws-max-fragments", "-1"], "--ws-max-fragments takes a number above 0"),
        (["--ws-ping-interval", "0"], "--ws-ping-interval takes a number above 0"),
        (["--ws-lifetime", "nan"], "--ws-lifetime takes a number of seconds"),
        (["--ws-idle-timeout", "-1"], "--ws-idle-timeout takes a number of seconds"),
        (["--ws-send-timeout", "1e9"], "--ws-send-timeout takes a number of seconds"),
        (["--ws-silence", "20"], "--ws-silence must be longer than --ws-ping-interval"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(arguments, words):
    with pytest.raises(InvalidConfiguration, match=words) as caught:
        limits(*arguments)
    assert "\n" not in str(caught.value)


# Of the server.


NUMBERS = [one.name for one in fields(ServerConfig) if "keywords" in one.metadata]


@pytest.mark.parametrize("name", ["head", "body", "write", "http", "later"])
def test_0_is_no_time_for_a_request(name):
    with pytest.raises(InvalidConfiguration, match=f"^--{name}-timeout takes a number above 0\\.$"):
        config(**{f"{name}_timeout": 0.0})


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_below_its_range_is_one_sentence(name):
    with pytest.raises(InvalidConfiguration, match=f"^--{name.replace('_', '-')} takes [^\n]*$"):
        config(**{name: -1 if isinstance(FLAGS[name]["default"], int | None) else -1.0})


def test_what_is_given_is_taken_and_the_rest_is_as_by_default():
    assert config(max_body=5, head_timeout=1.5, other=1) == replace(config(), max_body=5, head_timeout=1.5)
    assert config(http_timeout=5.0).handshake_timeout == 5.0
    assert config(**DEFAULTS) == config(**dict.fromkeys(NUMBERS)) == config()


def test_one_body_must_have_room_where_all_have():
    assert config(max_body=2**31, max_spool=2**31).max_spool == 2**31
    with pytest.raises(
        InvalidConfiguration, match=r"^--max-body takes no more than --max-spool, 1073741824, "
    ):
        config(max_body=2**31)


def test_every_option_says_what_it_is_for():
    assert all(flag["help"] for flag in FLAGS.values())


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"takeover": True}, "--takeover needs --control PATH, the socket of the running server: give both."),
        ({"detach": True}, "--detach has no effect without --takeover: give both."),
        (
            {"workers": 0, "max_messages": 9},
            "--max-messages has no effect with --workers 0: give it to runworker.",
        ),
    ],
)
def test_an_option_that_needs_another_one_says_so(given, sentence):
    with pytest.raises(InvalidConfiguration) as caught:
        LaunchConfig.from_options({**DEFAULTS, **given})
    assert str(caught.value) == sentence


@pytest.mark.parametrize(("text", "number"), [("7", 7), ("2k", 2048), ("64M", 67_108_864), ("1G", 2**30)])
def test_a_size_may_have_a_unit(text, number):
    assert size(text) == number


@pytest.mark.parametrize("text", ["", "M", "12X", "1.5G", "five"])
def test_what_is_no_size_is_one_sentence(text):
    with pytest.raises(
        argparse.ArgumentTypeError, match="^" + re.escape(f"{text!r} is not a size: write bytes, ")
    ):
        size(text)
