"""What the pages, the README, the commands and the code say of each other is true, and nothing is left out."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand

import dbchannels
from dbchannels import testing
from tests.docs import pages

README = (Path(__file__).parents[2] / "README.rst").read_text()
ALL_PAGES = {name: pages.text(name) for name in pages.names()}
OURS = sorted(name for name, app in get_commands().items() if app == "dbchannels")
#: What one process of ours gives to another.
INTERNAL = {"watchcode"}


@cache
def options(command: str) -> dict[str, str]:
    """Return a command's own options, each with its help."""
    parser = load_command_class("dbchannels", command).create_parser("manage.py", command)
    django = {action.dest for action in BaseCommand().create_parser("manage.py", "other")._actions}
    own = [action for action in parser._actions if action.dest not in django]
    return {
        word: action.help or "" for action in own for word in action.option_strings if word.startswith("--")
    }


@pytest.mark.parametrize("name", pages.names())
def test_the_code_of_a_page_is_python(name: str) -> None:
    for block in pages.blocks(name, "python"):
        ast.parse(block.code, f"{name}.rst, {block.caption}")


@pytest.mark.parametrize("name", [*pages.names(), "README"])
def test_no_package_of_a_page_is_one_of_pythons_own(name: str) -> None:
    text = README if name == "README" else ALL_PAGES[name]
    folders = set(re.findall(r"(?::caption:|^   #) (\w+)/[\w/]+\.py", text, re.MULTILINE))
    assert not folders & sys.stdlib_module_names


@pytest.mark.parametrize("name", pages.names())
def test_what_a_page_imports_of_dbchannels_is_there(name: str) -> None:
    for block in pages.blocks(name, "python"):
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dbchannels":
                module = __import__(node.module or "", fromlist=["*"])
                missing = [one.name for one in node.names if not hasattr(module, one.name)]
                assert missing == [], f"{name}.rst, {block.caption}"


@pytest.mark.parametrize("name", [*pages.names(), "README"])
def test_the_commands_and_options_that_a_page_shows_exist(name: str) -> None:
    text = README if name == "README" else ALL_PAGES[name]
    for command, rest in re.findall(r"manage\.py (\w+)((?: [^\s`]+)*)", text):
        assert command in get_commands() or command in ("startapp", "demo"), f"{name}: {command}"
        if command in OURS:
            shown = set(re.findall(r"--[a-z][a-z-]+", rest))
            assert shown <= set(options(command)) | {"--help"}, f"{name}: {command}"


@pytest.mark.parametrize("command", sorted(set(OURS) - INTERNAL))
def test_each_command_and_each_of_its_options_is_on_a_page(command: str) -> None:
    together = "\n".join(ALL_PAGES.values())
    assert f"``manage.py {command}``" in together
    for option, told in options(command).items():
        assert f"``{option}" in together, f"{command} {option}"
        assert told, f"{command} {option} has no help"


def test_each_public_name_is_in_the_reference() -> None:
    reference = ALL_PAGES["reference"]
    missing = [name for name in dbchannels.__all__ if not re.search(rf"\b(dbchannels\.)?{name}\b", reference)]
    assert missing == []
    documented = re.findall(r"^\.\. auto\w+:: dbchannels\.(\w+)$", reference, re.MULTILINE)
    assert set(documented) - {"exceptions"} <= set(dbchannels.__all__)


def test_each_tool_for_tests_is_on_its_page() -> None:
    assert [name for name in testing.__all__ if f"``{name}" not in ALL_PAGES["testing"]] == []
    assert all(hasattr(testing, name) for name in testing.__all__)


def test_each_page_is_in_the_table_of_contents() -> None:
    listed = re.findall(r"^   ([a-z0-9-]+)$", ALL_PAGES["index"], re.MULTILINE)
    assert sorted(listed) == sorted(set(pages.names()) - {"index"})


@pytest.mark.parametrize("name", pages.names())
def test_the_pages_that_a_page_names_are_there(name: str) -> None:
    for other in re.findall(r":doc:`([a-z0-9-]+)`", ALL_PAGES[name]):
        assert other in ALL_PAGES, f"{name} names {other}"


@pytest.mark.parametrize("name", [*pages.names(), "README"])
def test_the_files_that_a_page_names_are_there(name: str) -> None:
    text = README if name == "README" else ALL_PAGES[name]
    for path in re.findall(r"``((?:docs|examples|tests)/[\w./-]+)``", text):
        assert (Path(__file__).parents[2] / path).exists(), f"{name} names {path}"
