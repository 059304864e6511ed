"""Tasks as a site writes them, and what is not one."""

from __future__ import annotations

import asyncio

from dbchannels.tasks import framework

if framework.AVAILABLE:
    try:
        from django.tasks import task
    except ImportError:
        from django_tasks import task

    #: What ran, in order.
    ran: list[object] = []

    @task()
    def add(a, b=0):
        ran.append((a, b))
        return a + b

    @task(priority=5, queue_name="mail", takes_context=True)
    def greet(context, name):
        ran.append((context.attempt, name))
        return {"name": name, "id": context.task_result.id, "attempt": context.attempt}

    @task()
    async def later(text):
        await asyncio.sleep(0)
        ran.append(text)
        return [text]

    @task()
    def broken(text):
        ran.append(text)
        raise ValueError(text)

    @task()
    def returns(kind):
        return {"set": {1}, "long": "x" * 2_000_000, "bytes": b"text", "tuple": (1, None)}[kind]


def plain():
    """A function without the decorator."""
    raise AssertionError("only tasks are called")


class Report:
    """A class with a function that could be a task, were it outside."""

    @staticmethod
    def make():
        raise AssertionError("a worker finds no methods")
