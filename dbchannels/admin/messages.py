"""The lists of messages: those that wait, those that have failed for good, and those that groups keep."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any, ClassVar

import msgpack
from django import forms
from django.contrib import admin
from django.contrib.admin.models import DELETION
from django.db.models import BinaryField, Exists, F, OuterRef, Q, Value
from django.db.models.functions import Concat, Length, Substr
from django.template.defaultfilters import filesizeformat
from django.utils import html, timezone

from dbchannels import codec, models, names
from dbchannels.admin.acts import Act, Delete, layer
from dbchannels.admin.base import (
    ByChannel,
    ByGroup,
    ReadOnlyAdmin,
    duration,
    one_line,
    relative_time,
    running_now,
)
from dbchannels.exceptions import InvalidMessage, InvalidName
from dbchannels.layers.operations import PRIORITIES, delivery_options
from dbchannels.layers.orm import STATES, DjangoLayer
from dbchannels.layers.overview import process_list
from dbchannels.redaction import DECODING_ERRORS, UNREADABLE, message_text, readable

SHOWN = 4096  # characters of a message on its own page
HEAD = 16_384  # bytes of a payload that a list reads
ERROR = 16_384  # characters of a traceback that a dead letter has
BYTES = 512  # of a payload that cannot be decoded
SEARCHED = 10_000  # dead letters whose errors a search reads
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


def task_call(payload: bytes) -> str:
    """Return the message of a task as a call, with secrets masked: ``shop.tasks.send_bill(7, copy=True)``."""
    try:
        content = readable(codec.decode(bytes(payload)))
        arguments = [repr(one) for one in content["args"]]
        arguments += [f"{name}={value!r}" for name, value in content["kwargs"].items()]
        return f"{content['task']}({', '.join(arguments)})"
    except (*DECODING_ERRORS, KeyError, TypeError):
        return UNREADABLE


def task_path(head: bytes) -> str:
    """Return the dotted path at the beginning of a task's message, of which ``head`` may be a part; "" for another."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(bytes(head))
    try:
        unpacker.read_map_header()
        return str(unpacker.unpack()) if unpacker.unpack() == "task" else ""
    except (ValueError, msgpack.UnpackException):
        return ""


def hex_dump(data: bytes) -> str:
    """Return lines of 16 bytes: the position, hexadecimal, and ASCII with dots for the rest."""
    lines = []
    for start in range(0, len(data), 16):
        part = data[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{start:04x}  {part.hex(' '):47}  {text}")
    return "\n".join(lines)


# What can be done to messages.


class ChannelForm(forms.Form):
    """Another channel, if any."""

    to = forms.CharField(
        label="To another channel",
        required=False,
        help_text="Empty: each goes to the channel that it was on.",
    )

    def clean_to(self) -> str:
        """Refuse a name on which no worker would look for it."""
        to: str = self.cleaned_data["to"]
        try:
            if to and names.is_protocol(names.check_channel_name(to)):
                raise forms.ValidationError(
                    f"{to} takes no durable messages: name one of the site's own channels."
                )
        except InvalidName as error:
            raise forms.ValidationError(str(error)) from None
        return to


class Replay(Act):
    """Run dead letters again."""

    name, title, permission, form = "replay", "Run again", "replay", ChannelForm
    explanation = "Each message goes back to its channel and runs from its first attempt. It is due at once."
    missed = "gone by then"

    def do(self, model_admin: Any, keys: Any, data: Any, by: str) -> int:
        return int(layer().replay(keys, to=data["to"]))


class Cancel(Act):
    """Cancel durable messages, those that run among them."""

    name, title, permission, flag = "cancel", "Cancel", "cancel", DELETION
    button_names_rows = True
    explanation = (
        "A message that waits is deleted. A consumer that runs is ended within about two seconds: its worker is "
        "replaced, and the message becomes a dead letter that says who cancelled it."
    )
    missed = "done, gone or cancelled by then"

    def do(self, model_admin: Any, keys: Any, data: Any, by: str) -> int:
        return sum(layer().cancel(keys, by))


class Reschedule(Act):
    """Change when durable messages run."""

    permission = "reschedule"

    def offered(self, row: Any) -> bool:
        return row.claimed_by is None

    def do(self, model_admin: Any, keys: Any, data: Any, by: str) -> int:
        return int(layer().reschedule(keys, **self.change(data)))

    def change(self, data: Any) -> dict[str, Any]:
        """Return the arguments of ``reschedule``."""
        return {"delay": 0}


class MakeDue(Reschedule):
    """Make messages due now."""

    name, title = "due", "Make due now"
    explanation = (
        "Messages that are delayed, or wait for their next attempt, run as soon as a worker is free."
    )
    missed = "due, gone or claimed by then"


class DelayForm(forms.Form):
    """For how long."""

    delay = forms.DurationField(
        label="Delay by",
        help_text="From now on, as hours, minutes and seconds: 1:30:00. Days go in front: 2 0:00:00.",
    )

    def clean_delay(self) -> float:
        """Return seconds that the layer takes."""
        try:
            return float(delivery_options("own", delay=self.cleaned_data["delay"])["delay"])
        except InvalidMessage as error:
            raise forms.ValidationError(str(error)) from None


class Delay(Reschedule):
    """Delay messages."""

    name, title, form = "delay", "Delay", DelayForm
    explanation = "No worker takes these messages before that time is over."

    def change(self, data: Any) -> dict[str, Any]:
        return {"delay": data["delay"]}


class PriorityForm(forms.Form):
    """A priority."""

    priority = forms.IntegerField(
        min_value=PRIORITIES[0], max_value=PRIORITIES[-1], help_text="The highest is taken first; 0 is usual."
    )


class Prioritise(Reschedule):
    """Change the priority."""

    name, title, form = "priority", "Change priority", PriorityForm
    explanation = "Within a channel, messages with the highest priority are taken first."

    def change(self, data: Any) -> dict[str, Any]:
        return {"priority": data["priority"]}


# The lists.


class MessageAdmin(ReadOnlyAdmin):
    """The common part of the tables of messages."""

    deletable: ClassVar[dict[str, Any]] = {}
    acts: ClassVar[tuple[Act, ...]] = (Delete(),)
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
            return one_line("(too long for the list)")
        head = row.head or b""
        text = task_call(head) if getattr(row, "task", None) else ""
        return one_line(text or message_text(row.channel, head, pretty=False))

    def message(self, row: Any) -> str:
        text = message_text(row.channel, row.payload)
        if text == UNREADABLE and not names.is_protocol(
            row.channel
        ):  # those have headers, which may be secret
            text += f"\n\n{hex_dump(bytes(row.payload[:BYTES]))}"
            text += f"\n({len(row.payload) - BYTES:,} more bytes)" if len(row.payload) > BYTES else ""
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


class ByDurableChannel(ByChannel):
    """A filter by channel that the partial indexes of durable messages serve."""

    def narrowed(self, queryset: Any, value: str) -> Any:
        ready, delayed = Q(claimed_by=None, due_at=None), Q(due_at__isnull=False)
        one = Q(channel=value)
        return queryset.filter(one & ready | one & delayed | one & Q(claimed_by__isnull=False))


class ByState(admin.SimpleListFilter):
    """A filter by what becomes of a durable message next."""

    title = parameter_name = "state"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        return [(state, state) for state in STATES]

    def queryset(self, request: Any, queryset: Any) -> Any:
        if not self.value():
            return queryset
        return queryset.filter(STATES.get(self.value(), Q(pk__in=[])))


@admin.register(models.DurableMessage)
class DurableMessageAdmin(MessageAdmin):
    deletable: ClassVar[dict[str, Any]] = {"claimed_by": None}
    acts = (Cancel(), MakeDue(), Delay(), Prioritise(), Delete())
    list_filter = (ByState, ByDurableChannel)
    list_display = ("id", "on_channel", "line", "priority", "age", "due", "attempts", "claimed_by")
    fields = (
        *("on_channel", "holder", "cancelled_by", "priority", "unique_key", "sent_at", "age", "due"),
        *("attempts", "alone", "size", "message"),
    )
    said_if_set = ("cancelled_by", "unique_key", "alone")
    search_fields = ("channel", "claimed_by")

    def get_queryset(self, request: Any) -> Any:
        live = models.Process.objects.filter(kind=models.Process.WORKER, lease_until__gt=self.clock())
        # The channels of a worker are a list in its record, which is JSON; one without a record may take any.
        quoted = Concat(Value('"'), OuterRef("channel"), Value('"'))
        takes = live.annotate(quoted=quoted).filter(Q(work="") | Q(work__contains=F("quoted")))
        return super().get_queryset(request).annotate(attended=Exists(takes))

    @admin.display(description="channel", ordering="channel")
    def on_channel(self, row: Any) -> str:
        if row.attended or row.claimed_by is not None:
            return row.channel
        marked = '<span class="dbchannels-name">{}</span> <strong class="dbchannels-bad">{}</strong>'
        return html.format_html(marked, row.channel, "nobody takes it")

    def get_fields(self, request: Any, obj: Any = None) -> list[str]:
        """Return the fields of a row's page, without those that say nothing of it."""
        return [name for name in self.fields if name not in self.said_if_set or getattr(obj, name, "")]

    def due(self, row: Any) -> str:
        return relative_time("due_at", "due")(self, row) or "now"

    @admin.display(description="claimed by")
    def holder(self, row: Any) -> str:
        """Say who has the message, and since when."""
        if row.claimed_by is None:
            return "nobody: it waits"
        known = process_list(layer()) if isinstance(layer(), DjangoLayer) else []
        worker = next((one for one in known if one.name == row.claimed_by), None)
        if worker is None or not worker.alive:
            return f"{row.claimed_by}, which is not alive: another worker will take the message over"
        if worker.work.get("id") != row.pk:
            return f"{row.claimed_by}, which has not started it, or has just started it"
        return f"{row.claimed_by} on {worker.host}, which runs it {running_now(worker.work)}"


class ByAge(admin.SimpleListFilter):
    """A filter by when dead letters have failed; with "Delete" it clears up."""

    title, parameter_name = "failed", "failed"
    DAYS = (1, 7, 30, 90)

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        return [(str(days), f"more than {days} day{'s' * (days > 1)} ago") for days in self.DAYS]

    def queryset(self, request: Any, queryset: Any) -> Any:
        if not self.value():
            return queryset
        if not self.value().isdecimal() or len(self.value()) > 4:
            return queryset.none()
        since = timezone.now() - timedelta(days=int(self.value()))
        return queryset.filter(failed_at__lt=since)


@admin.register(models.DeadLetter)
class DeadLetterAdmin(MessageAdmin):
    list_display = ("id", "channel", "reason", "failed", "attempts", "line")
    fields = ("reason", "channel", "sent_at", "failed_at", "attempts", "traceback", "size", "message")
    ordering = ("-id",)
    acts = (Replay(), Delete())
    list_filter = (ByAge, ByChannel)
    search_fields = ("channel",)
    search_help_text = f"Searches all channels, and the errors of the newest {SEARCHED:,}, but no messages."
    failed = relative_time("failed_at", "failed")

    def get_search_results(self, request: Any, queryset: Any, search_term: str) -> Any:
        if not search_term:
            return queryset, False
        # Each error has up to 16 KiB: a search that reads a million of them takes minutes.
        pks = self.rows().order_by("-pk").values_list("pk", flat=True)
        oldest = pks[SEARCHED - 1 : SEARCHED].first() or 0
        in_errors = Q(pk__gte=oldest, error__icontains=search_term)
        return queryset.filter(Q(channel__icontains=search_term) | in_errors), False

    @admin.display(description="error")
    def reason(self, row: Any) -> str:
        return one_line(reason_of(row.error))

    def traceback(self, row: Any) -> str:
        return html.format_html(PRE, row.error[-ERROR:], "")


@admin.register(models.History)
class HistoryAdmin(MessageAdmin):
    """What groups keep for clients that come back."""

    deletable = None  # type: ignore[assignment]
    acts = ()
    list_filter = (ByGroup,)
    search_fields = ("group",)
    ordering = ("-id",)
    list_display = ("position", "group", "line", "age", "expires", "size")
    fields = ("group", "position", "sent_at", "age", "expires", "keep", "size", "message")
    expires = relative_time("expires_at", "expires")

    def get_queryset(self, request: Any) -> Any:
        return super().get_queryset(request).annotate(channel=Value(""))  # its messages are the site's own
