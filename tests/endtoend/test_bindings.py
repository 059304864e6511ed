"""Live models between real processes: what a command saves is on the sockets at its commit, or never."""

from __future__ import annotations

import json
import signal

from tests.harness import LiveSite, Served

BINDING = """
import os, signal
from django.db import transaction
from dbchannels import Binding
from livesite.models import Entry

class EntryBinding(Binding):
    model = Entry
    fields = ["text"]

    def groups(self, instance, action):
        return [f"room-{instance.text[0]}"]

"""


def change(site: LiveSite, code: str) -> int:
    """Run a line in a process of its own that has the binding; return its exit status."""
    return site.manage("shell", "--verbosity", "0", "-c", BINDING + code).returncode


def test_sockets_are_told_of_what_another_process_commits(any_served: Served) -> None:
    here, there = any_served.socket("/room/a/"), any_served.socket("/room/b/")
    assert (here.status, there.status) == (101, 101)
    assert (
        change(any_served.site, "entry = Entry.objects.create(text='a1'); entry.text = 'b2'; entry.save()")
        == 0
    )
    assert [json.loads(here.receive() or "")["action"] for _ in range(2)] == ["create", "delete"]
    frame = json.loads(there.receive() or "")
    assert (frame["model"], frame["action"], frame["data"]) == ("livesite.entry", "create", {"text": "b2"})


def test_nothing_is_told_of_what_a_killed_process_has_not_committed(any_served: Served) -> None:
    here = any_served.socket("/room/a/")
    dies = "Entry.objects.create(text='a lost'); os.kill(os.getpid(), signal.SIGKILL)"
    assert change(any_served.site, f"with transaction.atomic(): {dies}") == -signal.SIGKILL
    assert change(any_served.site, "Entry.objects.create(text='a kept')") == 0
    assert json.loads(here.receive() or "")["data"] == {"text": "a kept"}
    assert any_served.site.entries() == ["a kept"]
