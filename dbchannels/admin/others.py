"""The lists of what is not a message: memberships, connections, schedules and processes."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.db.models import Count, Model, OuterRef, Subquery, Value
from django.db.models.functions import Concat

from dbchannels import models
from dbchannels.admin.acts import Act, Delete, layer
from dbchannels.admin.base import ByGroup, ReadOnlyAdmin, duration, one_line, relative_time, running_now
from dbchannels.consumers import JsonWebsocketConsumer
from dbchannels.layers.operations import periodic, read_work
from dbchannels.protocol import NORMAL_CLOSURE


@admin.register(models.Membership)
class MembershipAdmin(ReadOnlyAdmin):
    deletable: ClassVar[dict[str, Any]] = {}
    acts = (Delete(),)
    list_display = ("group", "member", "added", "expires")
    fields = ("group", "member", "added_at", "expires_at")
    list_filter = (ByGroup,)
    search_fields = ("group", "channel", "recipient")
    ordering = ("group", "channel", "recipient")  # as the unique index has them
    added = relative_time("added_at", "added")
    expires = relative_time("expires_at", "expires")

    def member(self, row: Any) -> str:
        return row.channel + row.recipient


class FrameForm(forms.Form):
    """A text for a WebSocket."""

    text = forms.CharField(widget=forms.Textarea(attrs={"rows": 4}), strip=False)
    json = forms.BooleanField(
        label="It is JSON",
        required=False,
        help_text="Checked first, because a page that expects JSON may break.",
    )

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or {}
        if data.get("json"):
            try:
                JsonWebsocketConsumer.decode_json(data.get("text", ""))
            except ValueError as error:
                self.add_error("text", f"This is not JSON: {error}.")
        return data


class SendText(Act):
    """Send a text to WebSockets, as a consumer would."""

    name, title, permission, form = "send", "Send text", "send", FrameForm
    explanation = "Each of these WebSockets receives one text frame."
    missed = "closed by then, or too far behind"

    def message(self, data: Any) -> dict[str, Any]:
        """Return what is sent."""
        return {"text": data["text"]}

    def do(self, model_admin: Any, keys: Any, data: Any, by: str) -> int:
        one, open_ones = layer(), model_admin.rows().filter(pk__in=keys).values_list("pk", flat=True)
        sends = [one.make_send(channel, self.message(data)) for channel in open_ones]
        return len(sends) - len(one.write(sends, drop=True))


class CloseForm(forms.Form):
    """A close code."""

    code = forms.IntegerField(
        initial=NORMAL_CLOSURE, help_text="1000, or a number from 3000 to 4999 that the page's script knows."
    )

    def clean_code(self) -> int:
        """Allow the codes that are an application's to send (RFC 6455, section 7.4.2)."""
        code: int = self.cleaned_data["code"]
        if code != NORMAL_CLOSURE and not 3000 <= code <= 4999:
            raise forms.ValidationError(
                "Write 1000, or a number from 3000 to 4999: the others are the protocol's."
            )
        return code


class Close(SendText):
    """Close WebSockets."""

    name, title, permission, form = "close", "Close", "close", CloseForm
    button_names_rows = True
    explanation = "Each of these WebSockets is closed with this code. Many pages open a new one at once."

    def message(self, data: Any) -> dict[str, Any]:
        return {"close": data["code"]}


@admin.register(models.Connection)
class ConnectionAdmin(ReadOnlyAdmin):
    acts = (SendText(), Close())
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


class SendNow(Act):
    """Send periodic messages now."""

    name, title, permission = "run", "Send now", "run"
    explanation = (
        "The message is the one that the timetable sends. It is not queued twice, and the timetable stays."
    )
    missed = "gone by then"

    def do(self, model_admin: Any, keys: Any, data: Any, by: str) -> int:
        now = datetime.now(timezone.utc)
        rows = model_admin.rows().filter(pk__in=keys).order_by("pk")
        sends = [periodic(row.channel, row.every, now) for row in rows]
        if sends:
            layer().write(sends)
            rows.update(sent_at=layer().now())
        return len(sends)


@admin.register(models.Schedule)
class ScheduleAdmin(ReadOnlyAdmin):
    deletable: ClassVar[dict[str, Any]] = {}
    acts = (SendNow(), Delete())
    list_display = ("channel", "every", "comes", "sent", "seen")
    fields = ("channel", "every", "next_at", "sent_at", "seen_at")
    ordering = ("channel", "every")
    comes = relative_time("next_at", "next")
    sent = relative_time("sent_at", "last sent")
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

    @admin.display(description="runs and holds")
    def holds(self, row: Any) -> str:
        """Say what a worker runs and since when, and what would be lost, or retried, if the process was killed now."""
        popped = Counter(channel for channel, _ in models.InFlight(messages=row.popped or "").lines())
        parts = [f"{channel}: {number}" for channel, number in popped.items()]
        parts += [f"received {duration(row.clock - row.since)} ago"] if popped else []
        blocked = len(models.InFlight(messages=row.blocked or "").lines())
        parts += [f"done, but waiting for a transaction of others: {blocked:,}"] if blocked else []
        work = read_work(row.work)
        if work["runs"]:
            number = f" #{work['id']}" if work.get("id") else ""
            parts.insert(0, f"runs {work['runs']}{number} {running_now(work)}".strip())
        waiting = (row.claims or 0) - bool(work.get("id"))
        parts += [f"claimed and not started: {waiting:,}"] if waiting > 0 else []
        parts += [f"connections: {row.sockets:,}"] if row.sockets else []
        return one_line(", ".join(parts) or "nothing")
