"""What an operator does to the rows of a list: to one, to those selected, or to all that match its filters and search.

Each act has a page that counts and asks. The form on it works for about two seconds, in parts, and then shows how far
it has come; another form goes on from there. Nothing is kept between the two but what the form carries, signed: so an
act can be left at any moment, and taken up again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.admin.utils import model_ngettext, quote, unquote
from django.contrib.admin.views.main import SEARCH_VAR, ChangeList
from django.contrib.contenttypes.models import ContentType
from django.core import signing
from django.core.exceptions import PermissionDenied
from django.db import Error, transaction
from django.http import Http404, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from dbchannels.exceptions import DBChannelsError
from dbchannels.layers import channel_layers
from dbchannels.layers.orm import DjangoLayer
from dbchannels.management.output import sentence

MOST = 100_000  # rows that are counted, or listed by pages; beyond it is "more than"
IN_MEMORY = "The layer keeps its messages in the memory of its process: nothing of it can be seen here."
PART = 2_000  # rows that one statement changes
SECONDS = 2.0  # for which one request works
NAMED = 20  # rows that an entry of the log names


def layer() -> Any:
    """Return the layer that the admin shows."""
    return channel_layers["default"]


def counted(number: int) -> str:
    """Return a bounded count for people: ``12,000``, or ``more than 100,000``."""
    return f"{number:,}" if number <= MOST else f"more than {MOST:,}"


class Act:
    """One thing that can be done to rows. ``ModelAdmin.acts`` has an instance of each."""

    name = ""  # in the address of its page, and among the actions of the list
    title = ""  # "Run again"
    button_names_rows = False  # "Cancel the messages", on a page where "Cancel" might be the way back
    permission = ""  # "replay" for dbchannels.replay_deadletter
    explanation = ""  # a sentence or two on the page that asks
    form: type[forms.Form] = forms.Form  # what it has to know
    lists = True  # whether it is offered for all that match
    flag = CHANGE  # of its entry in Django's log
    missed = "gone or claimed by then"  # what has become of the rows that it left alone
    do_not_call_in_templates = True

    def allowed(self, request: Any, model_admin: Any) -> bool:
        """Whether the user may do it: it takes the act's own permission, and the one to see the rows."""
        codename = f"{model_admin.opts.app_label}.{self.permission}_{model_admin.opts.model_name}"
        return bool(request.user.has_perm(codename)) and model_admin.has_view_permission(request)

    def offered(self, row: Any) -> bool:
        """Whether the page of a row has a button for it."""
        return True

    def explained(self, progress: Progress) -> str:
        """Return what it does, for the page that asks."""
        return self.explanation

    def do(self, model_admin: Any, keys: Sequence[Any], data: dict[str, Any], by: str) -> int:
        """Do it to the rows with these primary keys, at most PART; return the number of rows that were changed.

        ``data`` is what the form says. May raise DBChannelsError, or an error of the database: then none was changed.
        """
        raise NotImplementedError

    def __call__(self, model_admin: Any, request: Any, queryset: Any) -> HttpResponse:
        """Ask, for the rows that are selected in the list. It is an action of Django's admin."""
        keys = list(queryset.order_by("pk").values_list("pk", flat=True)[:PART])
        return _ask(model_admin, request, self, Progress(keys=keys, total=len(keys)), self.form())


class Delete(Act):
    """Delete rows, but for those that a worker has. It stands in the place of Django's, which lists every row."""

    name, title, permission, flag = "delete_selected", "Delete", "delete", DELETION
    explanation = "A deleted row is gone for good."

    def allowed(self, request: Any, model_admin: Any) -> bool:
        return super().allowed(request, model_admin) and model_admin.has_delete_permission(request)

    def offered(self, row: Any) -> bool:
        return False  # Django has a button for it

    def do(self, model_admin: Any, keys: Sequence[Any], data: dict[str, Any], by: str) -> int:
        return int(model_admin.rows().filter(pk__in=keys, **model_admin.deletable).delete()[0])


class Matching(ChangeList):
    """The rows that the filters and the search of a list find, without a page of them."""

    def get_results(self, request: Any) -> None:
        """Read nothing."""


@dataclass
class Progress:
    """How far an act has come. It is signed and carried by the forms."""

    query: str = ""  # the filters and the search
    keys: list[Any] | None = None  # the selected rows; None: all that match
    first: Any = None  # the lowest primary key that matched when the page asked
    until: Any = None  # the highest one: later rows are left alone
    after: Any = None  # the primary key up to which rows are done
    total: int = 0  # rows that matched, a bounded count
    seen: int = 0
    done: int = 0
    data: dict[str, Any] = field(default_factory=dict)  # the act's own form, as it was filled in
    entry: int | None = None  # of Django's log

    def signed(self, salt: str) -> str:
        """Return it as text for a form."""
        plain = json.loads(json.dumps(asdict(self), default=str))  # a UUID is text then
        return signing.dumps(plain, salt=salt, compress=True)

    def __str__(self) -> str:
        """``2,000 of 3,000``, or with more rows than are counted ``120,000 so far, about 12 %``."""
        if self.total <= MOST:
            return f"{self.seen:,} of {self.total:,}"
        if not all(isinstance(key, int) for key in (self.first, self.until, self.after)):
            return f"{self.seen:,} so far"
        share = (self.after - self.first + 1) / (self.until - self.first + 1)
        return f"{self.seen:,} so far, about {share * 100:.0f} %"


def view(model_admin: Any, request: Any, name: str, object_id: str | None = None) -> HttpResponse:
    """Ask (GET), or work (POST with what the page has signed)."""
    act = next((one for one in model_admin.acts if one.name == name), None)
    if act is None:
        raise Http404
    if not act.allowed(request, model_admin):
        raise PermissionDenied
    progress = None
    if request.method == "POST" and "state" in request.POST:
        try:
            progress = Progress(**signing.loads(request.POST["state"], salt=_salt(model_admin, act)))
        except (signing.BadSignature, TypeError):  # of another version, or of another site
            progress = None
    if progress is None and object_id is None and not act.lists:
        raise Http404
    if progress is None or (progress.keys is None and progress.query != request.GET.urlencode()):
        return _ask(model_admin, request, act, _begin(model_admin, request, object_id), act.form())
    form = act.form(progress.data if progress.entry else request.POST)
    if not form.is_valid():
        return _ask(model_admin, request, act, progress, form)
    if not isinstance(layer(), DjangoLayer):
        return _ask(model_admin, request, act, progress, form, IN_MEMORY)
    progress.data = {name: form.data.get(name, "") for name in form.fields}
    return _work(model_admin, request, act, progress, form.cleaned_data)


def _salt(model_admin: Any, act: Act) -> str:
    return f"dbchannels.admin.{model_admin.opts.model_name}.{act.name}"


def matching(model_admin: Any, request: Any) -> Any:
    """Return a query set of what the list's filters and search find. Django refuses those that are not allowed."""
    found = model_admin.get_changelist_instance(request)
    if request.GET.get(SEARCH_VAR) and not found.query:  # Django leaves out a search that it cannot read
        return found.queryset.none()
    return found.queryset.order_by("pk")


def _begin(model_admin: Any, request: Any, object_id: str | None) -> Progress:
    if object_id is not None:
        row = model_admin.get_object(request, unquote(object_id))
        if row is None:
            raise Http404
        return Progress(keys=[row.pk], total=1)
    rows = matching(model_admin, request).values_list("pk", flat=True)
    progress = Progress(query=request.GET.urlencode(), total=rows[: MOST + 1].count())
    if progress.total:
        progress.first, progress.until = rows.first(), rows.last()
    return progress


def _next_keys(model_admin: Any, rows: Any, progress: Progress) -> list[Any]:
    """Return the primary keys of the next rows, in order."""
    if progress.keys is not None:
        return progress.keys[progress.seen :][:PART]
    rows = rows.filter(pk__lte=progress.until) if progress.until is not None else rows.none()
    if progress.after is not None:
        rows = rows.filter(pk__gt=progress.after)
    return list(rows.values_list("pk", flat=True)[:PART])


def _work(model_admin: Any, request: Any, act: Act, progress: Progress, data: dict[str, Any]) -> HttpResponse:
    """Work for a while; then go back to the list, or show the progress with a form that goes on."""
    by, until, problem = request.user.get_username(), time.monotonic() + SECONDS, ""
    before = progress.seen
    rows = matching(model_admin, request) if progress.keys is None else None
    _log(model_admin, request, act, progress)  # before the first row: a process that dies has left its word
    while not problem and (keys := _next_keys(model_admin, rows, progress)):
        if time.monotonic() > until and progress.seen > before:  # at least one part a request
            break
        try:
            with transaction.atomic(using=model_admin.rows().db):  # two people may lock the same rows
                progress.done += act.do(model_admin, keys, data, by)
        except (DBChannelsError, Error) as error:
            problem = sentence(error)
            break
        progress.seen += len(keys)
        progress.after = keys[-1]
    _log(model_admin, request, act, progress)
    if problem or keys:
        return _ask(model_admin, request, act, progress, act.form(progress.data), problem)
    level = messages.SUCCESS if progress.done else messages.WARNING
    model_admin.message_user(request, result(model_admin, act, progress), level)
    what, args = "changelist", list[str]()
    if model_admin.returns_to_row and progress.keys:
        what, args = "change", [quote(progress.keys[0])]
    back = reverse(_address(model_admin, what), args=args, current_app=model_admin.admin_site.name)
    return HttpResponseRedirect(f"{back}?{progress.query}" if progress.query else back)


def result(model_admin: Any, act: Act, progress: Progress) -> str:
    """Return what was done, and what was not: ``Run again: 3 of 4 dead letters (1 gone by then).``"""
    missed = progress.seen - progress.done
    rest = f" ({missed:,} {act.missed})" if missed else ""
    of = f" of {progress.seen:,}" if missed else ""
    return f"{act.title}: {progress.done:,}{of} {model_ngettext(model_admin.opts, progress.seen)}{rest}."


def _log(model_admin: Any, request: Any, act: Act, progress: Progress) -> None:
    """Write the act's entry in Django's log, or bring it up to date."""
    which = _which(model_admin, progress)
    with_what = "".join(f"; {name}: {value}" for name, value in progress.data.items() if value)
    text = f"{result(model_admin, act, progress)[:-1]}{with_what}; {which}."
    if progress.entry is not None:
        LogEntry.objects.filter(pk=progress.entry).update(change_message=text)
        return
    one = progress.keys is not None and len(progress.keys) == 1
    entry = LogEntry.objects.create(
        user_id=request.user.pk,
        content_type_id=ContentType.objects.get_for_model(model_admin.model).pk,
        object_id=progress.keys[0] if one and progress.keys else None,
        object_repr=which[:200],
        action_flag=act.flag,
        change_message=text,
    )
    progress.entry = entry.pk


def _which(model_admin: Any, progress: Progress) -> str:
    """Return which rows an act is for, in words."""
    if progress.keys is None:
        return f"all that match {progress.query}" if progress.query else "all"
    named = ", ".join(str(key) for key in progress.keys[:NAMED])
    return f"{model_ngettext(model_admin.opts, len(progress.keys))} {named}{' ...' * (len(progress.keys) > NAMED)}"


def _named(model_admin: Any, progress: Progress) -> str:
    """Return the selected rows as the admin names them; "" for rows that match."""
    if progress.keys is None:
        return ""
    first = progress.keys[:NAMED]
    rows = model_admin.rows().filter(pk__in=first).defer(*model_admin.long_columns)
    names = {row.pk: str(row) for row in rows}
    return ", ".join(names.get(key, str(key)) for key in first) + " ..." * (len(progress.keys) > NAMED)


def _address(model_admin: Any, what: str) -> str:
    return f"admin:{model_admin.opts.app_label}_{model_admin.opts.model_name}_{what}"


def act_url(model_admin: Any, act: Act, pk: str | None = None) -> str:
    """Return the address of an act's page, for all that match or for one row (its quoted primary key)."""
    what, args = ("act", [act.name]) if pk is None else ("act_one", [pk, act.name])
    return reverse(_address(model_admin, what), args=args, current_app=model_admin.admin_site.name)


def _ask(
    model_admin: Any, request: Any, act: Act, progress: Progress, form: forms.Form, problem: str = ""
) -> HttpResponse:
    """Show the page that counts and asks; or, when the act has begun, how far it has come."""
    begun, rows = progress.entry is not None, model_ngettext(model_admin.opts, progress.total)
    filters = [
        ("search" if key == SEARCH_VAR else key, value)
        for key, value in request.GET.items()
        if key == SEARCH_VAR or model_admin.lookup_allowed(key, value)
    ]
    context = {
        **model_admin.admin_site.each_context(request),
        "title": act.title,
        "subtitle": None,
        "act": act,
        "explanation": act.explained(progress) if progress.total and not begun else "",
        "form": form,
        "fields": [] if begun else list(form),
        "problem": problem,
        "begun": begun,
        "progress": progress,
        "total": counted(progress.total),
        "rows": rows,
        "button": f"{act.title} the {rows}" if act.button_names_rows else act.title,
        "filters": filters if progress.keys is None else [],
        "chosen": _named(model_admin, progress),
        "state": progress.signed(_salt(model_admin, act)),
        "action": f"{act_url(model_admin, act)}?{progress.query}"
        if progress.query
        else act_url(model_admin, act),
        "opts": model_admin.opts,
        "media": model_admin.media + form.media,
    }
    request.current_app = model_admin.admin_site.name
    return TemplateResponse(request, "admin/dbchannels/act.html", context)
