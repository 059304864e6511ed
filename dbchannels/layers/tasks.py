"""What layers know of tasks: durable messages whose results are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NamedTuple

from django.dispatch import Signal

from dbchannels.layers.operations import BatchResult, Failure
from dbchannels.protocol import FAILED, READY

#: The TaskResult of the task that runs in this context.
running: ContextVar[Any] = ContextVar("running", default=None)
#: Sent when it is committed that a task has failed for good, with ``payload``, that of its message, and ``failure``:
#: None if it was cancelled while it waited.
task_failed = Signal()


#: Characters of the earlier errors of a task that are kept when it fails again: about sixty long tracebacks.
MOST_ERRORS = 1_048_576


class ReturnValue(str):
    """What the consumer of a task returns: the return value of the task, as JSON."""

    #: Is called when the end of the task is committed.
    written: Callable[[], Any] = staticmethod(lambda: None)


def report_ended(done: BatchResult) -> None:
    """Say which tasks have ended, after the result of a batch was committed."""
    for delivery in done.acknowledged:
        if isinstance(delivery.return_value, ReturnValue):
            delivery.return_value.written()
    for failure in done.failures:
        if failure.delivery.is_task and failure.retry_in is None:
            task_failed.send_robust(None, payload=failure.delivery.payload, failure=failure)


class TaskRecord(NamedTuple):
    """What a layer knows of a task."""

    payload: bytes  # of its message
    priority: int
    status: str
    started_at: datetime | None
    last_attempted_at: datetime | None
    finished_at: datetime | None
    worker_ids: list[str]  # of each attempt
    errors: list[tuple[str, str]]  # the dotted path of each exception's class, and its traceback
    return_value: Any


def error_line(exception: type[BaseException], text: str) -> str:
    """Return a line of ``TaskResult.errors``."""
    return f"{json.dumps([f'{exception.__module__}.{exception.__qualname__}', text])}\n"


def read_errors(lines: str) -> list[tuple[str, str]]:
    """Return the errors in ``TaskResult.errors``, of which the first may be cut off: it is left out."""
    whole = [line for line in lines.splitlines() if line.startswith('["')]
    return [(path, text) for path, text in map(json.loads, whole)]


def status_after(failure: Failure) -> str:
    """Return what a task is now that an attempt has failed."""
    return FAILED if failure.retry_in is None else READY


def error_after(failure: Failure) -> str:
    """Return a line of ``TaskResult.errors``; none if the message merely waits for a later release."""
    if failure.retry_in is not None and not failure.ran:
        return ""
    return error_line(failure.exception, failure.stored_error())
