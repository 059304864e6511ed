"""How the configured layers are found and shared."""

from __future__ import annotations

import threading

import pytest

from dbchannels import Channel, Group, channel_layers
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.layers import ChannelLayers
from dbchannels.layers.database import DatabaseLayer
from dbchannels.layers.memory import MemoryLayer
from dbchannels.layers.postgresql import PostgreSQLLayer
from dbchannels.testing.contract.case import raises
from tests import kinds


class OwnLayer(MemoryLayer):
    """A layer of the site's own."""


@pytest.fixture
def layers(settings):
    """Layers by alias, of every kind."""
    settings.DBCHANNELS = {
        "default": {"BACKEND": "memory", "OPTIONS": {"capacity": 7}},
        "polling": {"BACKEND": "database", "DATABASE": "sqlite"},
        "by vendor": {"DATABASE": "sqlite"},
        "own": {"BACKEND": f"{__name__}.OwnLayer", "OPTIONS": {"of its own": 1}},
        "missing": {"BACKEND": "nowhere.Layer"},
        "unfinished": {"BACKEND": "dbchannels.layers.store.StoreLayer"},
    }
    return ChannelLayers()


def test_a_short_name_is_enough(layers):
    assert type(layers["default"]) is MemoryLayer
    assert type(layers["polling"]) is DatabaseLayer
    assert type(layers["own"]) is OwnLayer
    assert layers["default"].options["capacity"] == 7
    assert layers["default"].alias == "default"
    assert layers["polling"].database == "sqlite"


def test_the_vendor_decides(layers):
    assert type(layers["by vendor"]) is DatabaseLayer


@pytest.mark.postgresql
def test_the_vendor_decides_for_postgresql(settings):
    del settings.DBCHANNELS
    assert type(ChannelLayers()["default"]) is PostgreSQLLayer


def test_a_layer_is_made_once_for_all_threads(layers):
    found = []
    threads = [threading.Thread(target=lambda: found.append(layers["default"])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(map(id, found)) == {id(layers["default"])}
    layers.clear()
    assert layers["default"] is not found[0]


def test_a_wrong_backend_is_one_sentence(layers):
    with raises(InvalidConfiguration) as refused:
        layers["missing"]
    assert "DBCHANNELS['missing']['BACKEND']" in refused.sentence
    assert "memory" in refused.sentence


def test_the_methods_that_a_backend_lacks_are_one_sentence(layers):
    with raises(InvalidConfiguration) as refused:
        layers["unfinished"]
    assert refused.sentence.endswith("which lacks methods: add locked, table, table_names.")


def test_a_misspelt_backend_is_one_sentence_for_every_layer(layers, settings):
    settings.DBCHANNELS = {"default": {"BACKEND": "memory"}, "misspelt": {"BACKEND": "postgres"}}
    for alias in ("default", "misspelt"):
        with raises(InvalidConfiguration) as refused:
            layers[alias]
        assert "DBCHANNELS['misspelt']['BACKEND']" in refused.sentence
        assert "memory" in refused.sentence


def test_an_unknown_alias_is_one_sentence(layers):
    with raises(InvalidConfiguration) as refused:
        layers["absent"]
    assert "'absent'" in refused.sentence


def test_channels_and_groups_name_their_layer(layers):
    channel_layers["default"], channel_layers["other"] = layers["default"], layers["own"]
    try:
        Channel("own", layer="other").send({"number": 1})
        Group("group", layer="other").add("own")
        assert layers["default"].receive(["own"]) == (None, None)
        assert layers["own"].receive(["own"]) == ("own", {"number": 1})
        assert Group("group").channels() == []
        assert Group("group", layer="other").channels() == ["own"]
    finally:
        channel_layers.clear()


@kinds.only("polling")
def test_the_generic_layer_polls_what_is_no_sqlite_file(layer, new_link):
    assert (layer.wakeups, layer.poll_interval()) == (False, 0.05)
    assert new_link(layer).next_due() is None


@kinds.only("memory")
def test_a_reader_of_the_memory_layer_is_told_for_whom_something_came(layer):
    link = layer.link()
    link.receive_many(["reply.a!"], 1)
    link.wait(0)
    assert link.wait(0) == set()
    layer.send("reply.a!b", {"text": "hi"})
    assert "reply.a!" in link.wait(5)
    assert link.wait(0) == set()
