"""Cleaning up after processes that died and connections that closed, and deleting what has expired."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dbchannels.layers.operations import UNFINISHED, Record, Send
from dbchannels.layers.postgresql import sql, sql_durable
from dbchannels.layers.postgresql.session import Session
from dbchannels.layers.postgresql.statements import of_connections, statements
from dbchannels.models import InFlight, Process
from dbchannels.protocol import EXPIRED, WORKER_DIED

if TYPE_CHECKING:
    from dbchannels.layers.postgresql import PostgreSQLLayer

LONGEST = 2.0  # seconds of one clean-up, which leaves the rest for the next: between two the lease is renewed
BATCH = 5000  # rows that one statement expires or merges: it has 10 s (ANSWER_WITHIN), however many there are


class Cleaner:
    """One link's. Two may clean up at once, and neither waits for a transaction of the site."""

    def __init__(self, layer: PostgreSQLLayer, session: Session) -> None:
        self._layer = layer
        self._session = session

    # Processes.

    def clean_up_expired(self) -> None:
        """Clean up after processes whose lease is over and whose lock is free, or held without a sign for too long."""
        values = {"lease": self._layer.options["lease"]}
        for row_id, name, silent in self._session.execute([(sql.EXPIRED_LEASES, values)]):
            with self._session.transaction():
                ((free,),) = self._session.execute([(sql.TRY_LOCK, {"id": row_id})])
                if free or silent:
                    self._clean_up_within(name, sql.UNREGISTER_EXPIRED)

    def clean_up_after(self, name: str) -> None:
        """Clean up after a process that is known to be dead, or is about to end."""
        with self._session.transaction():
            self._clean_up_within(name, sql.UNREGISTER)

    def _clean_up_within(self, name: str, unregister: str) -> None:
        """Clean up in an open transaction. A second cleaner waits for it, and finds nothing."""
        gone = self._session.execute([(unregister, {"name": name})])
        if not gone:
            return
        self.report_lost(name)
        self.report_lost(name + InFlight.BLOCKED)
        values = {"name": name, "result_ttl": self._layer.options["result_ttl"]}
        self._session.execute([(sql_durable.KEEP_KILLED, values), (sql_durable.UNCLAIM, values)])
        kind, queue = gone[0]
        if kind == Process.WORKER:
            return
        name = name.removesuffix(UNFINISHED)
        of_queue = [sql.MEMBERSHIPS_OF, sql.REPLIES_OF, sql.REQUESTS_OF]
        self._session.execute([(statement, {"queue": queue}) for statement in of_queue])
        connections = self._session.execute([(sql.CONNECTIONS_OF, {"name": name})])
        values = {"name": name, "queue": queue, "unfinished": name + UNFINISHED}
        self._session.execute([(sql.UNFINISHED_OF, values)])
        self._write(
            [
                self._layer.disconnect_send(Record(channel, key, login, bytes(session or b"")), path)
                for path, channel, key, login, session in connections
            ]
        )

    def report_lost(self, worker: str) -> None:
        """Tell the clients of the messages that a worker has in flight that these are lost."""
        for (messages,) in self._session.execute([(sql.TAKE_IN_FLIGHT, {"name": worker})]):
            self._report(InFlight(messages=messages).lines(), WORKER_DIED)

    # Connections.

    def clean_up_closed_connections(self) -> None:
        """Look again for rows of closed connections: those that were locked then may be free by now."""
        closed = self._layer.closed_connections.take()
        if not closed:
            return
        try:
            rows = self._session.execute([(sql.LEFT_BEHIND, of_connections(sorted(closed)))])
            closed = {reply_channel for (reply_channel,) in rows}
            if closed:
                self._session.execute([(sql.DISCONNECT, of_connections(sorted(closed)))])
        finally:
            self._layer.closed_connections.add(closed)

    # Time.

    def expire(self, until: float) -> None:
        """Delete what has expired, and merge the tally, in batches until ``time.monotonic()`` is over ``until``."""
        more = True
        while more:
            expired = self._session.execute([(sql.EXPIRE_MESSAGES, {"limit": BATCH})])
            self._report([(row[0], row[2]) for row in expired], EXPIRED)
            silent = [
                (row[0], recipient) for row in expired if row[0].endswith("!") for recipient in row[1].split()
            ]
            if silent:
                channels, recipients = zip(*silent, strict=True)
                values = {"channels": list(channels), "recipients": list(recipients)}
                self._session.execute([(sql.DROP_MEMBERS, values)])
            more = len(expired) == BATCH and time.monotonic() < until
        self._session.execute([(sql.EXPIRE_MEMBERSHIPS, {}), (sql.EXPIRE_AUDIENCES, {})])
        for statement in (sql.MERGE_TALLY, sql_durable.EXPIRE_RESULTS):
            more = True
            while more:
                ((count,),) = self._session.execute([(statement, {"limit": BATCH})])
                more = count == BATCH and time.monotonic() < until

    def _report(self, messages: Sequence[tuple[str, str]], why: str) -> None:
        self._write(self._layer.lost_messages(messages, why))

    def _write(self, sends: Sequence[Send]) -> None:
        if sends:
            self._session.execute([(text, values) for text, values, _ in statements(self._layer, sends)])
