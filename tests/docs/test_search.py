"""Whoever searches the documentation for a word that people bring with them finds the page that answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module

import pytest

from tests.docs import pages

#: What is typed into the search box, with the pages that have to be found.
WORDS = {
    "cancel": ("celery",),
    "celery": ("celery", "tasks"),
    "docker": ("containers",),
    "group_send": ("channels4",),
    "heroku": ("containers",),
    "performance": ("performance",),
    "prometheus": ("operating",),
    "redis": ("performance",),
    "result": ("celery", "tasks"),
    "retry": ("celery",),
    "security": ("security",),
}


@pytest.fixture(scope="module")
def found() -> Callable[[str], set[str]]:
    """Return a function that looks a word up as the search box does, in Sphinx's index of the pages."""
    text = (pages.built() / "searchindex.js").read_text()
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    stem = import_module("sphinx.search.en").SearchEnglish({}).stem

    def look_up(word: str) -> set[str]:
        numbers: set[int] = set()
        for terms in (index["terms"], index["titleterms"]):
            entry = terms.get(stem(word), [])
            numbers.update(entry if isinstance(entry, list) else [entry])
        return {index["docnames"][number] for number in numbers}

    return look_up


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_found_on_each_of_its_pages(word: str, found: Callable[[str], set[str]]) -> None:
    assert set(WORDS[word]) <= found(word)


def test_a_word_that_is_nowhere_is_not_found(found: Callable[[str], set[str]]) -> None:
    assert found("xylophone") == set()
