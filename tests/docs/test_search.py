"""Whoever searches the documentation for a word that people bring with them finds the page that answers."""

from __future__ import annotations

import re

import pytest

from tests.docs import pages

#: What is typed into the search box, with the pages that have to be found.
WORDS = {
    "cancel": ("celery",),
    "celery": ("celery",),
    "docker": ("containers",),
    "group_send": ("channels4",),
    "heroku": ("containers",),
    "performance": ("performance",),
    "prometheus": ("operating",),
    "redis": ("performance",),
    "retry": ("celery",),
    "security": ("security",),
}


def words(page: str) -> set[str]:
    """Return the words of a page's text and headings, as Sphinx's search splits them."""
    text = re.sub(
        r"^\.\. .*$|^   :\w+: .*$", "", pages.text(page), flags=re.MULTILINE
    )  # directives, comments
    return set(re.findall(r"\w+", text.lower()))


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_found_on_each_of_its_pages(word: str) -> None:
    assert [page for page in WORDS[word] if word not in words(page)] == []


def test_a_word_that_is_nowhere_is_not_found() -> None:
    assert not any("xylophone" in words(page) for page in pages.names())
