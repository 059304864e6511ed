"""The example of docs/layers.rst keeps the contract, also between processes."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path

import pytest

from dbchannels import conf
from dbchannels.conf import OPTIONS, LayerSettings

PAGE = Path(__file__).parents[1] / "docs" / "layers.rst"
SETTINGS, *CODE = re.findall(
    r"\.\. code-block:: python\n   :caption: .*\n\n((?:   .*\n|\n)+)", PAGE.read_text()
)

for block in CODE:
    exec(textwrap.dedent(block), globals())  # TestFileLayer, among others


@pytest.fixture
def new_layer(tmp_path):
    """Return a function that makes a layer on one file."""
    settings = LayerSettings("default", None, "default", None, {**OPTIONS, "path": tmp_path / "channels"})
    return lambda: globals()["FileLayer"](settings)


def test_the_page_has_a_layer_and_its_tests():
    assert len(CODE) == 2
    assert {"FileLayer", "TestFileLayer"} <= set(globals())


def test_the_layer_has_about_a_hundred_lines_at_most():
    assert len(CODE[0].splitlines()) <= 120


def test_the_setting_names_it(settings):
    exec(textwrap.dedent(SETTINGS), made := {})
    settings.DBCHANNELS = made["DBCHANNELS"]
    assert conf.problems() == []
    layer = conf.layer_settings()
    assert layer.backend == f"shop.layers.{globals()['FileLayer'].__name__}"
    assert globals()["FileLayer"](layer).path == Path("/var/lib/shop/channels")


def test_two_layers_on_one_file_are_one_layer(new_layer):
    one, other = new_layer(), new_layer()
    one.send("own", {"number": 1})
    one.group_add("group", "own")
    assert other.receive(["own"]) == ("own", {"number": 1})
    assert other.group_channels("group") == ["own"]
    assert one.receive(["own"]) == (None, None)


def test_what_a_block_wrote_when_its_process_died_was_not_written(new_layer):
    layer = new_layer()
    layer.send("own", {"number": 1})
    if not (child := os.fork()):
        with layer.locked():
            layer.send("own", {"number": 2})
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert layer.receive(["own"]) == ("own", {"number": 1})
    assert layer.receive(["own"]) == (None, None)
