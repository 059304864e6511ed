"""The state of every channel and process, as the admin and the commands show it.

The number of queries does not depend on what waits. On PostgreSQL each count stops at MOST and reads an index, so that
a million waiting messages cost as much as ten thousand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import BooleanField, Count, ExpressionWrapper, Min, Q, Value
from django.db.models.functions import Coalesce
from django.utils import timezone

from dbchannels import names
from dbchannels.layers.operations import read_work
from dbchannels.layers.orm import DjangoLayer
from dbchannels.models import ChannelState, DeadLetter, DurableMessage, InFlight, Process, ProtocolMessage

MOST = 10_000  # messages of one kind on one channel that are counted
MOST_CHANNELS = 10_000  # channels of one table that are looked at: about a quarter of a second

MANY = f"More than {MOST_CHANNELS:,} channels have messages: those that come last by name are missing."

READY, DELAYED, RUNNING, DEAD = "ready", "delayed", "running", "dead"
DUE = "due"  # delayed messages that have become due, and that no worker has seen yet: they are ready
QUEUED = "queued"  # protocol messages: they are ready too


@dataclass
class ChannelStatus:
    """What is known of one channel.

    ``channel`` is a name. Reply channels and single-reader channels are counted together: as ``reply.*!``, for example.
    """

    channel: str
    ready: int = 0  # messages that could be taken now
    delayed: int = 0
    running: int = 0  # messages that a worker has taken and not finished
    dead: int = 0  # dead letters
    oldest: float | None = None  # seconds that the oldest ready message has waited
    pause: ChannelState | None = None
    workers: list[str] = field(default_factory=list)  # the names of live workers that take it
    more: set[str] = field(default_factory=set)  # the counts, by name, that may be greater than they say

    @property
    def durable(self) -> bool:
        """Whether it is one of the site's own channels, which can be paused and has dead letters."""
        return not names.is_protocol(self.channel)

    @property
    def read_by_servers(self) -> bool:
        """Whether it stands for channels that one process reads, most often a server."""
        return self.channel.endswith(("!", "?*"))

    @property
    def unattended(self) -> bool:
        """Whether messages of this channel are ready, or will be, and no live worker takes it."""
        return bool(self.ready or self.delayed) and not self.workers and not self.read_by_servers


class ProcessStatus(NamedTuple):
    """A server, a worker, or a process with Channels on record."""

    name: str
    kind: str  # Process.SERVER, Process.WORKER or Process.CHANNELS
    host: str
    pid: int
    started_at: datetime
    alive: bool  # its lease has not expired
    reads: int  # the newest format of messages that it can read
    takes: list[str]  # of a worker: the channels that it reads
    work: dict[str, Any]  # all that a worker has recorded of its work


class Overview(NamedTuple):
    """The channels, by name, and the processes, servers first."""

    channels: list[ChannelStatus]
    processes: list[ProcessStatus]
    note: str = ""  # a sentence, if there are more channels than were looked at


def overview(layer: DjangoLayer, most: int = MOST) -> Overview:
    """Return the state of each channel that has messages, dead letters or live workers, or is paused.

    It makes at most five queries. On PostgreSQL a count of ready or delayed messages, or of dead letters, stops at
    ``most``; see ``ChannelStatus.more``.
    """
    found: dict[str, ChannelStatus] = {}

    def status(channel: str) -> ChannelStatus:
        return found.setdefault(name := folded(channel), ChannelStatus(name))

    bounded = connections[layer.database].vendor == "postgresql"
    soonest, seen = 0, Counter[str]()
    for kind, channel, number, waited in (_counted_by_sql if bounded else _counted_by_orm)(layer, most):
        one, name = status(channel), READY if kind == DUE else kind
        setattr(one, name, getattr(one, name) + number)
        if waited is not None:
            one.oldest = max(one.oldest or 0.0, waited)
        if bounded and number >= most:
            one.more.add(name)
        soonest += number if kind in (DUE, DELAYED) else 0
        seen[kind] += 1
    if bounded and soonest >= most:  # they are counted over all channels, in the order of time
        for one in found.values():
            one.more.add(DELAYED)
    for channel, row in layer.paused().items():
        status(channel).pause = row
    processes = process_list(layer)
    for process in processes:
        for channel in process.takes if process.alive else ():
            status(channel).workers.append(process.name)
    note = MANY if bounded and max(seen.values(), default=0) >= MOST_CHANNELS else ""
    return Overview(sorted(found.values(), key=lambda one: one.channel), processes, note)


def process_list(layer: DjangoLayer) -> list[ProcessStatus]:
    """Return all processes on record, servers first, in one query."""
    alive = ExpressionWrapper(Q(lease_until__gte=layer.now()), output_field=BooleanField())
    rows = layer.rows(Process).annotate(alive=alive).order_by("kind", "host", "name")
    found = []
    for row in rows:
        work = read_work(row.work)
        found.append(
            ProcessStatus(
                *(row.name, row.kind, row.host, row.pid, row.started_at),
                *(row.alive, row.reads, work["takes"], work),
            )
        )
    return found


def folded(channel: str) -> str:
    """Return the name under which a channel is counted, such as ``reply.*!`` or ``http.flow?*``."""
    if "!" in channel:
        return f"{channel.partition('!')[0].rpartition('.')[0]}.*!".removeprefix(".")
    head, mark, _ = channel.partition("?")
    return f"{head}?*" if mark else channel


Counted = tuple[
    str, str, int, float | None
]  # the kind, the channel, the number, and the seconds of the oldest

# PostgreSQL.
#
# The channels of a table are found by a loose index scan: one look into the index for each (https://wiki.postgresql.org/
# wiki/Loose_indexscan). Ready messages are in an index by channel, priority and id, so the scan goes from priority to
# priority. Ranges in place of "=" leave the planner only that index for the order, whatever its statistics say. The
# oldest message of a priority is among the first of it: delayed ones that have become due may have a lower id.
# Casts as in ``postgresql.sql``: nothing that another role plants fits better.

_DURABLE = "dbchannels_durablemessage"
_AGE = "greatest(0, extract(epoch FROM statement_timestamp() - {0}))::float"
_WAITS = "claimed_by IS NULL AND due_at IS NULL"
_OF_PAIR = f"""{_WAITS} AND channel::text >= pair.channel AND channel::text <= pair.channel
           AND priority >= pair.priority AND priority <= pair.priority"""


def _channels_of(name: str, table: str) -> str:
    """Return a common table expression with the distinct channels of a table that has an index by channel and id."""
    return f"""
{name} AS (
    (SELECT channel::text AS channel, 1 AS depth FROM {table} ORDER BY channel LIMIT 1)
    UNION ALL
    SELECT following.channel, depth + 1 FROM {name} CROSS JOIN LATERAL (
        SELECT channel::text AS channel FROM {table} AS one WHERE one.channel::text > {name}.channel
        ORDER BY one.channel LIMIT 1
    ) AS following WHERE depth < %(channels)s
)"""


STATES = f"""
WITH RECURSIVE pair AS (
    (SELECT channel::text AS channel, priority, 1 AS depth FROM {_DURABLE}
     WHERE {_WAITS} ORDER BY {_DURABLE}.channel, priority DESC LIMIT 1)
    UNION ALL
    SELECT following.channel, following.priority, depth + 1 FROM pair CROSS JOIN LATERAL (
        (SELECT channel::text AS channel, priority FROM {_DURABLE} AS one
         WHERE {_WAITS} AND one.channel::text >= pair.channel AND one.channel::text <= pair.channel
               AND one.priority < pair.priority ORDER BY one.channel, one.priority DESC LIMIT 1)
        UNION ALL
        (SELECT channel::text AS channel, priority FROM {_DURABLE} AS one
         WHERE {_WAITS} AND one.channel::text > pair.channel ORDER BY one.channel, one.priority DESC LIMIT 1)
        ORDER BY channel, priority DESC LIMIT 1
    ) AS following WHERE depth < %(channels)s
), {_channels_of("queue", "dbchannels_protocolmessage")}, {_channels_of("grave", "dbchannels_deadletter")},
soonest AS MATERIALIZED (
    SELECT channel::text AS channel, due_at, due_at <= statement_timestamp() AS is_due FROM {_DURABLE}
    WHERE due_at IS NOT NULL ORDER BY due_at LIMIT %(most)s
)
SELECT '{READY}', pair.channel, counted.number, oldest.waited
FROM pair CROSS JOIN LATERAL (
    SELECT count(*) AS number FROM (
        SELECT FROM {_DURABLE} WHERE {_OF_PAIR} ORDER BY channel, priority DESC, id LIMIT %(most)s
    ) AS rows
) AS counted CROSS JOIN LATERAL (
    SELECT {_AGE.format("pg_catalog.min(since)")} AS waited FROM (
        SELECT coalesce(ready_at, sent_at) AS since FROM {_DURABLE} WHERE {_OF_PAIR}
        ORDER BY channel, priority DESC, id LIMIT 100
    ) AS first
) AS oldest
UNION ALL
SELECT CASE WHEN is_due THEN '{DUE}' ELSE '{DELAYED}' END, channel, count(*),
       CASE WHEN is_due THEN {_AGE.format("pg_catalog.min(due_at)")} END
FROM soonest GROUP BY channel, is_due
UNION ALL
SELECT '{RUNNING}', channel::text, count(*), NULL
FROM (
    SELECT channel FROM {_DURABLE} WHERE claimed_by IS NOT NULL ORDER BY claimed_by, channel LIMIT %(most)s
) AS claimed GROUP BY channel::text
UNION ALL
SELECT '{RUNNING}', pg_catalog.split_part(line, ' ', 1), count(*), NULL
FROM dbchannels_inflight CROSS JOIN LATERAL pg_catalog.regexp_split_to_table(messages, E'\\n') AS line
WHERE messages <> ''::text GROUP BY 2
UNION ALL
SELECT '{READY}', queue.channel, counted.number, oldest.waited
FROM queue CROSS JOIN LATERAL (
    SELECT count(*) AS number FROM (
        SELECT FROM dbchannels_protocolmessage
        WHERE channel::text >= queue.channel AND channel::text <= queue.channel
              AND expires_at > statement_timestamp() ORDER BY channel, id LIMIT %(most)s
    ) AS rows
) AS counted CROSS JOIN LATERAL (
    SELECT {_AGE.format("pg_catalog.min(sent_at)")} AS waited FROM (
        SELECT sent_at FROM dbchannels_protocolmessage
        WHERE channel::text >= queue.channel AND channel::text <= queue.channel
              AND expires_at > statement_timestamp() ORDER BY channel, id LIMIT 1
    ) AS first
) AS oldest
UNION ALL
SELECT '{DEAD}', grave.channel, counted.number, NULL
FROM grave CROSS JOIN LATERAL (
    SELECT count(*) AS number FROM (
        SELECT FROM dbchannels_deadletter
        WHERE channel::text >= grave.channel AND channel::text <= grave.channel
        ORDER BY channel, id LIMIT %(most)s
    ) AS rows
) AS counted
"""


def _counted_by_sql(layer: DjangoLayer, most: int) -> list[Counted]:
    with connections[layer.database].cursor() as cursor:
        cursor.execute(STATES, {"most": most, "channels": MOST_CHANNELS})
        return cursor.fetchall()  # type: ignore[no-any-return]


# Other databases, by the ORM: three queries, of which the first counts in the indexes.


def _counted_by_orm(layer: DjangoLayer, most: int) -> Iterator[Counted]:
    now, durable, protocol = timezone.now(), layer.rows(DurableMessage), layer.rows(ProtocolMessage)
    waiting = durable.filter(claimed_by=None)
    groups = {
        READY: waiting.filter(due_at=None),
        DUE: waiting.filter(due_at__lte=now),
        DELAYED: waiting.filter(due_at__gt=now),
        RUNNING: durable.filter(claimed_by__isnull=False),
        QUEUED: protocol.filter(expires_at__gt=now),
        DEAD: layer.rows(DeadLetter),
    }
    first, *others = [
        rows.order_by().values_list("channel", Value(kind), Count("id"), Min("id"))
        for kind, rows in groups.items()
    ]
    counted = list(first.union(*others, all=True))
    ids = {kind: [head for _, of, _, head in counted if of == kind] for kind in groups}
    since = {
        (queued, head): at
        for queued, head, at in durable.filter(id__in=[*ids[READY], *ids[DUE]])
        .values_list(Value(0), "id", Coalesce("ready_at", "due_at", "sent_at"))
        .union(protocol.filter(id__in=ids[QUEUED]).values_list(Value(1), "id", "sent_at"), all=True)
    }
    for channel, kind, number, head in counted:
        began = since.get((int(kind == QUEUED), head)) if kind in (READY, DUE, QUEUED) else None
        waited = max(0.0, (now - began).total_seconds()) if began else None
        yield READY if kind == QUEUED else kind, channel, number, waited
    in_flight = Counter(channel for row in layer.rows(InFlight) for channel, _ in row.lines())
    for channel, number in in_flight.items():
        yield RUNNING, channel, number, None
