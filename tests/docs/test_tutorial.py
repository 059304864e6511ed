"""Whoever follows docs/tutorial.rst to the letter has its chat, in less than sixty lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs import pages
from tests.docs.project import Project
from tests.harness import Served, Socket, close_all

EXAMPLE = Path(__file__).parents[2] / "examples" / "rooms"
PARTS = ("models.py", "consumers.py", "views.py", "urls.py")


def lines() -> int:
    """Return how many lines of Python the tutorial ends with."""
    code = [line for part in PARTS for line in (EXAMPLE / part).read_text().splitlines()]
    return len([line for line in code if line.strip()])


def test_it_has_as_many_lines_as_it_says_and_less_than_sixty() -> None:
    said = re.search(r"(\d+) lines of Python", pages.text("tutorial"))
    assert said is not None
    assert int(said[1]) == lines() < 60


def test_it_shows_each_file_of_the_example() -> None:
    made_by_startapp = ("__init__.py", "apps.py", "migrations")
    files = {path.relative_to(EXAMPLE.parent) for path in EXAMPLE.rglob("*.*") if path.suffix != ".pyc"}
    wanted = {path for path in files if path.parts[1] not in made_by_startapp}
    assert {Path(path) for path, _ in pages.files("tutorial")} == wanted


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    made = Project(tmp_path_factory.mktemp("tutorial"))
    made.follow("tutorial")
    made.printed = {command: made.run(command) for command, _ in pages.outputs("tutorial")}
    made.run("python manage.py migrate --verbosity 0")
    yield made
    close_all()
    made.end()


def test_each_command_prints_what_the_page_shows(project: Project) -> None:
    shown = {command: output.strip() for command, output in pages.outputs("tutorial")}
    assert list(shown) == [
        "python manage.py check",
        "python manage.py makemigrations rooms",
        "python manage.py showchannels 'rooms.*'",
    ]
    assert {command: output.strip() for command, output in project.printed.items()} == shown


def enter(project: Project, served: Served, name: str) -> Socket:
    """Log in by the login page, and open a room."""
    project.shell(
        f"from django.contrib.auth.models import User; User.objects.create_user({name!r}, password='secret')"
    )
    page = served.get("/accounts/login/")
    token = page.cookies()["csrftoken"]
    form = f"csrfmiddlewaretoken={token}&username={name}&password=secret&next=/rooms/lobby/"
    headers = {"Cookie": f"csrftoken={token}", "Content-Type": "application/x-www-form-urlencoded"}
    answer = served.request("POST", "/accounts/login/", form.encode(), headers)
    assert (answer.status, answer.header("Location")) == (302, "/rooms/lobby/")
    cookie = f"sessionid={answer.cookies()['sessionid']}"
    assert f"You are {name}." in served.get("/rooms/lobby/", Cookie=cookie).text
    return served.socket("/rooms/lobby/", Cookie=cookie, Origin=f"http://127.0.0.1:{served.port}")


def heard(window: Socket, kind: str) -> dict[str, object]:
    """Return the next of these news."""
    while True:
        news = json.loads(str(window.receive()))
        if kind in news:
            found: dict[str, object] = news[kind]
            return found


def test_its_chat_works(project: Project) -> None:
    served = project.develop("--noreload")
    assert served.socket("/rooms/lobby/").status == 403
    ann = enter(project, served, "ann")
    assert heard(ann, "visit")["name"] == "ann"
    ann.send('{"key": "1", "text": "hello"}')
    assert heard(ann, "line")["text"] == "hello"
    ben = enter(project, served, "ben")
    assert heard(ben, "line") == {"id": 1, "key": "1", "name": "ann", "text": "hello"}
    ann.close()
    while (visit := heard(ben, "visit"))["name"] != "ann" or visit["left"] is None:
        continue
    assert served.get("/static/dbchannels/dbchannels.js").status == 200


def test_its_tests_pass(project: Project) -> None:
    project.run("python manage.py test")
