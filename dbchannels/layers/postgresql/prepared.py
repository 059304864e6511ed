"""Statements that a session of the layer's own keeps planned.

To parse and plan the claim takes PostgreSQL 320 us, to run it on a short queue 60; the pop 500 and 150. The generic
plan is made once, perhaps while the tables are empty, and used when they hold a million rows: so it may be made of
index scans only, and it is made anew now and then, to choose among the indexes by what the tables hold. Once a second
is enough, and for that the session must have much to do, or have waited for an answer: who has slept for a second and
is woken by one message should not begin by planning.
See https://www.postgresql.org/docs/current/sql-prepare.html.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import psycopg2.errors

from dbchannels.layers.postgresql import sql, sql_durable

REPLAN_AFTER = 1.0  # seconds, when the session has run something so OFTEN, or something SLOW
OFTEN = 100  # times
SLOW = (
    0.01  # seconds until the answer: with the way to the database, so a slow one is planned for each second
)
REPLAN_ANYWAY = 60.0  # seconds
#: A pooler gave the session another connection, or had the name already; or a migration changed the columns.
LOST = (
    psycopg2.errors.InvalidSqlStatementName,
    psycopg2.errors.DuplicatePreparedStatement,
    psycopg2.errors.FeatureNotSupported,
)


class Prepared:
    """A statement with its name in the session, and its parameters' types: by their names, or by position."""

    def __init__(self, name: str, text: str, types: dict[str, str] | Sequence[str] = ()) -> None:
        by_name = types if isinstance(types, dict) else {}
        places = [f"%({one})s" for one in by_name] or ["%s"] * len(types)
        plain = text
        for number, place in enumerate(places, 1):
            plain = plain.replace(place, f"${number}", -1 if by_name else 1)
        self.name, self.text = name, text
        #: What prepares it: ``%(queues)s`` becomes ``$1``.
        self.prepare = f"PREPARE {name} {_listed(by_name.values() or types)} AS {plain}"
        #: What runs it, with the values given as to the statement itself.
        self.execute = f"EXECUTE {name} {_listed(places)}"


def _listed(parts: Iterable[str]) -> str:
    text = ", ".join(parts)
    return f"({text})" if text else ""


_POP = {"queues": "text[]", "limit": "bigint"}
_RECEIVE = {**_POP, "floors": "bigint[]"}
_SEND = {
    "channels": "text[]",
    "recipients": "text[]",
    "reply_channels": "text[]",
    "payloads": "bytea[]",
    "expiry": "float",
}
_ALIKE = {
    "channel": "text",
    "recipient": "text",
    "reply_channel": "text",
    "payloads": "bytea[]",
    "expiry": "float",
}
_IF_ROOM = {**_SEND, "certain": "boolean[]", "queues": "text[]", "capacities": "int[]"}
_DURABLE = {"worker": "text", "ids": "bigint[]", "attempts": "int[]"}

_CLAIM = {**_POP, "worker": "text"}

CLAIM = Prepared("dbchannels_claim", sql_durable.CLAIM, _CLAIM)
_SEND_MANY = Prepared("dbchannels_send", sql.SEND, _SEND)
_SEND_ALIKE = Prepared("dbchannels_send_alike", sql.SEND_ALIKE, _ALIKE)
_WAKE = Prepared("dbchannels_wake", sql.WAKE, {"wake": "text[]"})
_ONE = ("text", "text", "text", "bytea", "text")
_OTHERS = [
    Prepared("dbchannels_send_one_near", sql.SEND_ONE, _ONE),
    Prepared("dbchannels_send_one", sql.SEND_ONE + sql.WAKE_ONE, (*_ONE, "text")),
    Prepared("dbchannels_send_if_room", sql.SEND_IF_ROOM, _IF_ROOM),
    Prepared("dbchannels_promote", sql_durable.PROMOTE),
    Prepared("dbchannels_next_due", sql_durable.NEXT_DUE),
    Prepared("dbchannels_receive", sql.RECEIVE, _RECEIVE),
    Prepared("dbchannels_receive_in_flight", sql.RECEIVE_IN_FLIGHT, {**_RECEIVE, "worker": "text"}),
    Prepared("dbchannels_lock_limited", sql_durable.LOCK_LIMITED, {"queues": "text[]", "at_most": "int[]"}),
    Prepared("dbchannels_claim_limited", sql_durable.CLAIM_LIMITED, {**_CLAIM, "at_most": "int[]"}),
    Prepared("dbchannels_set_in_flight", sql.SET_IN_FLIGHT, {"worker": "text", "messages": "text"}),
    Prepared("dbchannels_acknowledge", sql_durable.ACKNOWLEDGE, _DURABLE),
]

#: By the text of what is run. A send and its wakeup are one text to Django's connection, and two plans here.
BY_TEXT: dict[str, tuple[Prepared, ...]] = {
    **{one.text: (one,) for one in (CLAIM, _SEND_MANY, _SEND_ALIKE, _WAKE, *_OTHERS)},
    f"{sql.WAKE};{sql.SEND}": (_WAKE, _SEND_MANY),
    f"{sql.WAKE};{sql.SEND_ALIKE}": (_WAKE, _SEND_ALIKE),
}
