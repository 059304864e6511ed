"""The operations that the ORM writes in the caller's transaction."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from django.conf import settings as site_settings
from django.utils import timezone

from dbchannels import names
from dbchannels.layers import operations as ops
from dbchannels.models import Connection, DurableMessage, History, Membership, Process, ProtocolMessage
from dbchannels.protocol import DURABLE, HISTORY

if TYPE_CHECKING:
    from dbchannels.layers.database import DatabaseLayer


class Writer:
    """Writes operations to one layer, one after another."""

    def __init__(self, layer: DatabaseLayer) -> None:
        self._layer = layer
        self.refused: list[ops.Send] = []  # sends that found their channel full
        self.kinds: set[str] = set()  # of the messages written: what a wakeup says, see ``Link.wait``

    def write(self, operation: ops.Operation) -> None:
        """Write one operation."""
        rows = self._layer.rows
        match operation:
            case ops.Send(channel):
                queue, recipient = names.split(channel)
                if operation.certain or self._has_room(queue):
                    self.insert(queue, recipient, operation)
                else:
                    self.refused.append(operation)
            case ops.SendGroup(group, payload):
                members: dict[str, list[str]] = {}
                rows_of = self._layer.members(group)
                if operation.lasts:
                    self._keep(operation)
                    servers = rows(Process).filter(kind=Process.SERVER)  # deliver what is in the history
                    rows_of = rows_of.exclude(channel__in=servers.values("queue"))
                for queue, recipient in rows_of.values_list("channel", "recipient"):
                    members.setdefault(queue, []).append(recipient)
                for queue, recipients in members.items():
                    if self._has_room(queue):
                        message = ops.Send(queue, payload, "", self._layer.options["expiry"])
                        self.insert(queue, " ".join(recipients), message)
            case ops.GroupAdd(group, channel):
                queue, recipient = names.split(channel)
                alive = queue.endswith("!") and rows(Process).filter(queue=queue).exists()
                end = None if alive else timezone.now() + timedelta(seconds=self._layer.group_expiry)
                key = {"group": group, "channel": queue, "recipient": recipient}
                # Not the database's default, which on MySQL is its local time.
                since = self._layer.histories.position() if operation.is_later else None
                made = {"expires_at": end, "added_at": timezone.now(), "since": since}
                rows(Membership).update_or_create(**key, defaults={"expires_at": end}, create_defaults=made)
            case ops.GroupDiscard(group, channel):
                queue, recipient = names.split(channel)
                rows(Membership).filter(group=group, channel=queue, recipient=recipient).delete()
            case ops.GroupClear(group):
                rows(Membership).filter(group=group).delete()
            case ops.Withdraw():
                self._layer.delete_unlocked(rows(ProtocolMessage).filter(**operation._asdict()))
            case _:
                self._write_connection(operation)

    def _keep(self, send: ops.SendGroup) -> None:
        now = timezone.now()
        self._layer.rows(History).create(
            group=send.group,
            payload=send.payload,
            sent_at=now,
            keep=send.keep,
            expires_at=now + timedelta(seconds=send.lasts),
        )
        self.kinds.add(HISTORY)

    def _write_connection(self, operation: ops.Connect | ops.Disconnect | ops.Identify | ops.Keep) -> None:
        channel, rows = operation.reply_channel, self._layer.rows(Connection)
        record = rows.filter(reply_channel=channel)
        match operation:
            case ops.Connect():
                made = {**operation.fields(), "connected_at": timezone.now()}
                rows.get_or_create(reply_channel=channel, defaults=made)
            case ops.Disconnect():
                queue, recipient = names.split(channel)
                members = self._layer.rows(Membership).filter(channel=queue, recipient=recipient)
                self._layer.delete_unlocked(members)
                self._layer.delete_unlocked(record)
            case ops.Identify(_, user_id):
                record.update(user_id=user_id)
            case ops.Keep(_, session, login):
                if session is not None:
                    record.update(session=session)
                if login is not None:
                    (record.filter(login=ops.UNKNOWN) if login == ops.NOBODY else record).update(login=login)

    def insert(self, queue: str, recipients: str, send: ops.Send) -> None:
        """Write one message, whether its channel has room or not."""
        now = timezone.now()
        if names.is_protocol(queue):
            self._layer.rows(ProtocolMessage).create(
                channel=queue,
                recipients=recipients,
                reply_channel=send.reply_channel,
                payload=send.payload,
                sent_at=now,
                expires_at=now + timedelta(seconds=send.expiry),
            )
            self.kinds.add(queue if "!" in queue or "?" in queue else queue[:1])
            return
        self.kinds.add(DURABLE)
        waiting = self._layer.rows(DurableMessage).filter(channel=queue, claimed_by=None)
        if send.unique and waiting.filter(unique_key=send.unique).exists():
            return
        due = now + timedelta(seconds=send.delay) if send.delay else send.due_at
        if send.due_at and not site_settings.USE_TZ:
            due = timezone.make_naive(send.due_at, timezone.get_default_timezone())
        self._layer.rows(DurableMessage).create(
            channel=queue,
            payload=send.payload,
            sent_at=now,
            due_at=due,
            priority=send.priority,
            unique_key=send.unique,
            task=send.task or None,
        )

    def _has_room(self, queue: str) -> bool:
        capacity = self._layer.capacity(queue)
        if capacity is None:
            return True
        model = ProtocolMessage if names.is_protocol(queue) else DurableMessage
        return bool(self._layer.rows(model).filter(channel=queue)[: capacity + 1].count() < capacity)
