"""The home page shows the README's code, and a picture that is light or dark as the page is."""

from __future__ import annotations

import re
import textwrap
from xml.etree import ElementTree

import pytest
from playwright.sync_api import Browser

from tests.browser.conftest import browser  # noqa: F401  (a fixture)
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


#: The words of headings that are broken where there is no hyphen.
BROKEN = """() => {
  const broken = [];
  for (const heading of document.querySelectorAll("h1, h2, h3")) {
    const walker = document.createTreeWalker(heading, NodeFilter.SHOW_TEXT);
    for (let text; (text = walker.nextNode()); ) {
      for (const word of text.data.matchAll(/[^\\s-]+/g)) {
        const range = document.createRange();
        range.setStart(text, word.index);
        range.setEnd(text, word.index + word[0].length);
        if (new Set([...range.getClientRects()].map((one) => Math.round(one.top))).size > 1) broken.push(word[0]);
      }
    }
  }
  return broken;
}"""


@pytest.mark.browser
def test_no_heading_is_broken_inside_a_word_on_a_phone(browser: Browser) -> None:  # noqa: F811
    folder = pages.built()
    page = browser.new_page(viewport={"width": 320, "height": 640})
    found = {}
    for name in pages.names():
        page.goto((folder / f"{name}.html").as_uri())
        assert page.locator("h1").count() == 1
        found[name] = page.evaluate(BROKEN)
    page.close()
    assert {name: words for name, words in found.items() if words} == {}
