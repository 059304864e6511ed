"""The example of docs/layers.rst keeps the contract, and counts."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from dbchannels.conf import OPTIONS, LayerSettings

PAGE = Path(__file__).parents[1] / "docs" / "layers.rst"
CODE = re.findall(r"\.\. code-block:: python\n   :caption: .*\n\n((?:   .*\n|\n)+)", PAGE.read_text())

for block in CODE:
    exec(textwrap.dedent(block), globals())  # TestCountingLayer, among others


def test_the_page_has_a_layer_and_its_tests():
    assert len(CODE) == 2
    assert {"CountingLayer", "TestCountingLayer"} <= set(globals())


def test_it_counts_what_is_sent():
    layer = globals()["CountingLayer"](LayerSettings("default", None, "default", None, OPTIONS))
    layer.send("own", {})
    layer.send_many([("own", {}), ("other", {})])
    assert layer.counts == {"own": 2, "other": 1}
