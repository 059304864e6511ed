"""Every statement about durable channels, whole: send, claim, acknowledge, fail. See also ``sql``.

A delayed message has a ``due_at``, and readers do not see it; a claimed one has a ``claimed_by``. The token of a claim
is the worker's name and the number of the attempt.
"""

from __future__ import annotations

from dbchannels.layers.postgresql.sql import QUIET, ROOM
from dbchannels.layers.tasks import MOST_ERRORS

_INSERT_DURABLE = """
INSERT INTO dbchannels_durablemessage
    (channel, payload, priority, unique_key, attempts, alone, sent_at, due_at, task)
SELECT channel, payload, priority, unique_key, 0, false, statement_timestamp(),
       coalesce(due_at, CASE WHEN delay > 0::float THEN statement_timestamp() + delay * interval '1 second' END),
       nullif(task, ''::text)::uuid
FROM unnest(%(channels)s::text[], %(payloads)s::bytea[], %(priorities)s::int[], %(unique_keys)s::text[],
            %(delays)s::float[], %(due_ats)s::timestamptz[], %(tasks)s::text[]) WITH ORDINALITY
     AS message(channel, payload, priority, unique_key, delay, due_at, task, position)
"""
SEND_DURABLE = _INSERT_DURABLE
# The usual messages, due now and without a priority, need no other arrays.
SEND_DURABLE_NOW = """
INSERT INTO dbchannels_durablemessage (channel, payload, priority, unique_key, attempts, alone, sent_at)
SELECT channel, payload, 0, '', 0, false, statement_timestamp()
FROM unnest(%(channels)s::text[], %(payloads)s::bytea[]) AS message(channel, payload)
"""
SEND_DURABLE_ONE = """
INSERT INTO dbchannels_durablemessage (channel, payload, priority, unique_key, attempts, alone, sent_at)
VALUES (%s, %s, 0, '', 0, false, statement_timestamp())"""
SEND_TASK_ONE = """
INSERT INTO dbchannels_durablemessage (channel, payload, task, priority, unique_key, attempts, alone, sent_at)
VALUES (%s, %s, %s::uuid, 0, '', 0, false, statement_timestamp())"""
_ROOM_DURABLE = ROOM.format("dbchannels_durablemessage", "AND waiting.claimed_by IS NULL")
SEND_DURABLE_IF_ROOM = f"""
WITH {_ROOM_DURABLE}, sent AS (
    {_INSERT_DURABLE} WHERE channel IN (SELECT channel FROM room WHERE has_room) ORDER BY position
)
SELECT channel, waited, has_room FROM room
"""

# Not while a message with the key waits. That message is locked against a claim until this transaction ends, so that
# its consumer sees what the transaction wrote. Messages that are being claimed, or are not committed, are skipped, so
# that nobody waits; if two are sent at once, the claim takes both.
_SAME = """
same AS MATERIALIZED (
    SELECT FROM dbchannels_durablemessage AS other
    WHERE channel::text = (%(channels)s::text[])[1] AND unique_key::text = (%(unique_keys)s::text[])[1]
          AND unique_key::text <> ''::text AND claimed_by IS NULL
    LIMIT 1 FOR KEY SHARE SKIP LOCKED
)"""
SEND_UNIQUE = f"""
WITH {_SAME}
{_INSERT_DURABLE} WHERE NOT EXISTS (SELECT FROM same)
"""
SEND_UNIQUE_IF_ROOM = f"""
WITH {_ROOM_DURABLE}, {_SAME}, sent AS (
    {_INSERT_DURABLE} WHERE channel IN (SELECT channel FROM room WHERE has_room) AND NOT EXISTS (SELECT FROM same)
)
SELECT channel, waited, has_room FROM room
"""

# Messages that have become due are found by time, in an index of their own; from then on they wait like any other.
PROMOTE = """
UPDATE dbchannels_durablemessage SET due_at = NULL, ready_at = due_at
WHERE id = ANY(ARRAY(
    SELECT id FROM dbchannels_durablemessage WHERE due_at <= statement_timestamp()
    ORDER BY due_at LIMIT 1000 FOR UPDATE SKIP LOCKED
))
"""
# Seconds until the next delayed message is due; NULL if there is none.
NEXT_DUE = """
SELECT extract(epoch FROM (
    SELECT due_at FROM dbchannels_durablemessage WHERE due_at IS NOT NULL ORDER BY due_at LIMIT 1
) - statement_timestamp())::float
"""

# The table is read once for the statement, however many channels it names.
NOT_PAUSED = "queue.name <> ALL(ARRAY(SELECT channel::text FROM dbchannels_channelstate))"
# If several messages with one key wait, as after a release, the first is taken and the others are deleted, since they
# were sent before it runs. One that a sender's open transaction has locked stays for what that sender wrote.
_READY = f"""
ARRAY(
    SELECT oldest.id FROM unnest(%(queues)s::text[]) AS queue(name) CROSS JOIN LATERAL (
        SELECT id FROM dbchannels_durablemessage AS ready
        WHERE channel = queue.name AND claimed_by IS NULL AND due_at IS NULL AND (
            unique_key = '' OR NOT EXISTS (
                SELECT FROM dbchannels_durablemessage AS earlier
                WHERE earlier.channel = ready.channel AND earlier.unique_key = ready.unique_key
                      AND earlier.unique_key <> '' AND earlier.claimed_by IS NULL AND earlier.due_at IS NULL
                      AND earlier.id < ready.id
            )
        )
        ORDER BY priority DESC, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ) AS oldest WHERE {NOT_PAUSED} LIMIT %(limit)s
)
"""

_TAKEN_ALONG = """
taken_along AS (
    DELETE FROM dbchannels_durablemessage WHERE id = ANY(ARRAY(
        SELECT other.id FROM {0} AS first JOIN dbchannels_durablemessage AS other USING (channel, unique_key)
        WHERE first.unique_key <> '' AND other.unique_key <> '' AND other.claimed_by IS NULL AND other.id <> first.id
        FOR UPDATE OF other SKIP LOCKED
    ))
)"""

# `receive` takes messages of durable channels too, at most once.
RECEIVE_DURABLE = f"""
WITH popped AS (
    DELETE FROM dbchannels_durablemessage WHERE id = ANY({_READY}) RETURNING id, channel, payload, priority, unique_key
), {_TAKEN_ALONG.format("popped")}
SELECT channel, payload FROM popped ORDER BY priority DESC, id
"""

# The attempt is counted before the consumer runs, so that a message that kills its worker counts.
CLAIM = f"""
WITH claimed AS (
    UPDATE dbchannels_durablemessage
    SET claimed_by = %(worker)s, claimed_at = statement_timestamp(), attempts = attempts + 1
    WHERE id = ANY({_READY})
    RETURNING id, channel, payload, attempts, alone, priority, unique_key, cancelled_by, task IS NOT NULL AS is_task,
              extract(epoch FROM statement_timestamp() - coalesce(ready_at, sent_at))::float AS waited
), {_TAKEN_ALONG.format("claimed")}
SELECT id, channel, payload, attempts, alone, waited, cancelled_by, is_task FROM claimed ORDER BY priority DESC, id
"""

# For channels whose consumers set `concurrency`: a worker claims only while fewer others have claimed, as each worker
# runs its messages one after the other. The lock lasts for this round trip, and each statement sees what was committed
# when it began, so two workers cannot both count before either claims
# (https://www.postgresql.org/docs/current/transaction-iso.html).
LOCK_LIMITED = """
SELECT pg_advisory_xact_lock(number) FROM (
    SELECT hashtextextended('dbchannels ' || queue.name, 0) AS number
    FROM unnest(%(queues)s::text[], %(at_most)s::int[]) AS queue(name, at_most) CROSS JOIN LATERAL (
        SELECT FROM dbchannels_durablemessage
        WHERE channel = queue.name AND claimed_by IS NULL AND due_at IS NULL LIMIT 1
    ) AS first
    WHERE at_most IS NOT NULL
    ORDER BY number
) AS busy
"""
_READY_LIMITED = _READY.replace(
    "unnest(%(queues)s::text[]) AS queue(name)",
    "unnest(%(queues)s::text[], %(at_most)s::int[]) AS queue(name, at_most)",
).replace(
    "ORDER BY priority DESC, id LIMIT %(limit)s FOR UPDATE",
    """ORDER BY priority DESC, id LIMIT CASE WHEN queue.at_most IS NULL OR (
            SELECT count(DISTINCT claimed_by) FROM dbchannels_durablemessage AS claimed
            WHERE claimed.channel = queue.name AND claimed.claimed_by IS NOT NULL AND claimed.claimed_by <> %(worker)s
        ) < queue.at_most THEN %(limit)s ELSE 0 END FOR UPDATE""",
)
CLAIM_LIMITED = CLAIM.replace(_READY, _READY_LIMITED)

ACKNOWLEDGE = """
DELETE FROM dbchannels_durablemessage AS message
USING unnest(%(ids)s::bigint[], %(attempts)s::int[]) AS done(id, attempt)
WHERE message.id = done.id AND message.attempts = done.attempt
      AND message.claimed_by::text = %(worker)s::text
"""

# Who cancelled a message while its worker runs it; '' if nobody did.
CANCELLED_BY = """
SELECT cancelled_by FROM dbchannels_durablemessage
WHERE id = %(id)s AND attempts = %(attempt)s AND claimed_by::text = %(worker)s::text
"""

# Whether a process whose lease is over has claimed something.
OVERDUE_CLAIM = """
SELECT true FROM dbchannels_durablemessage AS message JOIN dbchannels_process AS process ON process.name = claimed_by
WHERE process.lease_until < statement_timestamp() AND channel::text = ANY(%(queues)s::text[]) LIMIT 1
"""

RELEASE = """
UPDATE dbchannels_durablemessage AS message SET claimed_by = NULL, attempts = attempts - 1
FROM unnest(%(ids)s::bigint[], %(attempts)s::int[]) AS unstarted(id, attempt)
WHERE message.id = unstarted.id AND message.attempts = unstarted.attempt AND message.claimed_by = %(worker)s
"""

# A worker that claims has finished what it claimed before: what else has its name was claimed without an answer.
RELEASE_ALL = """
UPDATE dbchannels_durablemessage SET claimed_by = NULL, attempts = attempts - 1 WHERE claimed_by = %(worker)s
"""

RETRY = """
UPDATE dbchannels_durablemessage AS message
SET claimed_by = NULL, attempts = tries, due_at = statement_timestamp() + failed.seconds * interval '1 second'
FROM unnest(%(ids)s::bigint[], %(attempts)s::int[], %(seconds)s::float[], %(tries)s::int[])
     AS failed(id, attempt, seconds, tries)
WHERE message.id = failed.id AND message.attempts = failed.attempt AND message.claimed_by = %(worker)s
"""

GIVE_UP = """
WITH dead AS (
    DELETE FROM dbchannels_durablemessage AS message
    USING unnest(%(ids)s::bigint[], %(attempts)s::int[], %(errors)s::text[], %(tries)s::int[])
          AS failed(id, attempt, error, tries)
    WHERE message.id = failed.id AND message.attempts = failed.attempt AND message.claimed_by = %(worker)s
    RETURNING channel, payload, tries, sent_at, error, task
)
INSERT INTO dbchannels_deadletter (channel, payload, attempts, sent_at, failed_at, error, task)
SELECT channel, payload, tries, sent_at, statement_timestamp(), error, task FROM dead
"""

# Return what a dead worker had claimed. A batch does not tell which message killed the worker, so no attempt is counted
# and each message is claimed alone from now on. A message that was alone, or the only one, keeps its attempt.
UNCLAIM = """
WITH claims AS MATERIALIZED (
    SELECT id, count(*) OVER () AS number FROM dbchannels_durablemessage WHERE claimed_by = %(name)s
)
UPDATE dbchannels_durablemessage AS message
SET claimed_by = NULL, alone = true,
    attempts = CASE WHEN alone OR claims.number = 1 THEN attempts ELSE attempts - 1 END
FROM claims WHERE message.id = claims.id AND message.claimed_by = %(name)s
"""

# Tasks. What has come of them is kept by one statement for all that have succeeded, which ends their claims too, and by
# one for all that have failed, before their claims end. The row is there if an earlier attempt has failed.
_KEEP = f"""
INSERT INTO dbchannels_taskresult AS kept
    (id, channel, payload, priority, status, enqueued_at, started_at, last_attempted_at, finished_at, expires_at,
     worker_ids, errors, return_value)
SELECT task, channel, payload, priority, status, sent_at, claimed_at, claimed_at,
       CASE WHEN status <> 'READY'::text THEN statement_timestamp() END,
       statement_timestamp() + (seconds + %(result_ttl)s::float) * interval '1 second', worker_ids, error, return_value
FROM ended
ON CONFLICT (id) DO UPDATE SET
    status = excluded.status, priority = excluded.priority,
    started_at = coalesce(kept.started_at, excluded.started_at),
    last_attempted_at = coalesce(excluded.last_attempted_at, kept.last_attempted_at),
    finished_at = excluded.finished_at, expires_at = excluded.expires_at, return_value = excluded.return_value,
    worker_ids = kept.worker_ids || excluded.worker_ids,
    errors = pg_catalog.right(kept.errors, {MOST_ERRORS}) || excluded.errors
"""
_ENDED = "task, channel, payload, priority, sent_at, claimed_at"
ACKNOWLEDGE_TASKS = f"""
WITH ended AS (
    DELETE FROM dbchannels_durablemessage AS message
    USING unnest(%(ids)s::bigint[], %(attempts)s::int[], %(return_values)s::text[])
          AS done(id, attempt, return_value)
    WHERE message.id = done.id AND message.attempts = done.attempt
          AND message.claimed_by::text = %(worker)s::text
    RETURNING {_ENDED}, 'SUCCESSFUL'::text AS status, 0::float AS seconds, %(worker)s::text || ' '::text AS worker_ids,
              ''::text AS error, return_value
) {_KEEP}"""
FAIL_TASKS = f"""
WITH ended AS (
    SELECT {_ENDED}, status, seconds, worker_ids, error, ''::text AS return_value
    FROM dbchannels_durablemessage AS message
    JOIN unnest(%(ids)s::bigint[], %(attempts)s::int[], %(statuses)s::text[], %(seconds)s::float[],
                %(worker_ids)s::text[], %(errors)s::text[]) AS failed(id, attempt, status, seconds, worker_ids, error)
         ON message.id = failed.id AND message.attempts = failed.attempt
    WHERE message.claimed_by::text = %(worker)s::text FOR UPDATE OF message
) {_KEEP}"""
# Of the tasks that a dead worker had claimed, those whose attempts count, see UNCLAIM.
KEEP_KILLED = f"""
WITH claims AS MATERIALIZED (
    SELECT *, count(*) OVER () AS number FROM dbchannels_durablemessage WHERE claimed_by::text = %(name)s::text
), ended AS (
    SELECT {_ENDED}, 'READY'::text AS status, 0::float AS seconds, %(name)s::text || ' '::text AS worker_ids,
           ''::text AS error, ''::text AS return_value
    FROM claims WHERE task IS NOT NULL AND (alone OR number = 1::bigint)
) {_KEEP}"""
EXPIRE_RESULTS = """
WITH expired AS (
    DELETE FROM dbchannels_taskresult WHERE id = ANY(ARRAY(
        SELECT id FROM dbchannels_taskresult WHERE expires_at < statement_timestamp()
        ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    )) RETURNING 1
)
SELECT count(*) FROM expired
"""

# Periodic messages. The time is NULL if the message is not on record yet.
NEXT_TIME = """
SELECT (SELECT next_at FROM dbchannels_schedule WHERE channel = %(channel)s AND every = %(every)s),
       statement_timestamp()
"""
FIRST_TIME = """
INSERT INTO dbchannels_schedule (channel, every, next_at, seen_at)
VALUES (%(channel)s, %(every)s, %(following)s, statement_timestamp())
ON CONFLICT (channel, every) DO NOTHING RETURNING id
"""
MOVE_TIME = """
UPDATE dbchannels_schedule SET next_at = %(following)s, sent_at = statement_timestamp()
WHERE channel = %(channel)s AND every = %(every)s AND next_at = %(due)s RETURNING id
"""
# Rows that another worker is updating are left to it.
KEEP_TIMES = """
WITH kept AS (
    UPDATE dbchannels_schedule SET seen_at = statement_timestamp() WHERE id = ANY(ARRAY(
        SELECT schedule.id FROM dbchannels_schedule AS schedule
        JOIN unnest(%(channels)s::text[], %(everys)s::text[]) AS own(channel, every) USING (channel, every)
        FOR UPDATE OF schedule SKIP LOCKED
    ))
)
SELECT statement_timestamp()
"""
DROP_TIMES = "DELETE FROM dbchannels_schedule WHERE seen_at < %(before)s"

DEAD_LETTER_IDS = """
SELECT id FROM dbchannels_deadletter
WHERE pg_catalog.cardinality(%(channels)s::text[]) = 0 OR channel::text = ANY(%(channels)s::text[]) ORDER BY id
"""

# Deletes the dead letters and sends them again; those that another replay has locked are skipped.
REPLAY = f"""
WITH again AS (
    DELETE FROM dbchannels_deadletter WHERE id = ANY(ARRAY(
        SELECT id FROM dbchannels_deadletter WHERE id = ANY(%(ids)s::bigint[]) ORDER BY id FOR UPDATE SKIP LOCKED
    ))
    RETURNING id, channel, payload, task
), sent AS (
    INSERT INTO dbchannels_durablemessage (channel, payload, priority, unique_key, attempts, alone, sent_at, task)
    SELECT coalesce(nullif(%(to)s::text, ''::text), channel::text), payload, 0, '', 0, false, statement_timestamp(),
           task
    FROM again ORDER BY id
    RETURNING 1
), counted AS (SELECT count(*) AS number FROM sent)
SELECT number, CASE WHEN %(wakes)s AND number > 0 AND {QUIET} THEN pg_catalog.pg_notify('dbchannels', 'd') END
FROM counted
"""
