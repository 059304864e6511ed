"""``event_stream``: server-sent events from a plain view, without a worker that waits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

from django.http import HttpResponse

from dbchannels.channel import Channel, Group, response_headers
from dbchannels.exceptions import InvalidName, ResponseLater
from dbchannels.protocol import EVENT_STREAM, MORE_CONTENT, Fields

LAST_ID = "last-event-id"  # the query parameter; a browser sends the header when it comes back


class EventStream(HttpResponse):
    """The response of a view whose request stays open: each message to one of the groups is an event."""

    def __init__(self, *groups: str, layer: str = "default", **options: Any) -> None:
        super().__init__(content_type="text/event-stream", **options)
        self.groups = [Group(name, layer=layer) for name in groups]
        self.headers.setdefault("Cache-Control", "no-store")
        self.headers.setdefault("X-Accel-Buffering", "no")  # nginx passes each event on at once
        self._is_begun = False

    def begin(self, request: Any, reply_channel: Channel) -> Fields | None:
        """Add the request to the groups, and return the head of the response; None: it is whole already."""
        self._is_begun = True
        if (
            request.method == "HEAD" or self.status_code != 200
        ):  # an event stream is a 200 (HTML standard, 9.2.2)
            return None
        for group in self.groups:
            group.add(reply_channel)
        for name in ("Content-Length", "ETag"):  # of the empty content, by middleware
            self.headers.pop(name, None)
        # Not request.GET: it raises for too many parameters, and decodes them as the client's Content-Type says.
        parameters = dict(parse_qsl(request.META.get("QUERY_STRING", "")))
        last_id = request.headers.get(LAST_ID) or parameters.get(LAST_ID, "")
        head = {"status": self.status_code, "headers": response_headers(self)}
        return {**head, MORE_CONTENT: True, EVENT_STREAM: last_id}

    def __iter__(self) -> Iterator[bytes]:
        if not self._is_begun:
            raise ResponseLater(
                "A stream of events needs a worker behind the interface server: do not serve this view with --http "
                "direct, or by another server."
            )
        return iter(())


def event_stream(*groups: str, layer: str = "default") -> EventStream:
    """Return a response that stays open and sends the messages to these groups as server-sent events::

        def news(request):
            return event_stream("news")

    Each message is an event with its ``text`` as data; ``event`` names another kind than "message", and ``close`` ends
    the stream. Messages to groups with a ``history`` have ids: a browser that comes back gets what it missed. Raises
    InvalidName.
    """
    if not groups:
        raise InvalidName("A stream of events has no group: write event_stream('news'), for example.")
    return EventStream(*groups, layer=layer)
