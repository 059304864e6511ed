"""What OPTIONS and QUEUES of a backend take, and what is said of everything else."""

from __future__ import annotations

import importlib
import sys

import pytest
from django.core import checks

from dbchannels import tasks
from dbchannels.checks.routes import check_routing
from dbchannels.checks.site import check_tasks
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.routing.table import load_routing
from dbchannels.routing.tasks import task_routes
from dbchannels.tasks import framework
from tests.tasks.conftest import BACKEND


def sentences():
    return [one.msg for one in check_tasks(None)]


def test_nothing_is_said_of_a_good_setting(configure):
    configure(
        retries=3,
        backoff=60,
        soft_timeout=5,
        hard_timeout=50,
        atomic=True,
        concurrency=2,
        layer="default",
        queues={"mail": {"retries": 0, "backoff": lambda attempt: attempt}},
    )
    assert sentences() == []
    default, mail = task_routes("default")
    assert (default.channel, default.options.retries, default.options.hard_timeout) == (
        "tasks.default",
        3,
        50,
    )
    assert (mail.channel, mail.options.retries, mail.options.concurrency) == ("tasks.mail", 0, 2)
    assert task_routes("other") == []
    assert check_routing(None) == []
    assert [one.channel for one in load_routing().routes()][-2:] == ["tasks.default", "tasks.mail"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"retrys": 1}, "has the unknown key 'retrys': write 'retries'."),
        ({"retries": -1}, "has retries = -1: write a whole number from 0 to 32000"),
        ({"backoff": "soon"}, "has backoff = 'soon': write seconds"),
        ({"layer": "other"}, "['layer'] is 'other': write a key of DBCHANNELS."),
        ({"queues": {"mial": {}}}, "['queues'] has the unknown key 'mial': write 'mail'."),
        ({"queues": {"mail": {"atomic": 1}}}, "['queues']['mail'] has atomic = 1: write True or False."),
        ({"queues": ["mail"]}, "['queues'] must be a dict of dicts"),
    ],
)
def test_each_mistake_has_a_sentence(configure, options, said):
    configure(**options)
    (sentence,) = sentences()
    assert said in sentence and sentence.startswith("TASKS['default']['OPTIONS']")
    if "layer" not in options:  # whose workers read other channels
        with pytest.raises(InvalidConfiguration):
            task_routes("default")


def test_a_queue_must_be_a_part_of_a_channels_name(configure):
    configure({"default": {"BACKEND": BACKEND, "QUEUES": ["über"]}})
    assert "TASKS['default']['QUEUES'] has '\\xfcber'" in sentences()[0]
    configure({"default": {"BACKEND": BACKEND, "QUEUES": []}})
    assert "list the queues" in sentences()[0]


def test_an_entry_has_no_other_keys(configure):
    configure({"default": {"BACKEND": BACKEND, "retries": 3}})
    assert sentences() == [
        "TASKS['default'] has the unknown key 'retries': it takes BACKEND, QUEUES, OPTIONS, ENQUEUE_ON_COMMIT."
    ]


def test_options_that_are_no_dict_are_one_sentence(configure):
    configure({"default": {"BACKEND": BACKEND, "OPTIONS": ["retries"]}})
    assert sentences() == ["TASKS['default']['OPTIONS'] must be a dict, such as {'retries': 3}."]
    assert [one.id for one in check_routing(None)] == ["dbchannels.E002"]


def test_two_backends_may_share_a_queue(jobs, configure):
    one = {"BACKEND": BACKEND, "OPTIONS": {"retries": 1}}
    configure({"default": one, "other": {**one, "OPTIONS": {"retries": 2}}})
    routes = task_routes("default")
    assert [(one.channel, one.options.retries) for one in routes] == [
        ("tasks.default", 1),
        ("tasks.default", 2),
    ]
    values = {"backend": "other", "task": "tests.tasks.jobs.add"}
    assert [one.match("tasks.default", values.get) is not None for one in routes] == [False, True]


def test_a_setting_without_a_task_framework_is_told(settings, monkeypatch):
    settings.TASKS = {"default": {"BACKEND": BACKEND}}
    monkeypatch.setattr(framework, "AVAILABLE", False)
    (found,) = check_tasks(None)
    assert "pip install 'dbchannels[tasks]'" in found.msg and isinstance(found, checks.Error)
    assert task_routes("default") == []
    settings.TASKS = {}
    assert sentences() == []


def test_a_site_without_the_setting_imports_no_framework(settings, monkeypatch):
    for name in ("framework", "backend"):
        monkeypatch.setitem(sys.modules, f"dbchannels.tasks.{name}", None)  # an import of it fails
        monkeypatch.delattr(tasks, name)
    importlib.reload(tasks)
    assert task_routes("default") == [] and sentences() == []
    settings.TASKS = {"default": {"BACKEND": BACKEND}}
    with pytest.raises(ImportError):
        task_routes("default")
