"""What README.rst shows is what runs."""

from __future__ import annotations

import re
import subprocess
import sys
import unittest
from pathlib import Path

import pytest

from dbchannels import Group, Message
from dbchannels.routing.table import Routing
from tests import kinds

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.rst").read_text()

BLOCK = re.compile(r"\.\. code-block:: (\w+)\n(?:   :caption: (.+)\n)?\n((?:   .*\n|\n)+)")


def block(caption):
    """Return the code of the block whose caption begins so."""
    (code,) = (text for _, given, text in BLOCK.findall(README) if given.startswith(caption))
    return re.sub(r"^   ", "", code, flags=re.MULTILINE)


@pytest.fixture
def consumers(monkeypatch):
    """Return the names of the README's consumers.py; its consumers are routed as in an app."""
    found = []
    monkeypatch.setattr("dbchannels.routing.table._decorated", found)
    names = {"__name__": "chat.consumers"}
    exec(block("chat/consumers.py"), names)
    names["routing"] = Routing(found)
    return names


def consume(routing, channel, **fields):
    """Route a message, and run its consumer as a worker does."""
    route, captures = routing.match(Message(channel, fields))
    route.run(Message(channel, fields), captures)


@kinds.only("postgresql", "memory")
def test_its_consumers_carry_a_message_to_those_in_the_room(layer, consumers):
    routing = consumers["routing"]
    for number, room in enumerate(("garden", "garden", "kitchen")):
        consume(routing, "websocket.connect", path=f"/chat/{room}/", reply_channel=f"reply.a!{number}")
    consume(routing, "websocket.receive", path="/chat/garden/", text="hi", reply_channel="reply.a!0")
    arrived = [layer.receive(["reply.a!"]) for _ in range(2)]
    assert sorted(arrived) == [("reply.a!0", {"text": "hi"}), ("reply.a!1", {"text": "hi"})]
    assert layer.receive(["reply.a!"]) == (None, None)


@pytest.mark.usefixtures("tables")
def test_its_test_passes(consumers, monkeypatch, django_db_blocker):
    names = {"__name__": "chat.tests"}
    exec(block("chat/tests.py"), names)
    monkeypatch.setattr("dbchannels.testing.channels.site_routing", lambda alias: consumers["routing"])
    with django_db_blocker.unblock():
        result = unittest.defaultTestLoader.loadTestsFromTestCase(names["ChatTest"]).run(
            unittest.TestResult()
        )
    assert (result.testsRun, result.failures, result.errors) == (1, [], [])


@kinds.only("postgresql", "memory")
def test_anywhere_a_message_can_be_sent(layer, consumers, capsys):
    Group("chat-garden").add("reply.a!0")
    exec(block("anywhere"), consumers)
    assert layer.receive(["reply.a!"])[1] == {"text": "The server restarts at noon."}
    channel, message = layer.receive(["thumbnails"])
    consume(consumers["routing"], channel, **message)
    assert capsys.readouterr().out == "a thumbnail of 7\n"


@kinds.only("postgresql", "memory")
def test_its_options_can_be_given_so(layer, monkeypatch):
    found = []
    monkeypatch.setattr("dbchannels.routing.table._decorated", found)
    exec(block("options of a send"), {"__name__": "consumers"})
    options = [one.options for one in found]
    assert [(one.retries, one.backoff, one.atomic) for one in options] == [
        (3, 60, False),
        (None, None, True),
        (None, None, False),
        (None, None, False),
    ]
    assert (options[2].concurrency, options[2].hard_timeout) == (1, 3600)
    assert str(options[3].interval()) == "0 7 * * 1"
    names = ("digest", "thumbnails", "reindex")
    assert [layer.channel_statistics(name)["messages_pending"] for name in names] == [1, 1, 1]
    assert layer.receive(["digest"]) == (None, None)


def test_its_setting_is_a_list_of_apps():
    names = {}
    exec(block("settings.py"), names)
    assert "dbchannels" in names["INSTALLED_APPS"]


def test_its_routing_module_can_be_written_so(monkeypatch):
    made = {}
    monkeypatch.setattr("dbchannels.include", lambda routes, **filters: made.setdefault(routes, filters))
    monkeypatch.setattr("dbchannels.route", lambda channel, to, **filters: made.setdefault(to, filters))
    exec(block("mysite/routing.py"), {})
    assert made == {"chat.routing": {"path": r"^/chat"}, "news.consumers.read": {"path": r"^/news/$"}}


def test_the_two_commands_name_what_is_there():
    commands = re.findall(r"^ +(python3 -m venv .+)$", README, re.MULTILINE)
    examples, tests = commands
    extras = (ROOT / "setup.py").read_text()
    for command in commands:
        extra = re.search(r"-e [^ ]+\[([a-z]+)\]", command)[1]
        assert f'"{extra}": ' in extras
    assert examples.endswith(" examples/manage.py demo")
    assert (ROOT / "examples" / "manage.py").exists()
    assert tests.endswith(" -m pytest")


@pytest.mark.parametrize("command", re.findall(r"^ +python manage.py (\w+ .+)$", README, re.MULTILINE))
def test_the_options_that_it_shows_exist(command):
    name, *arguments = command.split()
    options = {one for one in arguments if one.startswith("--")}
    shown = subprocess.run(
        [sys.executable, ROOT / "examples" / "manage.py", name, "--help"],
        capture_output=True,
        text=True,
        env={"DBCHANNELS_POSTGRES": "sqlite", "PATH": "/usr/bin:/bin"},
    )
    assert shown.returncode == 0, shown.stderr
    assert options == {one for one in options if one in shown.stdout}


def test_the_documents_that_it_names_are_there():
    for path in re.findall(r"``((?:docs|examples)/[\w./-]+)``", README):
        assert (ROOT / path).exists(), path
