"""Which files a running site is made of, and when they count as changed."""

from __future__ import annotations

import importlib
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.apps import apps
from django.core.management import call_command
from django.template import engines
from django.template.loaders import cached

import dbchannels
from dbchannels.management.commands import watchcode
from dbchannels.management.commands.runworker import uncache_templates
from dbchannels.processes import development, reloader
from dbchannels.processes.development import RequestLines
from tests.clocks import patch_time
from tests.harness import until


def file(folder, name, age):
    """Make a file that was changed so many seconds ago."""
    path = folder / name
    path.touch()
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_changed_is_what_is_newer_than_a_moment_but_not_of_the_future(tmp_path):
    files = [file(tmp_path, f"{age}", age) for age in (20, 5, -60)]
    assert reloader.changed_since(time.time() - 10, [*files, tmp_path / "gone"]) == [files[1]]


def test_a_worker_sees_a_change_of_what_it_has_imported_and_of_no_package(tmp_path, monkeypatch):
    for folder, name in (("site-packages", "changes_installed"), ("site", "changes_own")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.py").touch()
        monkeypatch.syspath_prepend(tmp_path / folder)
        monkeypatch.setitem(sys.modules, name, importlib.import_module(name))
    since = time.time() + 5  # whatever else was imported was not saved after that
    patch_time(monkeypatch, reloader, time=lambda: since + 10)
    changes = reloader.CodeChanges(since)
    assert not changes()
    os.utime(tmp_path / "site-packages" / "changes_installed.py", (since + 1,) * 2)
    assert not changes()
    os.utime(tmp_path / "site" / "changes_own.py", (since + 1,) * 2)
    assert changes()


def test_a_worker_sees_a_file_that_was_replaced_by_an_older_one(tmp_path, monkeypatch):
    path = file(tmp_path, "replaced_own.py", 20)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "replaced_own", importlib.import_module("replaced_own"))
    changes = reloader.CodeChanges(time.time() + 5)
    path.rename(tmp_path / "gone")
    assert not changes()
    file(tmp_path, "replaced_own.py", 60)
    assert changes()


def test_only_the_site_s_own_apps_are_looked_after(monkeypatch, tmp_path):
    installed = tmp_path / "site-packages" / "shop"
    own = tmp_path / "chat"
    for folder in (installed, own / "inner", own / "static" / "node_modules", own / ".venv"):
        folder.mkdir(parents=True)
        (folder / "models.py").touch()
    configs = [type("Config", (), {"path": str(path)}) for path in (installed, own)]
    monkeypatch.setattr(apps, "get_app_configs", lambda: configs)
    assert list(reloader.app_files()) == [own / "inner" / "models.py"]
    watched = []
    watchman = SimpleNamespace(watch_dir=lambda *given: watched.append(given))
    reloader._watch_apps(watchman)
    assert watched == [(own, "**/*.py")]


@pytest.fixture
def look(monkeypatch, tmp_path):
    """Look once more at all files of a folder; return the names of those that count as changed since the last look."""
    told = []
    watching = reloader.Reloader(time.time() - 10)
    monkeypatch.setattr(reloader.Reloader, "SLEEP_TIME", 0)
    monkeypatch.setattr(reloader, "app_files", lambda: list(tmp_path.glob("*.py")))
    monkeypatch.setattr(reloader.autoreload, "iter_all_python_module_files", lambda: [])
    monkeypatch.setattr(watching, "notify_file_changed", lambda path: told.append(path.name))
    ticker = watching.tick()

    def next_look():
        next(ticker)
        changed = sorted(told)
        told.clear()
        return changed

    return next_look


def test_what_was_saved_while_the_site_was_imported_has_changed(look, tmp_path):
    file(tmp_path, "old.py", 20)
    file(tmp_path, "saved.py", 5)
    assert look() == ["saved.py"]
    assert look() == []


def test_a_new_file_counts_as_changed_and_one_that_is_saved_again(look, tmp_path):
    file(tmp_path, "old.py", 20)
    assert look() == []
    file(tmp_path, "new.py", 20)
    assert look() == ["new.py"]
    file(tmp_path, "old.py", 1)
    assert "old.py" in look()
    file(tmp_path, "old.py", 60)  # by cp -p, for example
    assert "old.py" in look()
    assert "old.py" not in look()


ROOT = Path(dbchannels.__file__).parents[1]
OWN_FILES = """
import django
django.setup()
from dbchannels.processes.development import own_files
print(*own_files(), sep="\\n")
"""


def test_the_server_runs_itself_and_all_that_its_settings_import(tmp_path):
    files = {
        "conf/local": "from .base import *",
        "conf/base": "from shop import names\nINSTALLED_APPS = ['dbchannels', 'shop']",
        "names": "import shop.deep",
    }
    (tmp_path / "shop" / "conf").mkdir(parents=True)
    for name in ("__init__", "conf/__init__", "deep", "models", *files):
        (tmp_path / "shop" / f"{name}.py").write_text(files.get(name, ""))
    own = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "DJANGO_SETTINGS_MODULE": "shop.conf.local"}
    done = subprocess.run(
        [sys.executable, "-c", OWN_FILES],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = set(map(Path, done.stdout.splitlines()))
    assert Path(dbchannels.__file__) in found, done.stderr
    of_site = {str(one.relative_to(tmp_path / "shop")) for one in found if tmp_path in one.parents}
    assert of_site == {
        "__init__.py",
        "conf/__init__.py",
        "conf/local.py",
        "conf/base.py",
        "names.py",
        "deep.py",
    }


@pytest.mark.parametrize(
    ("text", "coloured"),
    [
        ('"GET / HTTP/1.1" 200 12', False),
        ('"GET / HTTP/1.1" 500 12', True),
        ('"WSDISCONNECT /chat/ HTTP/1.1" 1000 -', False),
    ],
)
def test_a_line_is_as_short_as_django_s_and_has_the_colour_of_its_status(text, coloured):
    combined = f'1.2.3.4 - - [26/Nov/2026:00:18:26 +0000] {text} "-" "Mozilla/5.0 (X11)" 7 ms'
    record = logging.LogRecord("access", logging.INFO, "", 0, combined, (), None)
    line = RequestLines(True).format(record)
    assert re.fullmatch(r"\[[\w/: ]+\] " + re.escape(f"{text} 7 ms"), re.sub(r"\x1b\[[\d;]*m", "", line))
    assert ("\x1b[35;1m" in line) is coloured
    assert record.getMessage() == combined


def test_a_line_of_another_form_is_left_alone():
    record = logging.LogRecord("access", logging.INFO, "", 0, "a word", (), None)
    assert RequestLines(False).format(record).endswith("] a word")


def test_request_lines_are_left_to_the_site_s_logging(monkeypatch):
    log = logging.getLogger("dbchannels.access")
    monkeypatch.setattr(log, "handlers", [logging.NullHandler()])
    development.show_requests(False)
    assert len(log.handlers) == 1


def test_templates_are_read_at_each_use(monkeypatch):
    engine = engines["django"].engine
    loaders = engine.template_loaders
    assert isinstance(loaders[0], cached.Loader)
    monkeypatch.setattr(engine, "template_loaders", loaders)
    uncache_templates()
    assert engine.template_loaders == loaders[0].loaders
    uncache_templates()
    assert engine.template_loaders == loaders[0].loaders


class Listener:
    """Notes what a child reports."""

    def __init__(self):
        self.told = []

    def ready(self):
        self.told.append("ready")

    def broken(self):
        self.told.append("broken")

    def changed(self, path):
        self.told.append(path)


def test_a_child_s_reports_are_passed_on_in_order(monkeypatch):
    report = "import os, sys; os.write(int(sys.argv[3]), b'broken\\nready\\nchanged /site/a b.py\\n')"
    monkeypatch.setattr(reloader, "manage_command", lambda: [sys.executable, "-c", report])
    watch = reloader.CodeWatch([], listener := Listener(), once=True)
    watch.start()
    watch._thread.join(60)
    assert listener.told == ["broken", "ready", "/site/a b.py"]


def test_while_no_child_can_begin_the_files_of_this_process_are_watched(monkeypatch, tmp_path):
    def no_memory(*args, **kwargs):
        raise OSError("no memory")

    saved = file(tmp_path, "views.py", 20)
    monkeypatch.setattr(reloader.subprocess, "Popen", no_memory)
    monkeypatch.setattr(reloader, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(reloader, "app_files", lambda: [saved])
    watch = reloader.CodeWatch([], listener := Listener(), once=False)
    watch.start()
    until(lambda: listener.told, "the failure")
    file(tmp_path, "views.py", 0)
    until(lambda: len(listener.told) > 2, "another try")
    watch.stop()
    assert listener.told[:3] == ["broken", str(saved), "broken"]


def test_a_child_that_cannot_be_started_leaves_the_site_broken(monkeypatch, caplog):
    def no_memory(*args, **kwargs):
        raise OSError("no memory")

    monkeypatch.setattr(reloader.subprocess, "Popen", no_memory)
    watch = reloader.CodeWatch([], listener := Listener(), once=True)
    watch.start()
    watch._thread.join(10)
    assert listener.told == ["broken"]
    assert [record.getMessage() for record in caplog.records] == ["The site cannot be watched (no memory)."]


def test_a_report_to_a_parent_that_is_gone_is_dropped(monkeypatch):
    monkeypatch.setattr(watchcode.Command, "prepare", lambda self, options: None)
    monkeypatch.setattr(watchcode, "end_with_parent", lambda: None)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        call_command("watchcode", report=writer, once=True)
    finally:
        os.close(writer)
