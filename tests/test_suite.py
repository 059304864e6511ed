"""How the suite is run: which tests are slow, in how many processes, and with how many examples."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.contrib.auth.models import User
from hypothesis import settings

from tests import conftest, harness, profiles
from tests.blog.models import Post
from tests.settings import DATABASES, FOLDER, WORKER


@pytest.mark.parametrize("name", conftest.SLOW)
def test_what_is_listed_as_slow_is_there(name):
    assert (conftest.TESTS / name).exists()


@pytest.mark.parametrize(
    ("file", "slow"),
    [
        ("endtoend/test_http.py", True),
        ("testing/test_live.py", True),
        ("testing/test_cases.py", False),
        ("test_linear.py", True),
        ("test_names.py", False),
    ],
)
def test_a_test_is_slow_by_its_file_or_folder(file, slow):
    assert conftest.is_slow(SimpleNamespace(path=conftest.TESTS / file)) is slow


@pytest.mark.parametrize("processes", [1, 2, 3, 50])
def test_each_process_begins_with_some_of_the_slow_files(processes):
    files = [
        "test_codec.py",
        "faults/a.py",
        "endtoend/b.py",
        "endtoend/c.py",
        "endtoend/d.py",
        "test_names.py",
    ]
    tests = [SimpleNamespace(path=conftest.TESTS / file) for file in files for _ in range(5)]
    found = conftest.dealt(tests, processes)
    assert sorted(map(id, found)) == sorted(map(id, tests))
    if processes <= 3:
        size = len(tests) // processes
        assert all(conftest.is_slow(found[start]) for start in range(0, len(tests), size))
        assert not conftest.is_slow(found[-1])
    places = {file: [n for n, one in enumerate(found) if one.path.name == Path(file).name] for file in files}
    assert all(places[file] == list(range(min(places[file]), min(places[file]) + 5)) for file in files[1:5])


def test_each_process_collects_from_its_own_part_on():
    assert ["".join(conftest.turned(list("abcde"), number, 3)) for number in range(3)] == [
        "abcde",
        "bcdea",
        "deabc",
    ]


def test_no_other_test_may_start_a_server(tmp_path):
    with pytest.raises(AssertionError, match="add its file to SLOW"):
        harness.LiveSite({"ENGINE": "django.db.backends.sqlite3", "NAME": "x"}, tmp_path).serve()
    assert list(tmp_path.iterdir()) == []


def test_rows_that_a_test_leaves_are_named(tables):
    def left(alias):
        return [one for one in conftest.with_rows(alias) if not one.startswith("dbchannels_")]

    User.objects.create(username="left")
    Post.objects.using("sqlite").create()
    assert [left(alias) for alias in ("default", "sqlite")] == [["auth_user"], ["blog_post"]]
    for alias in ("default", "sqlite"):
        conftest.empty_tables(alias)
        assert left(alias) == []


def test_time_is_patched_for_one_module_alone():
    """Threads that outlive a test would go by its clock."""
    patched = re.compile(r"setattr\(([\w.]+\.)?time, |setattr\(\"[\w.]+\.time\.")
    assert patched.search('monkeypatch.setattr(health.time, "sleep", print)')
    files = [one for one in Path(__file__).parent.rglob("*.py") if one != Path(__file__)]
    assert [one.name for one in files if patched.search(one.read_text())] == []


def test_the_pipes_of_a_test_are_closed_and_no_others():
    with conftest.closed_pipes():
        (left, writer), (reader, closed) = os.pipe(), os.pipe()
        with open(os.devnull) as strange:
            os.dup2(strange.fileno(), closed)  # the number belongs to another file now
    for end in (left, writer, reader):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(end)
    os.close(closed)


def config(source, **options):
    """Return what pytest knows of a command line: where its arguments come from, and its options."""
    given = {"numprocesses": None, "dist": "no", "usepdb": False, **options}
    return SimpleNamespace(args_source=source, option=SimpleNamespace(**given))


ARGUMENTS, NONE = pytest.Config.ArgsSource.ARGS, pytest.Config.ArgsSource.TESTPATHS


@pytest.mark.parametrize(
    ("given", "processes"),
    [
        (config(NONE), conftest.PROCESSES),
        (config(ARGUMENTS), None),
        (config(NONE, numprocesses=0), 0),
        (config(NONE, numprocesses=2), 2),
        (config(NONE, usepdb=True), None),
    ],
    ids=["all", "files", "-n 0", "-n 2", "--pdb"],
)
def test_all_tests_run_in_several_processes_and_those_of_a_file_in_one(given, processes):
    conftest.pytest_cmdline_main(given)
    assert given.option.numprocesses == processes
    assert (given.option.dist == "worksteal") is (processes == conftest.PROCESSES)


def test_a_process_that_runs_tests_for_another_starts_no_more():
    given = config(NONE)
    given.workerinput = {}
    conftest.pytest_cmdline_main(given)
    assert given.option.numprocesses is None


def test_a_run_without_the_plugin_is_one_process():
    given = config(NONE)
    del given.option.numprocesses
    conftest.pytest_cmdline_main(given)
    assert vars(given.option) == {"dist": "no", "usepdb": False}


@pytest.mark.parametrize(("profile", "tried"), [("dev", 10), ("ci", 40), ("deep", 400)])
def test_a_profile_decides_how_many_examples_are_tried(profile, tried):
    kept = settings()
    settings.load_profile(profile)
    try:
        assert profiles.examples(40).max_examples == tried
        assert profiles.examples(1).max_examples >= 1
    finally:
        settings.register_profile("kept", kept)
        settings.load_profile("kept")


def test_each_process_has_a_folder_of_its_own():
    assert FOLDER.name == WORKER or not WORKER
    assert Path(DATABASES["sqlite"]["NAME"]).parent == FOLDER
