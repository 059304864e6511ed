"""Addresses to listen at: how they are written, Unix sockets and what they leave, and one sentence when it fails."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from dbchannels.exceptions import InvalidConfiguration
from dbchannels.server.listeners import Address, AddressInUse, SocketPermissions, listen, listen_all
from dbchannels.testing.contract.case import raises

PERMISSIONS = SocketPermissions()


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

    def open_one(address, permissions=PERMISSIONS):
        made.append(listen(address, permissions))
        return made[-1]

    yield open_one
    for one in made:
        one.socket.close()


@pytest.mark.parametrize("text", ["127.0.0.1:8000", "[::1]:8000", "localhost:80", "unix:/run/site.sock"])
def test_an_address_is_written_as_it_is_read(text):
    assert str(Address.parse(text)) == text


def test_a_relative_path_is_made_whole(folder):
    assert Address.parse("unix:site.sock").path == str(folder / "site.sock")


@pytest.mark.parametrize("text", ["unix:", "unix:/a\0b", "unix:/" + "x" * 107])
def test_what_cannot_be_a_path_of_a_socket_is_refused_in_a_sentence(text):
    with raises(InvalidConfiguration) as error:
        Address.parse(text)
    assert "is not the path of a Unix socket: write unix:/run/site.sock" in error.sentence


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_port_0_is_any_free_port(opened, host):
    listener = opened(Address(host, 0))
    assert listener.address.port > 0
    with socket.create_connection((host, listener.address.port), timeout=10):
        pass


def test_both_families_can_have_the_same_port(opened):
    port = opened(Address("0.0.0.0", 0)).address.port
    assert opened(Address("::", port)).address.port == port


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "no-such-host.invalid"])
def test_an_address_that_is_not_ours_is_one_sentence(host):
    with raises(AddressInUse) as error:
        listen(Address(host, 8000), PERMISSIONS)
    assert error.sentence.startswith(f"{Address(host, 8000)} cannot be used (")


def test_one_bad_address_frees_the_others(folder):
    good = Address.parse("unix:good.sock")
    with raises(AddressInUse):
        listen_all([good, Address("192.0.2.1", 8000)], PERMISSIONS)
    assert not os.path.exists(good.path)


# Unix sockets.


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("mode", ["600", "660", "0666"])
def test_a_socket_has_its_mode_whatever_the_umask(folder, opened, mode):
    before = os.umask(0o077)
    try:
        opened(Address.parse("unix:a.sock"), SocketPermissions.parse(mode, ""))
    finally:
        os.umask(before)
    assert mode_of("a.sock") == int(mode, 8)


def test_nobody_else_can_connect_before_the_mode_is_set(folder, opened, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "chmod", lambda path, mode: seen.append(mode_of(path)))
    opened(Address.parse("unix:a.sock"), SocketPermissions(0o666))
    assert seen == [0o600]


def test_a_socket_has_its_owner(folder, opened, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "chown", lambda *given: seen.append(given))
    address = Address.parse("unix:a.sock")
    opened(address, SocketPermissions(0o660, 1, 2))
    assert seen == [(address.path, 1, 2)]


def test_an_owner_that_may_not_be_given_is_one_sentence_and_leaves_no_file(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    address = Address.parse("unix:a.sock")
    with raises(AddressInUse) as error:
        listen(address, SocketPermissions(0o660, 1, 2))
    assert error.sentence.startswith(f"{address} cannot be used (Operation not permitted): ")
    assert not os.path.exists(address.path)


def test_the_socket_of_a_server_that_was_killed_is_replaced(folder, opened):
    address = Address.parse("unix:a.sock")
    listen(address, PERMISSIONS).socket.close()  # as the kernel does; the file stays
    assert os.path.exists(address.path)
    opened(address)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address.path)


def test_that_of_a_living_server_is_not(folder, opened):
    address = Address.parse("unix:a.sock")
    first = opened(address)
    with raises(AddressInUse) as error:
        listen(address, PERMISSIONS)
    assert error.sentence.startswith(f"{address} cannot be used (Address already in use): ")
    assert os.stat(address.path).st_ino == first.inode


def test_nor_is_a_file_of_another_kind(folder):
    address = Address.parse("unix:a.sock")
    (folder / "a.sock").write_text("precious")
    with raises(AddressInUse) as error:
        listen(address, PERMISSIONS)
    assert "the file there is not a socket" in error.sentence
    assert (folder / "a.sock").read_text() == "precious"


def test_a_folder_that_is_not_there_is_one_sentence(folder):
    with raises(AddressInUse) as error:
        listen(Address.parse("unix:missing/a.sock"), PERMISSIONS)
    assert "No such file or directory" in error.sentence


def test_a_socket_is_removed_in_the_end_but_never_another_servers(folder, opened):
    address = Address.parse("unix:a.sock")
    first = opened(address)
    os.rename("a.sock", "old.sock")  # so that its inode is not given again
    second = opened(address)
    first.remove()
    assert os.path.exists(address.path)
    second.remove()
    assert not os.path.exists(address.path)
    second.remove()
