"""What the lists of the admin share: rows that nobody can add or change, columns with times, filters that count."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.utils import quote
from django.core.paginator import Paginator
from django.db import connections
from django.db.models import Count, DateTimeField, Value
from django.db.models.functions import Cast, Now
from django.http import HttpResponseRedirect
from django.urls import path
from django.utils import html, timezone
from django.utils.functional import cached_property

from dbchannels import conf
from dbchannels.admin import acts
from dbchannels.management.output import short

LINE = 240  # characters of a text in a list


def one_line(text: str) -> str:
    """Return a text for a list: the style sheet cuts it to the width of its column, the tooltip shows more of it."""
    text = text if len(text) <= LINE else text[:LINE] + " ..."
    return html.format_html('<span title="{}">{}</span>', text, text)


def duration(delta: timedelta) -> str:
    """Return a duration for people to read: 3.2 s, 42 s, 4 min, 5 h, 3 d."""
    return short(abs(delta.total_seconds())).replace(" ", "\xa0")  # a space that does not break


def relative_time(field: str, description: str) -> Callable[..., str | None]:
    """Return a column with a field's time relative to now: "3 min ago", "in 5 h"."""

    @admin.display(description=description)
    def column(self: ReadOnlyAdmin, row: Any) -> str | None:
        if (at := getattr(row, field)) is None:
            return None
        return f"in\xa0{duration(at - row.clock)}" if at > row.clock else f"{duration(at - row.clock)}\xa0ago"

    return column


def running_now(work: dict[str, Any]) -> str:
    """Return since when a worker runs its message, and when its consumer is ended, by the clock of the worker's host.

    ``work`` is what the worker has put on record, see ``Worker._record_work``.
    """
    try:
        since = datetime.strptime(work.get("since", ""), "%Y-%m-%d %H:%M:%S")
    except (ValueError, TypeError):
        return ""
    text = f"since {since}"
    for key, what in (("soft_timeout", "slow from {} on"), ("hard_timeout", "cut off at {}")):
        if isinstance(limit := work.get(key), (int, float)) and limit > 0:
            text += ", " + what.format(f"{since + timedelta(seconds=limit):%H:%M:%S}")
    return text


class ByChannel(admin.SimpleListFilter):
    """A filter by the most frequent values of a column, each with its number among the newest rows."""

    MOST = 30  # values that are listed; any other one can be written into the address
    title = parameter_name = "channel"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        rows = model_admin.rows()
        # A count of a million rows takes too long for a page: the newest ones tell which values are frequent.
        first = rows.order_by("-pk").values_list("pk", flat=True)[acts.MOST : acts.MOST + 1].first()
        rows = rows.filter(pk__gt=first) if first is not None else rows
        counted = rows.values_list(self.parameter_name).annotate(rows=Count("pk"))
        most = list(counted.order_by("-rows", self.parameter_name)[: self.MOST + 1])
        among = f", among the newest {acts.MOST:,}" if first is not None else ""
        self.title += f" (the {self.MOST} most frequent{among})" if len(most) > self.MOST else among
        return [(value, f"{value} ({number:,})") for value, number in most[: self.MOST]]

    def queryset(self, request: Any, queryset: Any) -> Any:
        return self.narrowed(queryset, self.value().replace("\0", "")) if self.value() else queryset

    def narrowed(self, queryset: Any, value: str) -> Any:
        """Return the rows with this value. PostgreSQL has no NUL in text, so there is none in it."""
        return queryset.filter(**{self.parameter_name: value})


class ByGroup(ByChannel):
    title = parameter_name = "group"


class BoundedPaginator(Paginator):
    """Pages of the first rows, so that a list counts no more of them."""

    MOST = acts.MOST

    @cached_property
    def count(self) -> int:
        """The number of rows, at most one more than MOST."""
        return int(self.object_list.order_by().values("pk")[: self.MOST + 1].count())


class ReadOnlyAdmin(admin.ModelAdmin):
    """Rows of the layer's database. Nobody can add or change them here."""

    deletable: ClassVar[dict[str, Any] | None] = None  # a filter for the rows that can be deleted
    long_columns: ClassVar[tuple[str, ...]] = ()  # columns that a list does not read
    acts: ClassVar[tuple[acts.Act, ...]] = ()
    returns_to_row = False  # after an act on one row, to its page rather than to the list
    paginator = BoundedPaginator
    list_per_page = 50
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    empty_value_display = "none"

    class Media:
        css: ClassVar[dict[str, Any]] = {"all": ["dbchannels/admin.css"]}

    def rows(self) -> Any:
        """Return all rows in the layer's database."""
        return self.model._default_manager.using(conf.layer_settings().database)

    def clock(self) -> Any:
        """Return the clock that wrote the rows: PostgreSQL's, or Python's for the polling layer."""
        vendor, moment = connections[self.rows().db].vendor, Value(timezone.now())
        if vendor == "mysql":  # a literal in a SELECT is text to the server
            return Cast(moment, DateTimeField())
        return Now() if vendor == "postgresql" else moment

    def get_queryset(self, request: Any) -> Any:
        rows = self.rows().annotate(clock=self.clock())
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
        """Delete in one statement, which skips a message claimed since the page was loaded."""
        if not self.rows().filter(pk=obj.pk, **self.deletable).delete()[0]:
            self.message_user(
                request,
                "Nothing was deleted: the row is gone, or a worker has claimed it.",
                messages.WARNING,
            )

    # Acts.

    def get_urls(self) -> list[Any]:
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        view = self.admin_site.admin_view(self.act_view)
        return [
            path("act/<slug:act>/", view, name=f"{name}_act"),
            path("<path:object_id>/act/<slug:act>/", view, name=f"{name}_act_one"),
            *super().get_urls(),
        ]

    def act_view(self, request: Any, act: str, object_id: str | None = None) -> Any:
        """The page of an act: for all that match, or for one row."""
        return acts.view(self, request, act, object_id)

    def allowed_acts(self, request: Any) -> list[acts.Act]:
        """Return what the user may do."""
        return [act for act in self.acts if act.allowed(request, self)]

    def get_actions(self, request: Any, action_location: Any = None) -> dict[str, Any]:
        """Return the acts for the list. Since 6.1 Django asks for those of a row's page too: they are links there."""
        listed = getattr(action_location, "name", "CHANGE_LIST") == "CHANGE_LIST"
        return {act.name: (act, act.name, act.title) for act in self.allowed_acts(request) if listed}

    def get_changelist(self, request: Any, **kwargs: Any) -> Any:
        """Return what reads a list; the page of an act needs no page of rows."""
        acting = request.resolver_match and "act" in request.resolver_match.kwargs
        return acts.Matching if acting else super().get_changelist(request, **kwargs)

    def changelist_view(self, request: Any, extra_context: Any = None) -> Any:
        """Show the list. Its button for all that match leads to the page of the act that is chosen."""
        if request.method == "POST" and "all" in request.POST:
            for act in self.allowed_acts(request):
                if act.name == request.POST.get("action"):
                    return HttpResponseRedirect(f"{acts.act_url(self, act)}?{request.GET.urlencode()}")
        return super().changelist_view(request, extra_context)

    def render_change_form(
        self, request: Any, context: Any, *args: Any, obj: Any = None, **kwargs: Any
    ) -> Any:
        """Show a row, with a button for each act."""
        offered = [act for act in self.allowed_acts(request) if obj and act.offered(obj)]
        pk = quote(obj.pk) if obj else ""
        context["buttons"] = [(act.title, acts.act_url(self, act, pk)) for act in offered]
        return super().render_change_form(request, context, *args, obj=obj, **kwargs)
