"""The home page shows the README's code, and a picture that is light or dark as the page is."""

from __future__ import annotations

import re
import textwrap
from xml.etree import ElementTree

from tests.docs import pages

STATIC = pages.DOCS / "_static"
README = (pages.DOCS.parent / "README.rst").read_text()


def test_its_code_is_the_readmes_which_is_run() -> None:
    (code,) = (block.code for block in pages.blocks("index", "python"))
    assert textwrap.indent(f"# chat/consumers.py\n{code}", "   ") in README
    assert len([line for line in code.splitlines() if line.strip()]) + len(["INSTALLED_APPS"]) == 12


def test_each_shape_of_its_picture_has_a_colour_of_the_theme() -> None:
    picture = (STATIC / "chat.svg").read_text()
    root = ElementTree.fromstring(picture)
    assert root.find("{*}title") is not None
    style = (STATIC / "home.css").read_text()
    rules = dict(re.findall(r"^\.home-chat (\.?[\w-]+) \{(.+)\}$", style, re.MULTILINE))
    shapes = [one for one in root.iter() if one.tag.rpartition("}")[2] in ("rect", "path", "circle", "text")]
    assert len(shapes) > 20
    for shape in shapes:
        rule = rules[f".{shape.get('class')}" if shape.get("class") else "text"]
        assert re.findall(r"(?:fill|stroke): (.+?);", rule) == re.findall(
            r"(?:fill|stroke): (var\(--.+?\));", rule
        )
    assert not re.search(r"#[0-9a-f]{3}|fill=|stroke=|style=|http(?!://www\.w3\.org/2000/svg)", picture)
