"""A backend for Django's tasks: the messages of a queue's tasks wait on a channel, and our workers run them::

    TASKS = {"default": {"BACKEND": "dbchannels.tasks.ChannelsBackend"}}

It needs Django 6.0, or the package django-tasks.
"""

from __future__ import annotations

from typing import Any

from dbchannels.tasks import framework

__all__ = ["ChannelsBackend", "channels_backends", "task_named"]

if framework.AVAILABLE:
    from dbchannels.tasks.backend import ChannelsBackend, task_named
else:

    def __getattr__(name: str) -> Any:
        if name == "ChannelsBackend":
            raise ImportError("Tasks need Django 6.0 or django-tasks: run pip install 'dbchannels[tasks]'.")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def channels_backends() -> list[ChannelsBackend]:
    """Return the backends of the TASKS setting that are ours; none without a task framework."""
    backends = framework.task_backends.all() if framework.AVAILABLE else []
    return [one for one in backends if isinstance(one, ChannelsBackend)]
