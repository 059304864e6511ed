"""A backend for Django's tasks: the messages of a queue's tasks wait on a channel, and our workers run them::

    TASKS = {"default": {"BACKEND": "dbchannels.tasks.ChannelsBackend"}}

It needs Django 6.0, or the package django-tasks. Either is imported by sites that use it only: to import django-tasks
takes a tenth of the start of a process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings

if TYPE_CHECKING:
    from dbchannels.tasks.backend import ChannelsBackend, task_named

__all__ = ["ChannelsBackend", "channels_backends", "task_named"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dbchannels.tasks import framework

    if not framework.AVAILABLE:
        raise ImportError("Tasks need Django 6.0 or django-tasks: run pip install 'dbchannels[tasks]'.")
    from dbchannels.tasks import backend

    return getattr(backend, name)


def channels_backends() -> list[ChannelsBackend]:
    """Return the backends of the TASKS setting that are ours; none without a task framework."""
    if not settings.is_overridden("TASKS"):
        return []
    from dbchannels.tasks import framework

    if not framework.AVAILABLE:
        return []
    from dbchannels.tasks.backend import ChannelsBackend

    return [one for one in framework.task_backends.all() if isinstance(one, ChannelsBackend)]
