"""The histories of groups on PostgreSQL: positions, what channels have missed, and what is trimmed; see sql_history."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from dbchannels.layers.link import Link
from dbchannels.layers.operations import Kept, Missed
from dbchannels.layers.postgresql import sql_history as sql
from dbchannels.layers.postgresql.session import Session
from dbchannels.layers.postgresql.statements import ScanHints
from dbchannels.protocol import HISTORY

if TYPE_CHECKING:
    from dbchannels.layers.postgresql import PostgreSQLLayer

BATCH = (
    5000  # messages that get positions, or are deleted, by one statement: it has 10 s (session.ANSWER_WITHIN)
)


class HistoryLink(Link):
    """The part of a link that reads and trims the histories."""

    def __init__(self, layer: PostgreSQLLayer, session: Session) -> None:
        super().__init__(layer)
        self.session = session
        self._unread = ScanHints()  # to the messages without a position
        self._looked_up_to = 0  # the position up to which `trim_histories` has looked at the groups

    def _number(self, then: str, limit: int, scan_from: int = 0, **values: Any) -> list[tuple[Any, ...]]:
        """Give positions to messages whose ids are higher, and run one more statement, in one round trip."""
        values |= {"limit": limit, "scan_from": scan_from}
        return self.session.execute([(step, values) for step in (sql.LOCK, sql.NUMBER, then)])

    def history_position(self) -> int:
        return int(self._number(sql.POSITION, BATCH)[0][0])

    def read_history(self, queue: str, after: int, limit: int) -> list[Kept]:
        hints, started = self._unread, time.monotonic()
        scan_from = hints.scan_from([HISTORY], self.session.generation)[0] if hints.active else 0
        rows = self._number(sql.READ, limit, scan_from, queue=queue, after=after)
        took = time.monotonic() - started
        if hints.active or took >= hints.COSTLY:
            hints.learn([(HISTORY, number) for number in sorted(row[4] for row in rows)], took)
        members: dict[str, tuple[str, ...]] = {}
        found = []
        for position, group, payload, recipients, _ in rows:
            here = members.setdefault(group, tuple((recipients or "").split()))
            found.append(Kept(position, bytes(payload or b""), here))
        return found

    def missed(self, queue: str, after: Mapping[str, int], limit: int, size: int) -> dict[str, Missed]:
        values = {"queue": queue, "recipients": list(after), "afters": list(after.values())}
        rows = self.session.execute([(sql.MISSED, {**values, "limit": limit + 1, "size": size})])
        found = {}
        for recipient, several in groupby(rows, key=itemgetter(0)):
            listed = list(several)
            messages = [(row[2], bytes(row[3])) for row in listed if row[2] is not None]
            complete = len(messages) <= limit and len(messages) == (listed[0][4] or 0)
            found[recipient] = Missed(messages[:limit], listed[0][1], complete)
        return found

    def trim_histories(self, until: float) -> None:
        """Delete what no history keeps any more, in batches until ``time.monotonic()`` is over ``until``.

        Where no server is, nobody else gives positions.
        """
        if not self.session.execute([(sql.HAS_SERVER, {})])[0][0]:
            self.history_position()
        more = True
        while more:
            values = {"after": self._looked_up_to, "limit": BATCH, "expiry": self.layer.options["expiry"]}
            rows = self.session.execute([(sql.TRIM_LOCK, {}), (sql.TRIM, values)])
            ((last, looked, doomed),) = rows
            if doomed < BATCH:
                self._looked_up_to = last or self._looked_up_to
            more = (looked == BATCH or doomed >= BATCH) and time.monotonic() < until
        forget = (sql.FORGET, {"expiry": self.layer.options["history_expiry"]})
        self.session.execute([(sql.TRIM_LOCK, {}), forget])
