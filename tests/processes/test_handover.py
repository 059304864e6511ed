"""The two ends of a takeover, when one of them is silent, late, or of another project: both must never accept."""

from __future__ import annotations

import os
import re
import socket
import struct
import tempfile
from contextlib import closing

import gevent
import pytest
from gevent import socket as gevent_socket
from gevent.event import Event
from gevent.socket import wait_read

from dbchannels.processes import handover
from dbchannels.processes.handover import (
    CONTROL,
    SITE,
    ControlSocket,
    Predecessor,
    TakeoverFailed,
)
from dbchannels.server.listeners import Address, Inherited, SocketPermissions, listen
from tests.harness import HOST

PROJECT = ["mysite.settings", "site"]


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory() as folder:
        yield f"{folder}/control"


@pytest.fixture
def running(path):
    """A running server, as far as it hands over: its listener, a list of the workers once it was taken, and itself."""
    taken = []
    listener = listen(Address(HOST, 0), SocketPermissions())
    control = listen(Address("", 0, path), SocketPermissions())
    served = ControlSocket(control, lambda: Inherited((listener,)), PROJECT, 0, taken.append)
    served.start()
    yield listener, taken, served
    while Newcomer.made:
        Newcomer.made.pop().sock.close()
    served.close()
    listener.socket.close()


class Newcomer:
    """The other end, by hand."""

    made = []  # noqa: RUF012

    def __init__(self, path, version=handover.VERSION, descriptors=()):
        self.made.append(self)
        self.sock = gevent_socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(path)
        handover.send(self.sock, {"version": version, "site": PROJECT}, list(descriptors))
        self.offer, descriptors = handover.receive(self.sock, 10.0)
        for one in descriptors:
            os.close(one)

    def keep(self):
        handover.send(self.sock, {"kept": [0], "workers": ["w"]})

    def told(self):
        return handover.receive(self.sock, 10.0)[0]


def taken_over(path, listener):
    """Take over; return the new server's end."""
    found = Predecessor.find(path, PROJECT)
    assert [one.address for one in found.listeners.site] == [listener.address]
    found.take_over(found.listeners, {"w"})
    for one in (*found.listeners.site, found.control):
        one.socket.close()
    return found


def test_one_that_is_silent_is_told_that_it_was_too_late_and_the_next_one_takes_over(
    running, path, monkeypatch
):
    listener, taken, _ = running
    monkeypatch.setattr(handover, "TAKEN_WITHIN", 0.1)
    silent = Newcomer(path)
    with pytest.raises(TakeoverFailed, match="takes over already"):
        Predecessor.find(path, PROJECT)
    assert "refused" in silent.told()
    with pytest.raises(BrokenPipeError):
        silent.keep()
    assert not taken
    monkeypatch.undo()
    taken_over(path, listener)
    assert taken == [{"w"}]


def test_one_that_says_nothing_at_all_is_in_nobodys_way(running, path):
    listener, taken, _ = running
    with closing(gevent_socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as silent:
        silent.connect(path)
        taken_over(path, listener)
    assert taken == [{"w"}]


def test_a_running_server_that_was_stopped_for_too_long_reads_what_came_meanwhile(running, path, monkeypatch):
    _, taken, _ = running
    receive = handover.receive

    def late(sock, timeout):
        if timeout != handover.TAKEN_WITHIN:
            return receive(sock, timeout)
        kept.wait()
        raise TimeoutError

    kept = Event()
    monkeypatch.setattr(handover, "receive", late)
    newcomer = Newcomer(path)
    newcomer.keep()
    kept.set()
    assert newcomer.told() == {"drains": True}
    assert taken == [{"w"}]


def test_one_that_is_killed_before_it_has_read_the_offer_has_ended(running, path, caplog):
    _, taken, _ = running
    with closing(gevent_socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as sock:
        sock.connect(path)
        handover.send(sock, {"version": handover.VERSION, "site": PROJECT})
        wait_read(sock.fileno(), 10.0)
    with gevent.Timeout(10.0):
        while "has ended before it took over, so this server goes on." not in caplog.text:
            gevent.sleep(0.01)
    assert not taken


@pytest.mark.parametrize(
    "answer", [{}, {"kept": [99], "workers": []}, {"kept": 1}, {"kept": [0], "workers": 1}]
)
def test_a_running_server_that_goes_on_says_so(running, path, answer):
    _, taken, _ = running
    newcomer = Newcomer(path)
    handover.send(newcomer.sock, answer)
    assert "refused" in newcomer.told()
    assert not taken


@pytest.mark.parametrize("site", [["mysite.settings", "other"], ["other.settings", "site"], None])
def test_a_server_of_another_project_is_refused(running, path, site, caplog):
    sentence = (
        r"^The running server is another project's \(settings 'mysite.settings', database 'site'\): give each "
        r"project a --control of its own, or restart the service if it is the same project\.$"
    )
    with pytest.raises(TakeoverFailed, match=sentence):
        Predecessor.find(path, site)
    assert "A takeover was refused: " in caplog.text


def test_a_server_of_another_version_is_refused(running, path):
    refused = Newcomer(path, version=handover.VERSION + 1).offer["refused"]
    assert refused.startswith("The running server hands over in another way than this one: restart ")
    assert not running[1]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"[]", "a line was no object"),
        (b"[" * 50_000, "a line was nested too deeply"),
        (b"x" * handover.LONGEST, "a line or its descriptors were too long"),
    ],
)
def test_what_cannot_be_read_is_logged_and_its_descriptors_are_closed(running, path, caplog, line, why):
    listener, taken, _ = running
    reader, writer = os.pipe()
    with closing(gevent_socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as sock:
        sock.connect(path)
        socket.send_fds(sock, [line[:100]], [reader])
        os.close(reader)
        sock.sendall(line[100:] + b"\n")
        with gevent.Timeout(10.0):
            while f"Something at the control socket could not be read: {why}." not in caplog.text:
                gevent.sleep(0.01)
    with open(writer, "wb", buffering=0) as pipe, pytest.raises(BrokenPipeError):
        pipe.write(b"x")
    taken_over(path, listener)
    assert taken == [{"w"}]


def test_descriptors_that_come_with_the_question_are_closed(running, path):
    reader, writer = os.pipe()
    Newcomer(path, descriptors=[reader])
    os.close(reader)
    with open(writer, "wb", buffering=0) as pipe, pytest.raises(BrokenPipeError):
        pipe.write(b"x")


def test_a_running_server_that_is_told_to_stop_is_not_taken_over(running, path):
    _, taken, served = running
    newcomer = Newcomer(path)
    served.close()
    assert newcomer.told() == {"refused": "The running server was told to stop, so this one stops too."}
    newcomer.keep()
    with pytest.raises(EOFError):
        newcomer.told()
    assert not taken


@pytest.mark.parametrize(
    ("user", "own", "allowed"), [(7, 7, True), (0, 7, True), (7, 8, False), (7, 0, False)]
)
def test_both_processes_are_of_one_user_or_the_other_one_is_root_s(monkeypatch, user, own, allowed):
    class Peer:
        def getsockopt(self, level, option, size):
            assert (level, option, size) == (socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            return struct.pack("3i", 4711, user, user)

    monkeypatch.setattr(os, "geteuid", lambda: own)
    if allowed:
        assert handover.peer_of(Peer()) == 4711
    else:
        with pytest.raises(TakeoverFailed, match=f"must be of one user: {user} is not {own}"):
            handover.peer_of(Peer())


# The new server.


class Offering:
    """A running server by hand: it offers a listener, and then does as the test wants."""

    def __init__(self, path, then):
        self._listeners = [
            listen(Address(HOST, 0), SocketPermissions()),
            listen(Address("", 0, path), SocketPermissions()),
        ]
        self.listener, self.control = self._listeners
        self._then = then
        self.greenlet = gevent.spawn(self._serve)

    def _serve(self):
        with gevent_socket.socket(fileno=os.dup(self.control.socket.fileno())) as server:
            sock, _ = server.accept()
        with sock:
            handover.receive(sock, 10.0)
            what = [
                [role, *one.address, one.inode]
                for role, one in zip((SITE, CONTROL), self._listeners, strict=True)
            ]
            descriptors = [one.socket.fileno() for one in self._listeners]
            handover.send(sock, {"listeners": what, "watchdog": 0}, descriptors)
            self._then(sock)

    def end(self):
        self.greenlet.join(10)
        for one in self._listeners:
            one.socket.close()
        self.control.remove()


@pytest.mark.parametrize("alive", [True, False])
def test_the_end_of_the_connection_is_the_death_of_the_running_server_only_if_it_has_died(
    path, alive, monkeypatch
):
    monkeypatch.setattr(handover, "is_alive", lambda pid: alive and pid == os.getpid())
    old = Offering(path, lambda sock: handover.receive(sock, 10.0))
    found = Predecessor.find(path, PROJECT)
    try:
        if alive:
            with pytest.raises(TakeoverFailed, match=f"^The running server, process {os.getpid()}, goes on "):
                found.take_over(found.listeners, set())
        else:
            found.take_over(found.listeners, set())
    finally:
        found._sock.close()
        for one in (*found.listeners.site, found.control):
            one.socket.close()
        old.end()


def test_where_no_server_is_there_is_nothing_to_take_over(path):
    assert Predecessor.find(path, PROJECT) is None
    listen(Address("", 0, path), SocketPermissions()).socket.close()  # as a server leaves it that was killed
    assert Predecessor.find(path, PROJECT) is None
    with pytest.raises(TakeoverFailed, match=r"cannot be asked to hand over: Not a directory\.$"):
        Predecessor.find(f"{path}/control", PROJECT)


def test_an_offer_that_cannot_be_read_is_one_sentence(path):
    with closing(listen(Address("", 0, path), SocketPermissions()).socket) as control:

        def serve():
            with gevent_socket.socket(fileno=os.dup(control.fileno())) as server, server.accept()[0] as sock:
                handover.receive(sock, 10.0)
                handover.send(sock, {"watchdog": 0})

        served = gevent.spawn(serve)
        sentence = (
            rf"^The running server, process {os.getpid()}, does not hand over \(KeyError\('listeners'\)\): "
        )
        with pytest.raises(TakeoverFailed, match=sentence):
            Predecessor.find(path, PROJECT)
        served.join(10)


def test_a_refusal_of_the_running_server_ends_the_takeover_and_unused_listeners_are_closed(path):
    def take(sock):
        assert handover.receive(sock, 10.0)[0] == {"kept": [1], "workers": []}
        handover.send(sock, answers.pop(0))

    answers = [{"refused": "It goes on."}, {"drains": True}]
    for refused in (True, False):
        old = Offering(path, take)
        found = Predecessor.find(path, PROJECT)
        (site,) = found.listeners.site
        try:
            if refused:
                with pytest.raises(TakeoverFailed, match=r"^It goes on\.$"):
                    found.take_over(Inherited(), set())
            else:
                found.take_over(Inherited(), set())
            assert (site.socket.fileno() == -1) is not refused
        finally:
            found._sock.close()
            site.socket.close()
            found.control.socket.close()
            old.end()


@pytest.mark.parametrize("line", [{"refused": "It stops."}, {}])
def test_a_running_server_that_stops_meanwhile_ends_the_takeover(path, line):
    old = Offering(path, lambda sock: handover.send(sock, line))
    found = Predecessor.find(path, PROJECT)
    old.greenlet.join(10)
    try:
        sentence = line.get("refused", "The running server does not hand over any more.")
        with pytest.raises(TakeoverFailed, match=f"^{re.escape(sentence)}$"):
            found.check()
    finally:
        found._sock.close()
        for one in (*found.listeners.site, found.control):
            one.socket.close()
        old.end()


def test_whether_a_process_lives(monkeypatch):
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        monkeypatch.setattr(handover, "DEAD_WITHIN", 0.0)
        assert handover.is_alive(child)
        monkeypatch.undo()
    finally:
        os.close(writer)
    assert not handover.is_alive(child)  # nobody has waited for it yet
    os.waitpid(child, 0)
    assert not handover.is_alive(child)
