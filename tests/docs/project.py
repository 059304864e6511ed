"""A project made of nothing but what a page says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.docs import pages
from tests.harness import LiveSite

TREE = Path(__file__).parents[2]


class Project(LiveSite):
    """A folder in which a page's commands are run, and its files are written, in the page's order."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "mysite/db.sqlite3")}, folder
        )
        self.manage_py = folder / "mysite" / "manage.py"
        self.changes = True
        self.printed: dict[str, str] = {}  # what commands printed, for a test to look at

    def environment(self, settings: dict[str, Any] | None = None) -> dict[str, str]:
        """Return what its processes find in their environment: this tree's dbchannels, and nothing of the test run."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("DBCHANNELS", "DJANGO"))
        }
        kept.pop("DATABASE_URL", None)
        return {**kept, "PYTHONPATH": str(TREE), "PYTHONUNBUFFERED": "1"}

    def make(self, page: str) -> None:
        """Make the project and its app by the page's commands."""
        for command in pages.commands(page):
            if command.startswith(("django-admin startproject", "python manage.py startapp")):
                self.run(command)

    def follow(self, page: str) -> None:
        """Make the project, then write the page's files: a file that is shown twice goes on."""
        self.make(page)
        for path, code in pages.files(page):
            (self.manage_py.parent / path).parent.mkdir(parents=True, exist_ok=True)
            (self.manage_py.parent / path).write_text(code)
        for block in pages.blocks(page):
            if "/" in block.caption:
                self.write(block)

    def write(self, block: pages.Block) -> None:
        """Write the file that a block's caption names; the settings and the consumers go on where they ended."""
        path = self.manage_py.parent / re.split("[:,]", block.caption)[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text() if path.name in ("settings.py", "consumers.py") and path.exists() else ""
        path.write_text(f"{before}\n{block.code}")

    def run(self, command: str) -> str:
        """Run one command of a page; return what it printed."""
        words = shlex.split(command)
        program = {"django-admin": ["-m", "django"], "python": []}[words[0]]
        folder = self.folder if words[0] == "django-admin" else self.manage_py.parent
        done = subprocess.run(
            [sys.executable, *program, *words[1:]],
            cwd=folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
