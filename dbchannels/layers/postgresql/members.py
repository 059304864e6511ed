"""The members of groups, asked for by an event loop: nothing blocks while an answer is under way."""

from __future__ import annotations

import select
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from typing import Any

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_WRITE
from psycopg2.extensions import cursor as PlainCursor

from dbchannels.layers.postgresql import sql_groups
from dbchannels.layers.postgresql.session import ANSWER_WITHIN, Session, Statement
from dbchannels.layers.postgresql.statements import MOST

CONNECT_WITHIN = 5.0  # seconds

#: By group, the members of those groups whose members all belong to the caller. None: messages wait for the caller.
Members = Mapping[str, Sequence[str]] | None


class WaitingCursor(PlainCursor):
    """Waits for each answer of an asynchronous connection, as a cursor of an ordinary one does."""

    def execute(self, *args: Any) -> None:
        super().execute(*args)
        wait(self.connection)


class MembersSession(Session):
    """A session whose answers may also be polled for. ``ask`` is called only while ``ready``, and until ``answer``.

    It is opened in a thread, and then asked in an event loop.
    """

    def __init__(self, settings: dict[str, Any], name: str) -> None:
        super().__init__(settings, name, listen=False)
        #: Whether ``ask`` may be called: it does not connect.
        self.ready = False
        #: By group and queue: the tally of the members that were read last, and their channels.
        self._known: dict[tuple[str, str], tuple[str, list[str]]] = {}
        self._question: Generator[Statement, list[tuple[Any, ...]], Members]
        self._cursor: PlainCursor

    def _open(self, parameters: dict[str, Any]) -> Any:
        connection = psycopg2.connect(**parameters, async_=True, cursor_factory=WaitingCursor)
        try:
            wait(connection, CONNECT_WITHIN)
        except psycopg2.Error:
            # libpq has no time-out here for each of several hosts, so the next attempt begins with the best one.
            self._address = ("", "")
            raise
        return connection

    def open(self) -> None:
        """Connect, and prepare the statements, unless that is done."""
        if not self.ready:
            for text in (sql_groups.WAITING, sql_groups.MEMBERS_BY_QUEUE, sql_groups.MEMBERS_IN_QUEUES):
                self.execute([(text, {"groups": [], "queues": []})])
            self.ready = True

    def close(self) -> None:
        super().close()
        self._answer_due = 0.0
        self.ready = False  # now it may be opened again

    def ask(self, groups: Collection[str], queues: Sequence[str]) -> int:
        """Send a question; return the descriptor that can be read when ``answer`` has something to look at.

        It asks for the members of those groups whose members all belong to these queues, and whether messages wait in
        the queues, which what is sent now must not overtake.
        """
        self._question = self._questions(groups, queues)
        self._start(next(self._question))
        return self._connection.fileno()  # type: ignore[no-any-return]

    def answer(self) -> tuple[bool, Members]:
        """Return whether the answer is there, and the answer."""
        try:
            if self._connection.poll() != POLL_OK:
                return False, None
            self._answer_due = 0.0
            self._start(self._question.send(self._cursor.fetchall()))
        except StopIteration as end:
            return True, end.value
        except psycopg2.Error as error:
            raise self._lost(error) from error
        return False, None

    def _start(self, statement: Statement) -> None:
        known = self._prepared
        statements = [statement] if known is None else self._planned([statement], known)
        try:
            self._cursor = self._connection.cursor(cursor_factory=PlainCursor)
            self._cursor.execute(self._text(self._cursor, statements))
        except psycopg2.Error as error:
            raise self._lost(error) from error
        self._answer_due = time.monotonic() + ANSWER_WITHIN

    def _questions(
        self, groups: Collection[str], queues: Sequence[str]
    ) -> Generator[Statement, list[tuple[Any, ...]], Members]:
        """Yield statements, take their rows, and return the members."""
        values = {"groups": list(groups), "queues": queues}
        rows = (yield sql_groups.MEMBERS_BY_QUEUE, values) if groups else []
        if (rows or (yield sql_groups.WAITING, values))[0][0]:
            return None
        found: dict[str, list[str]] = {group: [] for group in groups}
        changed = set()
        for _, group, queue, number, digest, expires in rows:
            if queue not in queues or expires:
                found.pop(group, None)
            elif self._known.get((group, queue), ("",))[0] != f"{number} {digest}":
                changed.add(group)
        for _, group, queue, *_ in rows:
            if group in found and group not in changed:
                found[group] += self._known[group, queue][1]
        if changed := changed & found.keys():
            if len(self._known) >= MOST:
                self._known.clear()
            values["groups"] = list(changed)
            for group, queue, number, digest, recipients in (yield sql_groups.MEMBERS_IN_QUEUES, values):
                channels = [queue + one for one in recipients.split()]
                self._known[group, queue] = f"{number} {digest}", channels
                found[group] += channels
        return found


def wait(connection: Any, within: float | None = None) -> None:
    """Wait until an asynchronous connection has done what it was told."""
    ends_at = None if within is None else time.monotonic() + within
    while (state := connection.poll()) != POLL_OK:
        ready = select.poll()
        ready.register(connection.fileno(), select.POLLOUT if state == POLL_WRITE else select.POLLIN)
        if not ready.poll(None if ends_at is None else max(0.0, ends_at - time.monotonic()) * 1000):
            raise psycopg2.OperationalError("The connection took too long.")
