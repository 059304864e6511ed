"""The checks of ``channels_doctor`` of the layer's database."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import closing

from django.db import DatabaseError, connections
from django.db.migrations.executor import MigrationExecutor

from dbchannels.exceptions import DBChannelsError
from dbchannels.layers.postgresql import PostgreSQLLayer, sql
from dbchannels.layers.postgresql.session import session_name
from dbchannels.management.doctor.patient import NOTE, OK, WRONG, Finding, Patient
from dbchannels.management.output import ago, counted, short

ROUND_TRIPS = 5
ARRIVES = 0.5  # seconds in which a notification must arrive; 0.3 ms is usual
SLOW_WAKEUP = 0.05  # seconds
CLOCKS_APART = 2.0  # seconds
OPEN_TRANSACTION = 600.0  # seconds
QUEUE_FILLS = 0.05  # of the queue of notifications
BUSY_SESSIONS = 0.8  # of those that the server takes
DEAD_ROWS = 50_000  # of one table, if they are more than its live ones


def database(patient: Patient) -> Iterator[Finding]:
    """Whether the database answers, and can be written to."""
    layer, connection = patient.layer, connections[patient.layer.database]
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        where = layer.describe()
    except (DatabaseError, DBChannelsError) as error:
        reason = str(error).strip().partition("\n")[0]
        yield Finding(
            WRONG,
            f"The database {layer.database!r} does not answer ({reason}): start it, or correct DATABASES.",
        )
        return
    patient.reachable = True
    yield Finding(OK, f"The database answers: {where}.")
    if patient.on_postgresql:
        ((standby, read_only),) = patient.rows(
            "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'"
        )
        if standby:
            yield Finding(
                WRONG,
                "The database is a standby, which nobody can write to: let HOST name the primary, or several hosts "
                "with target_session_attrs=read-write in OPTIONS.",
            )
        elif read_only:
            yield Finding(
                WRONG,
                "Transactions are read-only by a setting of the database or the role: "
                "ALTER DATABASE ... RESET default_transaction_read_only, or ALTER ROLE likewise.",
            )


def migrations(patient: Patient) -> Iterator[Finding]:
    """Whether the tables are those of this code."""
    executor = MigrationExecutor(connections[patient.layer.database])
    loader = executor.loader
    known = {name for app, name in loader.disk_migrations if app == "dbchannels"}
    applied = {name for app, name in loader.applied_migrations if app == "dbchannels"}
    missing, newer = sorted(known - applied), sorted(applied - known)
    alias = patient.layer.database
    if missing:
        yield Finding(
            WRONG,
            f"The database lacks {counted(len(missing), 'migration')} of dbchannels: run 'manage.py migrate --database "
            f"{alias}'.",
        )
    elif newer:
        yield Finding(
            NOTE,
            f"The database has a newer migration than this code, {newer[-1]}: that is right while a deploy goes on; "
            "otherwise install the newer version.",
        )
    else:
        yield Finding(OK, f"All {counted(len(known), 'migration')} of dbchannels are applied.")
    patient.migrated = not missing


def wakeups(patient: Patient) -> Iterator[Finding]:
    """Whether readers are woken, and how fast."""
    layer = patient.layer
    if not layer.options["wakeups"]:
        yield Finding(
            NOTE, f"Wakeups are off (OPTIONS['wakeups']): readers poll every {layer.poll_interval():g} s."
        )
    elif not isinstance(layer, PostgreSQLLayer):
        if layer.wakeups:
            yield Finding(OK, "Readers are woken by datagrams.")
        else:
            yield Finding(NOTE, f"Readers are not woken: {layer.describe()}.")
    else:
        with closing(layer.session(session_name("doctor"))) as session:
            pooled = layer.behind_pooler(session)
        if not pooled:
            yield round_trip(layer)
            return
        yield Finding(
            WRONG,
            "A pooler in transaction mode stands between: no wakeup arrives. Let the layer bypass it by "
            f"DBCHANNELS[{layer.alias!r}]['OPTIONS']['direct'] = {{'HOST': ..., 'PORT': ...}}.",
        )


def round_trip(layer: PostgreSQLLayer) -> Finding:
    """Measure how long a notification takes from one session to another."""
    took = []
    with closing(layer.session(session_name("doctor"), listen=True)) as reader:
        reader.wait(0.0)  # from now on it listens
        with closing(layer.session(session_name("doctor"))) as sender:
            for number in range(ROUND_TRIPS):
                token, started = f"doctor {number} {time.time_ns()}", time.monotonic()
                sender.execute([(sql.WAKE, {"wake": [token]})])
                while token not in reader.wait(max(0.0, ARRIVES - (time.monotonic() - started))):
                    if time.monotonic() - started >= ARRIVES:
                        return Finding(
                            WRONG,
                            "No notification arrives, so messages wait for the next poll: see that nothing replaces "
                            "pg_notify, and that the queue of notifications is not full.",
                        )
                took.append(time.monotonic() - started)
    median = statistics.median(took)
    if median > SLOW_WAKEUP:
        return Finding(
            NOTE,
            f"A notification takes {median * 1000:.1f} ms, where 1 ms is usual: the machines are busy or far apart.",
        )
    return Finding(OK, f"A notification takes {median * 1000:.1f} ms (median of {len(took)}).")


def clock(patient: Patient) -> Iterator[Finding]:
    """Compare this host's clock with the database's."""
    before = time.time()
    ((theirs,),) = patient.rows("SELECT extract(epoch FROM clock_timestamp())::float")
    after = time.time()
    apart = theirs - (before + after) / 2
    if abs(apart) - (after - before) > CLOCKS_APART:
        yield Finding(
            WRONG,
            f"The clock of this host is {short(abs(apart))} {'behind' if apart > 0 else 'ahead of'} the database's: "
            "let NTP set both (timedatectl set-ntp true).",
        )
    else:
        yield Finding(OK, "The clocks of this host and of the database agree.")


def server_sessions(patient: Patient) -> Iterator[Finding]:
    """Compare the sessions with what the server takes."""
    ((ours, taken, most, kept),) = patient.rows(
        """
        SELECT count(*) FILTER (WHERE application_name LIKE 'dbchannels%%'), count(*),
               current_setting('max_connections')::int,
               current_setting('superuser_reserved_connections')::int
               + coalesce(current_setting('reserved_connections', true), '0')::int
        FROM pg_stat_activity WHERE backend_type = 'client backend'
        """,
        (),
    )
    text = f"{taken:,} of {most - kept:,} sessions are open, {ours:,} of them the layer's own"
    if taken > BUSY_SESSIONS * (most - kept):
        yield Finding(
            WRONG, f"{text}: raise max_connections, or start fewer workers; CONN_MAX_AGE keeps one for each."
        )
    else:
        yield Finding(OK, f"{text} ({kept:,} more are reserved).")


def autovacuum(patient: Patient) -> Iterator[Finding]:
    """Whether dead rows are removed."""
    ((runs, counts_rows),) = patient.rows(
        "SELECT current_setting('autovacuum'), current_setting('track_counts')"
    )
    if "off" in (runs, counts_rows):
        yield Finding(
            WRONG,
            "autovacuum is off, so the tables of the channels grow without end: turn it and track_counts on.",
        )
        return
    off = patient.rows(
        """
        SELECT relname FROM pg_class WHERE relname LIKE 'dbchannels\\_%%' AND relkind = 'r' AND pg_table_is_visible(oid)
               AND EXISTS (SELECT FROM unnest(reloptions) AS one WHERE one ~* 'autovacuum_enabled=(off|false|no|0)$')
        ORDER BY 1
        """,
        (),
    )
    for (table,) in off:
        yield Finding(
            WRONG, f"autovacuum is off for {table}: run ALTER TABLE {table} RESET (autovacuum_enabled)."
        )
    if not off:
        yield Finding(OK, "autovacuum is on, for all tables of the channels.")


def dead_rows(patient: Patient) -> Iterator[Finding]:
    """Whether the tables have more dead rows than live ones."""
    rows = patient.rows(
        """
        SELECT relname, n_dead_tup, n_live_tup, greatest(last_vacuum, last_autovacuum) FROM pg_stat_user_tables
        WHERE relname LIKE 'dbchannels\\_%%' ORDER BY n_dead_tup DESC
        """,
        (),
    )
    bad = [row for row in rows if row[1] > DEAD_ROWS and row[1] > row[2]]
    for table, dead, _, last in bad:
        vacuumed = ago(last) if last else "never"
        yield Finding(
            WRONG,
            f"{table} has {dead:,} dead rows, and was vacuumed {vacuumed}: an old transaction or a replication slot "
            f"may keep them; run VACUUM {table}.",
        )
    if not bad:
        yield Finding(
            OK, f"The tables of the channels have {counted(sum(row[1] for row in rows), 'dead row')}."
        )


def transactions(patient: Patient) -> Iterator[Finding]:
    """Look for what keeps dead rows, and what fills the queue of notifications."""
    ((usage,),) = patient.rows("SELECT pg_notification_queue_usage()")
    if usage > QUEUE_FILLS:
        yield Finding(
            WRONG,
            f"The queue of notifications is {usage:.0%} full: a session that listens stays in a transaction. End it "
            "with pg_terminate_backend.",
        )
    rows = patient.rows(
        """
        SELECT pid, coalesce(application_name, ''), coalesce(state, ''),
               extract(epoch FROM clock_timestamp() - xact_start)::float
        FROM pg_stat_activity WHERE xact_start < clock_timestamp() - %s * interval '1 second'
              AND backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 1
        """,
        [OPEN_TRANSACTION],
    )
    for pid, name, state, seconds in rows:
        yield Finding(
            WRONG,
            f"A transaction is open for {short(seconds)} (pid {pid}, {name or 'no name'}, {state or 'hidden'}): while "
            f"it lasts, no dead row is removed. SELECT pg_terminate_backend({pid}) ends it.",
        )
    if not rows and usage <= QUEUE_FILLS:
        yield Finding(OK, "No transaction is old, and the queue of notifications is empty enough.")
