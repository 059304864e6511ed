"""The admin: messages, dead letters, groups, connections, schedules and processes.

Rows can be viewed; only waiting messages, dead letters, memberships and schedules can be deleted. No list makes a query
for each row or reads a long payload, so the lists open with a million waiting messages.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db import connections
from django.db.models import BinaryField, Count, Model, OuterRef, Subquery, Value
from django.db.models.functions import Concat, Length, Now, Substr
from django.template.defaultfilters import filesizeformat
from django.utils import html, timezone

from dbchannels import conf, models
from dbchannels.layers import channel_layers
from dbchannels.management.output import run_again
from dbchannels.redaction import message_text

LINE = 240  # characters of a text in a list
SHOWN = 4096  # characters of a message on its own page
HEAD = 16_384  # bytes of a payload that a list reads
ERROR = 16_384  # characters of a traceback that a dead letter has
PRE = "<pre>{}</pre>{}"

_TRACEBACK = re.compile(r"^(  \+ Exception Group )?Traceback \(most recent call last\):\n", re.MULTILINE)
_UNINDENTED = re.compile(
    r"^(?:  \| )?(\S.*)", re.MULTILINE
)  # in a traceback of an exception group, after "  | "


def one_line(text: str) -> str:
    """Return a text for a list: the style sheet cuts it to the width of its column, the tooltip shows more of it."""
    text = text if len(text) <= LINE else text[:LINE] + " ..."
    return html.format_html('<span title="{}">{}</span>', text, text)


def reason_of(error: str) -> str:
    """Return the line of a dead letter's error that says what happened.

    It follows the frames of the last traceback: ``ValueError: bad image``. Other errors, such as the one of a consumer
    that timed out, begin with it.
    """
    ends = [found.end() for found in _TRACEBACK.finditer(error)]
    start = (
        ends[-1] if ends else error.find("\n") + 1 if len(error) >= ERROR else 0
    )  # the beginning was cut off
    found = _UNINDENTED.search(error, start)
    return found[1] if found else error.strip().rpartition("\n")[2]


def duration(delta: timedelta) -> str:
    """Return a duration for people to read: 3.2 s, 42 s, 4 min, 5 h, 3 d."""
    seconds = abs(delta.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}\xa0{unit}"  # a space that does not break
    return f"{seconds:.1f}\xa0s" if seconds < 10 else f"{seconds:.0f}\xa0s"


def relative_time(field: str, description: str) -> Callable[..., str | None]:
    """Return a column with a field's time relative to now: "3 min ago", "in 5 h"."""

    @admin.display(description=description)
    def column(self: ReadOnlyAdmin, row: Any) -> str | None:
        if (at := getattr(row, field)) is None:
            return None
        return f"in\xa0{duration(at - row.clock)}" if at > row.clock else f"{duration(at - row.clock)}\xa0ago"

    return column


class ByChannel(admin.SimpleListFilter):
    """A filter by the 30 most frequent values of a column, each with its number of rows."""

    title = parameter_name = "channel"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        counted = model_admin.rows().values_list(self.parameter_name).annotate(rows=Count("pk"))
        most = counted.order_by("-rows", self.parameter_name)[:30]
        return [(value, f"{value} ({number:,})") for value, number in most]

    def queryset(self, request: Any, queryset: Any) -> Any:
        value = (self.value() or "").replace("\0", "")  # PostgreSQL has no NUL in text
        return queryset.filter(**{self.parameter_name: value}) if value else queryset


class ByGroup(ByChannel):
    title = parameter_name = "group"


class ReadOnlyAdmin(admin.ModelAdmin):
    """Rows of the layer's database. Nobody can add or change them here."""

    deletable: ClassVar[dict[str, Any] | None] = None  # a filter for the rows that can be deleted
    long_columns: ClassVar[tuple[str, ...]] = ()  # columns that a list does not read
    list_per_page = 50
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    empty_value_display = "none"

    class Media:
        css: ClassVar[dict[str, Any]] = {"all": ["dbchannels/admin.css"]}

    def rows(self) -> Any:
        """Return all rows in the layer's database."""
        return self.model._default_manager.using(conf.layer_settings().database)

    def get_queryset(self, request: Any) -> Any:
        # The clock that wrote the rows: PostgreSQL's, or Python's for the polling layer.
        own = connections[self.rows().db].vendor == "postgresql"
        rows = self.rows().annotate(clock=Now() if own else Value(timezone.now()))
        single = request.resolver_match and "object_id" in request.resolver_match.kwargs
        return rows if single else rows.defer(*self.long_columns)

    def get_readonly_fields(self, request: Any, obj: Any = None) -> Any:
        return self.fields

    def lookup_allowed(self, lookup: str, value: Any, request: Any = None) -> bool:
        """Allow only the filters of the list: ``?payload__startswith=...`` would reveal masked values."""
        return lookup in {one.parameter_name for one in self.list_filter}

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        return False

    has_add_permission = has_change_permission

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:
        if self.deletable is None or not super().has_delete_permission(request, obj):
            return False
        return obj is None or all(getattr(obj, name) == value for name, value in self.deletable.items())

    def delete_model(self, request: Any, obj: Any) -> None:
        self.delete_queryset(request, self.rows().filter(pk=obj.pk))

    def delete_queryset(self, request: Any, queryset: Any) -> None:
        """Delete in one statement, which skips messages claimed since the page was loaded."""
        if not queryset.filter(**self.deletable).delete()[0]:
            self.message_user(
                request,
                "Nothing was deleted: the rows are gone, or a worker has claimed them.",
                messages.WARNING,
            )


class MessageAdmin(ReadOnlyAdmin):
    """The common part of the three tables of messages."""

    deletable: ClassVar[dict[str, Any]] = {}
    long_columns = ("payload",)
    list_filter = (ByChannel,)
    search_fields = ("channel",)
    ordering = ("id",)

    def get_queryset(self, request: Any) -> Any:
        head = Substr("payload", 1, HEAD, output_field=BinaryField())
        return super().get_queryset(request).annotate(head=head, octets=Length("payload"))

    @admin.display(ordering="-id")  # the identity grows with time, and has an index
    def age(self, row: Any) -> str:
        return duration(row.clock - row.sent_at)

    def size(self, row: Any) -> str:
        return filesizeformat(row.octets)

    @admin.display(description="message")
    def line(self, row: Any) -> str:
        whole = row.octets <= HEAD
        text = (
            message_text(row.channel, row.head or b"", pretty=False) if whole else "(too long for the list)"
        )
        return one_line(text)

    def message(self, row: Any) -> str:
        text = message_text(row.channel, row.payload)
        rest = f"({len(text) - SHOWN:,} more characters)" if len(text) > SHOWN else ""
        return html.format_html(PRE, text[:SHOWN], rest)


@admin.register(models.ProtocolMessage)
class ProtocolMessageAdmin(MessageAdmin):
    long_columns = ("payload", "recipients")
    list_display = ("id", "channel", "line", "age", "expires", "size")
    fields = ("channel", "receivers", "reply_channel", "sent_at", "age", "expires", "size", "message")
    expires = relative_time("expires_at", "expires")

    def receivers(self, row: Any) -> str:
        parts = row.recipients.split()
        if row.audience:
            audiences = models.Audience.objects.using(row._state.db).filter(key=row.audience)
            parts = (
                audiences.exclude(recipients="").values_list("recipients", flat=True).first() or ""
            ).split()
        return f"{len(parts):,}: {' '.join(parts[:100])}{' ...' * (len(parts) > 100)}" if parts else "none"


@admin.register(models.DurableMessage)
class DurableMessageAdmin(MessageAdmin):
    deletable: ClassVar[dict[str, Any]] = {"claimed_by": None}
    list_display = ("id", "channel", "line", "priority", "age", "due", "attempts", "claimed_by")
    fields = (
        *("channel", "priority", "unique_key", "sent_at", "age", "due_at", "attempts", "claimed_by", "alone"),
        *("size", "message"),
    )
    search_fields = ("channel", "claimed_by")
    due = relative_time("due_at", "due")


@admin.register(models.DeadLetter)
class DeadLetterAdmin(MessageAdmin):
    list_display = ("id", "channel", "reason", "failed", "attempts", "line")
    fields = ("reason", "channel", "sent_at", "failed_at", "attempts", "traceback", "size", "message")
    ordering = ("-id",)
    actions = ("replay",)
    failed = relative_time("failed_at", "failed")

    def has_replay_permission(self, request: Any) -> bool:
        """Running a dead letter again requires the permission to change it, though nobody can edit it."""
        return bool(request.user.has_perm("dbchannels.change_deadletter"))

    @admin.action(description="Run again", permissions=["replay"])
    def replay(self, request: Any, queryset: Any) -> None:
        moved = channel_layers["default"].replay(queryset.values_list("pk", flat=True))
        if moved:
            self.message_user(request, run_again(moved), messages.SUCCESS)
        else:
            self.message_user(request, "Nothing was run again: the dead letters are gone.", messages.WARNING)

    @admin.display(description="error")
    def reason(self, row: Any) -> str:
        return one_line(reason_of(row.error))

    def traceback(self, row: Any) -> str:
        return html.format_html(PRE, row.error[-ERROR:], "")


@admin.register(models.Membership)
class MembershipAdmin(ReadOnlyAdmin):
    deletable: ClassVar[dict[str, Any]] = {}
    list_display = ("group", "member", "added", "expires")
    fields = ("group", "member", "added_at", "expires_at")
    list_filter = (ByGroup,)
    search_fields = ("group", "channel", "recipient")
    ordering = ("group", "channel", "recipient")  # as the unique index has them
    added = relative_time("added_at", "added")
    expires = relative_time("expires_at", "expires")

    def member(self, row: Any) -> str:
        return row.channel + row.recipient


@admin.register(models.Connection)
class ConnectionAdmin(ReadOnlyAdmin):
    list_display = ("short_path", "user_id", "server", "connected", "reply_channel")
    fields = ("path", "user_id", "server", "connected_at", "reply_channel")
    search_fields = ("path", "user_id", "server", "reply_channel")
    ordering = ("-connected_at",)
    connected = relative_time("connected_at", "connected")

    @admin.display(description="path")
    def short_path(self, row: Any) -> str:
        return one_line(row.path)


def _count(model: type[Model], column: str) -> Subquery:
    """Return the number of a model's rows with the process in this column."""
    rows = model.objects.filter(**{column: OuterRef("name")}).order_by().values(column)
    return Subquery(rows.annotate(count=Count("pk")).values("count"))


@admin.register(models.Schedule)
class ScheduleAdmin(ReadOnlyAdmin):
    deletable: ClassVar[dict[str, Any]] = {}
    list_display = ("channel", "every", "comes", "seen")
    fields = ("channel", "every", "next_at", "seen_at")
    ordering = ("channel", "every")
    comes = relative_time("next_at", "next")
    seen = relative_time("seen_at", "seen")


@admin.register(models.Process)
class ProcessAdmin(ReadOnlyAdmin):
    list_display = ("name", "kind", "host", "pid", "started", "state", "holds")
    fields = ("name", "kind", "host", "pid", "queue", "started_at", "lease_until", "state", "holds")
    ordering = ("kind", "name")
    started = relative_time("started_at", "started")

    def get_queryset(self, request: Any) -> Any:
        in_flight = models.InFlight.objects.filter(worker=OuterRef("name"))
        blocked = models.InFlight.objects.filter(
            worker=Concat(OuterRef("name"), Value(models.InFlight.BLOCKED))
        )
        rows = super().get_queryset(request)
        return rows.annotate(
            blocked=Subquery(blocked.values("messages")),
            popped=Subquery(in_flight.values("messages")),
            since=Subquery(in_flight.values("since")),
            claims=_count(models.DurableMessage, "claimed_by"),
            sockets=_count(models.Connection, "server"),
        )

    def state(self, row: Any) -> str:
        return "alive" if row.lease_until > row.clock else "lease expired"

    def holds(self, row: Any) -> str:
        """List the messages and connections that would be lost, or retried, if the process was killed now."""
        popped = Counter(channel for channel, _ in models.parse_in_flight(row.popped or ""))
        parts = [f"{channel}: {number}" for channel, number in popped.items()]
        parts += [f"taken {duration(row.clock - row.since)} ago"] if popped else []
        blocked = len(models.parse_in_flight(row.blocked or ""))
        parts += [f"done, but waiting for a transaction of others: {blocked:,}"] if blocked else []
        parts += [f"durable messages: {row.claims:,}"] if row.claims else []
        parts += [f"connections: {row.sockets:,}"] if row.sockets else []
        return one_line(", ".join(parts) or "nothing")
