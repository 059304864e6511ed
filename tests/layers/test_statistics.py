"""No statement reads more than it must where the statistics of the tables are old, as after a server has come back."""

from __future__ import annotations

import re

import pytest
from django.db import connection

from dbchannels.layers.operations import Connect, GroupAdd
from dbchannels.layers.postgresql import sql, sql_durable, sql_groups
from dbchannels.layers.postgresql.statements import of_connections
from dbchannels.models import Process
from tests import kinds

pytestmark = kinds.only("postgresql")

ROWS = 10_000
MOST = 100  # pages of 8 kB that one may touch; each of these tables and their indexes has more than that
BUSY = ("membership", "tally", "connection", "protocolmessage", "durablemessage", "audience")


@pytest.fixture
def grown(layer, new_link):
    """Let the tables be analyzed while they hold other rows or none, and then grow under a server's new name."""
    # What earlier tests have deleted is in the tables until they are vacuumed, and would be read too.
    run("TRUNCATE " + ", ".join(f"dbchannels_{name}" for name in BUSY))
    link = new_link(layer)
    link.register("old", Process.SERVER, "reply.old!")
    link.apply([GroupAdd("big", f"reply.old!{number}") for number in range(300)])
    link.apply([Connect(f"reply.old!{number}", "old", "/") for number in range(300)])
    link.clean_up()
    run("ANALYZE " + ", ".join(f"dbchannels_{name}" for name in BUSY))
    link.unregister("old")
    link.register("new", Process.SERVER, "reply.new!")
    run(
        f"""
        INSERT INTO dbchannels_membership ("group", channel, recipient, added_at)
        SELECT CASE WHEN g <= 5 THEN 'small' ELSE 'big' END, 'reply.new!', g, now()
        FROM generate_series(1, {ROWS}) AS g;
        INSERT INTO dbchannels_connection (reply_channel, server, path, connected_at)
        SELECT 'reply.new!' || g, 'new', '/', now() FROM generate_series(1, {ROWS}) AS g;
        INSERT INTO dbchannels_protocolmessage (channel, recipients, reply_channel, payload, expires_at)
        SELECT CASE WHEN g <= 5 THEN 'reply.new!' ELSE 'http.request' END, '', 'reply.new!' || g, '',
               now() + interval '1 h'
        FROM generate_series(1, {ROWS}) AS g;
        INSERT INTO dbchannels_durablemessage (channel, payload, attempts, sent_at, unique_key, claimed_by, due_at)
        SELECT CASE WHEN g <= 50 THEN 'own' ELSE 'other' END, '', 1, now(), 'key-' || g % 30,
               CASE WHEN g % 1000 = 0 THEN 'w3' END, CASE WHEN g % 10 = 1 THEN now() + interval '1 h' END
        FROM generate_series(1, {ROWS}) AS g
        """
    )
    return link


def run(text):
    with connection.cursor() as cursor:
        cursor.execute(text)


OWN = {"queues": ["own"], "limit": 5, "worker": "w"}
TOKEN = {"worker": "w3", "ids": [10, 20, 30], "attempts": [1, 1, 1]}
POP = {"queues": ["reply.new!"], "limit": 5, "scan_from": [0], "worker": "w"}
CLOSED = of_connections(["reply.new!7", "reply.new!8"])
MEMBER = {"group": "small", "channel": "reply.new!", "recipient": "3", "expiry": 9.0, "is_later": True}
QUEUES = {"groups": ["small", "missing"], "queues": ["reply.new!", "reply.other!"]}
ONE = {
    "channels": ["own"],
    "payloads": [b""],
    "priorities": [0],
    "delays": [0.0],
    "due_ats": [None],
    "tasks": [None],
}
HOT = {
    "send_group": (sql_groups.SEND_GROUP, ("small", b"\x80", 60.0, ["^reply", ""], [100, None], False, [])),
    "pop": (sql.RECEIVE, POP),
    "pop and hold": (sql.RECEIVE_IN_FLIGHT, POP),
    "claim": (sql_durable.CLAIM, OWN),
    "claim of limited ones": (sql_durable.CLAIM_LIMITED, {**OWN, "at_most": [2]}),
    "lock": (sql_durable.LOCK_LIMITED, {**OWN, "at_most": [2]}),
    "promote": (sql_durable.PROMOTE, {}),
    "next due": (sql_durable.NEXT_DUE, {}),
    "send unique": (sql_durable.SEND_UNIQUE, {**ONE, "unique_keys": ["key-2"]}),
    "acknowledge": (sql_durable.ACKNOWLEDGE, TOKEN),
    "release": (sql_durable.RELEASE, TOKEN),
    "retry": (sql_durable.RETRY, {**TOKEN, "seconds": [1.0] * 3, "tries": [1] * 3}),
    "give up": (sql_durable.GIVE_UP, {**TOKEN, "errors": [""] * 3, "tries": [1] * 3}),
    "waiting": (sql_groups.WAITING, QUEUES),
    "members by queue": (sql_groups.MEMBERS_BY_QUEUE, QUEUES),
    "members in queues": (sql_groups.MEMBERS_IN_QUEUES, QUEUES),
    "add": (sql_groups.GROUP_ADD, MEMBER),
    "discard": (sql_groups.GROUP_DISCARD, MEMBER),
    "count": (sql_groups.GROUP_COUNT, MEMBER),
    "channels": (sql_groups.GROUP_CHANNELS, MEMBER),
    "users": (sql_groups.GROUP_USERS, MEMBER),
    "disconnect": (sql.DISCONNECT, CLOSED),
    "left behind": (sql.LEFT_BEHIND, CLOSED),
    "drop members": (sql.DROP_MEMBERS, CLOSED),
    "identify": (sql.IDENTIFY, {"reply_channel": "reply.new!7", "user_id": "1"}),
    "keep": (sql.KEEP, {"reply_channel": "reply.new!7", "session": b"", "login": "-"}),
}


def pages_of(session, text, values):
    """Return how many pages a statement touches when the session knows it, and its plan; it changes nothing."""
    for _ in range(2):  # the first time it reads much of the catalogs
        session.execute([("BEGIN", {})])
        plan = session.execute([(f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) {text}", values)])
        session.execute([("ROLLBACK", {})])
    lines = [line for (line,) in plan]
    touched = re.findall(r"(?:hit|read)=(\d+)", next(line for line in lines if "Buffers: shared" in line))
    return sum(map(int, touched)), "\n".join(lines)


def test_what_is_read_does_not_depend_on_statistics(grown):
    found = {name: pages_of(grown.session, *statement) for name, statement in HOT.items()}
    slow = {name: plan for name, (pages, plan) in found.items() if pages > MOST}
    assert not slow, "\n\n".join(slow.values())


def test_what_waits_is_compared_once_with_the_connections_of_a_dead_server(grown):
    _, plan = pages_of(grown.session, sql.CONNECTIONS_OF, {"name": "new"})
    assert "SetOp Except" in plan and "<> ALL" not in plan, plan
