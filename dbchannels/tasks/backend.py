"""``ChannelsBackend``: enqueue a task, run it in a worker, and tell what came of it."""

from __future__ import annotations

import dataclasses
import json
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any, ClassVar

from asgiref.sync import sync_to_async
from django.conf import settings
from django.utils import timezone as site_timezone
from django.utils.module_loading import import_string

from dbchannels import codec, conf, names
from dbchannels.exceptions import InvalidName, MessageTooLarge, UnreadableMessage, safe_repr
from dbchannels.layers import channel_layers
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.tasks import ReturnValue, running, task_failed
from dbchannels.message import Message
from dbchannels.other_libraries import ForeignNames
from dbchannels.tasks.framework import (
    BaseTaskBackend,
    InvalidTask,
    Task,
    TaskContext,
    TaskError,
    TaskResult,
    TaskResultDoesNotExist,
    TaskResultStatus,
    normalize_json,
    signals,
    task_backends,
)

if TYPE_CHECKING:
    from dbchannels.layers.operations import Failure

PREFIX = "tasks."  # of the channels


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelTask(ForeignNames, Task):
    """A task with options of its own, as ``@task(retries=2)``; None stands for those of its queue."""

    _place: ClassVar[str] = "task"

    retries: int | None = None
    backoff: float | Callable[[int], float] | None = None
    atomic: bool | None = None
    soft_timeout: float | None = None
    hard_timeout: float | None = None


class ChannelsBackend(BaseTaskBackend):
    """Tasks as durable messages: of the queue ``mail`` on the channel ``tasks.mail``.

    The message is a row of the caller's transaction. While it waits, its task is READY; while a worker has claimed it,
    RUNNING. The end of the task is written with the end of the message. OPTIONS are described in docs/tasks.rst.
    """

    task_class = ChannelTask
    supports_defer = supports_async_task = supports_get_result = supports_priority = True

    @property
    def layer_alias(self) -> str:
        """The alias of the layer that carries the messages."""
        options = self.options if isinstance(self.options, dict) else {}  # `problems` reports others
        return str(options.get("layer", "default"))

    @property
    def layer(self) -> BaseLayer:
        """The layer that carries the messages."""
        return channel_layers[self.layer_alias]

    def channel(self, queue: str) -> str:
        """Return the channel on which the tasks of a queue wait."""
        return f"{PREFIX}{queue}"

    def problems(self) -> list[str]:
        """Return one sentence for each mistake in the backend's entry of TASKS."""
        where = f"TASKS[{self.alias!r}]"
        found = conf.task_problems(where, self.options, self.queues, settings.TASKS.get(self.alias, {}))
        for queue in sorted(self.queues, key=str):
            try:
                names.check_channel_name(self.channel(queue))
            except InvalidName as error:
                found.append(f"{where}['QUEUES'] has {safe_repr(queue)}. {error}")
        return found

    def validate_task(self, task: Task) -> None:
        """Raise InvalidTask for a task that cannot be enqueued."""
        super().validate_task(task)
        if task.queue_name not in self.queues:  # Django takes an empty list for any queue
            raise InvalidTask(
                f"The queue {task.queue_name!r} is not in QUEUES of TASKS[{self.alias!r}], so no worker would read it: "
                "add it there."
            )
        for name, value in own_options(task).items():
            if problem := conf.task_value_problem(name, value, f"The task {task.module_path}"):
                raise InvalidTask(problem)

    # Enqueueing.

    def enqueue(self, task: Task, args: Any, kwargs: Any) -> TaskResult:
        """Enqueue a task in the caller's transaction; in a consumer or a task, when that returns.

        Raises InvalidTask, TypeError or ValueError for arguments that are no JSON, and what ``Channel.send`` raises.
        """
        self.validate_task(task)
        _check_findable(task)
        now = time.time()
        result = self._result(task, new_id(), args, kwargs, enqueued_at=_moment(now))
        content = {
            "task": task.module_path,
            "id": result.id,
            "args": result.args,
            "kwargs": result.kwargs,
            "backend": self.alias,
            "queue": task.queue_name,
            "priority": int(task.priority),  # Django takes 1.0 too
            "enqueued_at": now,
        }
        if task.run_after is not None:
            content["run_after"] = task.run_after.isoformat()
        self.layer.send(
            self.channel(task.queue_name),
            content,
            task=result.id,
            priority=content["priority"],
            deliver_at=task.run_after,
        )
        signals.task_enqueued.send(type(self), task_result=result)
        return result

    # Running.

    def options_of(self, queue: str, task: Task | None = None) -> dict[str, Any]:
        """Return the options of a queue, or of a task on it, as a route takes them."""
        given = {name: self.options[name] for name in conf.TASK_RULES if name in self.options}
        given |= self.options.get("queues", {}).get(queue, {})
        return given if task is None else given | own_options(task)

    def run(self, message: Message) -> Any:
        """Run the task that a message names; return its ReturnValue, or a coroutine that does."""
        task = task_named(message["task"])
        result = self._running(task, message)
        running.set(result)
        signals.task_started.send_robust(type(self), task_result=result)
        context = [TaskContext(task_result=result)] if task.takes_context else []
        value = task.func(*context, *result.args, **result.kwargs)
        return self._awaited(result, value) if iscoroutine(value) else self._returned(result, value)

    async def _awaited(self, result: TaskResult, value: Any) -> ReturnValue:
        return await sync_to_async(self._returned)(result, await value)

    def _returned(self, result: TaskResult, value: Any) -> ReturnValue:
        value = normalize_json(value)
        text, limit = ReturnValue(json.dumps(value)), self.layer.options["max_message_size"]
        if len(text) > limit:
            raise MessageTooLarge(len(text), limit)
        _set(result, status=TaskResultStatus.SUCCESSFUL, finished_at=site_timezone.now(), _return_value=value)
        text.written = partial(signals.task_finished.send_robust, type(self), task_result=result)
        return text

    def _running(self, task: Task, message: Message) -> TaskResult:
        """Return the result of a task whose attempt begins; a later one knows of those before it."""
        if message.attempt > 1:
            try:
                return self.get_result(message["id"])
            except TaskResultDoesNotExist:  # somebody has deleted the message meanwhile
                pass
        content, now = message.content, site_timezone.now()
        return self._result(
            _as_enqueued(task, content),
            content["id"],
            content["args"],
            content["kwargs"],
            enqueued_at=_moment(content["enqueued_at"]),
            status=TaskResultStatus.RUNNING,
            started_at=now,
            last_attempted_at=now,
            worker_ids=[message.worker],
        )

    # Results.

    def get_result(self, result_id: str) -> TaskResult:
        """Return what is known of a task. Raises TaskResultDoesNotExist, also before the commit of its enqueue.

        Raises InvalidTask if the task is gone from the code.
        """
        try:
            record = self.layer.task_record(str(uuid.UUID(result_id)))
        except (ValueError, AttributeError, TypeError):
            record = None
        if record is None:
            raise TaskResultDoesNotExist(result_id)
        content = codec.decode(record.payload)
        result = self._result(
            _as_enqueued(task_named(content["task"]), {**content, "priority": record.priority}),
            content["id"],
            content["args"],
            content["kwargs"],
            backend=content["backend"],
            enqueued_at=_moment(content["enqueued_at"]),
            status=TaskResultStatus(record.status),
            started_at=_local(record.started_at),
            last_attempted_at=_local(record.last_attempted_at),
            finished_at=_local(record.finished_at),
            worker_ids=record.worker_ids,
            errors=[
                TaskError(exception_class_path=path, traceback=traceback) for path, traceback in record.errors
            ],
        )
        _set(result, _return_value=record.return_value)
        return result

    def _result(self, task: Task, result_id: str, args: Any, kwargs: Any, **known: Any) -> TaskResult:
        fields = {
            "status": TaskResultStatus.READY,
            "started_at": None,
            "last_attempted_at": None,
            "finished_at": None,
            "errors": [],
            "worker_ids": [],
            "backend": self.alias,
            **known,
        }
        return TaskResult(task=task, id=result_id, args=args, kwargs=kwargs, **fields)


def task_named(path: str) -> Task:
    """Return the task with this dotted path. Raises InvalidTask for anything else, so that only tasks are called."""
    try:
        task = import_string(path)
    except ImportError as error:
        raise InvalidTask(f"The task {path} cannot be imported ({error}): deploy its module.") from error
    if not isinstance(task, Task):
        raise InvalidTask(f"{path} is not a task: write @task above the function.")
    return task


def _check_findable(task: Task) -> None:
    """Raise InvalidTask for a task that a worker would not find by its path."""
    with suppress(InvalidTask):
        task_named(task.module_path)
        if task.func.__module__ != "__main__":  # which is another module in a worker
            return
    raise InvalidTask(
        f"No worker would find the task {task.module_path}: write @task above a function of a module, and import it "
        "from there."
    )


def _as_enqueued(task: Task, content: dict[str, Any]) -> Task:
    """Return the task as it was enqueued. TASKS may have changed since, so it is not validated again."""
    run_after = content.get("run_after")
    enqueued = {
        "backend": content["backend"],
        "queue_name": content["queue"],
        "priority": content["priority"],
        "run_after": run_after and datetime.fromisoformat(run_after),
    }
    if all(getattr(task, name) == value for name, value in enqueued.items()):
        return task
    copy: Task = object.__new__(type(task))
    own = {one.name: getattr(task, one.name) for one in dataclasses.fields(task)}
    _set(copy, **own | enqueued)
    return copy


def own_options(task: Task) -> dict[str, Any]:
    """Return the options of a ChannelTask; another backend's task has none."""
    own = {name: getattr(task, name, None) for name in conf.TASK_RULES}
    return {name: value for name, value in own.items() if value is not None}


def new_id() -> str:
    """Return a UUID of version 7: the time in milliseconds and 12 bits of a fraction, then 62 random bits.

    So ids are in the order of their making, within one process (RFC 9562, section 5.7, and method 3 of section 6.2).
    """
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    bits = milliseconds << 80 | 0x7 << 76 | (rest << 12) // 1_000_000 << 64 | 0x2 << 62
    return str(uuid.UUID(int=bits | int.from_bytes(os.urandom(8), "big") >> 2))


def _set(frozen: Task | TaskResult, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(frozen, name, value)


def _local(moment: datetime | None) -> datetime | None:
    """Return a moment as ``timezone.now()`` gives it: without a time zone where USE_TZ is False."""
    if moment is None or site_timezone.is_naive(moment) or settings.USE_TZ:
        return moment
    return site_timezone.make_naive(moment, site_timezone.get_default_timezone())


def _moment(seconds: float) -> datetime | None:
    return _local(datetime.fromtimestamp(seconds, timezone.utc))


def report_failure(payload: bytes, failure: Failure | None, **kwargs: Any) -> None:
    """Send ``task_finished`` for a task that has failed for good."""
    with suppress(UnreadableMessage, KeyError, InvalidTask, TaskResultDoesNotExist):
        content = codec.decode(payload)
        backend = next((one for one in task_backends.all() if one.alias == content["backend"]), None)
        if not isinstance(backend, ChannelsBackend):
            return
        if failure is None or (result := failure.task_result) is None:
            result = backend.get_result(content["id"])
        else:  # a new connection for each of many that fail at once would take far longer than the tasks
            error = TaskError(
                exception_class_path=f"{failure.exception.__module__}.{failure.exception.__qualname__}",
                traceback=failure.stored_error(),
            )
            errors, now = [*result.errors, error], site_timezone.now()
            _set(result, status=TaskResultStatus.FAILED, finished_at=now, errors=errors)
        signals.task_finished.send_robust(type(backend), task_result=result)


task_failed.connect(report_failure)
