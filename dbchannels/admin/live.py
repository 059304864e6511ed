"""The live page: the last hour as charts and the channels as they are now, over a WebSocket of its own.

The page asks on the socket, and each answer says in how many seconds to ask again: two, or up to ten where the table of
the channels takes long; it is read so seldom that it takes less than half a percent of the time. A page in a hidden tab
closes its socket. Where no worker takes the socket, for example because another route of the site takes all paths, the
page fetches the same JSON every ten seconds.
"""

from __future__ import annotations

import threading
import time
from datetime import datetime, timezone
from heapq import nlargest
from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.core import signing
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse

from dbchannels import models
from dbchannels.admin.acts import layer
from dbchannels.consumers import JsonWebsocketConsumer, route_class
from dbchannels.exceptions import DenyConnection
from dbchannels.layers.orm import DjangoLayer
from dbchannels.layers.overview import ChannelStatus, overview
from dbchannels.samples import PERIOD, summarize

PATH = r"^/(?:.*/)?dbchannels/channelstate/live/$"
AGAIN = 2.0  # seconds until a page asks again
SHARE = 200  # how many times as long as the table takes it is shown at least
ROWS = 100  # channels in the table

LATEST = 1e11  # a moment beyond any clock
SINCE = "Write since: the last moment that you have, or 0."

CHARTS = {
    "depth": "Messages that wait",
    "rates": "Messages a second",
    "wait": "Time until a consumer starts",
    "run": "Time that consumers run",
    "failures": "Failures a second",
    "oldest": "Oldest message that waits",
    "sockets": "Open WebSockets",
    "workers": "Workers",
}


class Cached:
    """The table of the channels, read at most as often as pages may ask, however many there are."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read_at, self.again = 0.0, AGAIN
        self._last: dict[str, Any] | None = None

    def get(self) -> dict[str, Any]:
        """Return ``channels`` and ``more``, see ``live_data``; they are at most ``again`` seconds old."""
        with self._lock:
            started_at = time.monotonic()
            if self._last is None or started_at - self._read_at > self.again * 0.9:
                one = layer()
                self._last = _table(overview(one).channels if isinstance(one, DjangoLayer) else [])
                self._read_at = started_at
                self.again = max(AGAIN, (time.monotonic() - started_at) * SHARE)
            return self._last


cached = Cached()


def live_data(since: float = 0.0, channel: str = "") -> dict[str, Any]:
    """Return what the page shows, with the series of a channel or, for "", of all channels together, for JSON::

    {
        "at": 1764400000.5,                # now
        "ask_in": 2.0,                     # seconds until the page should ask again
        "channel": "",
        "channels": [{"channel": "thumbnails", "ready": 3, ...}, ...],
        "more": 0,                         # channels that are left out of the list
        "series": {"moments": [...], "values": {"ready": [...], ...}},
    }

    The series are what was measured after ``since``, see ``samples.summarize``.
    """
    now = cached.get()
    one = layer()
    # What came is worked out from two moments, so the last one is read again.
    after, only = since - PERIOD if since else 0.0, [channel] if channel else []
    samples = one.samples(after, only) if isinstance(one, DjangoLayer) else []
    return {
        "at": datetime.now(timezone.utc).timestamp(),
        "ask_in": min(cached.again, PERIOD),
        "channel": channel,
        **now,
        "series": summarize(samples, channel),
    }


def _table(channels: list[ChannelStatus]) -> dict[str, Any]:
    """Return the channels, by name; of very many those that need a person, and then those with most messages."""

    def weight(one: ChannelStatus) -> tuple[bool, int, int]:
        return _is_alarming(one), one.ready + one.delayed + one.running, one.dead

    site = [one for one in channels if not one.read_by_servers]
    first = sorted(nlargest(ROWS, site, key=weight), key=lambda one: one.channel)
    return {"channels": [_row(one) for one in first], "more": len(site) - len(first)}


def _is_alarming(one: ChannelStatus) -> bool:
    return one.pause is not None or one.unattended


def _row(one: ChannelStatus) -> dict[str, Any]:
    if one.pause is not None:
        state = "paused"
    elif one.unattended:
        state = "nobody takes it"
    else:
        state = f"{len(one.workers)} worker{'' if len(one.workers) == 1 else 's'}"
    return {
        **{key: getattr(one, key) for key in ("channel", "ready", "delayed", "running", "dead", "oldest")},
        "alarming": _is_alarming(one),
        "state": state,
        "url": reverse("admin:dbchannels_channelstate_change", args=[quote(one.channel)]),
    }


def may_view(user: Any) -> bool:
    """Whether a user may see the channels."""
    return bool(user.is_active and user.is_staff and user.has_perm("dbchannels.view_channelstate"))


def ticket_for(user: Any) -> str:
    """Return what a page must show on its socket: an admin site may ask for more than a session, as a second factor."""
    return signing.dumps(str(user.pk), salt=__name__)


def has_ticket(user: Any, ticket: object) -> bool:
    """Whether the page was shown to this user within the last day."""
    try:
        return isinstance(ticket, str) and signing.loads(ticket, salt=__name__, max_age=86_400) == str(
            user.pk
        )
    except signing.BadSignature:
        return False


@route_class(path=PATH)
class LivePage(JsonWebsocketConsumer):
    """The socket of the page, at the page's own path. Each frame is looked at anew: permissions may end."""

    def connect(self, message: Any) -> None:
        if not may_view(self.user):
            raise DenyConnection("You may not see the channels.")

    def receive_json(self, content: Any) -> None:
        since, channel = content.get("since"), content.get("channel", "")
        if not may_view(self.user) or not has_ticket(self.user, content.get("ticket")):
            self.close(4403)
        elif isinstance(since, (int, float)) and 0 <= since < LATEST and isinstance(channel, str):
            self.send_json(live_data(since, channel))
        else:
            self.send_error("invalid_content", SINCE)


class LiveViews:
    """A mixin for the admin of the channels: the page, and its data as JSON."""

    admin_site: admin.AdminSite
    model: Any
    opts: Any

    def get_urls(self) -> list[Any]:
        wrap = self.admin_site.admin_view
        own = [
            path("live/", wrap(self.live), name="dbchannels_channelstate_live"),
            path("live/data.json", wrap(self.live_json), name="dbchannels_channelstate_live_data"),
        ]
        return [*own, *super().get_urls()]  # type: ignore[misc]

    def _check(self, request: HttpRequest) -> None:
        if not self.has_view_permission(request):  # type: ignore[attr-defined]
            raise PermissionDenied

    def live(self, request: HttpRequest) -> HttpResponse:
        """Return the page, without any data."""
        self._check(request)
        context = {
            **self.admin_site.each_context(request),
            "title": "The last hour",
            "opts": models.ChannelState._meta,
            "charts": CHARTS.items(),
            "ticket": ticket_for(request.user),
            "data_url": reverse("admin:dbchannels_channelstate_live_data", current_app=self.admin_site.name),
        }
        return TemplateResponse(request, "admin/dbchannels/live.html", context)

    def live_json(self, request: HttpRequest) -> HttpResponse:
        """Return the data of a ``channel``, or all, after the moment ``since``, in seconds since 1970."""
        self._check(request)
        try:
            since = float(request.GET.get("since") or 0)
        except ValueError:
            since = -1.0
        if 0 <= since < LATEST:
            return JsonResponse(live_data(since, request.GET.get("channel", "")))
        return JsonResponse({"error": SINCE}, status=400)
