"""The limits of a WebSocket on the command line, in the documents and in the code: the same."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from dbchannels.exceptions import InvalidConfiguration
from dbchannels.management.limit_options import add_limit_options
from dbchannels.server.limits import Limits, checked_limits

PAGE = Path(__file__).parents[1] / "docs" / "server.rst"


def limits(*arguments):
    parser = argparse.ArgumentParser()
    add_limit_options(parser)
    return checked_limits(vars(parser.parse_args(arguments)))


def test_without_options_the_defaults_hold():
    assert limits() == Limits() == checked_limits({})


@pytest.mark.parametrize("name", Limits._fields)
def test_each_limit_is_an_option(name):
    value = type(getattr(Limits(), name))(3_000_000 if name == "max_memory" else 30)  # that is 2 MiB at least
    given = limits("--ws-" + name.replace("_", "-"), str(int(value)))
    assert given == Limits()._replace(**{name: value})
    assert type(getattr(given, name)) is type(value)


@pytest.mark.parametrize("name", ["idle-timeout", "lifetime"])
def test_0_is_no_limit_of_time(name):
    assert limits(f"--ws-{name}", "0") == Limits()


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


def test_the_reference_has_each_option_with_its_default():
    rows = re.findall(r"^ *``--ws-([a-z-]+)`` +([0-9,]+) ", PAGE.read_text(), re.MULTILINE)
    assert {
        name.replace("-", "_"): float(default.replace(",", "")) for name, default in rows
    } == Limits()._asdict()
