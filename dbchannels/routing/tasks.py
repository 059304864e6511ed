"""The routes of tasks: one for each queue of a backend of ours, so that workers find tasks without a registration."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dbchannels import tasks
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.message import Message
from dbchannels.routing.routes import Captures, ConsumerOptions, Route
from dbchannels.tasks import channels_backends

if TYPE_CHECKING:
    from dbchannels.tasks import ChannelsBackend


class TaskRoute(Route):
    """Matches the tasks of one queue of one backend; each has a route of its own, with its own options."""

    def __init__(self, backend: ChannelsBackend, queue: str) -> None:
        channel = backend.channel(queue)
        options = ConsumerOptions(channel, **backend.options_of(queue))
        super().__init__(channel, backend.run, {"backend": re.escape(backend.alias)}, options)
        self._backend, self._queue = backend, queue
        self._routes: dict[str, Route] = {}  # by the path of the task

    def match(self, channel: str, values: Callable[[str], Any]) -> tuple[Route, Captures] | None:
        if super().match(channel, values) is None:
            return None
        path = str(values("task"))
        if path not in self._routes:
            self._routes[path] = self._route_of(
                tasks.task_named(path)
            )  # there is none without a task framework
        return self._routes[path], {}

    def _route_of(self, task: Any) -> Route:
        def run(message: Message) -> Any:
            return self._backend.run(message)

        run.__module__, run.__qualname__ = task.func.__module__, task.func.__qualname__  # for logs
        options = self._backend.options_of(self._queue, task)
        options.pop("concurrency", None)
        return Route(self.channel, run, {}, ConsumerOptions(self.channel, **options))


def task_routes(layer: str) -> list[TaskRoute]:
    """Return the routes of the tasks on a layer. Raises InvalidConfiguration for a backend that cannot be used."""
    routes = []
    for backend in (one for one in channels_backends() if one.layer_alias == layer):
        for problem in backend.problems():
            raise InvalidConfiguration(problem)
        routes += [TaskRoute(backend, queue) for queue in sorted(backend.queues)]
    return routes
