"""The lists of what is not a message: memberships, connections, schedules and processes."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Count, Model, OuterRef, Subquery, Value
from django.db.models.functions import Concat

from dbchannels import models
from dbchannels.admin.base import ByGroup, ReadOnlyAdmin, duration, one_line, relative_time


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
