"""What the ORM writes and reads in the caller's transaction: operations, and the records of connections."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from django.conf import settings
from django.db import connections
from django.utils import timezone

from dbchannels import names
from dbchannels.exceptions import InvalidMessage
from dbchannels.layers import operations as ops
from dbchannels.models import Connection, DurableMessage, Membership, Process, ProtocolMessage
from dbchannels.protocol import DURABLE

if TYPE_CHECKING:
    from dbchannels.layers.database.layer import DatabaseLayer

#: By the encodings' names in PostgreSQL; all others, and SQL_ASCII, take what UTF-8 does.
PYTHON_ENCODINGS = {
    **{
        f"LATIN{number}": f"iso8859-{part}"
        for number, part in enumerate((1, 2, 3, 4, 9, 10, 13, 14, 15, 16), 1)
    },
    **{f"WIN{number}": f"cp{number}" for number in (866, 874, *range(1250, 1259))},
    **{f"ISO_8859_{part}": f"iso8859-{part}" for part in range(5, 9)},
    "KOI8R": "koi8-r",
    "KOI8U": "koi8-u",
    "EUC_JP": "euc_jp",
    "EUC_KR": "euc_kr",
    "EUC_CN": "gb2312",
}

#: Who is to be woken, see ``Link.wait``; False: the channel is full, and nothing was written.
Woken = set[str] | Literal[False] | None


class Writer:
    """Writes to one layer."""

    def __init__(self, layer: DatabaseLayer) -> None:
        self._layer = layer

    def write(self, operation: ops.Operation) -> Woken:
        """Write one operation."""
        return _WRITERS[type(operation)](self, operation)  # type: ignore[no-any-return]

    def _send(self, send: ops.Send) -> set[str] | Literal[False]:
        """Write one message, and return who is to be woken; False when its channel is full."""
        queue, recipient = names.split(send.channel)
        if not (send.certain or self._has_room(queue)):
            return False
        return self.insert(queue, recipient, send)

    def insert(self, queue: str, recipient: str, send: ops.Send) -> set[str]:
        now = timezone.now()
        if not names.is_protocol(queue):
            self._insert_durable(queue, send, now)
            return {DURABLE}
        self._layer.rows(ProtocolMessage).create(
            channel=queue,
            recipients=recipient,
            reply_channel=send.reply_channel,
            payload=send.payload,
            sent_at=now,
            expires_at=now + timedelta(seconds=send.expiry),
        )
        return {queue if "!" in queue or "?" in queue else queue[:1]}

    def _insert_durable(self, channel: str, send: ops.Send, now: datetime) -> None:
        waiting = self._layer.rows(DurableMessage).filter(channel=channel, claimed_by=None)
        if send.unique and waiting.filter(unique_key=send.unique).exists():
            return
        due = now + timedelta(seconds=send.delay) if send.delay else None
        if send.due_at:
            due = (
                send.due_at
                if settings.USE_TZ
                else timezone.make_naive(send.due_at, timezone.get_default_timezone())
            )
        fields = {"priority": send.priority, "unique_key": send.unique}
        self._layer.rows(DurableMessage).create(
            channel=channel, payload=send.payload, sent_at=now, due_at=due, **fields
        )

    def _has_room(self, queue: str) -> bool:
        capacity = self._layer.capacity(queue)
        if capacity is None:
            return True
        model = ProtocolMessage if names.is_protocol(queue) else DurableMessage
        return bool(self._layer.rows(model).filter(channel=queue)[: capacity + 1].count() < capacity)

    def _send_group(self, send: ops.SendGroup) -> set[str]:
        woken: set[str] = set()
        members: dict[str, list[str]] = {}
        for queue, recipient in self._layer.members(send.group).values_list("channel", "recipient"):
            members.setdefault(queue, []).append(recipient)
        for queue, parts in members.items():
            if self._has_room(queue):
                body = ops.Send(queue, send.payload, "", self._layer.options["expiry"])
                woken |= self.insert(queue, " ".join(parts), body)
        return woken

    # Groups and connections.

    def _group_add(self, add: ops.GroupAdd) -> None:
        queue, recipient = names.split(add.channel)
        alive = queue.endswith("!") and self._layer.rows(Process).filter(queue=queue).exists()
        end = None if alive else timezone.now() + timedelta(seconds=self._layer.group_expiry)
        self._layer.rows(Membership).update_or_create(
            group=add.group, channel=queue, recipient=recipient, defaults={"expires_at": end}
        )

    def _group_discard(self, discard: ops.GroupDiscard) -> None:
        queue, recipient = names.split(discard.channel)
        self._layer.rows(Membership).filter(group=discard.group, channel=queue, recipient=recipient).delete()

    def _connect(self, connect: ops.Connect) -> None:
        self._layer.rows(Connection).get_or_create(
            reply_channel=connect.reply_channel, defaults=connect.fields()
        )

    def _identify(self, identify: ops.Identify) -> None:
        connection = self._layer.rows(Connection).filter(reply_channel=identify.reply_channel)
        connection.update(user_id=identify.user_id)

    def _keep(self, keep: ops.Keep) -> None:
        rows = self._layer.rows(Connection).filter(reply_channel=keep.reply_channel)
        if keep.session is not None:
            rows.update(session=keep.session)
        if keep.login is not None:
            (rows.filter(login=ops.UNKNOWN) if keep.login == ops.NOBODY else rows).update(login=keep.login)

    def _disconnect(self, disconnect: ops.Disconnect) -> None:
        queue, recipient = names.split(disconnect.reply_channel)
        self._layer.delete_unlocked(self._layer.rows(Membership).filter(channel=queue, recipient=recipient))
        self._layer.delete_unlocked(
            self._layer.rows(Connection).filter(reply_channel=disconnect.reply_channel)
        )

    def _withdraw(self, withdraw: ops.Withdraw) -> None:
        self._layer.delete_unlocked(self._layer.rows(ProtocolMessage).filter(**withdraw._asdict()))

    def _group_clear(self, clear: ops.GroupClear) -> None:
        self._layer.rows(Membership).filter(group=clear.group).delete()


_WRITERS: dict[type, Any] = {
    ops.Send: Writer._send,
    ops.SendGroup: Writer._send_group,
    ops.GroupAdd: Writer._group_add,
    ops.GroupDiscard: Writer._group_discard,
    ops.GroupClear: Writer._group_clear,
    ops.Connect: Writer._connect,
    ops.Disconnect: Writer._disconnect,
    ops.Withdraw: Writer._withdraw,
    ops.Identify: Writer._identify,
    ops.Keep: Writer._keep,
}


def find_records(
    database: str, after: str, limit: int, watched: bool, fields: dict[str, Sequence[str]]
) -> list[ops.Record]:
    """See ``BaseLayer.connections``."""
    rows = Connection.objects.using(database).filter(
        reply_channel__gt=after, **{f"{name}__in": list(values) for name, values in fields.items()}
    )
    rows = rows.exclude(login=ops.NOBODY) if watched else rows
    return [record_of(row) for row in rows.order_by("reply_channel")[:limit]]


def check_text(database: str, what: str, text: str) -> None:
    """Raise InvalidMessage for a text that has characters which the database's encoding lacks."""
    if text.isascii() or connections[database].vendor != "postgresql":
        return
    encoding = encoding_of(database)
    try:
        text.encode(PYTHON_ENCODINGS.get(encoding, "utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidMessage(
            f"The database {database!r} is in {encoding} and cannot keep {text[error.start]!r} in a {what}: write it "
            "in other characters, such as its quoted form, or move to a database in UTF8."
        ) from error


def encoding_of(database: str) -> str:
    """Return PostgreSQL's name of the encoding that a database is in."""
    connection = connections[database]
    connection.ensure_connection()
    return str(connection.connection.info.parameter_status("server_encoding"))


def record_of(row: Connection) -> ops.Record:
    """Return a row as layers give it."""
    return ops.Record(row.reply_channel, row.session_key, row.login, bytes(row.session or b""))
