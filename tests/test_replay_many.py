"""The command ``replay`` asks, filters, works in batches, and can be interrupted."""

from __future__ import annotations

import io
import signal
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.utils import timezone

from dbchannels.management import output
from dbchannels.models import DeadLetter, DurableMessage
from dbchannels.testing.contract.case import raises
from tests import kinds

pytestmark = kinds.on_databases


def replay(*arguments):
    """Run the command; return what it wrote to standard output and to standard error."""
    out, err = io.StringIO(), io.StringIO()
    call_command("replay", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def letters(layer, number, channel="own", **fields):
    """Make dead letters."""
    row = {"payload": b"\x80", "attempts": 1, "sent_at": timezone.now(), "error": "ValueError: bad", **fields}
    layer.rows(DeadLetter).bulk_create([DeadLetter(channel=channel, **row) for _ in range(number)])


def channels(layer, model=DurableMessage):
    """Return the channels of the rows, in order."""
    return list(layer.rows(model).order_by("id").values_list("channel", flat=True))


@pytest.fixture
def terminal(monkeypatch):
    """A terminal at which somebody gives these answers; what was asked."""
    asked = []
    answers = []

    def question(text):
        asked.append(text)
        return answers.pop(0)

    monkeypatch.setattr(output.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", question)
    return answers, asked


def test_without_a_filter_it_asks_and_shows_the_channels(layer, terminal):
    letters(layer, 2)
    letters(layer, 1, "other")
    answers, asked = terminal
    answers[:] = ["n", "y"]
    with raises(CommandError) as refused:
        replay()
    assert refused.sentence == "Nothing was done." and len(channels(layer, DeadLetter)) == 3
    said, _ = replay()
    assert said == "  own    2\n  other  1\n3 dead letters run again.\n" or said == (
        "  other  1\n  own    2\n3 dead letters run again.\n"
    )
    assert asked == ["Run all of them again? [y/N] "] * 2


def test_without_a_terminal_it_needs_to_be_given_all(layer):
    letters(layer, 2)
    with raises(CommandError) as refused:
        replay()
    assert refused.sentence == "There is no terminal to ask at: give --all if all 2 are meant."
    assert replay("--no-input")[0] == "2 dead letters run again.\n"


def test_filters_choose_by_channel_error_and_time(layer):
    letters(layer, 1, "reports.daily")
    letters(layer, 1, "reports.weekly", error="KeyError: 'x'")
    letters(layer, 1, "own", failed_at=timezone.now() - timedelta(days=2))
    assert replay("--error", "KeyError")[0] == "1 dead letter runs again.\n"
    assert channels(layer) == ["reports.weekly"]
    assert replay("--until", "1d")[0] == "1 dead letter runs again.\n"
    assert channels(layer) == ["reports.weekly", "own"]
    with raises(CommandError):
        replay("own.*", "--since", "1h")
    assert replay("reports.*", "--since", "1h")[0] == "1 dead letter runs again.\n"


@pytest.mark.parametrize("moment", ["2020-01-31", "2020-01-31T08:00", "2020-01-31 08:00:00+02:00", "300d"])
def test_times_are_given_in_several_ways(layer, moment, settings):
    for settings.USE_TZ in (True, False):
        assert timezone.is_aware(output.parse_moment(moment)) == settings.USE_TZ


@pytest.mark.parametrize("moment", ["yesterday", "2020-13-01", "1y", "", "999999999d"])
def test_what_is_no_time_is_one_sentence(moment, layer):
    with raises(CommandError) as refused:
        output.parse_moment(moment)
    assert repr(moment) in refused.sentence


def test_they_run_on_another_channel(layer):
    letters(layer, 2)
    assert replay("own", "--to", "own.slow")[0] == "2 dead letters run again.\n"
    assert channels(layer) == ["own.slow"] * 2
    for wrong in ("http.request", "reply.a!b", "a b"):
        with raises(CommandError):
            replay("own", "--to", wrong)


def test_ten_thousand_run_again_with_progress(layer, layer_kind, monkeypatch):
    many = 10_000 if layer_kind == "postgresql" else 2_000  # SQLite takes milliseconds for each
    letters(layer, many)
    monkeypatch.setattr(output, "PROGRESS", 0.0)
    said, progress = replay("--all")
    assert said == f"{many:,} dead letters run again.\n"
    assert progress.splitlines() == [f"{number:,} of {many:,}" for number in range(1000, many + 1, 1000)]
    assert layer.rows(DurableMessage).count() == many and not layer.rows(DeadLetter).exists()


def test_what_fails_meanwhile_is_left_alone(layer, monkeypatch):
    letters(layer, 5)
    monkeypatch.setattr(output, "BATCH", 2)
    run = layer.replay
    monkeypatch.setattr(layer, "replay", lambda ids, to="": (letters(layer, 1), run(ids, to))[1])
    assert replay("--all")[0] == "5 dead letters run again.\n"
    assert layer.rows(DeadLetter).count() == 3


def test_an_interrupt_says_how_many_ran(layer, monkeypatch):
    letters(layer, 5)
    monkeypatch.setattr(output, "BATCH", 2)
    run = layer.replay

    def interrupted(ids, to=""):
        signal.raise_signal(signal.SIGINT)
        return run(ids, to)

    monkeypatch.setattr(layer, "replay", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(CommandError) as refused:
        replay("--all")
    assert str(refused.value) == "Interrupted: 2 dead letters run again. The rest is untouched."
    assert refused.value.returncode == 130
    assert layer.rows(DeadLetter).count() == 3 and layer.rows(DurableMessage).count() == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_an_outage_says_how_many_ran(layer, monkeypatch):
    letters(layer, 5)
    monkeypatch.setattr(output, "BATCH", 2)
    run, calls = layer.replay, []

    def fails(ids, to=""):
        calls.append(ids)
        if len(calls) == 2:
            raise OperationalError("server closed the connection\nunexpectedly")
        return run(ids, to)

    monkeypatch.setattr(layer, "replay", fails)
    with raises(CommandError) as refused:
        replay("--all")
    assert refused.sentence == (
        "The database refuses this: server closed the connection. Before that: 2 dead letters run again."
    )
