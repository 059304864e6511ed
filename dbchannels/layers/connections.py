"""What is on record of open WebSockets, read by the ORM: a consumer that asks for nothing reads none of it."""

from __future__ import annotations

from collections.abc import Sequence

from dbchannels.layers.operations import NOBODY, Record
from dbchannels.models import Connection


def find_records(
    database: str, after: str, limit: int, watched: bool, fields: dict[str, Sequence[str]]
) -> list[Record]:
    """See ``BaseLayer.connections``."""
    rows = Connection.objects.using(database).filter(
        reply_channel__gt=after, **{f"{name}__in": list(values) for name, values in fields.items()}
    )
    rows = rows.exclude(login=NOBODY) if watched else rows
    return [record_of(row) for row in rows.order_by("reply_channel")[:limit]]


def record_of(row: Connection) -> Record:
    """Return a row as layers give it."""
    return Record(row.reply_channel, row.session_key, row.login, bytes(row.session or b""))
