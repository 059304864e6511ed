"""A database with several addresses: the one that was last connected to comes first, for all of this process."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from django.db import connections
from django.db.backends.signals import connection_created

from dbchannels.layers import addresses

NO_HOST = {"HOST": "", "PORT": ""}


@pytest.fixture
def databases(monkeypatch):
    """The entries of DATABASES, for a test to write."""
    entries = {}
    monkeypatch.setattr(connections, "settings", entries)
    return entries


@pytest.mark.parametrize(
    ("host", "port", "found"),
    [
        ("a,b", "", [("a", "5432"), ("b", "5432")]),
        ("a,b", 3, [("a", "3"), ("b", "3")]),
        ("a,b", "1,2", [("a", "1"), ("b", "2")]),
        ("a,b", "1,2,3", []),  # libpq says what is wrong
        ("a", "1,2", []),
        ("a", "1", []),
        ("", "", []),
        (None, None, []),
    ],
)
def test_addresses_are_read_as_libpq_reads_them(host, port, found):
    assert addresses.addresses({"HOST": host, "PORT": port}) == found


def test_the_address_that_answered_comes_first_in_each_entry_that_has_it(databases):
    databases |= {
        "default": {"HOST": "a,b,c", "PORT": "1,2,3"},
        "other": {"HOST": "a,b", "PORT": "2"},
        "elsewhere": {"HOST": "b", "PORT": "2"},
        "sqlite": dict(NO_HOST),
    }
    addresses.prefer(("b", "2"))
    assert databases == {
        "default": {"HOST": "b,a,c", "PORT": "2,1,3"},
        "other": {"HOST": "b,a", "PORT": "2,2"},
        "elsewhere": {"HOST": "b", "PORT": "2"},
        "sqlite": NO_HOST,
    }
    before = {alias: dict(entry) for alias, entry in databases.items()}
    for address in (("b", "2"), ("d", "1"), ("c", "1")):
        addresses.prefer(address)
        assert databases == before


def connection(vendor="postgresql", host="b", port=2, **settings):
    raw = SimpleNamespace(info=SimpleNamespace(host=host, port=port))
    return SimpleNamespace(alias="default", vendor=vendor, settings_dict=settings, connection=raw)


def test_djangos_own_connections_tell_which_address_answered(databases):
    databases["default"] = {"HOST": "a,b", "PORT": "1,2"}
    receivers = connection_created.receivers[:]
    try:
        addresses.learn()
        for one in (connection("sqlite", HOST="a,b", PORT="1,2"), connection(HOST="b", PORT="2")):
            connection_created.send(type(one), connection=one)
            assert databases["default"] == {"HOST": "a,b", "PORT": "1,2"}
        connection_created.send(object, connection=connection(HOST="a,b", PORT="1,2"))
        assert databases["default"] == {"HOST": "b,a", "PORT": "2,1"}
    finally:
        connection_created.receivers[:] = receivers
        connection_created.sender_receivers_cache.clear()


def test_sites_with_one_address_pay_nothing(databases):
    databases |= {"default": {"HOST": "a", "PORT": "1"}, "sqlite": dict(NO_HOST)}
    before = len(connection_created.receivers)
    addresses.learn()
    assert len(connection_created.receivers) == before
