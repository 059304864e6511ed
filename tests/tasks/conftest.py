"""The TASKS setting of these tests, and its tasks."""

from __future__ import annotations

from importlib import import_module

import pytest
from django.test import override_settings

from dbchannels.routing.tasks import task_routes
from dbchannels.tasks import framework

BACKEND = "dbchannels.tasks.ChannelsBackend"
TASKS = {"default": {"BACKEND": BACKEND, "QUEUES": ["default", "mail"], "OPTIONS": {}}}


@pytest.fixture
def configure():
    """Set TASKS: ``configure(retries=0)`` with these OPTIONS of the default backend."""
    if not framework.AVAILABLE:
        pytest.skip("no task framework: pip install django-tasks")
    changed = []

    def change(tasks=None, **options):
        entry = {**TASKS["default"], "OPTIONS": options}
        changed.append(override_settings(TASKS=tasks or {"default": entry}))
        changed[-1].enable()

    yield change
    for one in reversed(changed):
        one.disable()


@pytest.fixture
def jobs(configure):
    """The module of the tasks, with TASKS set, and nothing run."""
    configure()
    module = import_module("tests.tasks.jobs")
    module.ran.clear()
    return module


@pytest.fixture
def run(make_worker):
    """Let a worker run what waits, with the routes that the setting gives now; return it."""

    def work(**options):
        worker = make_worker(*task_routes("default"), **options)
        while worker.run_once():
            pass
        return worker

    return work
