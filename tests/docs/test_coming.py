"""The code of docs/channels4.rst, docs/channels1.rst and docs/celery.rst is one project each, which does what they say.

What each project must do is in ``tests/docs/coming``: these files are copied into it and run by its ``manage.py test``.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from django.core.management import load_command_class

from dbchannels.conf import OPTIONS
from tests.docs import pages
from tests.docs.project import Project
from tests.harness import close_all, until

HERE = Path(__file__).parent
PAGES = ("channels4", "channels1", "celery")


class Port(Project):
    """The project of a page. Each block of Python is a part of the file that its caption names, in the page's order."""

    def follow(self, page: str) -> None:
        blocks = pages.blocks(page, "python")
        apps = sorted({block.caption.partition("/")[0] for block in blocks} - {"mysite"})
        self.run("django-admin startproject mysite")
        for app in apps:
            self.run(f"python manage.py startapp {app}")
        written = set()
        for block in blocks:
            path = self.manage_py.parent / block.caption.partition(":")[0]
            goes_on = path in written or path.name == "settings.py"
            path.write_text(f"{path.read_text() if goes_on else ''}\n{block.code}")
            written.add(path)
        self.run(f"python manage.py makemigrations {' '.join(apps)} --verbosity 0")
        self.run("python manage.py migrate --verbosity 0")

    def test(self) -> str:
        """Run all tests of the project; return what its test runner said."""
        done = subprocess.run(
            [sys.executable, "manage.py", "test", "--verbosity", "2"],
            cwd=self.manage_py.parent,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr


@pytest.fixture(scope="module")
def follow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Port]]:
    """Make the project of a page, once."""

    @cache
    def follow(page: str) -> Port:
        made.append(Port(tmp_path_factory.mktemp(page)))
        made[-1].follow(page)
        return made[-1]

    made: list[Port] = []
    yield follow
    close_all()
    for one in made:
        one.end()


@pytest.mark.parametrize("page", PAGES)
def test_the_project_of_a_page_does_what_the_page_says(follow: Callable[[str], Port], page: str) -> None:
    project = follow(page)
    assert "no issues" in project.run("python manage.py check --database default")
    app = "shop" if page == "celery" else "chat"
    shutil.copy(HERE / "coming" / f"{page}.py", project.manage_py.parent / app / "test_page.py")
    said = project.test()
    # Those of the page itself, and ours.
    assert f"{app}.tests." in said
    assert f"{app}.test_page." in said


def test_the_ported_chat_runs(follow: Callable[[str], Port]) -> None:
    served = follow("channels4").develop("--noreload")
    origin = f"http://127.0.0.1:{served.port}"
    ann, ben, cat = (
        served.socket(f"/ws/chat/{room}/", Origin=origin) for room in ("lobby", "lobby", "garden")
    )
    assert [one.status for one in (ann, ben, cat)] == [101] * 3
    ann.send('{"message": "hello"}')
    assert [json.loads(str(one.receive())) for one in (ann, ben)] == [{"message": "hello"}] * 2
    cat.send('{"message": "alone"}')
    assert json.loads(str(cat.receive())) == {"message": "alone"}


def test_the_ported_task_runs(follow: Callable[[str], Port]) -> None:
    served = follow("celery").develop("--noreload")
    pk = json.loads(served.get("/exports/start/").text)["export"]

    def answer() -> dict[str, object]:
        found: dict[str, object] = json.loads(served.get(f"/exports/{pk}/").text)
        return found

    until(lambda: answer()["state"] == "done", lambda: str(answer()))
    assert answer() == {"state": "done", "lines": 3, "result": "row 1\nrow 2\nrow 3"}
    assert json.loads(served.get("/preview/?text=tea").text) == {"preview": "TEA"}


@pytest.mark.parametrize("page", PAGES)
def test_each_block_names_its_file(page: str) -> None:
    captions = [block.caption for block in pages.blocks(page, "python")]
    assert captions
    assert [one for one in captions if not re.match(r"\w+/\w+\.py(:|$)", one)] == []


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("channels4", "redis group_send channel_layer self.scope database_sync_to_async AuthMiddlewareStack"),
        ("channels1", "redis enforce_ordering channel_session WebsocketBinding rundelay daphne"),
        ("celery", "redis celery cancel retry revoke AsyncResult beat chord flower"),
    ],
)
def test_a_search_finds_the_words_that_people_come_with(page: str, words: str) -> None:
    text = pages.text(page).lower()
    assert [word for word in words.split() if word.lower() not in text] == []


def test_the_defaults_are_as_said() -> None:
    assert f"{OPTIONS['capacity']:,} messages" in pages.text("channels4")
    assert f"{OPTIONS['capacity']:,} messages" in pages.text("channels1")
    assert f"expires after {OPTIONS['expiry']:g} s" in pages.text("channels4")
    celery = re.sub(r"\s+", " ", pages.text("celery"))
    assert OPTIONS["retries"] == 5
    assert "five times by default" in celery
    assert f"The default is {OPTIONS['hard_timeout']:g} seconds; 0 means never" in celery
    assert f"The default is {OPTIONS['soft_timeout']:g} seconds." in celery
    runchannels, runworker = (
        load_command_class("dbchannels", name).create_parser("manage.py", name)
        for name in ("runchannels", "runworker")
    )
    graceful = [one.get_default("graceful_timeout") for one in (runchannels, runworker)]
    assert "({:g} seconds with ``runchannels``, {:g} with ``runworker``)".format(*graceful) in celery
    assert runchannels.get_default("later_timeout") == 600
    assert "``--later-timeout`` of ``runchannels``, ten minutes by default" in celery
