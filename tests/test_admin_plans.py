"""The admin's pages with many rows: a few queries, and a bounded number of rows read by each, whatever the plan."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from dbchannels.admin import acts, messages
from dbchannels.layers import channel_layers, overview
from dbchannels.models import DurableMessage
from tests.test_admin import process

pytestmark = [pytest.mark.django_db, pytest.mark.postgresql]

#: As a million rows are to the hundred thousand that are counted.
ROWS, MOST = 100_000, 10_000

FILL = f"""
INSERT INTO dbchannels_durablemessage (channel, payload, sent_at, due_at, claimed_by, priority)
SELECT CASE WHEN n % 20000 = 0 THEN 'rare' WHEN n % 10 = 0 THEN 'some' ELSE 'many' END, '\\x80', now(),
       CASE WHEN n % 1000 = 3 THEN now() + interval '1 hour' END, CASE WHEN n % 10000 = 7 THEN 'worker-1' END, n % 3
FROM generate_series(1, {ROWS}) AS n;
INSERT INTO dbchannels_deadletter (channel, payload, attempts, sent_at, failed_at, error)
SELECT CASE WHEN n % 5000 = 0 THEN 'rare' ELSE 'many' END, '\\x80', 6, now(), now() - n * interval '1 minute',
       'Traceback (most recent call last):' || chr(10) || 'ValueError: ' || n
FROM generate_series(1, 10000) AS n;
ANALYZE dbchannels_durablemessage; ANALYZE dbchannels_deadletter
"""
LISTS = "/admin/dbchannels/"


@pytest.fixture
def many(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A site with many rows, two workers, and a paused channel; its administrator."""
    for module, name in ((acts, "MOST"), (overview, "MOST"), (messages.MessageAdmin.paginator, "MOST")):
        monkeypatch.setattr(module, name, MOST)
    monkeypatch.setattr(overview.overview, "__defaults__", (MOST,))
    for name in ("worker-1", "worker-2"):
        row = process(name)
        row.work = json.dumps({"takes": ["many", "some"]})
        row.save()
    with connection.cursor() as cursor:
        for statement in FILL.split(";"):
            cursor.execute(statement)
    channel_layers["default"].pause("some", "ann")
    return admin_client


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a plan's nodes."""
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def check(sql: str) -> None:
    """Assert that no part of a query's plan reads more rows than are counted: above all no scan of a whole table."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}")
        ((found,),) = cursor.fetchall()
    plan = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    for node in nodes(plan):
        # The overview's own statement counts so far in each channel, and has tests of its own.
        read = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        assert read * ("WITH RECURSIVE" in sql or node["Actual Loops"]) <= 2 * MOST, f"{sql}\n{node}"


def ours(queries: CaptureQueriesContext) -> list[str]:
    """Return the queries of our tables."""
    return [one["sql"] for one in queries if "dbchannels_" in one["sql"]]


ADDRESSES = (
    "channelstate/",
    "channelstate/many/change/",
    "channelstate/rare/change/",
    "channelstate/nowhere/change/",
    "durablemessage/",
    "durablemessage/?p=3",
    "durablemessage/?channel=many",
    "durablemessage/?channel=rare",
    "durablemessage/?channel=nowhere",
    "durablemessage/?state=running",
    "durablemessage/?state=delayed&channel=some",
    "durablemessage/?state=ready&channel=rare",
    "deadletter/",
    "deadletter/?channel=rare",
    "deadletter/?failed=7",
    "deadletter/?q=ValueError: 77",
    "process/",
    "durablemessage/act/cancel/",
    "durablemessage/act/cancel/?channel=rare",
    "deadletter/act/replay/?channel=many",
)


def test_pages_make_few_queries_and_read_few_rows(many: Client) -> None:
    many.get(f"{LISTS}membership/")  # what Django itself keeps after the first page
    claimed = DurableMessage.objects.filter(claimed_by="worker-1").first()
    for address in (*ADDRESSES, f"durablemessage/{claimed.pk}/change/"):
        with CaptureQueriesContext(connection) as queries:
            assert many.get(LISTS + address).status_code == 200
        assert len(ours(queries)) <= 5, "\n".join([address, *ours(queries)])
        for sql in ours(queries):
            check(sql)

    html = many.get(f"{LISTS}durablemessage/").content.decode()
    assert f"more than {MOST} durable messages" in html
    assert "among the newest" in html
    html = many.get(f"{LISTS}channelstate/").content.decode()
    assert re.search(r">\d0,000\+<", html)  # "many", counted by priorities
    asked = many.get(f"{LISTS}durablemessage/act/priority/?channel=rare").content.decode()
    state = asked.partition('name="state" value="')[2].partition('"')[0]
    with CaptureQueriesContext(connection) as queries:
        many.post(f"{LISTS}durablemessage/act/priority/?channel=rare", {"state": state, "priority": "5"})
    assert DurableMessage.objects.filter(channel="rare", priority=5).count() == ROWS // 20_000
    for sql in ours(queries):
        if sql.startswith("SELECT"):
            check(sql)
