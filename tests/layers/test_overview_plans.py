"""What the overview reads when far more waits than it counts, on PostgreSQL."""

from __future__ import annotations

import re

import pytest
from django.db import connection

from dbchannels.layers.overview import STATES, overview
from tests import kinds

pytestmark = kinds.only("postgresql")

#: As a million rows are to the ten thousand that are counted.
ROWS, MOST = 100_000, 1_000


@pytest.fixture
def many(layer):
    """Many ready messages on one channel, a thousand dead letters, and a few of everything else."""
    with connection.cursor() as cursor:
        cursor.execute(
            "TRUNCATE dbchannels_durablemessage, dbchannels_deadletter, dbchannels_protocolmessage"
        )
        cursor.execute("ANALYZE dbchannels_durablemessage, dbchannels_deadletter, dbchannels_protocolmessage")
        cursor.execute(
            f"""
            INSERT INTO dbchannels_durablemessage (channel, payload, attempts, sent_at, priority)
            SELECT CASE WHEN g % 1000 = 0 THEN 'b-' || g % 7000 ELSE 'busy' END, decode(repeat('ab', 100), 'hex'), 0,
                   now() - g * interval '1 ms', CASE WHEN g % 5 = 0 THEN g % 3 ELSE 0 END
            FROM generate_series(1, {ROWS}) AS g;
            INSERT INTO dbchannels_durablemessage (channel, payload, attempts, sent_at, due_at)
            SELECT 'late', '', 0, now(), now() + g * interval '1 s' FROM generate_series(1, {15 * MOST}) AS g;
            INSERT INTO dbchannels_deadletter (channel, payload, attempts, sent_at, failed_at, error)
            SELECT 'dead-' || g % 20, '', 1, now(), now(), repeat('error ', 300)
            FROM generate_series(1, {ROWS // 100}) AS g;
            INSERT INTO dbchannels_protocolmessage (channel, recipients, reply_channel, payload, expires_at)
            SELECT 'http.request', '', 'reply.a!' || g, '', now() + interval '1 h'
            FROM generate_series(1, {10 * MOST}) AS g
            """
        )
    yield
    with connection.cursor() as cursor:
        cursor.execute(
            "TRUNCATE dbchannels_durablemessage, dbchannels_deadletter, dbchannels_protocolmessage"
        )


def test_many_that_wait_are_counted_in_indexes_and_not_to_the_end(layer, many):
    found = {one.channel: one for one in overview(layer, MOST).channels}
    busy = found["busy"]
    assert busy.ready >= MOST and "ready" in busy.more
    assert found["b-1000"].ready == 15 and "ready" not in found["b-1000"].more
    assert found["late"].delayed + found["late"].ready == MOST and "delayed" in found["late"].more
    assert found["dead-3"].dead == 50 and not found["dead-3"].more - {"delayed"}
    assert found["http.request"].ready == MOST
    assert all("dead" in one.more for one in overview(layer, most=10).channels if one.dead)
    for statement in ("ANALYZE", "VACUUM"):
        with connection.cursor() as cursor:
            cursor.execute(
                f"{statement} dbchannels_durablemessage, dbchannels_deadletter, dbchannels_protocolmessage"
            )
            cursor.execute(
                f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {STATES}", {"most": MOST, "channels": 2000}
            )
            plan = "\n".join(line for (line,) in cursor.fetchall())
        assert set(re.findall(r"Seq Scan on (\w+)", plan)) <= {"dbchannels_inflight"}, plan
        rows = re.findall(r"actual rows=(\d+)(?:\.\d+)? loops=(\d+)", plan)
        assert max(int(number) * int(loops) for number, loops in rows) <= 4 * MOST, plan
