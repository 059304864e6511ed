"""Statements that a session of the layer's own keeps planned.

PostgreSQL takes 320 us to parse and plan the claim and 60 to run it on a short queue; for the pop it is 500 and 150.
The generic plan is made once, perhaps while the tables are empty, and used when they hold a million rows. Therefore it
may consist of index scans only, and it is made anew now and then, to choose among the indexes by what the tables hold.
That happens once a second at most, and only in a session that is busy or had to wait for an answer: a session that is
woken by one message should not begin with planning. https://www.postgresql.org/docs/current/sql-prepare.html
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import psycopg2.errors

from dbchannels.layers.postgresql import sql, sql_durable, sql_groups

REPLAN_AFTER = 1.0  # seconds, when the session has run something so OFTEN, or something SLOW
OFTEN = 100  # times
SLOW = 0.01  # seconds until the answer; with a slow network to the database, plans are made anew each second
REPLAN_ANYWAY = 60.0  # seconds
#: A pooler gave the session another connection, or the name was taken already, or a migration changed the columns.
LOST = (
    psycopg2.errors.InvalidSqlStatementName,
    psycopg2.errors.DuplicatePreparedStatement,
    psycopg2.errors.FeatureNotSupported,
)


_TYPES = {
    "at_most": "int[]",
    "attempts": "int[]",
    "capacities": "int[]",
    "certain": "boolean[]",
    "channel": "text",
    "channels": "text[]",
    "expiry": "float",
    "groups": "text[]",
    "scan_from": "bigint[]",
    "ids": "bigint[]",
    "limit": "bigint",
    "messages": "text",
    "payloads": "bytea[]",
    "queues": "text[]",
    "recipient": "text",
    "recipients": "text[]",
    "reply_channel": "text",
    "reply_channels": "text[]",
    "result_ttl": "float",
    "return_values": "text[]",
    "wake": "text[]",
    "worker": "text",
}
_OF_ONE = ("text", "text", "text", "bytea", "text")


class Prepared:
    """A statement with its name in the session; ``types`` are those of parameters by position."""

    def __init__(self, name: str, text: str, types: Sequence[str] = ()) -> None:
        named = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", text)))
        places = [f"%({one})s" for one in named] or ["%s"] * len(types)
        plain = text
        for number, place in enumerate(places, 1):
            plain = plain.replace(place, f"${number}", -1 if named else 1)
        types = [_TYPES[one] for one in named] or types
        self.name, self.text = name, text
        #: Prepares the statement; ``%(queues)s`` becomes ``$1``.
        self.prepare = f"PREPARE {name} {_listed(types)} AS {plain}"
        #: Executes it, with the values of the statement itself.
        self.execute = f"EXECUTE {name} {_listed(places)}"


def _listed(parts: Sequence[str]) -> str:
    return f"({', '.join(parts)})" if parts else ""


CLAIM = Prepared("dbchannels_claim", sql_durable.CLAIM)
_SEND = Prepared("dbchannels_send", sql.SEND)
_SEND_ALIKE = Prepared("dbchannels_send_alike", sql.SEND_ALIKE)
_WAKE = Prepared("dbchannels_wake", sql.WAKE)
_OTHERS = [
    Prepared("dbchannels_send_one_silent", sql.SEND_ONE, _OF_ONE),
    Prepared("dbchannels_send_one", sql.SEND_ONE + sql.WAKE_ONE, (*_OF_ONE, "text")),
    Prepared("dbchannels_send_if_room", sql.SEND_IF_ROOM),
    Prepared("dbchannels_promote", sql_durable.PROMOTE),
    Prepared("dbchannels_next_due", sql_durable.NEXT_DUE),
    Prepared("dbchannels_receive", sql.RECEIVE),
    Prepared("dbchannels_receive_in_flight", sql.RECEIVE_IN_FLIGHT),
    Prepared("dbchannels_members_by_queue", sql_groups.MEMBERS_BY_QUEUE),
    Prepared("dbchannels_waiting", sql_groups.WAITING),
    Prepared("dbchannels_members_in_queues", sql_groups.MEMBERS_IN_QUEUES),
    Prepared("dbchannels_lock_limited", sql_durable.LOCK_LIMITED),
    Prepared("dbchannels_claim_limited", sql_durable.CLAIM_LIMITED),
    Prepared("dbchannels_set_in_flight", sql.SET_IN_FLIGHT),
    Prepared("dbchannels_acknowledge", sql_durable.ACKNOWLEDGE),
    Prepared("dbchannels_acknowledge_tasks", sql_durable.ACKNOWLEDGE_TASKS),
]

#: By the text of the statement. A send with its wakeup is one text on Django's connection, and two plans here.
BY_TEXT: dict[str, tuple[Prepared, ...]] = {
    **{one.text: (one,) for one in (CLAIM, _SEND, _SEND_ALIKE, _WAKE, *_OTHERS)},
    f"{sql.WAKE};{sql.SEND}": (_WAKE, _SEND),
    f"{sql.WAKE};{sql.SEND_ALIKE}": (_WAKE, _SEND_ALIKE),
}
