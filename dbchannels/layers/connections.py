"""What is on record of open WebSockets, read by the ORM: a consumer that asks for nothing reads none of it."""

from __future__ import annotations

from collections.abc import Sequence

from django.db import connections

from dbchannels.exceptions import InvalidMessage
from dbchannels.layers.operations import NOBODY, Record
from dbchannels.models import Connection

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


def find_records(
    database: str, after: str, limit: int, watched: bool, fields: dict[str, Sequence[str]]
) -> list[Record]:
    """See ``BaseLayer.connections``."""
    rows = Connection.objects.using(database).filter(
        reply_channel__gt=after, **{f"{name}__in": list(values) for name, values in fields.items()}
    )
    rows = rows.exclude(login=NOBODY) if watched else rows
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


def record_of(row: Connection) -> Record:
    """Return a row as layers give it."""
    return Record(row.reply_channel, row.session_key, row.login, bytes(row.session or b""))
