"""What the polling layer must get right on SQLite: one writer at a time, in several processes."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys

import pytest
from django.db import connections, utils

from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.database.link import unavailable
from dbchannels.testing.contract.case import raises
from tests import kinds

pytestmark = kinds.only("sqlite")

READER = """
import json, os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
import django
django.setup()
from dbchannels import codec, conf
from dbchannels.layers import make_layer
layer = make_layer(conf.LayerSettings("default", None, "sqlite", None, conf.OPTIONS))
link = layer.link()
print("ready", flush=True)
sys.stdin.readline()
taken = []
while found := link.receive_many(["http.request"], 5) + link.claim(["own"], 5, str(os.getpid())):
    taken += [codec.decode(one.payload)["number"] for one in found]
    layer.send_many(("websocket.receive", {"number": taken[-1]}) for _ in range(2))
print(json.dumps(taken), flush=True)
"""


def test_four_processes_take_each_message_once(layer):
    layer.send_many(("http.request", {"number": number}) for number in range(100))
    layer.send_many(("own", {"number": number}) for number in range(100, 200))
    command = [sys.executable, "-W", "error", "-c", READER]
    readers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    try:
        assert [reader.stdout.readline() for reader in readers] == ["ready\n"] * 4
        for reader in readers:
            reader.stdin.write("go\n")
            reader.stdin.flush()
        taken = [json.loads(reader.communicate(timeout=60)[0]) for reader in readers]
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()
    assert sorted(number for numbers in taken for number in numbers) == list(range(200))
    assert layer.channel_statistics("websocket.receive")["messages_pending"] > 0


def test_a_look_takes_no_lock(layer, new_link):
    """An idle worker's polls must not wait for a writer, nor hold one up."""
    writer = connections.create_connection("sqlite")
    try:
        with writer.cursor() as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            assert new_link(layer).receive_many(["http.request"], 1) == []
            assert new_link(layer).claim(["own"], 1, "w1") == []
            cursor.execute("ROLLBACK")
    finally:
        writer.close()


def test_a_locked_database_is_one_sentence(layer, new_link):
    layer.send("http.request", {})
    link = new_link(layer)
    writer = connections.create_connection("sqlite")
    with connections["sqlite"].cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout = 0")
    try:
        with writer.cursor() as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            with raises(LayerUnavailable) as refused:
                link.receive_many(["http.request"], 1)
            cursor.execute("ROLLBACK")
    finally:
        writer.close()
    assert "locked" in refused.sentence
    assert len(link.receive_many(["http.request"], 1)) == 1


@pytest.mark.parametrize("error", ["OperationalError", "InterfaceError"])
def test_errors_of_every_kind_are_unavailability(layer, error):
    with raises(LayerUnavailable) as refused, unavailable():
        raise getattr(utils, error)("gone\nin two lines")
    assert "(gone)" in refused.sentence


def test_the_drivers_bare_error_is_unavailability_and_djangos_own_is_none(layer):
    """psycopg2 says no more of a server that closed in the middle of a statement; the site's code may say it too."""
    with raises(LayerUnavailable) as refused, unavailable(), connections["sqlite"].wrap_database_errors:
        raise sqlite3.DatabaseError("server closed")
    assert "(server closed)" in refused.sentence
    for other in (utils.DatabaseError, utils.ProgrammingError, utils.DataError, utils.IntegrityError):
        with pytest.raises(other), unavailable():
            raise other("the site's own")


def test_the_check_says_what_to_do(layer, monkeypatch):
    layer.check()
    empty = connections.create_connection("sqlite")
    empty.settings_dict = {**empty.settings_dict, "NAME": ":memory:"}
    with monkeypatch.context() as patch, raises(LayerUnavailable) as refused:
        patch.setattr(connections._connections, "sqlite", empty)
        layer.check()
    assert "manage.py migrate" in refused.sentence
    empty.connection.close()  # Django's own close() keeps a database in memory


def test_the_banner_names_the_file(layer):
    name = connections["sqlite"].settings_dict["NAME"]
    assert layer.describe() == f"SQLite, database {name}; wakeups by datagrams"
