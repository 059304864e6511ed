"""What the pages of docs/ show: their blocks of code, each with its caption."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from docs import tables

DOCS = Path(__file__).parents[2] / "docs"

_BLOCK = re.compile(
    r"^( *)\.\. code-block:: ([\w+]+)\n(?:\1   :caption: (.+)\n)?\n((?:\1   .*\n|[ ]*\n)+)", re.MULTILINE
)
_TABLE = re.compile(r"^\.\. (options|settings|task-options|checks)::(.*(?:\n   .+)*)$", re.MULTILINE)


class Block(NamedTuple):
    """A piece of code as a reader copies it."""

    language: str
    caption: str
    code: str


def names() -> list[str]:
    """Return the names of all pages."""
    return sorted(path.stem for path in DOCS.glob("*.rst"))


def text(page: str) -> str:
    """Return a page as it is written, with the tables that are made from the code."""
    written = (DOCS / f"{page}.rst").read_text()
    return _TABLE.sub(lambda found: tables.table(found[1], *found[2].split()), written)


def generated(page: str) -> list[list[str]]:
    """Return the directives of these tables, each as its words."""
    written = (DOCS / f"{page}.rst").read_text()
    return [[kind, *arguments.split()] for kind, arguments in _TABLE.findall(written)]


def blocks(page: str, language: str = "") -> list[Block]:
    """Return its blocks, in order."""
    found = [
        Block(kind, caption, textwrap.dedent(code).strip("\n") + "\n")
        for _, kind, caption, code in _BLOCK.findall(text(page) + "\n")
    ]
    return [one for one in found if language in ("", one.language)]


def files(page: str) -> list[tuple[str, str]]:
    """Return the files that it shows whole from elsewhere, each by the path that its caption gives."""
    found = re.findall(r"^\.\. literalinclude:: (.+)\n   :caption: (.+)$", text(page), re.MULTILINE)
    return [(caption, (DOCS / source).resolve().read_text()) for source, caption in found]


def commands(page: str) -> list[str]:
    """Return what it has a reader type into a shell."""
    return [
        line[2:]
        for block in blocks(page, "console")
        for line in block.code.splitlines()
        if line.startswith(("$ ", "# "))
    ]


def outputs(page: str) -> list[tuple[str, str]]:
    """Return each command whose output the page shows, with that output."""
    found = []
    for block in blocks(page, "console"):
        for part in re.split(r"^\$ ", block.code, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            if output.strip():
                found.append((command, output))
    return found


@cache
def built() -> Path:
    """Return the folder of the HTML pages, made once for all processes of a run; skip the test without Sphinx."""
    for module in ("sphinx", "furo"):
        pytest.importorskip(module, reason="no Sphinx: install the extra 'docs'")
    folder = Path(os.environ["DBCHANNELS_TEST_FOLDER"])  # see tests/settings.py
    made = folder / "html"
    with (folder / "html.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(DOCS), f"{made}.new"]
            subprocess.run(command, check=True, timeout=600)
            Path(f"{made}.new").rename(made)
    return made
