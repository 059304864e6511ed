"""Whoever follows docs/start.rst to the letter sees at each step what it says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.docs import pages
from tests.docs.project import Project
from tests.harness import Served, close_all, until

OUTPUTS = dict(pages.outputs("start"))
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path)
    yield made
    close_all()
    made.end()


class Reader:
    """Somebody who copies the blocks of the page, one after another."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.blocks = [block for block in pages.blocks("start") if block.caption]
        self.shells = [shlex.split(one)[-1] for one in pages.commands("start") if " shell " in one]
        self.consumers = project.manage_py.parent / "echo" / "consumers.py"

    def write(self, caption: str) -> None:
        """Write the next block, which has this caption."""
        block = self.blocks.pop(0)
        assert block.caption == caption
        if not caption.startswith("the last line"):
            self.project.write(block)
            return
        *kept, last = self.consumers.read_text().rstrip().splitlines(keepends=True)
        indent = last[: len(last) - len(last.lstrip())]
        self.consumers.write_text("".join([*kept, indent + block.code]))

    def run(self, command: str) -> None:
        """Run a command whose output the page shows."""
        assert self.project.run(command).rstrip() == OUTPUTS.pop(command).rstrip()

    def shell(self) -> None:
        """Run the next line of Python that the page types into the shell."""
        self.project.shell(self.shells.pop(0))


def test_each_step_shows_what_the_page_says(project: Project) -> None:
    project.make("start")
    reader = Reader(project)
    reader.write("mysite/settings.py")
    reader.write("mysite/settings.py, at the end")
    project.run("python manage.py migrate --verbosity 0")
    reader.run("python manage.py check --database default")
    reader.write("echo/consumers.py")
    reader.run("python manage.py showchannels")
    reader.write("echo/templates/echo.html")
    reader.write("mysite/urls.py")
    served = project.develop()
    assert 'id="lines"' in served.get("/").text
    windows = [served.socket("/echo/", Origin=f"http://127.0.0.1:{served.port}") for _ in range(2)]
    assert [one.status for one in windows] == [101, 101]

    def both(text: str) -> None:
        assert [one.receive() for one in windows] == [text, text]

    windows[0].send("hello")
    both("hello")
    (shown,) = (block.code for block in pages.blocks("start", "text"))
    until(lambda: masked(shown) <= masked(served.output()), lambda: served.output())
    reader.write("the last line of consumers.py, in capitals")
    windows[0].send("hello")
    both("HELLO")
    reader.shell()
    both("from the shell")
    reader.write("echo/consumers.py, at the end")
    reader.shell()
    both("Welcome, Ann!")
    reader.shell()
    until(lambda: project.count("deadletter"), lambda: served.output())
    until(lambda: served.output().count("    KeyError: 'name'\n") == 2, lambda: served.output())
    assert "it is a dead letter now" in served.output()
    reader.write("the last line of consumers.py, corrected")
    assert run_again(project, served) == 302
    both("Welcome, stranger!")
    assert project.count("deadletter") == 0
    assert (reader.blocks, reader.shells, OUTPUTS) == ([], [], {})


def masked(log: str) -> set[str]:
    """Return the lines of a log, all their numbers alike."""
    return {re.sub(r"\d+", "0", re.sub(r"\w+/\d{4}", "", line)) for line in log.strip().splitlines()}


def run_again(project: Project, served: Served) -> int:
    """Log in to the admin, find the dead letter, and run it again; return the status of the answer."""
    project.shell(
        "from django.contrib.auth.models import User; User.objects.create_superuser('ann', password='secret')"
    )
    token = served.get("/admin/login/").cookies()["csrftoken"]
    form = {"csrfmiddlewaretoken": token, "username": "ann", "password": "secret", "next": "/admin/"}
    answer = served.request(
        "POST", "/admin/login/", urlencode(form).encode(), {**FORM, "Cookie": f"csrftoken={token}"}
    )
    cookies = {"csrftoken": token, **answer.cookies()}
    cookie = "; ".join(f"{name}={value}" for name, value in cookies.items())
    page = served.get("/admin/dbchannels/deadletter/", Cookie=cookie).text
    assert "welcome" in page and "KeyError" in page
    ((letter,),) = project.rows("SELECT id FROM dbchannels_deadletter")
    address = f"/admin/dbchannels/deadletter/{letter}/act/replay/"
    assert address in served.get(f"/admin/dbchannels/deadletter/{letter}/change/", Cookie=cookie).text
    asks = served.get(address, Cookie=cookie).text
    state = re.search(r'name="state" value="([^"]*)"', asks)[1]
    form = {"csrfmiddlewaretoken": cookies["csrftoken"], "state": state}
    return served.request(
        "POST",
        "/admin/dbchannels/deadletter/act/replay/",
        urlencode(form).encode(),
        {**FORM, "Cookie": cookie},
    ).status
