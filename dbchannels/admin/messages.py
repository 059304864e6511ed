"""The lists of messages: those that wait, and those that have failed for good."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import BinaryField
from django.db.models.functions import Length, Substr
from django.template.defaultfilters import filesizeformat
from django.utils import html

from dbchannels import models
from dbchannels.admin.base import ByChannel, ReadOnlyAdmin, duration, one_line, relative_time
from dbchannels.layers import channel_layers
from dbchannels.management.output import run_again
from dbchannels.redaction import message_text

SHOWN = 4096  # characters of a message on its own page
HEAD = 16_384  # bytes of a payload that a list reads
ERROR = 16_384  # characters of a traceback that a dead letter has
PRE = "<pre>{}</pre>{}"

_TRACEBACK = re.compile(r"^(  \+ Exception Group )?Traceback \(most recent call last\):\n", re.MULTILINE)
_UNINDENTED = re.compile(
    r"^(?:  \| )?(\S.*)", re.MULTILINE
)  # in a traceback of an exception group, after "  | "


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
