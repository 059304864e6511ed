"""Readers of a SQLite file are woken by a datagram after the commit; nobody waits for them, and nothing is lost."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest
from django.db import connections, transaction

from dbchannels.layers.database import wakeups
from dbchannels.layers.database.wakeups import FULL, WakeupFolder, wakeup_folder
from dbchannels.layers.operations import BatchResult, Failure
from dbchannels.protocol import HISTORY
from dbchannels.testing.contract.case import DEADLINE, wait_until

AT_ONCE = DEADLINE / 2  # seconds; the polls of these tests are an hour apart


@pytest.fixture
def layer_kind():
    """All of these run on SQLite."""
    return "sqlite"


@pytest.fixture
def patient(new_layer):
    """A layer whose readers find nothing without being woken."""
    return new_layer(poll_interval=3600)


@pytest.fixture
def listening(patient, new_link):
    """Make links that can be woken."""

    def new():
        link = new_link(patient)
        assert {"h", "w", "d"} <= link.wait(0)
        return link

    return new


@pytest.fixture
def folder(tmp_path):
    """The folder beside a file that looks like a database."""
    (tmp_path / "site.sqlite3").touch(0o600)
    return WakeupFolder(str(tmp_path / "site.sqlite3"))


@pytest.fixture
def waiting(folder):
    """A socket in that folder."""
    one = folder.listen()
    yield one
    one.close()


def is_quiet(link):
    """Whether no wakeup has come, so that the wait ends with its time."""
    return link.wait(0.01) == set()


# What wakes readers, and when.


@pytest.mark.parametrize(
    ("channel", "kind"),
    [("http.request", "h"), ("own", "d"), ("reply.a!b", "reply.a!"), ("body?x", "body?x")],
)
def test_a_send_wakes_its_readers(patient, listening, channel, kind):
    one, other = listening(), listening()
    patient.send(channel, {})
    assert one.wait(DEADLINE) == other.wait(DEADLINE) == {kind}
    assert is_quiet(one) and is_quiet(other)


def test_a_reader_that_sleeps_is_woken(patient, listening):
    link, woken = listening(), []
    thread = threading.Thread(target=lambda: woken.append(link.wait(DEADLINE)), daemon=True)
    thread.start()
    started = time.monotonic()
    patient.send("own", {})
    thread.join(DEADLINE)
    assert woken == [{"d"}]
    assert time.monotonic() - started < AT_ONCE


def test_a_broadcast_wakes_every_server_once(patient, listening):
    for channel in ("reply.a!1", "reply.a!2", "reply.b!1", "http.request", "own"):
        patient.group_add("group", channel)
    link = listening()
    patient.send_group("group", {})
    assert link.wait(DEADLINE) == {"reply.a!", "reply.b!", "h", "d"}
    assert is_quiet(link)


def test_a_transaction_wakes_once_at_its_commit_and_never_after_a_rollback(patient, listening, monkeypatch):
    link, wakeups_sent = listening(), []
    notify = WakeupFolder.notify
    monkeypatch.setattr(
        WakeupFolder, "notify", lambda folder, kinds: wakeups_sent.append(kinds) or notify(folder, kinds)
    )
    with transaction.atomic(using="sqlite"):
        patient.send("http.request", {})
        transaction.set_rollback(True, using="sqlite")
    with transaction.atomic(using="sqlite"):
        for _ in range(3):
            patient.send("http.request", {})
            patient.send("own", {})
        with transaction.atomic(using="sqlite"):
            patient.send("reply.a!b", {})
        assert is_quiet(link)
    assert link.wait(DEADLINE) == {"h", "d", "reply.a!"}
    assert wakeups_sent == [{"h", "d", "reply.a!"}]


def test_a_savepoint_that_is_rolled_back_wakes_nobody(patient, listening):
    link = listening()
    with transaction.atomic(using="sqlite"):
        with transaction.atomic(using="sqlite"):
            patient.send("own", {})
            transaction.set_rollback(True, using="sqlite")
        patient.send("http.request", {})
    assert link.wait(DEADLINE) == {"h"}
    assert is_quiet(link)


def test_what_came_before_the_first_wait_is_looked_for(patient, new_link):
    link = new_link(patient)
    assert link.receive_many(["reply.a!"], 1) == []
    patient.send("reply.a!b", {})
    assert link.wait(DEADLINE) == {"h", "w", "d", HISTORY, "reply.a!"}


def test_a_message_that_is_handed_back_wakes_the_next_worker(patient, listening):
    worker, other = listening(), listening()
    patient.send("own", {})
    (claimed,) = worker.claim(["own"], 1, "w1")
    assert other.wait(DEADLINE) == {"d"}
    worker.finish("w1", BatchResult(returned=[claimed]))
    assert other.wait(DEADLINE) == {"d"}
    worker.register("w2", "worker")
    assert len(worker.claim(["own"], 1, "w2")) == 1
    other.clean_up_after("w2")
    assert other.wait(DEADLINE) == {"d"}


def test_a_dead_letter_that_is_replayed_wakes_a_worker(patient, listening):
    patient.send("own", {})
    worker, other = listening(), listening()
    (claimed,) = worker.claim(["own"], 1, "w1")
    worker.finish("w1", BatchResult(failures=[Failure(claimed, "as asked for", None)]))
    assert is_quiet(other)
    assert patient.replay(patient.dead_letter_ids()) == 1
    assert other.wait(DEADLINE) == {"d"}


def test_a_delayed_message_says_when_it_is_due(patient, new_link):
    link = new_link(patient)
    assert link.next_due() is None
    patient.send("own", {}, delay=60)
    assert 50 < link.next_due() <= 60
    patient.send("own", {}, delay=0.05)
    assert link.next_due() <= 0.05
    assert wait_until(lambda: link.claim(["own"], 1, "w1"))
    assert link.next_due() > 50


def test_what_was_due_for_others_makes_nobody_look_again_and_again(patient, new_link):
    link = new_link(patient)
    patient.send("others", {}, delay=0.01)
    wait_until(lambda: link.next_due() == 0)
    link.claim(["own"], 1, "w1")
    assert link.next_due() is None


def test_those_who_are_not_to_listen_do_not(patient):
    link = patient.link(listen=False)
    assert link.wait(0.01) == set()
    assert not os.path.exists(patient.wakeup_folder.path)
    link.close()


# Where nobody can be woken.


def test_without_wakeups_readers_look_every_50_ms(new_layer, new_link):
    silent = new_layer(wakeups=False)
    assert (silent.wakeups, silent.poll_interval()) == (False, 0.05)
    assert new_link(silent).wait(0) == set()
    silent.send("own", {})
    assert new_layer().poll_interval() == 1.0


@pytest.mark.parametrize("name", [":memory:", "file:memorydb_default?mode=memory&cache=shared"])
def test_a_database_in_memory_is_polled(layer, monkeypatch, name):
    monkeypatch.setitem(connections["sqlite"].settings_dict, "NAME", name)
    assert wakeup_folder("sqlite") is None
    assert (layer.wakeups, layer.poll_interval()) == (False, 0.05)


def test_a_folder_of_somebody_else_is_not_used(folder, layer, monkeypatch):
    os.mkdir(folder.path)
    os.chmod(folder.path, 0o777)
    assert folder.problem == f"{folder.path} is not the site's own folder"
    monkeypatch.setattr(wakeups, "_folder", lambda name: folder)
    assert layer.describe().endswith(f"poll every 0.05 s, as they cannot be woken ({folder.problem})")


def test_a_link_that_leads_elsewhere_is_not_followed(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir(0o700)
    os.symlink(tmp_path / "elsewhere", folder.path)
    assert folder.problem
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_reader_that_cannot_listen_any_more_looks_instead(patient, new_link, monkeypatch):
    assert patient.wakeups
    monkeypatch.setattr(WakeupFolder, "listen", raise_no_space)
    link = new_link(patient)
    try:
        assert link.wait(DEADLINE) >= {"h", "w", "d"}
        assert not patient.wakeups
        assert link.wait(0) == set()
    finally:
        del patient.wakeup_folder.problem


def raise_no_space(folder):
    raise OSError(28, "No space left on device")


def test_who_may_not_enter_the_folder_says_so_once(folder, waiting, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(wakeups.os, "listdir", raise_not_permitted)
        folder.notify({"h"})
        folder.notify({"d"})
    (record,) = caplog.records
    assert f"may not enter {folder.path}: they find what it sends when they look." in record.getMessage()
    assert waiting.wait(0) == set()


def raise_not_permitted(path):
    raise PermissionError(13, "Permission denied")


# Sockets, and the folder.


def test_only_the_owner_may_wake_readers_or_the_group_that_may_write_the_file(folder):
    one = folder.listen()
    assert [stat.S_IMODE(os.stat(path).st_mode) for path in (folder.path, one.path)] == [0o700, 0o600]
    one.close()
    os.chmod(folder.database, 0o660)
    one = folder.listen()
    assert [stat.S_IMODE(os.stat(path).st_mode) for path in (folder.path, one.path)] == [0o770, 0o660]
    one.close()


def test_the_folder_goes_with_its_last_reader(folder):
    one, other = folder.listen(), folder.listen()
    one.close()
    assert os.listdir(folder.path) == [os.path.basename(other.path)]
    other.close()
    assert not os.path.exists(folder.path)
    folder.notify({"h"})
    assert not os.path.exists(folder.path)


LISTEN_AND_DIE = """
import os, sys, django
django.setup()
from dbchannels.layers.database.wakeups import WakeupFolder
WakeupFolder(sys.argv[1]).listen()
os._exit(9)
"""


def test_a_killed_readers_socket_is_taken_away_by_the_next_wakeup(folder, waiting):
    subprocess.run([sys.executable, "-c", LISTEN_AND_DIE, folder.database], check=False)
    assert len(os.listdir(folder.path)) == 2
    folder.notify({"h"})
    assert os.listdir(folder.path) == [os.path.basename(waiting.path)]
    assert waiting.wait(0) == {"h"}


def test_a_full_socket_holds_up_nobody_and_everybody_is_looked_for(folder, waiting):
    for _ in range(1000):
        folder.notify({"h"})
    folder.notify({"reply.a!"})
    assert waiting.wait(0) is None
    folder.notify({"d"})
    assert waiting.wait(0) == {"d"}


def test_fewer_wakeups_than_fit_all_arrive(folder, waiting):
    for number in range(FULL - 1):
        folder.notify({str(number)})
    assert waiting.wait(0) == set(map(str, range(FULL - 1)))


def test_a_wakeup_for_very_many_is_for_everybody(folder, waiting):
    folder.notify({f"reply.{number}!" for number in range(1000)})
    assert waiting.wait(0) is None


def test_garbage_is_a_wakeup(folder, waiting):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"\xff\0" * 10_000, waiting.path)
    assert isinstance(waiting.wait(DEADLINE), set)
    assert waiting.wait(0) == set()


def test_a_long_path_is_no_hindrance(tmp_path):
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    (deep / "site.sqlite3").touch()
    folder = WakeupFolder(str(deep / "site.sqlite3"))
    assert folder.problem == ""
    one = folder.listen()
    folder.notify({"h"})
    assert one.wait(0) == {"h"}
    one.close()


def test_a_reader_whose_folder_was_cleared_up_listens_anew(patient, listening):
    link = listening()
    (name,) = os.listdir(patient.wakeup_folder.path)
    os.unlink(os.path.join(patient.wakeup_folder.path, name))
    link.wait(0)
    assert {"h", "w", "d"} <= link.wait(0)
    patient.send("own", {})
    assert link.wait(DEADLINE) == {"d"}


def test_readers_come_and_go_at_once(folder):
    """The folder that one takes away is made again by the other; nobody fails."""
    failed = []

    def come_and_go():
        try:
            for _ in range(100):
                one = folder.listen()
                folder.notify({"h"})
                one.close()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=come_and_go, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert failed == []
    assert not os.path.exists(folder.path)
