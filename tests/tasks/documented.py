"""The tasks of the examples in the documentation of Django's tasks and of django-tasks."""

from __future__ import annotations

from dbchannels.tasks import framework

if framework.AVAILABLE:
    try:
        from django.tasks import task
    except ImportError:
        from django_tasks import task

    @task()
    def calculate_meaning_of_life() -> int:
        return 42

    @task(takes_context=True)
    def calculate_with_context(context) -> int:
        assert context.attempt == 1
        return 42 * context.attempt

    @task
    def fails():
        raise ValueError("This task always fails.")
