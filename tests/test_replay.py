"""A consumer fails, is mended, and its dead letters run again: by the command ``replay``."""

from __future__ import annotations

import io

import pytest
from django.core.management import CommandError, call_command

from dbchannels import channel_layers, route
from dbchannels.routing.table import Routing
from dbchannels.testing.contract.case import raises, waiting
from dbchannels.testing.contract.operating import make_dead_letters
from dbchannels.worker.worker import Worker
from tests import kinds

pytestmark = kinds.only("postgresql", "sqlite", "memory")


def replay(*arguments):
    """Run the command; return what it says."""
    out = io.StringIO()
    call_command("replay", *arguments, stdout=out, stderr=io.StringIO())
    return out.getvalue()


@pytest.fixture
def letters(layer, new_link):
    """Two dead letters on ``own`` and one on ``other``."""
    make_dead_letters(new_link(layer), 2, "own")
    make_dead_letters(new_link(layer), 1, "other")
    return layer.dead_letter_ids()


def test_all_run_again(layer, letters):
    assert replay("--all") == "3 dead letters run again.\n"
    assert (waiting(layer, "own"), waiting(layer, "other")) == (2, 1)


def test_those_of_a_channel_run_again(layer, letters):
    assert replay("other") == "1 dead letter runs again.\n"
    assert (waiting(layer, "own"), waiting(layer, "other")) == (0, 1)


def test_those_with_a_number_run_again(layer, letters):
    assert replay("--id", str(letters[1]), "--id", str(letters[2]), "own") == "1 dead letter runs again.\n"
    assert layer.dead_letter_ids() == [letters[0], letters[2]]


@pytest.mark.parametrize("arguments", [["absent"], ["--id", "0"], ["own", "--id", "0"]])
def test_when_none_matches_it_says_so(layer, letters, arguments):
    with raises(CommandError) as refused:
        replay(*arguments)
    assert refused.sentence == "No dead letter matches: see the admin for a list."
    assert layer.dead_letter_ids() == letters


def test_an_unknown_layer_is_one_sentence(layer):
    with raises(CommandError) as refused:
        replay("--layer", "absent")
    assert "'absent'" in refused.sentence


def test_what_failed_runs_when_its_consumer_is_mended(new_layer):
    layer = new_layer(retries=0)
    mended, ran = [], []

    def consume(message):
        if not mended:
            raise RuntimeError("as asked for")
        ran.append((message["number"], message.attempt))

    worker = Worker(channel_layers["default"], Routing([route("own", consume)]), only=["own"])
    worker._register()
    layer.send("own", {"number": 7})
    assert worker.run_once() and not worker.run_once()
    assert len(layer.dead_letter_ids()) == 1
    mended.append(True)
    replay("own")
    assert worker.run_once() and not worker.run_once()
    assert ran == [(7, 1)]
    assert layer.dead_letter_ids() == []
    worker.link.close()
