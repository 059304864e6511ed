"""Addresses to listen at: how they are written, Unix sockets and what they leave, and one sentence when it fails."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from dbchannels.exceptions import InvalidConfiguration
from dbchannels.server.listeners import AddressInUse, Bind, SocketRights, listen, listen_all
from dbchannels.testing.contract.case import raises

RIGHTS = SocketRights()


@pytest.fixture
def folder(tmp_path_factory):
    """A folder with a short path: a Unix socket's has 107 bytes at most."""
    folder = tmp_path_factory.mktemp("s")
    before = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture
def opened():
    """What a test listens at; closed in the end."""
    made = []

    def open_one(bind, rights=RIGHTS):
        made.append(listen(bind, rights))
        return made[-1]

    yield open_one
    for one in made:
        one.socket.close()


@pytest.mark.parametrize("text", ["127.0.0.1:8000", "[::1]:8000", "localhost:80", "unix:/run/site.sock"])
def test_an_address_is_written_as_it_is_read(text):
    assert str(Bind.of(text)) == text


def test_a_relative_path_is_made_whole(folder):
    assert Bind.of("unix:site.sock").path == str(folder / "site.sock")


@pytest.mark.parametrize("text", ["unix:", "unix:/a\0b", "unix:/" + "x" * 107])
def test_what_cannot_be_a_path_of_a_socket_is_refused_in_a_sentence(text):
    with raises(InvalidConfiguration) as error:
        Bind.of(text)
    assert "is no path of a Unix socket: write unix:/run/site.sock" in error.sentence


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_port_0_is_any_free_port(opened, host):
    listening = opened(Bind(host, 0))
    assert listening.bind.port > 0
    with socket.create_connection((host, listening.bind.port), timeout=10):
        pass


def test_both_families_can_have_the_same_port(opened):
    port = opened(Bind("0.0.0.0", 0)).bind.port
    assert opened(Bind("::", port)).bind.port == port


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "no-such-host.invalid"])
def test_an_address_that_is_not_ours_is_one_sentence(host):
    with raises(AddressInUse) as error:
        listen(Bind(host, 8000), RIGHTS)
    assert error.sentence.startswith(f"{Bind(host, 8000)} cannot be used (")


def test_one_bad_address_frees_the_others(folder):
    good = Bind.of("unix:good.sock")
    with raises(AddressInUse):
        listen_all([good, Bind("192.0.2.1", 8000)], RIGHTS)
    assert not os.path.exists(good.path)


# Unix sockets.


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("mode", ["600", "660", "0666"])
def test_a_socket_has_its_mode_whatever_the_umask(folder, opened, mode):
    before = os.umask(0o077)
    try:
        opened(Bind.of("unix:a.sock"), SocketRights.of(mode, ""))
    finally:
        os.umask(before)
    assert mode_of("a.sock") == int(mode, 8)


def test_nobody_else_can_connect_before_the_mode_is_set(folder, opened, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "chmod", lambda path, mode: seen.append(mode_of(path)))
    opened(Bind.of("unix:a.sock"), SocketRights(0o666))
    assert seen == [0o600]


def test_a_socket_has_its_owner(folder, opened, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "chown", lambda *given: seen.append(given))
    bind = Bind.of("unix:a.sock")
    opened(bind, SocketRights(0o660, 1, 2))
    assert seen == [(bind.path, 1, 2)]


def test_an_owner_that_may_not_be_given_is_one_sentence_and_leaves_no_file(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    bind = Bind.of("unix:a.sock")
    with raises(AddressInUse) as error:
        listen(bind, SocketRights(0o660, 1, 2))
    assert error.sentence.startswith(f"{bind} cannot be used (Operation not permitted): ")
    assert not os.path.exists(bind.path)


def test_the_socket_of_a_server_that_was_killed_is_replaced(folder, opened):
    bind = Bind.of("unix:a.sock")
    listen(bind, RIGHTS).socket.close()  # as the kernel does; the file stays
    assert os.path.exists(bind.path)
    opened(bind)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(bind.path)


def test_that_of_a_living_server_is_not(folder, opened):
    bind = Bind.of("unix:a.sock")
    first = opened(bind)
    with raises(AddressInUse) as error:
        listen(bind, RIGHTS)
    assert error.sentence.startswith(f"{bind} cannot be used (Address already in use): ")
    assert os.stat(bind.path).st_ino == first.inode


def test_nor_is_a_file_of_another_kind(folder):
    bind = Bind.of("unix:a.sock")
    (folder / "a.sock").write_text("precious")
    with raises(AddressInUse) as error:
        listen(bind, RIGHTS)
    assert "a file that is no socket stands there" in error.sentence
    assert (folder / "a.sock").read_text() == "precious"


def test_a_folder_that_is_not_there_is_one_sentence(folder):
    with raises(AddressInUse) as error:
        listen(Bind.of("unix:missing/a.sock"), RIGHTS)
    assert "No such file or directory" in error.sentence


def test_a_socket_is_removed_in_the_end_but_never_another_servers(folder, opened):
    bind = Bind.of("unix:a.sock")
    first = opened(bind)
    os.rename("a.sock", "old.sock")  # so that its inode is not given again
    second = opened(bind)
    first.remove()
    assert os.path.exists(bind.path)
    second.remove()
    assert not os.path.exists(bind.path)
    second.remove()
