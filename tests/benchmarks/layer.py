"""The PostgreSQL layer beside bare psycopg2 on the same tables."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg2
from django.db import connections

from dbchannels import codec
from dbchannels.layers import channel_layers
from dbchannels.layers.operations import GroupAdd
from dbchannels.layers.postgresql.session import connection_parameters
from dbchannels.models import Process
from dbchannels.routing.table import Routing, route
from dbchannels.worker.worker import Worker
from tests.benchmarks.measure import ROUNDS, Figure, compare, rate
from tests.benchmarks.reader import READY, reader

MESSAGE = {"text": "x" * 100, "number": 1}
PAYLOAD = codec.encode(MESSAGE)
DURABLE = "dbchannels_durablemessage"
PROTOCOL = "dbchannels_protocolmessage"
ROWS = {
    DURABLE: (
        "channel, payload, priority, unique_key, attempts, alone, sent_at",
        "('own0', %(payload)s, 0, '', 0, false, statement_timestamp())",
    ),
    PROTOCOL: (
        "channel, recipients, reply_channel, payload, sent_at, expires_at",
        "('http.request', '', '', %(payload)s, statement_timestamp(), statement_timestamp() + interval '60 s')",
    ),
}
BARE_CLAIM = f"""
UPDATE {DURABLE} SET claimed_by = 'bare', attempts = attempts + 1 WHERE id = ANY(ARRAY(
    SELECT id FROM {DURABLE} WHERE channel = 'own0' AND claimed_by IS NULL AND due_at IS NULL
    ORDER BY priority DESC, id LIMIT 10 FOR UPDATE SKIP LOCKED
)) RETURNING id, payload
"""


class Bare:
    """A psycopg2 connection, used as a program without dbchannels would use it."""

    def __init__(self) -> None:
        self.layer: Any = channel_layers["default"]
        settings = connections[self.layer.database].settings_dict
        self.connection = psycopg2.connect(**connection_parameters(settings, "dbchannels benchmark"))
        self.connection.autocommit = True

    def run(self, text: str, values: Any = None) -> list[Any]:
        with self.connection.cursor() as cursor:
            cursor.execute(text, values)
            return cursor.fetchall() if cursor.description else []  # type: ignore[no-any-return]

    def empty(self) -> None:
        self.run(f"TRUNCATE {DURABLE}, {PROTOCOL}, dbchannels_audience")
        self.layer.capacities.clear()

    def insert(self, table: str, rows: int) -> Callable[[], object]:
        """Return an action that inserts so many rows and sends a NOTIFY, in one string."""
        columns, row = ROWS[table]
        text = f"INSERT INTO {table} ({columns}) VALUES {', '.join([row] * rows)}; NOTIFY dbchannels, 'x'"
        return lambda: self.run(text, {"payload": PAYLOAD})

    def insert_by_django(self, table: str) -> Callable[[], object]:
        """Return the same action for one row on Django's connection: the fastest possible send in its transaction."""
        columns, row = ROWS[table]
        text = f"INSERT INTO {table} ({columns}) VALUES {row}; NOTIFY dbchannels, 'x'"

        def insert() -> None:
            with connections[self.layer.database].cursor() as cursor:
                cursor.execute(text, {"payload": PAYLOAD})

        return insert

    def drain(self, count: int) -> float:
        start, done = time.perf_counter(), 0
        while done < count:
            rows = self.run(BARE_CLAIM)
            self.run(f"DELETE FROM {DURABLE} WHERE id = ANY(%(ids)s)", {"ids": [row[0] for row in rows]})
            done += len(rows)
        return done / (time.perf_counter() - start)


def figures(quick: bool) -> Iterator[Figure]:
    """Yield all figures."""
    bare = Bare()
    for table, channel in ((DURABLE, "own0"), (PROTOCOL, "http.request")):
        yield from sending(bare, table, channel)
    yield from draining(bare, 1_000 if quick else 5_000)
    if not quick:
        yield from draining_much(bare)
    yield from broadcasting(bare)
    yield waking(bare, 50 if quick else 300)
    bare.empty()
    bare.connection.close()


def after(empty: Callable[[], None], measure: Callable[[], float]) -> Callable[[], float]:
    """Return a measurement that starts with empty tables."""

    def run() -> float:
        empty()
        return measure()

    return run


def sending(bare: Bare, table: str, channel: str) -> Iterator[Figure]:
    layer = bare.layer
    many = [(channel, MESSAGE)] * 100
    kind = "durable" if table == DURABLE else "protocol"
    for name, action, rows in (
        (f"send, one {kind} message", lambda: layer.send(channel, MESSAGE), 1),
        (f"  the bare one through Django's cursor ({kind})", bare.insert_by_django(table), 1),
        (f"send_many, 100 {kind} messages", lambda: layer.send_many(many), 100),
    ):
        seconds, times = (0.2, 15) if rows == 1 else (0.15, ROUNDS)
        yield compare(
            name,
            after(bare.empty, lambda action=action, rows=rows, s=seconds: rate(action, rows, s)),
            after(bare.empty, lambda rows=rows, s=seconds: rate(bare.insert(table, rows), rows, s)),
            "" if name.startswith(" ") else ">= 0.70",
            rounds=times,
        )


def empty_consumer(message: object) -> None:
    """Do nothing."""


def drained(bare: Bare, channels: int, count: int) -> float:
    """Let one worker in this process consume so many messages; return how many it consumes in a second."""
    routes = [route(f"own{number}", empty_consumer) for number in range(channels)]
    worker = Worker(bare.layer, Routing(routes), only=["own*"])
    worker._register()
    start = time.perf_counter()
    while worker.consumed < count and worker.run_once():
        pass
    spent = time.perf_counter() - start
    worker.link.unregister(worker.name)
    worker.link.close()
    return worker.consumed / spent


def fill(bare: Bare, channels: int, count: int) -> None:
    bare.empty()
    for start in range(0, count, 100):
        numbers = range(start, start + 100)
        bare.layer.send_many([(f"own{number % channels}", MESSAGE) for number in numbers])


def draining(bare: Bare, count: int) -> Iterator[Figure]:
    for channels in (1, 100):

        def ours(channels: int = channels) -> float:
            fill(bare, channels, count)
            return drained(bare, channels, count)

        def plain() -> float:
            fill(bare, 1, count)
            return bare.drain(count)

        yield compare(
            f"drain, 1 worker, {channels} channel{'s' * (channels > 1)}", ours, plain, ">= 0.33", rounds=3
        )


def draining_much(bare: Bare) -> Iterator[Figure]:
    """Compare a million waiting messages with a few, for the same worker: two tables take turns under one name."""
    columns, _ = ROWS[DURABLE]
    for channels in (1, 100):
        bare.empty()
        with another_table(bare, DURABLE) as swap:
            bare.run(
                f"INSERT INTO {DURABLE} ({columns}) SELECT 'own' || (CASE WHEN mod(g, 2) = 0 THEN mod(g, {channels}) "
                "ELSE mod(g, 10000) END), %(payload)s, 0, '', 0, false, statement_timestamp() "
                f"FROM generate_series(1, 1000000) AS g; ANALYZE {DURABLE}",
                {"payload": PAYLOAD},
            )

            def few(channels: int = channels, swap: Callable[[], object] = swap) -> float:
                swap()
                fill(bare, channels, 3_000)
                found = drained(bare, channels, 3_000)
                swap()
                return found

            name = f"the same with 1,000,000 waiting on 10,000 channels, {channels} read"
            yield compare(name, partial(drained, bare, channels, 3_000), few, ">= 0.77")


@contextmanager
def another_table(bare: Bare, table: str) -> Iterator[Callable[[], object]]:
    """Yield a function that swaps the table with an empty one like it; after the block only the first one is left."""
    ((settings,),) = bare.run(
        f"SELECT array_to_string(reloptions, ', ') FROM pg_class WHERE relname = '{table}'"
    )
    bare.run(f"CREATE TABLE other (LIKE {table} INCLUDING ALL) WITH ({settings})")
    names = (
        "ALTER TABLE {0} RENAME TO aside; ALTER TABLE other RENAME TO {0}; ALTER TABLE aside RENAME TO other"
    )
    try:
        yield lambda: bare.run(names.format(table))
    finally:
        bare.run("DROP TABLE other")


def broadcasting(bare: Bare) -> Iterator[Figure]:
    """Measure broadcasts to groups of one live server, without changes and with one change of a member before each."""
    layer = bare.layer
    link = layer.link("benchmark", listen=False)
    link.register("benchmark", Process.SERVER, "reply.benchmark!")
    for size in (10, 100, 1_000, 10_000):
        layer.group_clear("benchmark")
        link.apply([GroupAdd("benchmark", f"reply.benchmark!{number:022}") for number in range(size)])
        link.clean_up()  # as the server does every few seconds
        bare.run("ANALYZE dbchannels_membership, dbchannels_tally")
        for kind, send in (
            ("", lambda: layer.send_group("benchmark", MESSAGE)),
            (", one changes", changing(bare)),
        ):
            yield compare(
                f"send to a group of {size:,} on one server{kind}",
                after(bare.empty, lambda send=send: rate(send)),
                after(bare.empty, lambda: rate(bare.insert(PROTOCOL, 1))),
                ">= 0.33" if size == 1_000 and not kind else "",
            )
        link.renew("benchmark")
    layer.group_clear("benchmark")
    link.unregister("benchmark")
    link.close()


def changing(bare: Bare) -> Callable[[], object]:
    """Return a broadcast that first renames one member: one statement in place of a discard and an add."""
    ((changed,),) = bare.run("SELECT min(id) FROM dbchannels_membership WHERE \"group\" = 'benchmark'")
    numbers = itertools.count()

    def send() -> None:
        bare.run(
            "UPDATE dbchannels_membership SET recipient = %(recipient)s WHERE id = %(id)s",
            {"recipient": f"x{next(numbers):021}", "id": changed},
        )
        bare.layer.send_group("benchmark", MESSAGE)

    return send


def waking(bare: Bare, count: int) -> Figure:
    """Measure how long a message takes to an idle reader in another process, in microseconds."""
    return compare(
        "wake an idle reader, p50 until it has the message",
        after(bare.empty, lambda: median_wake("ours", count, lambda: bare.layer.send("own0", MESSAGE))),
        after(bare.empty, lambda: median_wake("bare", count, bare.insert(DURABLE, 1))),
        "<= 1.3",
        unit="us",
        rounds=3,
    )


def median_wake(kind: str, count: int, send: Callable[[], object]) -> float:
    spent = []
    with reader(kind) as line:
        for _ in range(count):
            assert line().strip() == READY
            time.sleep(0.002)  # until it waits
            start = time.monotonic_ns()
            send()
            spent.append((int(line()) - start) / 1000)
    return statistics.median(spent)
