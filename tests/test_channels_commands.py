"""The commands channels_status, channels_send, channels_pause, channels_resume, channels_cancel, channels_purge."""

from __future__ import annotations

import io
import json
import os
import signal
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.utils import timezone

from dbchannels import conf, consumer
from dbchannels.layers import channel_layers, make_layer
from dbchannels.layers.operations import Connect
from dbchannels.management import output
from dbchannels.management.commands import channels_status
from dbchannels.models import ChannelState, DeadLetter, DurableMessage, Process
from dbchannels.routing import table
from dbchannels.testing.contract.case import raises
from tests import kinds

pytestmark = kinds.on_databases
COMMANDS = {
    "channels_status": [],
    "channels_send": ["own"],
    "channels_pause": ["own"],
    "channels_resume": ["--all"],
    "channels_cancel": ["--all"],
    "channels_purge": ["--older-than", "1d"],
}


@pytest.fixture(autouse=True)
def routes(monkeypatch):
    """Two consumers, and no other."""
    monkeypatch.setattr(table, "_decorated", [])
    monkeypatch.setattr(table, "_loaded", True)
    table.site_routing.cache_clear()
    consumer("invoices")(make_invoice)
    consumer("reports.daily")(make_invoice)
    yield
    table.site_routing.cache_clear()


def make_invoice(message):
    """A consumer."""


def run(name, *arguments):
    """Run a command; return what it wrote to standard output and to standard error."""
    out, err = io.StringIO(), io.StringIO()
    call_command(name, *arguments, stdout=out, stderr=err, no_color=True)
    return out.getvalue(), err.getvalue()


def refused(name, *arguments):
    """Run a command that refuses; return its one sentence."""
    with raises(CommandError) as error:
        run(name, *arguments)
    return error.sentence


def contents(layer):
    """Return (channel, message) of what waits, in order."""
    return [(row.channel, row.content()) for row in layer.rows(DurableMessage).order_by("id")]


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_layer_is_one_sentence(layer, name):
    assert "DBCHANNELS has no layer 'absent'" in refused(name, *COMMANDS[name], "--layer", "absent")


# channels_status.


def test_status_shows_each_channel_and_process(layer, new_link):
    link = new_link(layer)
    link.register("w1", Process.WORKER)
    link.record_work(
        "w1", json.dumps({"takes": ["invoices"], "runs": "invoices", "since": "2026-01-31 08:00:00"})
    )
    layer.send_many([("invoices", {}), ("invoices", {}), ("typo", {})])
    layer.send("invoices", {}, delay=3600)
    layer.pause("invoices", "ann")
    link.claim(["typo"], 1, "w1")
    said, _ = run("channels_status")
    lines = [line.split() for line in said.splitlines()]
    assert lines[0] == [*channels_status.CHANNELS[:-1], "TAKEN", "BY"]
    assert lines[1][:5] == ["invoices", "2", "1", "-", "-"] and lines[1][-2:] == ["1", "worker"]
    assert "ago by ann" in said
    assert lines[2] == ["reports.daily", *["-"] * 6, "nobody"]
    assert lines[3] == ["typo", "-", "-", "1", "-", "-", "-", "nobody,", "no", "consumer"]
    assert lines[5] == list(channels_status.PROCESSES)
    assert lines[6][0] == "w1" and said.rstrip().endswith("invoices since 2026-01-31 08:00:00")


def test_status_of_nothing_says_what_to_do(layer):
    said, _ = run("channels_status", "absent")
    assert said.splitlines() == [
        "No channel matches, or none has a message, a consumer or a worker.",
        "",
        "No server and no worker is on record: start runchannels.",
    ]


def test_status_of_some_channels_for_programs(layer):
    layer.send_many([("reports.daily", {}), ("invoices", {})])
    layer.pause("reports.daily", "ann")
    found = json.loads(run("channels_status", "reports.*", "--json", "--exact")[0])
    (one,) = found["channels"]
    assert one["oldest"] >= 0 and one["paused"].pop("since")
    assert {**one, "oldest": 0} == {
        "channel": "reports.daily",
        "ready": 1,
        "delayed": 0,
        "running": 0,
        "dead": 0,
        "oldest": 0,
        "more": [],
        "paused": {"by": "ann"},
        "workers": [],
        "consumers": [f"{__name__}.make_invoice"],
    }
    assert found["processes"] == []


def test_status_goes_on_without_a_routing(layer, settings):
    settings.DBCHANNELS = {"default": {"ROUTING": "no.such.routing"}}
    layer.send("own", {})
    said, _ = run("channels_status")
    assert "own" in said and "The routing cannot be read" in said


@pytest.fixture
def ticks(monkeypatch):
    """What happens while the command waits, in order; then Ctrl-C."""
    acts = []

    def sleep(seconds):
        if not acts:
            raise KeyboardInterrupt
        acts.pop(0)()

    monkeypatch.setattr(channels_status, "sleep", sleep)
    return acts


def test_a_watch_shows_what_changes_and_survives_an_outage(layer, ticks, monkeypatch):
    seen = channels_status.overview

    def fails(*arguments):
        raise OperationalError("server closed the connection")

    ticks += [
        lambda: monkeypatch.setattr(channels_status, "overview", fails),
        lambda: (monkeypatch.setattr(channels_status, "overview", seen), layer.send("late", {})),
    ]
    said, _ = run("channels_status", "--watch", "0.5")
    assert said.count("TAKEN BY") == 2 and channels_status.CLEAR not in said
    assert "The database refuses this: server closed the connection. Trying again." in said
    assert said.index("Trying again") < said.index("late")


def test_a_watch_of_no_time_is_refused(layer):
    assert "--watch" in refused("channels_status", "--watch", "nan")


# channels_send.


def test_a_value_is_json_or_text(layer):
    said, warned = run(
        "channels_send",
        "invoices",
        "order=7",
        "name=Ann Lee",
        'tags=["a"]',
        'text="7"',
        "--json",
        '{"x": null}',
    )
    message = {"x": None, "order": 7, "name": "Ann Lee", "tags": ["a"], "text": "7"}
    assert contents(layer) == [("invoices", message)]
    assert said.startswith("Sent to invoices: ") and "'Ann Lee'" in said and warned == ""


def test_secrets_are_not_printed(layer):
    assert "hunter2" not in run("channels_send", "invoices", "password=hunter2")[0]


def test_a_channel_without_a_consumer_is_warned_of(layer):
    _, warned = run("channels_send", "invoice")
    assert warned == "No consumer takes invoice, so the message waits. Did you mean 'invoices'?\n"
    assert contents(layer) == [("invoice", {})]


def test_a_message_is_delayed_or_has_a_priority_or_a_key(layer):
    run("channels_send", "invoices", "--delay", "60", "--priority", "5", "--unique", "k")
    run("channels_send", "invoices", "--at", (timezone.now() + timedelta(hours=1)).isoformat())
    first, second = layer.rows(DurableMessage).order_by("id")
    assert first.due_at and (first.priority, first.unique_key) == (5, "k")
    assert second.due_at > first.due_at
    said, _ = run("channels_send", "invoices", "--unique", "k")
    assert said == "Not sent: a message with the unique key 'k' waits on invoices.\n"


def test_a_socket_and_a_group_are_sent_to(layer, new_link):
    link = new_link(layer)
    link.register("s1", Process.SERVER, "reply.s1!")
    link.apply([Connect("reply.s1!a", "s1", "/")])
    assert run("channels_send", "reply.s1!a", "text=hello")[1] == ""
    assert (
        run("channels_send", "reply.s1!b", "text=hello")[1] == "No open WebSocket has this reply channel.\n"
    )
    layer.group_add("room", "reply.s1!a")
    said, _ = run("channels_send", "--to-group", "room", "text=hi")
    assert said.startswith("Sent to the group room, which has 1 channel: ")
    assert [one.recipients for one in link.receive_many(["reply.s1!"], 9)] == [("a",), ("b",), ("a",)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name the channel first"),
        (["a=b"], "Name the channel first"),
        (["http.request"], "Only servers send to http.request"),
        (["websocket.receive"], "Only servers send to websocket.receive"),
        (["reply.a!"], "Only servers send to reply.a!"),
        (["own", "word"], "'word' is not a field: write key=value."),
        (["own", "=word"], "'=word' is not a field: write key=value."),
        (["own", "--json", "{"], "--json is not JSON"),
        (["own", "--json", "[]"], "--json takes an object"),
        pytest.param(["own", "--json", "[" * 100_000], "--json is not JSON", id="deep"),
        (["own", "--unique", "\udc80"], "'\\udc80' has bytes that are not UTF-8"),
        (["own", "--delay", "-1"], "A delay must not be negative"),
        (["own", "--delay", "1", "--at", "2026-01-31"], "A message has a delay or a moment, not both"),
        (["own", "--priority", "99999"], "A priority must be from"),
        (["reply.a!b", "--priority", "1"], "have no delay, priority or unique key"),
        (["--to-group", "g", "--priority", "1"], "A message to a group has no delay"),
        (["--to-group", "g g"], "The name of a group"),
        (["a b"], "The name of a channel"),
    ],
)
def test_what_cannot_be_sent_is_one_sentence(layer, arguments, said):
    assert said in refused("channels_send", *arguments)
    assert contents(layer) == []


# channels_pause and channels_resume.


def test_channels_are_paused_and_run_again(layer):
    said, warned = run("channels_pause", "invoices", "reports.daily")
    assert said.splitlines()[0] == (
        "invoices is paused: run 'manage.py channels_resume invoices' to resume it."
    )
    assert warned == "" and layer.paused()["invoices"].paused_by.startswith("the command line (")
    assert "invoices was paused already, by the command line (" in run("channels_pause", "invoices")[0]
    assert run("channels_resume", "invoices") == ("invoices runs again.\n", "")
    assert run("channels_resume", "--all") == ("reports.daily runs again.\n", "")
    assert run("channels_resume", "--all") == ("No channel is paused.\n", "")


def test_what_may_be_a_typo_is_warned_of(layer):
    _, warned = run("channels_pause", "invoice")
    assert warned == "No route and no message has the channel invoice. Did you mean 'invoices'?\n"
    assert run("channels_resume", "invoices")[1] == "invoices was not paused. Did you mean 'invoice'?\n"
    layer.send("own", {})
    assert run("channels_pause", "own")[1] == ""


@pytest.mark.parametrize("wrong", ["http.request", "reply.a!b", "a b"])
def test_of_several_channels_all_are_paused_or_none(layer, wrong):
    refused("channels_pause", "invoices", wrong)
    assert not layer.rows(ChannelState).exists()


def test_what_to_resume_must_be_clear(layer):
    for arguments in ([], ["own", "--all"]):
        assert refused("channels_resume", *arguments) == "Name the channels to resume, or give --all."


# channels_purge.


@pytest.fixture
def old(layer):
    """Old and new rows of each kind."""
    long_ago = timezone.now() - timedelta(days=40)
    for channel in ("own", "other"):
        for failed_at in (long_ago, timezone.now()):
            layer.rows(DeadLetter).create(
                channel=channel, payload=b"\x80", attempts=1, sent_at=long_ago, failed_at=failed_at, error=""
            )
    layer.send_many([("own", {}), ("own", {}), ("own", {}), ("other", {})])
    ids = list(layer.rows(DurableMessage).order_by("id").values_list("id", flat=True))
    layer.rows(DurableMessage).filter(id__in=[*ids[:2], ids[3]]).update(sent_at=long_ago)
    layer.rows(DurableMessage).filter(id=ids[0]).update(claimed_by="w1")
    layer.send("own", {}, delay=3600)
    layer.rows(DurableMessage).exclude(due_at=None).update(sent_at=long_ago)


def left(layer):
    """Return how many dead letters and messages there are."""
    return layer.rows(DeadLetter).count(), layer.rows(DurableMessage).count()


@pytest.mark.parametrize(
    ("arguments", "said", "after"),
    [
        ([], "2 dead letters were deleted.\n", (2, 5)),
        (["--channel", "own"], "1 dead letter was deleted.\n", (3, 5)),
        (["--channel", "o*"], "2 dead letters were deleted.\n", (2, 5)),
        (["--channel", "absent"], "Nothing is older than 30d.\n", (4, 5)),
    ],
)
def test_what_is_old_is_deleted(layer, old, arguments, said, after):
    assert run("channels_purge", "--older-than", "30d", "--no-input", *arguments)[0] == said
    assert left(layer) == after


def test_a_purge_asks(layer, old):
    assert "There is no terminal to ask at: give --no-input" in refused(
        "channels_purge", "--older-than", "30d"
    )
    assert left(layer) == (4, 5)


@pytest.mark.parametrize("wrong", ["30", "d", "1.5d", "-1d", "30 d", "99999d", "30x"])
def test_what_is_no_duration_is_one_sentence(layer, wrong):
    assert repr(wrong) in refused("channels_purge", f"--older-than={wrong}")


# channels_cancel.


@pytest.mark.parametrize(
    ("arguments", "cancelled", "running"),
    [
        ([], 5, 1),
        (["own"], 4, 1),
        (["ow*", "--state", "running"], 1, 1),
        (["--state", "ready"], 3, 0),
        (["--state", "delayed"], 1, 0),
        (["--older-than", "30d", "--state", "ready"], 2, 0),
        (["other"], 1, 0),
    ],
)
def test_messages_are_cancelled(layer, old, arguments, cancelled, running):
    said, _ = run("channels_cancel", "--all", *arguments)
    assert f"{cancelled} message{'s were' if cancelled > 1 else ' was'} cancelled." in said
    assert said.endswith("1 worker must end a consumer for it.\n") == bool(running)
    marked = layer.rows(DurableMessage).exclude(cancelled_by="")
    assert (left(layer)[1], marked.count()) == (5 - cancelled + running, running)
    if running:
        assert marked.get().cancelled_by.startswith("the command line (")
        assert "No message matches" in refused("channels_cancel", "--all", "--state", "running")


def test_one_message_is_cancelled_by_its_number(layer, old):
    first = layer.rows(DurableMessage).filter(claimed_by=None).order_by("id").first()
    run("channels_cancel", "--all", "--id", str(first.id), "--id", str(2**70), "--id", "-1")
    assert left(layer)[1] == 4
    assert not layer.rows(DurableMessage).filter(id=first.id).exists()


def test_cancelling_asks(layer, old):
    assert refused("channels_cancel", "own") == (
        "There is no terminal to ask at: give --all if all 4 are meant."
    )
    assert "No message matches" in refused("channels_cancel", "absent")
    assert left(layer) == (4, 5)


def test_an_interruption_says_how_many_were_cancelled(layer, monkeypatch):
    monkeypatch.setattr(output, "BATCH", 2)
    layer.send_many([("own", {})] * 5)
    cancel = type(layer).cancel

    def interrupted(layer, ids, by):
        os.kill(os.getpid(), signal.SIGINT)
        return cancel(layer, ids, by)

    monkeypatch.setattr(type(layer), "cancel", interrupted)
    sentence = refused("channels_cancel", "--all")
    assert sentence == "Interrupted: 2 messages were cancelled. The rest is untouched."
    assert left(layer)[1] == 3


def test_a_layer_of_no_database_is_one_sentence(layer, monkeypatch):
    memory = conf.LayerSettings("default", conf.SHORT_BACKENDS["memory"], "default", None, conf.OPTIONS)
    with channel_layers.swapped({"default": make_layer(memory)}):
        assert "is not on a database of the site" in refused("channels_status")
        assert "lives in one process" in refused("channels_send", "own", "a=1")
