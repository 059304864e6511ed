"""The histories of groups in a database: transactions that overlap, and statements that stay fast."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager, suppress

from django.db import connection, transaction

from dbchannels import codec
from dbchannels.layers.operations import Send, SendGroup
from dbchannels.layers.postgresql import sql_groups, sql_history
from dbchannels.layers.postgresql.statements import ScanHints
from dbchannels.models import History, ProtocolMessage, Trimmed
from dbchannels.testing.contract.case import DEADLINE, in_thread, wait_until
from tests import kinds

ROWS, GROUPS = 20_000, 100
on_postgresql = kinds.only("postgresql")


def say(layer, *numbers, group="group", history=100):
    for number in numbers:
        layer.send_group(group, {"number": number}, history=history)


def read(link, after=0):
    """Return (positions, numbers) of what is new."""
    found = link.read_history("reply.a!", after, 500)
    numbers = [codec.decode(one.payload)["number"] for one in found if one.recipients]
    return [one.position for one in found], numbers


@contextmanager
def uncommitted(layer, number):
    """Say a number in a transaction of another thread, which commits at the end of the block."""
    begun, done = threading.Event(), threading.Event()

    def slow():
        with transaction.atomic(using=layer.database):
            say(layer, number)
            begun.set()
            done.wait(DEADLINE)

    thread = in_thread(layer, slow)
    assert begun.wait(DEADLINE)
    try:
        yield
    finally:
        done.set()
        thread.join(DEADLINE)


@kinds.only("postgresql", "polling")
def test_of_two_transactions_the_one_that_commits_first_is_first(layer, new_link):
    """The open transaction delays nobody, and what it sent comes after what was read meanwhile."""
    link = new_link(layer)
    layer.group_add("group", "reply.a!x")
    link.register("history-a", "server", "reply.a!")
    layer.group_add("group", "reply.a!x")
    with uncommitted(layer, 1):
        say(layer, 2)
        positions, numbers = read(link)
        assert numbers == [2]
    later, numbers = read(link, positions[0])
    assert numbers == [1] and later[0] > positions[0]
    missed = link.missed("reply.a!", {"x": 0}, 100, 2**20)["x"]
    assert [position for position, _ in missed.messages] == [*positions, *later]
    link.unregister("history-a")


@on_postgresql
def test_a_long_transaction_is_found_though_readers_look_at_newer_rows_first(layer, new_link, monkeypatch):
    """As they do while a stranger's transaction keeps the index full of dead entries."""
    monkeypatch.setattr(ScanHints, "COSTLY", 0.0)
    monkeypatch.setattr(ScanHints, "LAG", 0.0)
    link = new_link(layer)
    looks = []
    execute = link.session.execute
    monkeypatch.setattr(
        link.session, "execute", lambda steps: looks.append(steps[1][1]["scan_from"]) or execute(steps)
    )
    last, found = 0, []

    def look():
        nonlocal last
        for one in link.read_history("reply.a!", last, 500):
            last = one.position
            found.append(History.objects.get(position=last).content()["number"])

    with uncommitted(layer, 0):
        for number in range(1, 5):
            say(layer, number)
            look()
        assert found == [1, 2, 3, 4] and looks[-1] > 0
    wait_until(lambda: look() or found[-1] == 0)


@on_postgresql
def test_who_gives_positions_lets_no_other_see_a_higher_one_first(layer, new_link):
    """A server that stops between its numbers and its commit holds up the others, who then go on after it."""
    one, other = new_link(layer), new_link(layer)
    layer.group_add("group", "reply.a!x")
    say(layer, 1)
    found = []
    with one.session.transaction():
        first, _ = read(one)
        say(layer, 2)
        thread = in_thread(layer, lambda: found.append(read(other)))
        thread.join(0.2)
        assert not found
    thread.join(DEADLINE)
    ((positions, numbers),) = found
    assert numbers == [1, 2] and positions[0] == first[0]


@on_postgresql
def test_a_broadcast_without_a_history_is_what_it_was(layer, new_link):
    """One row for the server's queue, no row of a history, and a wakeup for that queue alone."""
    link, listener = new_link(layer), new_link(layer)
    link.register("history-a", "server", "reply.a!")
    layer.group_add("group", "reply.a!x")
    listener.wait(0)
    layer.send_group("group", {"number": 1})
    assert (ProtocolMessage.objects.count(), History.objects.count()) == (1, 0)
    assert listener.wait(DEADLINE) == {"reply.a!"}
    say(layer, 2)
    assert (ProtocolMessage.objects.count(), History.objects.count()) == (1, 1)
    assert listener.wait(DEADLINE) == {"history"}
    link.unregister("history-a")


@on_postgresql
def test_a_worker_writes_a_history_with_its_other_sends(layer, new_link):
    link = new_link(layer)
    payload = codec.encode({"number": 1})
    link.apply(
        [SendGroup("group", payload, 5, 60.0), Send("own", payload, "", 0), SendGroup("group", payload)]
    )
    (row,) = History.objects.all()
    assert (row.group, row.keep, row.position, row.content()) == ("group", 5, None, {"number": 1})
    assert 59 <= (row.expires_at - row.sent_at).total_seconds() <= 61
    assert layer.receive(["own"]) == ("own", {"number": 1})


def scans(plan):
    """Yield (kind of scan, table) of a plan."""
    if "Relation Name" in plan:
        yield plan["Node Type"], plan["Relation Name"]
    for inner in plan.get("Plans", []):
        yield from scans(inner)


@on_postgresql
def test_the_statements_read_by_indexes_alone(layer, new_link):
    """With 20,000 messages in 100 groups each statement reads about as many rows as it gives."""
    link = new_link(layer)
    link.register("history-a", "server", "reply.a!")
    layer.group_add("group7", "reply.a!x")
    with connection.cursor() as cursor:
        cursor.execute(
            'INSERT INTO dbchannels_history ("group", payload, position, keep, sent_at, expires_at) '
            "SELECT 'group' || i %% %s, '', i, 100, now(), now() + interval '1 h' FROM generate_series(1, %s) AS i",
            [GROUPS, ROWS],
        )
        cursor.execute("VACUUM ANALYZE dbchannels_history")
    common = {"queue": "reply.a!", "limit": 100, "size": 2**20, "expiry": 60.0, "scan_from": 0}
    for statement, values in (
        (sql_history.POSITION, {}),
        (sql_history.NUMBER, {}),
        (sql_history.READ, {"after": ROWS - 50}),
        (sql_history.MISSED, {"recipients": ["x"], "afters": [ROWS - 10_000]}),
        (sql_history.TRIM, {"after": ROWS - 1}),
        (sql_history.FORGET, {}),
        (
            sql_groups.GROUP_ADD,
            {"group": "group8", "channel": "reply.a!", "recipient": "x", "is_later": True},
        ),
    ):
        text = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
        with suppress(ZeroDivisionError), link.session.transaction():
            ((plan,),) = link.session.execute([(text, {**common, **values})])
            raise ZeroDivisionError  # rolls back
        plan = (plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"]
        kinds_of_scans = {kind for kind, _ in scans(plan)} - {"ModifyTable"}
        assert kinds_of_scans <= {"Index Scan", "Index Only Scan"}, statement
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 2_000, statement
    link.unregister("history-a")


@on_postgresql
def test_many_are_trimmed_in_batches(new_layer, new_link, monkeypatch):
    monkeypatch.setattr("dbchannels.layers.postgresql.history.BATCH", 10)
    layer = new_layer(expiry=0.001)
    link = new_link(layer)
    for group in ("one", "two"):
        say(layer, *range(30), group=group, history=5)
    read(link)
    History.objects.filter(group="two").update(expires_at="2020-01-01T00:00Z")
    link.trim_histories(until=0.0)
    assert History.objects.count() == 50
    link.clean_up()
    assert [row.content()["number"] for row in History.objects.order_by("position")] == [25, 26, 27, 28, 29]
    assert set(Trimmed.objects.values_list("group", flat=True)) == {"one", "two"}
