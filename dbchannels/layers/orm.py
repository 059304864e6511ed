"""What the layers on a database of the site share: its records of open WebSockets, and the texts that it can store."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from django.db import connections

from dbchannels.conf import LayerSettings
from dbchannels.exceptions import InvalidMessage
from dbchannels.layers import operations as ops
from dbchannels.layers.base import BaseLayer
from dbchannels.models import Connection

#: Python's encodings by PostgreSQL's names; all others, and SQL_ASCII, take what UTF-8 does.
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


class ClosedConnections:
    """Connections that may have left rows behind; shared by the link that writes their end and the one that cleans up.

    A transaction of the site may have locked a connection's record (``identify``) or a membership (``group_add``,
    ``group_discard``). Closing the connection does not wait for it: locked rows are skipped, and each clean-up looks
    for them.
    """

    #: Reply channels. Rows of further ones go when a message comes for them, or with their server.
    MOST = 100_000

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reply_channels: set[str] = set()

    def add(self, reply_channels: Iterable[str]) -> None:
        """Add connections."""
        with self._lock:
            if len(self._reply_channels) < self.MOST:
                self._reply_channels.update(reply_channels)

    def take(self) -> set[str]:
        """Remove and return all of them."""
        with self._lock:
            taken, self._reply_channels = self._reply_channels, set()
            return taken


class DjangoLayer(BaseLayer):
    """A layer on a database of the site: its records of open WebSockets, and the texts that it can store."""

    def __init__(self, settings: LayerSettings) -> None:
        super().__init__(settings)
        self.closed_connections = ClosedConnections()

    def connections(
        self, after: str = "", limit: int = 500, *, watched: bool = False, **fields: Sequence[str]
    ) -> list[ops.Record]:
        rows = Connection.objects.using(self.database).filter(
            reply_channel__gt=after, **{f"{name}__in": list(values) for name, values in fields.items()}
        )
        rows = rows.exclude(login=ops.NOBODY) if watched else rows
        return [record_of(row) for row in rows.order_by("reply_channel")[:limit]]

    def check_text(self, what: str, text: str) -> None:
        if text.isascii() or connections[self.database].vendor != "postgresql":
            return
        encoding = encoding_of(self.database)
        try:
            text.encode(PYTHON_ENCODINGS.get(encoding, "utf-8"))
        except UnicodeEncodeError as error:
            raise InvalidMessage(
                f"The database {self.database!r} is in {encoding} and cannot keep {text[error.start]!r} in a {what}: "
                "write it in other characters, such as its quoted form, or move to a database in UTF8."
            ) from error


def encoding_of(database: str) -> str:
    """Return PostgreSQL's name of a database's encoding."""
    connection = connections[database]
    connection.ensure_connection()
    return str(connection.connection.info.parameter_status("server_encoding"))


def record_of(row: Connection) -> ops.Record:
    """Return what a layer gives for a row."""
    return ops.Record(row.reply_channel, row.session_key, row.login, bytes(row.session or b""))
