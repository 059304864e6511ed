"""The overview of all channels, the page of one, and pause and resume."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import chain
from typing import Any, NamedTuple

from django.contrib import admin
from django.contrib.admin.utils import quote, unquote
from django.contrib.admin.views.main import PAGE_VAR, SEARCH_VAR
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db import connections
from django.db.models import CharField, F, Value
from django.db.models.functions import Right
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone

from dbchannels import models, names, samples
from dbchannels.admin.acts import IN_MEMORY, Act, act_url, layer
from dbchannels.admin.base import ReadOnlyAdmin, duration, running_now
from dbchannels.admin.live import LiveViews
from dbchannels.admin.messages import reason_of
from dbchannels.exceptions import DBChannelsError, InvalidName
from dbchannels.layers.orm import DjangoLayer
from dbchannels.layers.overview import ChannelStatus, Overview, ProcessStatus, overview
from dbchannels.management.output import consumers_of

PER_PAGE = 100  # channels of the overview
MEASURED = 300  # seconds from which rates and times are told
LISTED = 10  # messages of each kind on the page of a channel
ERROR_TAIL = 2_000  # characters of an error in which the reason is looked for


class Pause(Act):
    """Let the messages of channels wait."""

    name, title, permission = "pause", "Pause", "pause"
    explanation = (
        "No worker takes another message of a paused channel, until somebody resumes it. Those that run go on, and new "
        "messages are accepted and wait."
    )
    missed = "paused already"
    lists = False

    def offered(self, row: Any) -> bool:
        return not names.is_protocol(row.channel) and row._state.adding

    def explained(self, progress: Any) -> str:
        (state,) = [one for one in _overview().channels if one.channel == progress.keys[0]] or [None]
        now = f" Ready now: {state.ready:,}. Running now: {state.running:,}." if state else ""
        return self.explanation + now

    def do(self, model_admin: Any, keys: Any, data: Any, by: str) -> int:
        return sum(layer().pause(channel, by) for channel in keys)


class Resume(Act):
    """End the pause of channels."""

    name, title, permission = "resume", "Resume", "pause"
    explanation = "Workers take the messages of these channels again, within a second."
    missed = "not paused any more"

    def offered(self, row: Any) -> bool:
        return not row._state.adding

    def do(self, model_admin: Any, keys: Any, data: Any, by: str) -> int:
        return sum(layer().resume(channel) for channel in keys)


class Line(NamedTuple):
    """A message on the page of a channel."""

    kind: str  # "running", "ready", "delayed" or "dead"
    pk: int
    moment: Any  # when it was sent, is due, or failed
    text: str  # the worker's name, or the end of the error


def _overview() -> Overview:
    one = layer()
    return overview(one) if isinstance(one, DjangoLayer) else Overview([], [])


def with_idle(channels: Iterable[ChannelStatus]) -> list[ChannelStatus]:
    """Return the channels, and those that have a consumer and nothing else; first those that need a person."""
    found = {one.channel: one for one in channels}
    with suppress(DBChannelsError):  # the routing may be what is to be mended
        for name in consumers_of(layer().alias):
            if not names.is_protocol(name):
                found.setdefault(name, ChannelStatus(name))
    return sorted(found.values(), key=lambda one: (not one.unattended, one.pause is None, one.channel))


def measured(channels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what the last minutes' samples tell, by channel: messages a second in and out, and times in seconds."""
    found = layer().samples(time.time() - MEASURED, channels) if channels else []
    return {channel: samples.average(found, channel) for channel in channels}


def seconds(value: float) -> str:
    """Return a measured time for people: ``4 ms``, ``2.5 s``, ``3 min``."""
    return f"{math.ceil(value * 1000)}\xa0ms" if value < 1 else duration(timedelta(seconds=value))


def rate(value: float | None) -> str:
    """Return a number of messages a second for people: ``0.02``, ``3.5``, ``120``."""
    return (
        "-"
        if value is None
        else f"{value:.2f}"
        if value < 1
        else f"{value:.1f}"
        if value < 10
        else f"{value:,.0f}"
    )


def shown(state: ChannelStatus, numbers: dict[str, Any], address: str) -> dict[str, Any]:
    """Return what the templates show of a channel."""

    def count(kind: str) -> str:
        number = getattr(state, kind)
        return f"{number:,}{'+' * (kind in state.more)}" if number else "0"

    paused = ""
    if state.pause is not None:
        ago = duration(timezone.now() - state.pause.paused_at)
        paused = f"paused by {state.pause.paused_by or 'somebody'}, {ago} ago"
    return {
        "channel": state.channel,
        "address": address,
        "state": state,
        **{kind: count(kind) for kind in ("ready", "delayed", "running", "dead")},
        "oldest": seconds(state.oldest) if state.oldest is not None else "-",
        "paused": paused,
        "workers": len(state.workers),
        "in": rate(numbers.get("in")),
        "out": rate(numbers.get("out")),
        **{
            key: ", ".join(seconds(numbers[f"{key}_{part}"]) for part in ("p50", "p95"))
            if numbers.get(f"{key}_p50") is not None
            else "-"
            for key in ("wait", "run")
        },
    }


def lines_of(channel: str) -> list[Line]:
    """Return the first messages of a durable channel: those that run, those that come next, the last dead letters."""
    durable = layer().rows(models.DurableMessage).filter(channel=channel)
    ready = durable.filter(claimed_by=None, due_at=None).order_by("channel", "-priority", "id")
    delayed = durable.filter(claimed_by=None, due_at__isnull=False).order_by("due_at")
    dead = layer().rows(models.DeadLetter).filter(channel=channel).order_by("-id")
    nothing = Value("", output_field=CharField())

    def part(kind: str, rows: Any, moment: str, text: Any) -> Any:
        rows = rows.annotate(kind=Value(kind, output_field=CharField()), moment=F(moment), text=text)
        return rows.values_list("kind", "pk", "moment", "text")[:LISTED]

    parts = [
        part("running", durable.filter(claimed_by__isnull=False).order_by("id"), "sent_at", F("claimed_by")),
        part("ready", ready, "sent_at", nothing),
        part("delayed", delayed, "due_at", nothing),
        part("dead", dead, "failed_at", Right("error", ERROR_TAIL)),
    ]
    if connections[layer().database].features.supports_slicing_ordering_in_compound:
        return [Line(*row) for row in parts[0].union(*parts[1:], all=True)]
    return [Line(*row) for row in chain(*parts)]


@admin.register(models.ChannelState)
class ChannelAdmin(LiveViews, ReadOnlyAdmin):
    """The rows are only the paused channels: both pages show what there is of messages, routes and workers."""

    acts = (Pause(), Resume())
    returns_to_row = True
    fields = ("channel", "paused_at", "paused_by")
    ordering = ("channel",)

    def get_object(self, request: Any, object_id: str, from_field: Any = None) -> Any:
        """Return a channel's row; a new one, which is not stored, when it is not paused."""
        try:
            name = names.check_channel_name(object_id)
        except InvalidName:
            return None
        return self.rows().filter(channel=name).first() or models.ChannelState(channel=name)

    def page(self, request: Any, template: str, title: str, **context: Any) -> TemplateResponse:
        """Render one of the pages."""
        request.current_app = self.admin_site.name
        common = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "media": self.media,
        }
        in_memory = "" if isinstance(layer(), DjangoLayer) else IN_MEMORY
        return TemplateResponse(
            request, template, {**common, "minutes": MEASURED // 60, "in_memory": in_memory, **context}
        )

    def address(self, channel: str) -> str:
        """Return the address of a channel's page; none for channels that are counted together."""
        if "*" in channel or channel.endswith(("!", "?")):
            return ""
        return reverse(
            "admin:dbchannels_channelstate_change", args=[quote(channel)], current_app=self.admin_site.name
        )

    def changelist_view(self, request: Any, extra_context: Any = None) -> TemplateResponse:
        """Show the overview."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        search = request.GET.get(SEARCH_VAR, "").strip()
        seen = _overview()
        channels = [one for one in with_idle(seen.channels) if search in one.channel]
        pages = Paginator(channels, PER_PAGE)
        page = pages.get_page(request.GET.get(PAGE_VAR))
        numbers = measured([one.channel for one in page]) if isinstance(layer(), DjangoLayer) else {}
        resume = next((act for act in self.allowed_acts(request) if act.name == "resume"), None)
        return self.page(
            request,
            "admin/dbchannels/channels.html",
            "Channels",
            rows=[shown(one, numbers.get(one.channel, {}), self.address(one.channel)) for one in page],
            page=page,
            page_range=pages.get_elided_page_range(page.number),
            search=search,
            nobody=sum(one.unattended for one in channels),
            note=seen.note,
            resume=act_url(self, resume) if resume and any(one.pause for one in channels) else "",
        )

    def change_view(self, request: Any, object_id: str, form_url: str = "", extra_context: Any = None) -> Any:
        """Show a channel."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        name, consumers, problem = unquote(object_id), list[str](), ""
        try:
            names.check_channel_name(name)
        except InvalidName:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)
        seen = _overview()
        state = next((one for one in seen.channels if one.channel == name), ChannelStatus(name))
        row = state.pause or models.ChannelState(channel=name)
        try:
            consumers = consumers_of(layer().alias).get(row.channel, [])
        except DBChannelsError as error:
            problem = str(error)
        on_database = isinstance(layer(), DjangoLayer)
        numbers = measured([row.channel]) if on_database else {}
        offered = [act for act in self.allowed_acts(request) if act.offered(row)]
        return self.page(
            request,
            "admin/dbchannels/channel.html",
            row.channel,
            original=row,
            row=shown(state, numbers.get(row.channel, {}), self.address(row.channel)),
            buttons=[(act.title, act_url(self, act, quote(row.channel))) for act in offered],
            consumers=consumers,
            problem=problem,
            workers=[
                self.worker(one, row.channel)
                for one in seen.processes
                if one.alive and row.channel in one.takes
            ],
            lines=self.lines(state, seen.processes) if state.durable and on_database else [],
            message_list="durablemessage" if state.durable else "protocolmessage",
        )

    def worker(self, one: ProcessStatus, channel: str) -> dict[str, Any]:
        """Return what the page of a channel shows of a worker that takes it."""
        runs = one.work.get("runs") or ""
        number = one.work.get("id")
        what = f"{runs} #{number}" if number else runs
        return {
            "name": one.name,
            "host": one.host,
            "runs": what,
            "own": runs == channel,
            "since": running_now(one.work),
        }

    def lines(self, state: ChannelStatus, processes: Iterable[ProcessStatus]) -> list[dict[str, Any]]:
        """Return the messages on a channel's page."""
        workers, now, found = {one.name: one for one in processes}, timezone.now(), []
        for kind, pk, moment, text in lines_of(state.channel):
            model = "deadletter" if kind == "dead" else "durablemessage"
            worker, note = workers.get(text), ""
            if kind == "running":
                runs = worker and worker.work.get("id") == pk
                note = (
                    f"{text}, {running_now(worker.work)}"
                    if worker and runs
                    else f"{text}: behind another message"
                )
            elif kind == "dead":
                note = reason_of(text)
            found.append(
                {
                    "kind": kind,
                    "pk": pk,
                    "address": reverse(
                        f"admin:dbchannels_{model}_change", args=[pk], current_app=self.admin_site.name
                    ),
                    "when": f"in {duration(moment - now)}"
                    if moment > now
                    else f"{duration(now - moment)} ago",
                    "note": note,
                }
            )
        return found
