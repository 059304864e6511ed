"""The admin: what waits, what failed, who is in which group, and which processes live.

All of it is for looking; only waiting messages, memberships and dead letters can be deleted. Nothing is looked
up for each row and no list reads a whole payload, so a page costs the same when a million messages wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, ClassVar

import msgpack
from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db import connections
from django.db.models import BinaryField, Count, Model, OuterRef, Subquery, Value
from django.db.models.functions import Left, Length, Now, Right, Substr
from django.template.defaultfilters import filesizeformat
from django.utils import timezone
from django.utils.html import format_html

from dbchannels import codec, conf, models, names

LINE = 120  # characters of a text that a list shows
SHOWN = 4096  # characters of a message that its own page shows
HEAD = 4096  # bytes of a payload that a list reads for its line
SECRET = frozenset({"authorization", "cookie", "proxy-authorization", "set-cookie", "x-csrftoken"})
BODY = frozenset({"body", "content"})
#: A dict with one of these is a request, a response, or a part of one.
HTTP = frozenset({"body_channel", "headers", "http_version", "more_content", "status"})
UNREADABLE = "This payload cannot be decoded: it was not encoded by this version of dbchannels."
DECODING_ERRORS = (ValueError, TypeError, RecursionError, msgpack.UnpackException)
PRE = '<pre style="margin: 0; white-space: pre-wrap; overflow-wrap: anywhere">{}</pre>{}'


class Note(str):
    """Words in the place of a value: shown without quotes."""

    __repr__ = str.__str__


def masked(value: object) -> object:
    """Return what is shown of a secret: its size."""
    data = value.encode() if isinstance(value, str) else value
    return Note(f"(masked, {len(data)} bytes)" if isinstance(data, bytes) else "(masked)")


def _lower(name: object) -> str:
    return (name.decode("latin-1") if isinstance(name, bytes) else str(name)).lower()


def _header(pair: Any) -> Any:
    secret = isinstance(pair, list) and pair and _lower(pair[0]) in SECRET
    return [pair[0], *map(masked, pair[1:])] if secret else pair


def _fields(message: dict[Any, Any], http: bool) -> Iterator[tuple[str, Any]]:
    secret = SECRET | BODY if http or not HTTP.isdisjoint(message) else SECRET
    for key, value in message.items():
        name = _lower(key)
        if name == "headers" and isinstance(value, list):
            yield f"{key!r}: ", [_header(pair) for pair in value]
        else:
            yield f"{key!r}: ", masked(value) if name in secret and value is not None else value


def pieces(value: Any, lead: str, http: bool = False, depth: int = codec.MAX_DEPTH) -> Iterator[str]:
    """Yield the text of a value bit by bit, in Python's notation: an entry to a line with "\\n" as ``lead``."""
    if not isinstance(value, (dict, list)) or not value or depth == 0:
        yield "(more levels)" if value and depth == 0 else repr(value)
        return
    if isinstance(value, dict):
        brackets, entries = "{}", _fields(value, http)
    else:
        brackets, entries = "[]", (("", item) for item in value)
        # A header, or an address with its port, is easier to read on one line.
        lead = "" if len(value) <= 4 and not any(isinstance(one, (dict, list)) for one in value) else lead
    inner = lead and lead + "    "
    gap = brackets[0] + inner
    for label, item in entries:
        yield gap + label
        yield from pieces(item, inner, depth=depth - 1)
        gap = "," + (inner or " ")
    yield lead + brackets[1]


def message_text(channel: str, payload: bytes, lead: str, limit: int) -> tuple[str, int]:
    """Return the text of an encoded message, masked, up to ``limit`` characters, and the number of those left out."""
    try:
        message = codec.decode(payload)
        # The last part of a body may have ``content`` alone; a ``binary`` beside it says that it is a WebSocket's.
        http = names.is_protocol(channel) and "binary" not in message
        shown, size = "", 0
        for piece in pieces(message, lead, http) if isinstance(message, dict) else (UNREADABLE,):
            shown += piece[: limit - len(shown)]
            size += len(piece)
    except DECODING_ERRORS:
        return UNREADABLE, 0
    return shown, size - len(shown)


def duration(delta: timedelta) -> str:
    """Return a time as people say it: 3.2 s, 42 s, 4 min, 5 h, 3 days."""
    seconds = abs(delta.total_seconds())
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for unit, size, limit in (("min", 60, 3600), ("h", 3600, 172_800)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def moment(field: str, description: str) -> Callable[..., str | None]:
    """Return a column that says how long ago, or in how long, a field's moment is."""

    @admin.display(description=description)
    def column(self: LookingAdmin, row: Any) -> str | None:
        at = getattr(row, field)
        if at is None:
            return None
        return f"in {duration(at - row.clock)}" if at > row.clock else f"{duration(row.clock - at)} ago"

    return column


class ByChannel(admin.SimpleListFilter):
    """The values of a column with their numbers of rows, the 30 most frequent ones."""

    title = parameter_name = "channel"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        counted = model_admin.rows().values_list(self.parameter_name).annotate(rows=Count("pk"))
        most = counted.order_by("-rows", self.parameter_name)[:30]
        return [(value, f"{value} ({rows:,})") for value, rows in most]

    def queryset(self, request: Any, queryset: Any) -> Any:
        value = (self.value() or "").replace("\0", "")  # PostgreSQL has no NUL in text
        return queryset.filter(**{self.parameter_name: value}) if value else queryset


class ByGroup(ByChannel):
    title = parameter_name = "group"


class ByServer(ByChannel):
    title = parameter_name = "server"


class LookingAdmin(admin.ModelAdmin):
    """Rows of the layer's database: seen by those who may view them, changed by nobody."""

    #: Which rows can be deleted, as a filter; None: none of them.
    deletable: ClassVar[dict[str, Any] | None] = None
    #: Columns that a list leaves in the database.
    long_columns: ClassVar[tuple[str, ...]] = ()
    list_per_page = 50
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    # No "Select all 1,000,000": the question "Are you sure?" would load and list each of them.
    actions_selection_counter = False
    empty_value_display = "none"

    def rows(self) -> Any:
        """Return all rows, on the layer's database."""
        return self.model._default_manager.using(conf.layer_settings().database)

    def get_queryset(self, request: Any) -> Any:
        # The clock that wrote the rows: PostgreSQL's own, or Python's for the polling layer.
        own = connections[self.rows().db].vendor == "postgresql"
        rows = self.rows().annotate(clock=Now() if own else Value(timezone.now()))
        single = request.resolver_match and "object_id" in request.resolver_match.kwargs
        return rows if single else rows.defer(*self.long_columns)

    def get_readonly_fields(self, request: Any, obj: Any = None) -> Any:
        return self.fields

    def lookup_allowed(self, lookup: str, *args: Any) -> bool:
        """Allow our filters alone: by ``?payload__startswith=...`` one could guess what is masked."""
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
        """Delete in one statement, which leaves what a worker has claimed since the page was made."""
        if not queryset.filter(**self.deletable).delete()[0]:
            self.message_user(request, "Nothing was left to delete: somebody was faster.", messages.WARNING)


class MessageAdmin(LookingAdmin):
    """What the three tables of messages have in common."""

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
        if row.octets > HEAD:
            return f"(open it to read {row.octets:,} bytes)"
        text, rest = message_text(row.channel, row.head, "", LINE)
        return text + " ..." if rest else text

    def message(self, row: Any) -> str:
        text, rest = message_text(row.channel, row.payload, "\n", SHOWN)
        return format_html(PRE, text, f"... and {rest:,} characters more, left out here." if rest else "")


@admin.register(models.ProtocolMessage)
class ProtocolMessageAdmin(MessageAdmin):
    long_columns = ("payload", "locals")
    list_display = ("id", "channel", "age", "expires", "size", "line")
    fields = ("channel", "receivers", "reply_channel", "sent_at", "age", "expires", "size", "message")
    expires = moment("expires_at", "expires")

    def receivers(self, row: Any) -> str | None:
        parts = row.locals.split()
        return f"{len(parts):,}: {' '.join(parts[:100])}{' ...' if len(parts) > 100 else ''}" if parts else None


@admin.register(models.DurableMessage)
class DurableMessageAdmin(MessageAdmin):
    deletable: ClassVar[dict[str, Any]] = {"claimed_by": None}
    list_display = ("id", "channel", "age", "due", "attempts", "claimed_by", "size", "line")
    fields = ("channel", "sent_at", "age", "due_at", "due", "attempts", "claimed_by", "alone", "size", "message")
    due = moment("due_at", "due")


@admin.register(models.DeadLetter)
class DeadLetterAdmin(MessageAdmin):
    long_columns = ("payload", "error")
    list_display = ("id", "channel", "failed", "attempts", "last_line", "size", "line")
    fields = ("channel", "sent_at", "failed_at", "failed", "attempts", "size", "message", "traceback")
    ordering = ("-id",)
    failed = moment("failed_at", "failed")

    def get_queryset(self, request: Any) -> Any:
        return super().get_queryset(request).annotate(tail=Right("error", 1000))

    @admin.display(description="error")
    def last_line(self, row: Any) -> str:
        return row.tail.strip().rpartition("\n")[2][:LINE]

    def traceback(self, row: Any) -> str:
        return format_html(PRE, row.error, "")


@admin.register(models.Membership)
class MembershipAdmin(LookingAdmin):
    deletable: ClassVar[dict[str, Any]] = {}
    list_display = ("group", "member", "added", "ends")
    fields = ("group", "member", "added_at", "added", "expires_at", "ends")
    list_filter = (ByGroup,)
    search_fields = ("group", "channel", "local")
    ordering = ("group", "channel", "local")  # as the unique index has them
    added = moment("added_at", "added")
    ends = moment("expires_at", "ends")

    def member(self, row: Any) -> str:
        return row.channel + row.local


@admin.register(models.Connection)
class ConnectionAdmin(LookingAdmin):
    list_display = ("short_path", "server", "connected", "reply_channel")
    fields = ("path", "server", "connected_at", "connected", "reply_channel")
    list_filter = (ByServer,)
    search_fields = ("path", "reply_channel")
    ordering = ("-connected_at",)
    connected = moment("connected_at", "connected")

    @admin.display(description="path", ordering="path")
    def short_path(self, row: Any) -> str:
        return row.path[:LINE]


@admin.register(models.Process)
class ProcessAdmin(LookingAdmin):
    list_display = ("name", "kind", "host", "pid", "started", "state", "holds")
    fields = ("name", "kind", "host", "pid", "queue", "started_at", "started", "lease_until", "state", "holds")
    ordering = ("kind", "name")
    started = moment("started_at", "started")

    def get_queryset(self, request: Any) -> Any:
        held = models.Held.objects.filter(worker=OuterRef("name"))
        return super().get_queryset(request).annotate(
            popped=Subquery(held.values("messages")),
            since=Subquery(held.values("since")),
            claims=_number(models.DurableMessage, "claimed_by"),
            sockets=_number(models.Connection, "server"),
        )

    def state(self, row: Any) -> str:
        return "alive" if row.lease_until > row.clock else "lease expired"

    def holds(self, row: Any) -> str | None:
        """Say what would be lost, or come back, if the process was killed now."""
        channels = Counter(channel for channel, _ in models.parse_held(row.popped or ""))
        popped = ", ".join(f"{number} of {channel}" for channel, number in channels.items())
        ...


def _number(model: type[Model], column: str) -> Subquery:
    """Return the number of a model's rows that name the process in this column."""
    rows = model.objects.filter(**{column: OuterRef("name")}).order_by().values(column)
    return Subquery(rows.annotate(number=Count("pk")).values("number"))
