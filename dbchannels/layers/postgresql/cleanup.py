"""Cleaning up: after processes that died, connections that ended, and what has expired."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dbchannels.layers.cleanup import UNFINISHED, disconnect_send, lost_messages
from dbchannels.layers.operations import Record, Send
from dbchannels.layers.postgresql import sql, sql_durable, sql_processes
from dbchannels.layers.postgresql.session import Session
from dbchannels.layers.postgresql.statements import of_connections, statements
from dbchannels.models import InFlight, Process, parse_in_flight
from dbchannels.protocol import EXPIRED, WORKER_DIED

if TYPE_CHECKING:
    from dbchannels.layers.postgresql import PostgreSQLLayer

SWEPT = 5000  # rows that one statement expires or merges: it has 10 s (deadline.py) however many there are


class Sweeper:
    """One link's. Two may sweep at once, and neither waits for a transaction of the site's."""

    def __init__(self, layer: PostgreSQLLayer, session: Session) -> None:
        self._layer = layer
        self._session = session

    # Processes.

    def clean_up_expired(self) -> None:
        """Clean up after those whose lease is over, and whose lock is free or has been silent for too long."""
        values = {"lease": self._layer.options["lease"]}
        for row_id, name, silent in self._session.run([(sql_processes.EXPIRED_LEASES, values)]):
            with self._session.transaction():
                ((free,),) = self._session.run([(sql_processes.TRY_LOCK, {"id": row_id})])
                if free or silent:
                    self._clean_up_within(name, sql_processes.UNREGISTER_EXPIRED)

    def clean_up(self, name: str) -> None:
        """Clean up after a process that is known to be dead, or is about to end."""
        with self._session.transaction():
            self._clean_up_within(name, sql_processes.UNREGISTER)

    def _clean_up_within(self, name: str, unregister: str) -> None:
        """Whoever deletes the process's row cleans up; a second sweeper waits for that and finds nothing."""
        gone = self._session.run([(unregister, {"name": name})])
        if not gone:
            return
        self.report_lost(name)
        self.report_lost(name + InFlight.BLOCKED)
        self._session.run([(sql_durable.UNCLAIM, {"name": name})])
        kind, queue = gone[0]
        if kind == Process.SERVER:
            self._clean_up_server(name.removesuffix(UNFINISHED), queue)

    def report_lost(self, name: str) -> None:
        """Tell the clients of what a worker holds that it is lost."""
        for (messages,) in self._session.run([(sql_processes.TAKE_IN_FLIGHT, {"name": name})]):
            self._notify(parse_in_flight(messages), WORKER_DIED)

    def _clean_up_server(self, name: str, queue: str) -> None:
        of_queue = [
            (sql_processes.MEMBERSHIPS_OF, {"queue": queue}),
            (sql_processes.REPLIES_OF, {"queue": queue}),
            (sql_processes.REQUESTS_OF, {"queue": queue}),
        ]
        self._session.run(of_queue)
        lost = self._session.run([(sql_processes.CONNECTIONS_OF, {"name": name})])
        values = {"name": name, "queue": queue, "remains": name + UNFINISHED}
        self._session.run([(sql_processes.REMAINS_OF, values)])
        expiry = self._layer.options["expiry"]
        records = [
            (Record(channel, key, login, bytes(session or b"")), path)
            for path, channel, key, login, session in lost
        ]
        self._write([disconnect_send(record, path, expiry) for record, path in records])

    # Connections.

    def clear_up_after_connections(self) -> None:
        """Take another look at those that have ended: what was locked then may be free, or not yet."""
        ended = self._layer.closed_connections.take()
        if not ended:
            return
        try:
            left = self._session.run([(sql_processes.LEFT_BEHIND, of_connections(sorted(ended)))])
            ended = {reply_channel for (reply_channel,) in left}
            if ended:
                self._session.run([(sql.DISCONNECT, of_connections(sorted(ended)))])
        finally:
            self._layer.closed_connections.add(ended)

    # Time.

    def expire(self) -> None:
        """Drop what has expired."""
        while self._expire_messages() == SWEPT:
            pass
        self._session.run([(sql_processes.EXPIRE_MEMBERSHIPS, {}), (sql_processes.EXPIRE_AUDIENCES, {})])
        while self._session.run([(sql_processes.MERGE_TALLY, {"limit": SWEPT})])[0][0] == SWEPT:
            pass

    def _expire_messages(self) -> int:
        """Drop some that have expired, and tell who waits for an answer to them; return how many."""
        expired = self._session.run([(sql_processes.EXPIRE_MESSAGES, {"limit": SWEPT})])
        self._notify([(row[0], row[2]) for row in expired], EXPIRED)
        silent = [
            (row[0], recipient) for row in expired if row[0].endswith("!") for recipient in row[1].split()
        ]
        if silent:
            channels, parts = zip(*silent, strict=True)
            values = {"channels": list(channels), "recipients": list(parts)}
            self._session.run([(sql_processes.DROP_MEMBERS, values)])
        return len(expired)

    # What they are told.

    def _notify(self, lost: Sequence[tuple[str, str]], why: str) -> None:
        self._write(lost_messages(lost, why, self._layer.options["expiry"]))

    def _write(self, sends: Sequence[Send]) -> None:
        if sends:
            self._session.run([(text, values) for text, values, _ in statements(self._layer, sends)])
