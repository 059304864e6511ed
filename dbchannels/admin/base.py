"""What the lists of the admin share: rows that nobody can add or change, columns with times, filters that count."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db import connections
from django.db.models import Count, Value
from django.db.models.functions import Now
from django.utils import html, timezone

from dbchannels import conf

LINE = 240  # characters of a text in a list


def one_line(text: str) -> str:
    """Return a text for a list: the style sheet cuts it to the width of its column, the tooltip shows more of it."""
    text = text if len(text) <= LINE else text[:LINE] + " ..."
    return html.format_html('<span title="{}">{}</span>', text, text)


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
