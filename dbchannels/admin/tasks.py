"""The list of tasks of which an attempt has ended; those that wait for their first one are durable messages."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import BinaryField, Exists, OuterRef
from django.db.models.functions import Length, Substr
from django.utils import html

from dbchannels import codec, models
from dbchannels.admin.acts import Delete, layer
from dbchannels.admin.base import ByChannel, ReadOnlyAdmin, one_line, relative_time
from dbchannels.admin.messages import HEAD, PRE, SHOWN, Cancel, Replay, reason_of, task_call, task_path
from dbchannels.layers.tasks import read_errors
from dbchannels.protocol import FAILED, READY, RUNNING, SUCCESSFUL
from dbchannels.redaction import message_text, readable


class ReplayTasks(Replay):
    """Run failed tasks again."""

    explanation = "The dead letter of each task goes back to its queue and runs from its first attempt."
    missed = "without a dead letter by then"

    def offered(self, row: Any) -> bool:
        return status_of(row) == FAILED

    def do(self, model_admin: Any, keys: Any, data: Any, by: str) -> int:
        letters = layer().rows(models.DeadLetter).filter(task__in=keys)
        return int(layer().replay(list(letters.values_list("id", flat=True)), to=data["to"]))


class CancelTasks(Cancel):
    """Cancel tasks that wait for another attempt, or run."""

    def offered(self, row: Any) -> bool:
        return status_of(row) in (READY, RUNNING)

    def do(self, model_admin: Any, keys: Any, data: Any, by: str) -> int:
        messages = layer().rows(models.DurableMessage).filter(task__in=keys)
        return sum(layer().cancel(list(messages.values_list("id", flat=True)), by))


class ByStatus(admin.SimpleListFilter):
    """A filter by what came of the last attempt."""

    title = parameter_name = "status"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        return [(FAILED, "failed"), (SUCCESSFUL, "successful"), (READY, "to run again")]

    def queryset(self, request: Any, queryset: Any) -> Any:
        return queryset.filter(status=self.value()) if self.value() else queryset


class ByTask(admin.SimpleListFilter):
    """A filter by the path of the function. It lists those of the newest results; any other may be in the address."""

    NEWEST, LONGEST = 1000, 512  # results; bytes of their payloads
    title = parameter_name = "task"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        start = Substr("payload", 1, self.LONGEST, output_field=BinaryField())
        newest = model_admin.rows().order_by("-pk").values_list(start, flat=True)[: self.NEWEST]
        number = Counter(filter(None, map(task_path, newest)))
        return [(path, f"{path} ({number[path]:,})") for path in sorted(number)[: ByChannel.MOST]]

    def queryset(self, request: Any, queryset: Any) -> Any:
        if not self.value():
            return queryset
        # A payload begins with one byte for the number of its keys, the first of which is "task".
        path = codec.encode_trusted("task") + codec.encode_trusted(self.value())
        start = Substr("payload", 2, len(path), output_field=BinaryField())
        return queryset.alias(start=start).filter(start=path)


def status_of(row: Any) -> str:
    """Return the status of a task: that of its message, if there is one again."""
    return RUNNING if row.is_running else READY if row.is_waiting else row.status


@admin.register(models.TaskResult)
class TaskResultAdmin(ReadOnlyAdmin):
    deletable: ClassVar[dict[str, Any]] = {}
    acts = (ReplayTasks(), CancelTasks(), Delete())
    long_columns = ("payload", "errors", "return_value")
    list_display = ("call", "channel", "state", "attempts", "error", "returned", "ended")
    fields = (
        *("call", "channel", "state", "attempts", "worker_ids", "enqueued_at", "started_at"),
        *("last_attempted_at", "finished_at", "expires_at", "all_errors", "whole_value", "message"),
    )
    list_filter = (ByStatus, ByTask, ByChannel)
    search_fields = ("id", "channel", "worker_ids")
    ordering = ("-id",)  # ids grow with time
    ended = relative_time("finished_at", "ended")

    def get_queryset(self, request: Any) -> Any:
        messages = models.DurableMessage.objects.filter(task=OuterRef("pk"))
        return (
            super()
            .get_queryset(request)
            .annotate(
                head=Substr("payload", 1, HEAD, output_field=BinaryField()),
                octets=Length("payload"),
                errors_head=Substr("errors", 1, HEAD),
                value_head=Substr("return_value", 1, SHOWN),
                is_running=Exists(messages.filter(claimed_by__isnull=False)),
                is_waiting=Exists(messages.filter(claimed_by=None)),
            )
        )

    @admin.display(description="task")
    def call(self, row: Any) -> str:
        return one_line(task_call(row.head) if row.octets <= HEAD else f"{task_path(row.head)}(...)")

    @admin.display(description="status")
    def state(self, row: Any) -> str:
        return status_of(row).lower()

    def attempts(self, row: Any) -> int:
        return len(row.worker_ids.split())

    def error(self, row: Any) -> str:
        """Show the first line of the first error; a list reads no more of them."""
        try:
            (_, text), *_ = read_errors(row.errors_head[: row.errors_head.index("\n")])
        except ValueError:
            return ""
        return one_line(reason_of(text))

    @admin.display(description="return value")
    def returned(self, row: Any) -> str:
        return one_line(_value(row.value_head))

    @admin.display(description="errors")
    def all_errors(self, row: Any) -> str:
        return html.format_html(PRE, "\n".join(text for _, text in read_errors(row.errors)), "")

    @admin.display(description="return value")
    def whole_value(self, row: Any) -> str:
        return html.format_html(PRE, _value(row.return_value)[:SHOWN], "")

    def message(self, row: Any) -> str:
        return html.format_html(PRE, message_text(row.channel, row.payload)[:SHOWN], "")


def _value(text: str) -> str:
    """Return a return value for people, with its secrets masked; of a long one the list knows the beginning only."""
    try:
        return repr(readable(json.loads(text))) if text else ""
    except ValueError:
        return "(too long for the list)"
