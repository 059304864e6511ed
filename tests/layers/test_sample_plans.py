"""How PostgreSQL counts what waits: from its indexes, and not for long."""

from __future__ import annotations

import json

import pytest
from django.db import connection

from dbchannels.layers.postgresql import sql_samples
from dbchannels.measures import MOST, OTHERS
from dbchannels.models import Connection, DeadLetter, DurableMessage, ProtocolMessage
from dbchannels.worker.batch import Measures
from dbchannels.worker.sampler import Sampler
from tests import kinds

pytestmark = kinds.only("postgresql")

ROWS = 20_000


@pytest.fixture
def link(layer, new_link):
    return new_link(layer)


def scans(plan):
    """Yield (table, kind of scan, filtered rows) of a plan."""
    if "Relation Name" in plan:
        yield plan["Relation Name"], plan["Node Type"], plan.get("Rows Removed by Filter", 0)
    for inner in plan.get("Plans", []):
        yield from scans(inner)


def test_a_count_that_takes_too_long_is_given_up(layer, link, monkeypatch):
    monkeypatch.setattr(sql_samples, "GAUGES", "SELECT pg_sleep(60)")
    monkeypatch.setattr("dbchannels.layers.postgresql.link.COUNT_WITHIN_MS", 20)
    ((backend,),) = link.session.execute([("SELECT pg_backend_pid()", {})])
    Sampler(link, Measures()).look("w1")
    (site,) = layer.samples()
    assert "all" not in site and site["took"] > 0
    # The session is as it was.
    assert link.session.execute([("SELECT pg_backend_pid()", {})]) == [(backend,)]
    assert link.session.execute([("SHOW statement_timeout", {})]) == [("0",)]


def test_the_counts_read_indexes_only(layer, link):
    with connection.cursor() as cursor:
        fill = "INSERT INTO dbchannels_durablemessage (channel, payload, attempts, alone, sent_at, due_at, claimed_by) "
        for due, claimed in (("NULL", "NULL"), ("now()", "NULL"), ("NULL", "'w1'")):
            cursor.execute(
                f"{fill} SELECT 'own' || i %% 3, '', 0, false, now(), {due}, {claimed} FROM generate_series(1, %s) i",
                [ROWS],
            )
        cursor.execute(
            "INSERT INTO dbchannels_deadletter (channel, payload, attempts, sent_at, error) "
            "SELECT 'own', '', 1, now(), repeat('x', 500) FROM generate_series(1, %s)",
            [ROWS],
        )
        for model in (DurableMessage, DeadLetter, ProtocolMessage, Connection):
            cursor.execute(f"VACUUM ANALYZE {model._meta.db_table}")
    values = {"most": MOST, "others": OTHERS}
    ((plan,),) = link.session.execute([("EXPLAIN (ANALYZE, FORMAT JSON) " + sql_samples.GAUGES, values)])
    plan = plan if isinstance(plan, list) else json.loads(plan)
    found = list(scans(plan[0]["Plan"]))
    durable = [one for one in found if one[0] in ("dbchannels_durablemessage", "dbchannels_deadletter")]
    # Three counts of messages, one of dead letters, and the rows of the three oldest.
    assert sorted(kind for _, kind, _ in durable) == [*["Index Only Scan"] * 4, "Index Scan"]
    assert sum(filtered for _, _, filtered in durable) == 0
    assert {kind for _, kind, _ in found} <= {"Index Scan", "Index Only Scan", "Seq Scan"}
    assert link.gauges()["channels"]["own"] == [0, 0, 0, 0, ROWS]
