"""The admin's pages with many rows: a few queries, no scan of a big table, and bounded rows."""

from __future__ import annotations

import json
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
ROWS, MOST = 200_000, 20_000
BIG = {"dbchannels_durablemessage"}

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
    """Assert that a query scans no big table and reads a bounded number of rows."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}")
        ((found,),) = cursor.fetchall()
    plan = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    for node in nodes(plan):
        assert node["Node Type"] != "Seq Scan" or node["Relation Name"] not in BIG, f"{sql}\n{plan}"
        read = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        # The overview's own statement counts so far in each channel, and has tests of its own.
        assert read <= 2 * MOST or "WITH RECURSIVE" in sql, f"{sql}\n{node}"


@pytest.mark.parametrize(
    "address",
    [
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
    ],
)
def test_a_page_makes_few_queries_and_scans_nothing_big(many: Client, address: str) -> None:
    many.get(f"{LISTS}membership/")  # what Django itself keeps after the first page
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert many.get(LISTS + address).status_code == 200
    ours = [one["sql"] for one in queries if "dbchannels_" in one["sql"]]
    assert len(ours) <= 5, "\n".join(ours)
    for sql in ours:
        check(sql)


def test_the_page_of_a_message_makes_few_queries(many: Client) -> None:
    claimed = DurableMessage.objects.filter(claimed_by="worker-1").first()
    with CaptureQueriesContext(connection) as queries:
        assert many.get(f"{LISTS}durablemessage/{claimed.pk}/change/").status_code == 200
    ours = [one["sql"] for one in queries if "dbchannels_" in one["sql"]]
    assert len(ours) <= 5, "\n".join(ours)
    for sql in ours:
        check(sql)


def test_a_list_of_many_says_that_there_are_more(many: Client) -> None:
    html = many.get(f"{LISTS}durablemessage/").content.decode()
    assert f"more than {MOST} durable messages" in html
    assert "among the newest" in html
    html = many.get(f"{LISTS}channelstate/").content.decode()
    assert f"{MOST:,}+" in html


def test_a_part_of_an_act_scans_nothing_big(many: Client) -> None:
    asked = many.get(f"{LISTS}durablemessage/act/priority/?channel=rare").content.decode()
    state = asked.partition('name="state" value="')[2].partition('"')[0]
    with CaptureQueriesContext(connection) as queries:
        many.post(f"{LISTS}durablemessage/act/priority/?channel=rare", {"state": state, "priority": "5"})
    assert DurableMessage.objects.filter(channel="rare", priority=5).count() == ROWS // 20_000
    for one in queries:
        if one["sql"].startswith("SELECT") and "dbchannels_durable" in one["sql"]:
            check(one["sql"])
