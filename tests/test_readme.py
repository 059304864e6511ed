"""What README.rst shows is what runs."""

from __future__ import annotations

import re
import textwrap
import unittest
from pathlib import Path

import pytest

from dbchannels import Group, Message
from dbchannels.routing.table import Routing
from tests import kinds

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.rst").read_text()

#: PyPI takes no captions, so the first line of each block is a comment that names its file.
BLOCK = re.compile(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)")
BLOCKS = [textwrap.dedent(code).strip("\n") + "\n" for code in BLOCK.findall(README)]
NAMES = [
    "settings.py",
    "chat/consumers.py",
    "anywhere",
    "options of a send",
    "options of a consumer",
    "chat/tests.py",
]


def block(name):
    """Return the code of the block whose first line is a comment that begins so."""
    (code,) = (code for code in BLOCKS if code.startswith(f"# {name}"))
    return code


def test_each_of_its_blocks_is_run_below():
    assert [code.partition("\n")[0][: len(name) + 2] for code, name in zip(BLOCKS, NAMES, strict=True)] == [
        f"# {name}" for name in NAMES
    ]
    used = re.findall(r'block\("(.+?)"\)', Path(__file__).read_text())
    assert sorted(NAMES) == sorted(used)
    assert ":caption:" not in README


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
    route, captures = routing.match(channel, fields)
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
    exec(block("anywhere"), {})
    assert layer.receive(["reply.a!"])[1] == {"text": "The server restarts at noon."}
    channel, message = layer.receive(["archive"])
    consume(consumers["routing"], channel, **message)
    assert capsys.readouterr().out.startswith("Archived: A row in your transaction")


@kinds.only("postgresql", "memory")
def test_its_options_of_a_send_can_be_given_so(layer):
    exec(block("options of a send"), {})
    names = ("digest", "thumbnails", "search")
    assert [layer.channel_statistics(name)["messages_pending"] for name in names] == [1, 1, 1]
    assert layer.receive(["digest"]) == (None, None)


def test_its_options_of_a_consumer_can_be_given_so(monkeypatch):
    found = []
    monkeypatch.setattr("dbchannels.routing.table._decorated", found)
    exec(block("options of a consumer"), {"__name__": "consumers"})
    options = [one.options for one in found]
    assert [(one.retries, one.backoff, one.atomic) for one in options] == [
        (3, 60, False),
        (None, None, True),
        (None, None, False),
        (None, None, False),
    ]
    assert (options[2].concurrency, options[2].hard_timeout) == (1, 3600)
    assert str(options[3].interval()) == "0 7 * * 1"


def test_its_setting_is_a_list_of_apps():
    names = {}
    exec(block("settings.py"), names)
    assert "dbchannels" in names["INSTALLED_APPS"]


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


def test_the_documents_that_it_names_are_there():
    found = re.findall(r"``((?:(?:docs|examples)/)?[\w./-]+\.rst|examples/\w+)``", README)
    assert len(found) > 10
    assert [path for path in found if not (ROOT / path).exists()] == []
