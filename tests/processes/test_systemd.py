"""What systemd passes to a server, and what it is told."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from contextlib import ExitStack, suppress

import gevent
import pytest

from dbchannels.exceptions import InvalidConfiguration
from dbchannels.processes import systemd
from dbchannels.processes.systemd import Service
from dbchannels.server.listeners import Address, Inherited, Listener
from dbchannels.testing.contract.case import raises


@pytest.fixture
def passed(monkeypatch):
    """Pass sockets as systemd does, from another descriptor on: their names by socket."""
    made = []

    def pass_on(names, *sockets, **environ):
        copies = [os.dup(one.fileno()) for one in sockets]
        first = 300 + len(made)
        for number, copy in enumerate(copies, first):
            os.dup2(copy, number, inheritable=True)
            os.close(copy)
            made.append(number)
        monkeypatch.setattr(systemd, "FIRST_DESCRIPTOR", first)
        given = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": names}
        environ = {"HOME": "/", **given, **environ}
        service = Service(environ)
        assert environ == {"HOME": "/"}  # nothing is left for child processes
        return service

    return pass_on


def listening(family, address):
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind(address)
    sock.listen()
    return sock


def closed(inherited):
    for one in [*inherited.site, *filter(None, [inherited.probe])]:
        one.socket.close()
    return inherited


def test_without_the_variables_nothing_is_passed_or_told():
    service = Service({})
    assert service.listeners() == Inherited()
    assert service.watchdog == 0
    service.tell("READY=1")


def test_sockets_of_each_family_are_taken(passed, tmp_path):
    path = str(tmp_path / "s")
    with (
        listening(socket.AF_INET, ("127.0.0.1", 0)) as four,
        listening(socket.AF_INET6, ("::1", 0)) as six,
        listening(socket.AF_UNIX, path) as unix,
        listening(socket.AF_UNIX, f"\0dbchannels-{os.getpid()}") as abstract,
    ):
        taken = passed("a:b:c:d", four, six, unix, abstract).listeners()
        assert [str(one.address) for one in taken.site] == [
            f"127.0.0.1:{four.getsockname()[1]}",
            f"[::1]:{six.getsockname()[1]}",
            f"unix:{path}",
            f"unix:@dbchannels-{os.getpid()}",
        ]
        assert taken.probe is None
        assert not any(one.socket.getblocking() or one.socket.get_inheritable() for one in taken.site)
        for one in closed(taken).site:
            one.remove()
        assert os.path.exists(path)  # systemd's own


def test_the_socket_named_probe_is_for_health_checks(passed):
    with (
        listening(socket.AF_INET, ("127.0.0.1", 0)) as site,
        listening(socket.AF_INET, ("127.0.0.1", 0)) as probe,
    ):
        taken = closed(passed("probe:http", probe, site).listeners())
        assert (taken.probe.address.port, taken.site[0].address.port) == (
            probe.getsockname()[1],
            site.getsockname()[1],
        )
        service = passed("probe:probe", probe, site)
        with raises(InvalidConfiguration) as error:
            service.listeners()
    assert "more than one socket named probe" in error.sentence


def test_without_names_all_are_the_sites(passed):
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as site:
        assert len(closed(passed("", site, site).listeners()).site) == 2


def make_datagram():
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def make_connected():
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours


@pytest.mark.parametrize("make", [make_datagram, make_connected, tempfile.TemporaryFile])
def test_what_does_not_listen_is_refused_in_a_sentence(make):
    with make() as one:
        descriptor = os.dup(one.fileno())
        with raises(InvalidConfiguration) as error:
            Listener.inherited(descriptor)
    assert error.sentence.startswith(
        f"The descriptor {descriptor} that was passed to this server cannot be used ("
    )


def test_sockets_for_another_process_are_left_alone_with_a_warning(passed, caplog):
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as site:
        service = passed("http", site, LISTEN_PID="1")
    assert service.listeners() == Inherited()
    assert "LISTEN_FDS is for process 1, and this is" in caplog.text


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_the_service_manager_is_told(tmp_path, kind):
    address = str(tmp_path / "n") if kind == "path" else f"@dbchannels-notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        manager.settimeout(10)
        service = Service({"NOTIFY_SOCKET": address})
        service.tell("READY=1", "STATUS=Serving")
        assert manager.recv(100) == b"READY=1\nSTATUS=Serving"
        service.tell_reloading()
        first, second = manager.recv(100).decode().split("\n")
        assert first == "RELOADING=1"
        assert second.removeprefix("MONOTONIC_USEC=").isdecimal()
        service.leave()
        service.tell("STOPPING=1")
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(100)


def test_a_service_manager_that_is_gone_is_a_line_in_the_log(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        Service({"NOTIFY_SOCKET": str(tmp_path / "gone")}).tell("READY=1")
    assert "The service manager could not be notified" in caplog.text


@pytest.mark.parametrize(("named", "watchdog"), [("", 2_000_000), ("us", 2_000_000), ("1", 0)])
def test_the_watchdog_is_for_the_process_that_it_names(named, watchdog):
    pid = str(os.getpid()) if named == "us" else named
    assert Service({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": pid}).watchdog == watchdog


def test_an_inherited_listener_is_found_by_its_address():
    listener = Listener(None, Address("127.0.0.1", 8000))
    assert listener.is_at(Address("127.0.0.1", 8000)) and listener.is_at(Address("127.0.0.1", 0))
    assert not listener.is_at(Address("127.0.0.1", 8001)) and not listener.is_at(Address("::1", 0))
    assert not listener.is_at(Address("", 0, "/s"))


def test_a_manager_that_does_not_read_holds_up_nobody(tmp_path, caplog):
    path, order = str(tmp_path / "notify"), []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, ExitStack() as others:
        manager.bind(path)
        sent = 1
        while sent:  # one sender's own buffer may be full before the manager's queue is
            sender = others.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            sender.setblocking(False)
            sent = 0
            with suppress(BlockingIOError):
                while True:
                    sent += sender.sendto(b"x", path)
        service = Service({"NOTIFY_SOCKET": path})
        telling = gevent.spawn(lambda: (service.tell("READY=1"), order.append("told")))
        gevent.spawn(order.append, "a request")
        telling.join()
    assert order == ["a request", "told"]
    assert "The service manager could not be notified" in caplog.text
