"""Whoever follows docs/start.rst to the letter has what it promises."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs import pages
from tests.docs.project import Project
from tests.harness import close_all


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path)
    yield made
    close_all()
    made.end()


def test_two_windows_talk_and_the_shell_talks_to_both(project: Project) -> None:
    project.follow("start")
    assert "no issues" in project.run("python manage.py check")
    project.run("python manage.py migrate --verbosity 0")
    served = project.develop("--noreload")
    assert 'id="lines"' in served.get("/").text
    windows = [served.socket("/echo/", Origin=f"http://127.0.0.1:{served.port}") for _ in range(2)]
    assert [one.status for one in windows] == [101, 101]
    windows[0].send("hello")
    assert [one.receive() for one in windows] == ["hello", "hello"]
    (shell,) = [one for one in pages.commands("start") if " shell " in one]
    code = shlex.split(shell)[-1]
    project.shell(code)
    assert [one.receive() for one in windows] == ["from the shell"] * 2
    project.shell("from dbchannels import Channel; Channel('welcome').send({'name': 'Ann'})")
    assert [one.receive() for one in windows] == ["Welcome, Ann!"] * 2
