"""What the documentation of Django's tasks and of django-tasks shows holds for this backend."""

from __future__ import annotations

from importlib import import_module

import pytest

from dbchannels.tasks import framework

if framework.AVAILABLE:
    from dbchannels.tasks.framework import TaskResultStatus, task_backends


@pytest.fixture
def documented(configure):
    configure(retries=0)
    return import_module("tests.tasks.documented")


def test_enqueue_refresh_and_return_value(documented, layer, run):
    result = documented.calculate_meaning_of_life.enqueue()
    with pytest.raises(ValueError, match="not finished"):
        result.return_value  # noqa: B018
    assert result.status == TaskResultStatus.READY
    run()
    result.refresh()
    assert result.status == TaskResultStatus.SUCCESSFUL
    assert result.return_value == 42
    assert result.is_finished and result.attempts == 1


def test_the_context(documented, layer, run):
    result = documented.calculate_with_context.enqueue()
    run()
    assert documented.calculate_with_context.get_result(result.id).return_value == 42


def test_a_task_is_modified_by_using(documented, layer, run):
    modified_task = documented.calculate_meaning_of_life.using(priority=10)
    result = modified_task.enqueue()
    assert (result.task.priority, documented.calculate_meaning_of_life.priority) == (10, 0)
    run()
    assert task_backends["default"].get_result(result.id).return_value == 42


def test_an_error_has_its_class_and_its_traceback(documented, layer, run):
    result = documented.fails.enqueue()
    run()
    result.refresh()
    assert result.status == TaskResultStatus.FAILED
    assert result.errors[0].exception_class is ValueError
    assert isinstance(result.errors[0].traceback, str)


def test_what_the_backend_supports(documented):
    backend = task_backends["default"]
    assert backend.supports_defer and backend.supports_async_task
    assert backend.supports_get_result and backend.supports_priority
