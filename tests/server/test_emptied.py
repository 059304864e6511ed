"""Which clients are told that a crash of the database took their messages."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dbchannels.layers.operations import Send
from dbchannels.protocol import EXPIRED, WORKER_DIED
from dbchannels.server import housekeeper
from dbchannels.server.housekeeper import Emptied


class Link:
    """One whose database loses its messages when a test says so."""

    layer = SimpleNamespace(options={"lease": 0.0})

    def __init__(self):
        self.crashed, self.kept, self.asked = False, set(), []

    def emptied(self, name):
        crashed, self.crashed = self.crashed, False
        return crashed

    def unfinished(self, reply_channels):
        self.asked.append(sorted(reply_channels))
        return self.kept


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(housekeeper, "LAST_REPLIES", 0)
    return []


def waiting(channel):
    return SimpleNamespace(in_layer=Send(channel, b"", "", 60))


def test_those_whose_message_is_nowhere(told):
    link = Link()
    receivers = {
        "a": waiting("http.request"),
        "b": waiting("websocket.receive"),
        "c": waiting("websocket.disconnect"),
        "held": waiting("http.request"),
        "idle": SimpleNamespace(in_layer=None),
    }
    look = Emptied(receivers, lambda *lost: told.append(lost)).look
    look(link, "server")
    assert link.asked == told == []
    link.crashed, link.kept = True, {"held"}
    look(link, "server")
    assert link.asked == [["a", "b", "c", "held"]]
    assert told == [
        ("a", WORKER_DIED, "http.request"),
        ("b", WORKER_DIED, "websocket.receive"),
        ("c", EXPIRED, "websocket.disconnect"),
    ]
    look(link, "server")
    assert len(link.asked) == 1


def test_nobody_who_was_answered_meanwhile_or_has_sent_another_message(told):
    link = Link()
    link.layer = SimpleNamespace(options={"lease": 1000.0})
    receivers = {"answered": waiting("http.request"), "next": waiting("websocket.receive")}
    emptied = Emptied(receivers, lambda *lost: told.append(lost))
    link.crashed = True
    emptied.look(link, "server")
    assert link.asked == []  # the workers have half a lease to put on record what they run
    emptied._look_at = 0.0
    receivers["answered"].in_layer = None
    receivers["next"] = waiting("websocket.receive")
    emptied.look(link, "server")
    assert told == []
